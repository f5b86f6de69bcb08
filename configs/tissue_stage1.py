"""LRMIL whole on features of real fields: stage 1 tunes a pretrained encoder on slides of them.

Classes: the two class folders of the fields; of a positive slide's 64, 6 show the lesion.
Slides:  composed as configs/tissue_features.py says, but with pictures: without --tables_only.
CSV:     composed/seed_<seed>/labels.csv, with the split.
Geometry: an LR patch is one field. True um/px of such fields are not known.

Run:   python -m lrmil_jax.main --config configs/tissue_stage1.py --workdir runs/stage1 \
         --config.encoder.name=ENCODER --config.encoder.weights=FILE
Smoke: python -m lrmil_jax.main --config configs/tissue_stage1.py:tiny --workdir /tmp/stage1

HR features are those of scripts/field_features.py, each field encoded once; the student reads the
slides at LR. L_layer is left out, as such features hold no blocks. The rate and its decay over the
blocks suit pretrained weights; they were chosen by the validation loss of seed 1001.
"""

from lrmil_jax import config as configuration

COHORT = "composed/seed_{seed}"


def get_config(arg: str | None = None):
    """240 slides a seed to train on, 40 to choose by, 100 to test."""
    config = configuration.default()
    config.folds = 1
    if arg != "tiny":  # the smoke test has procedural slides, and encodes them
        config.data.labels = f"{COHORT}/labels.csv"
        config.data.slides = f"{COHORT}/slides"
        config.data.features = f"{COHORT}/features_hr"
        # Larger than the tiles of 64 px: the encoder was trained at 224 px.
        config.encoder.update(weights="encoder.safetensors", px=128, lr_px=128)
    config.geometry.update(hr_mpp=0.5, lr_mpp=2.0, patch_px=64)
    config.distill.update(lambda_layer=0.0, steps=300, batch=32, flips=True, val_patches=512)
    config.distill.update(eval_every=50, warmup_steps=30)
    config.distill.update(learning_rate=2e-4, layer_decay=0.75, weight_decay=0.05)
    for block in (config.teacher, config.student):
        block.update(epochs=40, bags=8, hidden=128, learning_rate=1e-3, select="auc")
        block.options = ("width=128",)
    config.study.update(seeds=(1, 2, 3, 4, 5), workers=1)
    return configuration.finish(config, arg)
