"""LRMIL on a score of microsatellite instability: a number a patient instead of a class.

Slides:  diagnostic slides of colorectal cancer, such as TCGA-COAD and TCGA-READ.
CSV:     slide_id,patient_id,msi_score[,path][,mpp][,fold_1..fold_k]; any number, such as a
         MANTIS or MSIsensor score. Skewed scores are better given as their logarithm.
Model:   squared error on the scale of the training patients; figures are Pearson's r and others.
Geometry: HR 20x = 0.5 um/px, LR 5x = 2.0 um/px, patches of 256 px: 16 HR patches per LR patch.
Figures: none are quoted, since none were measured here.

Run:   python -m lrmil_jax.main --config configs/msi_regression.py --workdir DIR
         --config.data.labels=LABELS.csv --config.data.slides=FOLDER
         --config.encoder.name=vit-b16 --config.encoder.weights=FILE.safetensors
Check: the same with --stages check, before the long run.
Smoke: python -m lrmil_jax.main --config configs/msi_regression.py:tiny --workdir DIR
"""

from lrmil_jax import config as configuration


def get_config(arg: str | None = None):
    """Microsatellite instability as a number."""
    config = configuration.default()
    config.task = "regression"
    config.folds = 5
    config.data.label_column = "msi_score"
    config.encoder.dtype = "bfloat16"  # compute on GPU and TPU; parameters and sums stay float32
    for block in (config.teacher, config.student):
        block.select = "headline"  # Pearson's r
    return configuration.finish(config, arg)
