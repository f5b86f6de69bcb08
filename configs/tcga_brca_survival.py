"""LRMIL on TCGA-BRCA: overall survival.

Slides:  diagnostic slides (DX) of TCGA-BRCA, from the GDC portal.
CSV:     slide_id,patient_id,time,event[,path][,mpp][,fold_1..fold_k]; time in any unit, above 0;
         event is 1 where the death was observed and 0 where the patient was last seen alive.
         Other columns' names: --config.data.time_column and --config.data.event_column.
Model:   hazards in four intervals of time, parted by the training patients' deaths.
Geometry: HR 20x = 0.5 um/px, LR 5x = 2.0 um/px, patches of 256 px: 16 HR patches per LR patch.
Figures: none are quoted, since none were measured here.

Run:   python -m lrmil_jax.main --config configs/tcga_brca_survival.py --workdir DIR
         --config.data.labels=LABELS.csv --config.data.slides=FOLDER
         --config.encoder.name=vit-b16 --config.encoder.weights=FILE.safetensors
Check: the same with --stages check, before the long run.
Smoke: python -m lrmil_jax.main --config configs/tcga_brca_survival.py:tiny --workdir DIR
"""

from lrmil_jax import config as configuration


def get_config(arg: str | None = None):
    """Survival with breast cancer."""
    config = configuration.default()
    config.task = "survival"
    config.folds = 5
    config.encoder.dtype = "bfloat16"  # compute on GPU and TPU; parameters and sums stay float32
    for block in (config.teacher, config.student):
        block.select = "headline"  # the C-index
    return configuration.finish(config, arg)
