"""WISE-FUSE on procedural slides: what the text-guided choice gives at every budget.

Run:   python -m lrmil_jax.main --config configs/wise_fuse_miniature.py --workdir runs/wise_fuse
       -> runs/wise_fuse/study/curve.md, curve.png, table.md, results.csv
Smoke: python -m lrmil_jax.main --config configs/wise_fuse_miniature.py:tiny --workdir /tmp/wise

Beside it: exhaustive HR, a random choice of the same size, the choice by the tower as it is, that
by prompts alone (as published), and LRMIL, on the same slides. The towers come with the package and
have seen none of them; the descriptions are the captions of their training. Settings were chosen on
seeds 1001 and above. ZoomMIL and HDMIL, of other groups, join the curve at every budget with
--config.study.other_methods="('zoom_mil','hdmil')".
"""

from lrmil_jax import config as configuration


def get_config(arg: str | None = None):
    """300 slides a seed: 180 to train on, 60 to choose by, 60 to test."""
    config = configuration.default()
    config.method = "wise_fuse"
    config.folds = 1
    config.synthetic.update(slides=300, size_px=1024)
    config.geometry.update(hr_mpp=0.5, lr_mpp=2.0, patch_px=64)
    config.encoder.update(name="vit-tiny", weights="shipped:procedural", batch=16)
    config.text.descriptions = "shipped:procedural"
    config.prepare.hr = "skip"
    config.align.update(steps=900, batch=48, learning_rate=1e-2, eval_every=100, layers=(0, 2))
    config.align.flips = True
    config.select.classes = ("tumour",)  # what is looked for; benign is its absence
    for block in (config.teacher, config.student, config.mil):
        block.update(epochs=60, patience=40, hidden=64, learning_rate=1e-3, select="auc")
    config.distill.update(steps=900, batch=48, learning_rate=3e-3, eval_every=100, layers=(0, 2))
    config.distill.flips = True
    config.student.topk = 2
    config.evaluate.timed_slides = 10
    config.study.update(seeds=(1, 2, 3, 4, 5), budgets=(0.0625, 0.125, 0.25, 0.5), workers=0)
    config.study.variants = (
        "prompts alone: align.how=prompts align.lambda_layer=0 align.steps=500 select.score=patch",
    )
    return configuration.finish(config, arg)
