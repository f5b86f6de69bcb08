"""LRMIL on PANDA: ISUP grade of prostate biopsies, by quadratic kappa.

Classes: 0 (no cancer) to 5, in this order.
Slides:  the PANDA challenge's biopsies (Radboud and Karolinska).
CSV:     slide_id,patient_id,isup_grade[,path][,mpp][,fold_1..fold_k]; a biopsy without a known
         patient is one of its own: repeat its slide_id.
Model:   one logit for each step from a grade to the next.
Geometry: HR 20x = 0.5 um/px, LR 5x = 2.0 um/px, patches of 256 px: 16 HR patches per LR patch.
Figures: none are quoted, since none were measured here.

Run:   python -m lrmil_jax.main --config configs/panda_grade.py --workdir DIR
         --config.data.labels=LABELS.csv --config.data.slides=FOLDER
         --config.encoder.name=vit-b16 --config.encoder.weights=FILE.safetensors
Check: the same with --stages check, before the long run.
Smoke: python -m lrmil_jax.main --config configs/panda_grade.py:tiny --workdir DIR
"""

from lrmil_jax import config as configuration


def get_config(arg: str | None = None):
    """Grading of prostate cancer."""
    config = configuration.default()
    config.task = "ordinal"
    config.folds = 5
    config.data.label_column = "isup_grade"
    config.data.classes = ("0", "1", "2", "3", "4", "5")
    config.encoder.dtype = "bfloat16"  # compute on GPU and TPU; parameters and sums stay float32
    for block in (config.teacher, config.student):
        block.select = "headline"  # quadratic kappa
    return configuration.finish(config, arg)
