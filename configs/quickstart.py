"""LRMIL on procedural slides, from nothing to a prediction, in minutes on two cores.

Run:   scripts/quickstart   (or: python -m lrmil_jax.main --config configs/quickstart.py
       --workdir output/quickstart)
Smoke: python -m lrmil_jax.main --config configs/quickstart.py:tiny --workdir /tmp/quickstart
"""

from lrmil_jax import config as configuration


def get_config(arg: str | None = None):
    """Small slides, the towers that come with the package, one fold."""
    config = configuration.default()
    config.folds = 1
    config.synthetic.update(slides=160, size_px=1024)
    config.geometry.update(hr_mpp=0.5, lr_mpp=2.0, patch_px=64)
    config.encoder.update(name="vit-tiny", weights="shipped:procedural", batch=16)
    config.distill.update(steps=600, batch=48, learning_rate=3e-3, eval_every=100, layers=(0, 2))
    config.distill.flips = True  # a thousand LR patches are few
    for block in (config.teacher, config.student):
        block.update(epochs=60, bags=4, hidden=64, learning_rate=1e-3, select="auc")
    # Few labels, a small lesion: at 1e-3 one start in three does not find it.
    config.teacher.learning_rate = 3e-3
    config.student.topk = 2
    return configuration.finish(config, arg)
