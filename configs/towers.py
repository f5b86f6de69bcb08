"""The image and text towers that come with the package, trained on procedural tiles.

Classes: stroma, lymphoid, fat, benign, tumour, each with eight captions of its morphology.
Slides:  none; the tiles are made from a seed of their own, apart from every slide's.
CSV:     none is needed.
Geometry: HR 0.5 um/px, LR 2.0 um/px, tiles of 64 px.
Towers:  "procedural" has seen HR tiles alone; "procedural-both" as many HR tiles, the same number
         of LR tiles, and twice the steps: what one would train to encode LR patches directly.

Run:   python scripts/train_towers.py --output DIR   (or one of the two, by the stage alone:
       python -m lrmil_jax.main --config configs/towers.py:procedural-both --workdir DIR
         --stages pretrain)
Smoke: python -m lrmil_jax.main --config configs/towers.py:tiny --workdir DIR --stages pretrain
"""

from lrmil_jax import config as configuration

NAMES = ("procedural", "procedural-both")


def get_config(arg: str | None = None):
    """Both towers by name; without one, "procedural"."""
    config = configuration.default()
    config.seed = 7000
    config.synthetic.update(slides=20, tiles_per_class=800)  # no slide is made by `pretrain`
    config.geometry.update(hr_mpp=0.5, lr_mpp=2.0, patch_px=64)
    config.encoder.update(name="vit-tiny", batch=16)
    config.pretrain.update(steps=600, batch=64, learning_rate=1e-3, eval_every=100)
    if arg == "procedural-both":
        config.synthetic.tile_scales = (1, 4)
        config.pretrain.steps *= 2
    return configuration.finish(config, None if arg in NAMES else arg)
