"""HR, LR and a student of both on features of real fields, each field encoded once: what finds a
small lesion, and how many slides that takes.

Classes: the two class folders of the fields; of a positive slide's 64, 6 show the lesion.
Slides:  composed of fields with one folder a class:
          for seed in 1 2 3 4 5; do python scripts/compose_slides.py --tiles FIELDS \
            --positive oscc --output composed/seed_$seed --seed $seed --fields 8 \
            --positive_share 0.1 --shares 0.2 0.4 0.15 0.25 --run_length 10 \
            --even_colour --unturned --slides 240 40 100 --tables_only; done
          python scripts/field_features.py --tiles FIELDS --cohorts composed/seed_* \
            --encoder ENCODER --weights FILE --px 128
CSV:     composed/seed_<seed>/labels.csv, with the split.
Geometry: an LR patch is one field. True um/px of such fields are not known.

Run:   python -m lrmil_jax.main --config configs/tissue_features.py --workdir runs/features
Smoke: python -m lrmil_jax.main --config configs/tissue_features.py:tiny --workdir /tmp/features

The student has no stage 1, as there are no pixels: it learns from the teacher's predictions and
attention on the encoder's own LR features. Settings were chosen on seeds 1001 and 1002.
"""

from lrmil_jax import config as configuration

COHORT = "composed/seed_{seed}"
VARIANTS = ("features as they are: teacher.options=() student.options=()",)


def get_config(arg: str | None = None):
    """240 slides a seed to train on, 40 to choose by, 100 to test."""
    config = configuration.default()
    config.folds = 1
    if arg != "tiny":  # the smoke test has procedural slides, and encodes them
        config.data.labels = f"{COHORT}/labels.csv"
        config.data.features = f"{COHORT}/features_hr"
        config.data.features_lr = f"{COHORT}/features_lr"
    config.geometry.update(hr_mpp=0.5, lr_mpp=2.0, patch_px=64)
    for block in (config.teacher, config.student):
        block.update(epochs=40, bags=8, hidden=128, learning_rate=1e-3, select="auc")
        # Without a projection of its own a head finds a small lesion in frozen features badly.
        block.options = ("width=128",)
    config.study.update(seeds=(1, 2, 3, 4, 5), variants=VARIANTS, workers=0)
    return configuration.finish(config, arg)
