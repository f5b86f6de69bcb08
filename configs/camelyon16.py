"""LRMIL on CAMELYON16: lymph node metastasis or none.

Classes: normal, tumor.
Slides:  400 slides (.tif, 40x) from camelyon17.grand-challenge.org, with the publishers' test set.
CSV:     slide_id,patient_id,label[,path][,mpp][,fold_1..fold_k]; label is one of the class names.
         The LRMIL authors' shape (P_ID, a task column numbering the classes, fold_k) is read too:
         set --config.data.label_column to the task column's name.
Geometry: HR 20x = 0.5 um/px, LR 5x = 2.0 um/px, patches of 256 px: 16 HR patches per LR patch.
Figures: none are quoted, since none were measured here.
Split:   give train, val and the publishers' test set as column fold_1; one fold.
         Lesions can be far smaller than an LR patch: expect the distance to the HR teacher to
         be larger here than in subtyping.

Run:   python -m lrmil_jax.main --config configs/camelyon16.py --workdir DIR
         --config.data.labels=LABELS.csv --config.data.slides=FOLDER
         --config.encoder.name=vit-b16 --config.encoder.weights=FILE.safetensors
Check: the same with --stages check, before the long run.
Smoke: python -m lrmil_jax.main --config configs/camelyon16.py:tiny --workdir DIR
"""

from lrmil_jax import config as configuration


def get_config(arg: str | None = None):
    """Metastasis detection with the published test set."""
    config = configuration.default()
    config.folds = 1
    config.data.classes = ("normal", "tumor")
    config.encoder.dtype = "bfloat16"  # compute on GPU and TPU; parameters and sums stay float32
    # A lesion may fill one patch of thousands, so less tissue is left out than elsewhere.
    config.prepare.min_tissue = 0.1
    config.student.topk = 4
    return configuration.finish(config, arg)
