"""LRMIL on BRACS: benign, atypical or malignant breast lesions.

Classes: benign, atypical, malignant.
Slides:  547 slides (.svs, 40x) from bracs.icar.cnr.it, with the publishers' own split.
CSV:     slide_id,patient_id,label[,path][,mpp][,fold_1..fold_k]; label is one of the class names.
         The LRMIL authors' shape (P_ID, a task column numbering the classes, fold_k) is read too:
         set --config.data.label_column to the task column's name.
Geometry: HR 20x = 0.5 um/px, LR 5x = 2.0 um/px, patches of 256 px: 16 HR patches per LR patch.
Figures: none are quoted, since none were measured here.
Split:   give the publishers' split as column fold_1 (train, val, test); one fold.
         Slides of one patient with several labels are measured as patient/label.

Run:   python -m lrmil_jax.main --config configs/bracs.py --workdir DIR
         --config.data.labels=LABELS.csv --config.data.slides=FOLDER
         --config.encoder.name=vit-b16 --config.encoder.weights=FILE.safetensors
Check: the same with --stages check, before the long run.
Smoke: python -m lrmil_jax.main --config configs/bracs.py:tiny --workdir DIR
"""

from lrmil_jax import config as configuration


def get_config(arg: str | None = None):
    """Three-class breast lesion typing with the published split."""
    config = configuration.default()
    config.folds = 1
    config.data.classes = ("benign", "atypical", "malignant")
    config.encoder.dtype = "bfloat16"  # compute on GPU and TPU; parameters and sums stay float32
    return configuration.finish(config, arg)
