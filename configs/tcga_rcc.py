"""LRMIL on TCGA-RCC: clear cell, papillary or chromophobe renal cell carcinoma.

Classes: CCRCC, CHRCC, PRCC.
Slides:  diagnostic slides (DX) of TCGA-KIRC, -KICH and -KIRP, from the GDC portal.
CSV:     slide_id,patient_id,label[,path][,mpp][,fold_1..fold_k]; label is one of the class names.
         The LRMIL authors' shape (P_ID, a task column numbering the classes, fold_k) is read too:
         set --config.data.label_column to the task column's name.
Geometry: HR 20x = 0.5 um/px, LR 5x = 2.0 um/px, patches of 256 px: 16 HR patches per LR patch.
Figures: none are quoted, since none were measured here.

Run:   python -m lrmil_jax.main --config configs/tcga_rcc.py --workdir DIR
         --config.data.labels=LABELS.csv --config.data.slides=FOLDER
         --config.encoder.name=vit-b16 --config.encoder.weights=FILE.safetensors
Check: the same with --stages check, before the long run.
Smoke: python -m lrmil_jax.main --config configs/tcga_rcc.py:tiny --workdir DIR
"""

from lrmil_jax import config as configuration


def get_config(arg: str | None = None):
    """Subtyping of kidney cancer, three classes."""
    config = configuration.default()
    config.folds = 5
    config.data.classes = ("CCRCC", "CHRCC", "PRCC")
    config.encoder.dtype = "bfloat16"  # compute on GPU and TPU; parameters and sums stay float32
    return configuration.finish(config, arg)
