"""What each weight, temperature and choice of the distillation does, one at a time.

Run:   python -m lrmil_jax.main --config configs/sweeps/distillation_weights.py \
         --workdir runs/weights          (procedural slides; -> study/effects.png, results.csv)
       ... --config.data.labels=labels.csv --config.data.slides=slides/ \
         --config.encoder.name=vit-b16 --config.encoder.weights=vit-b16.safetensors (your own)
Smoke: python -m lrmil_jax.main --config configs/sweeps/distillation_weights.py:tiny \
         --workdir /tmp/weights

Settings of stage 2 differ in nothing that costs: one program trains them all, beside the config as
it is, and each is what it would be alone. Every other value is a run of its own, which shares with
the others what does not depend on it. Choose by validation, as the last line of the table does.
"""

from lrmil_jax import config as configuration

# One setting at a time around the config's own values; add your own lines. `sweep.grid` takes the
# same lines and tries all their combinations.
EACH = (
    "student.lambda_ce: 0 0.3 3",
    "student.lambda_bag: 0 0.3 3",
    "student.lambda_soft: 0 0.3 3",
    "student.lambda_hard: 0 0.3 1",
    "student.temperature_bag: 1 4",
    "student.temperature_attn: 0.5 2",
    "student.topk: 1 4",
    "student.guide: mean max",
    "student.hard: instance",
    "distill.lambda_layer: 0 0.3 3",
    "distill.lambda_attn: 0 0.3 3",
    "distill.layers: (0,) (2,) (0,1,2)",
)


def get_config(arg: str | None = None):
    """Two seeds of 150 slides that are none of the miniature's; a short stage 1 leaves room to
    differ."""
    config = configuration.default()
    config.folds = 1
    config.synthetic.update(slides=150, size_px=1024)
    config.geometry.update(hr_mpp=0.5, lr_mpp=2.0, patch_px=64)
    config.encoder.update(name="vit-tiny", weights="shipped:procedural", batch=16)
    config.distill.update(steps=600, batch=48, learning_rate=3e-3, eval_every=100, layers=(0, 2))
    config.distill.flips = True
    for block in (config.teacher, config.student):
        block.update(epochs=60, patience=40, hidden=64, learning_rate=1e-3, select="auc")
    # Few labels, a small lesion: at 1e-3 one start in three does not find it.
    config.teacher.update(bags=4, learning_rate=3e-3)
    config.student.topk = 2
    config.study.update(seeds=(11, 12), workers=0)
    config.sweep.each = EACH
    return configuration.finish(config, arg)
