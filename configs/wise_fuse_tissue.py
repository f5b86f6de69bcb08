"""What the text-guided choice gives at every budget, on slides composed of real fields.

Classes: normal oral mucosa and squamous cell carcinoma; a positive slide has 25 % carcinoma fields.
Slides:  composed first, a folder a seed, from fields with one folder a class:
           for seed in 1 2 3 4 5; do python scripts/compose_slides.py --tiles FIELDS \
             --positive oscc --captions shipped:oral_mucosa --output composed/seed_$seed \
             --seed $seed --slides 60 20 60 --positive_share 0.25 --shares 0.45 0.2 0.15 0.2 \
             --run_length 10 --even_colour --whole_fields; done
CSV:     composed/seed_<seed>/labels.csv, with the split.
Geometry: as in `miniature_tissue.py`; an LR patch is one field of unknown um/px.

Run:   python -m lrmil_jax.main --config configs/wise_fuse_tissue.py --workdir runs/fields
       -> runs/fields/study/curve.md, curve.png, table.md, results.csv
Smoke: python -m lrmil_jax.main --config configs/wise_fuse_tissue.py:tiny --workdir /tmp/fields

Slides and heads are as in `miniature_tissue.py`. Both towers are trained here, from scratch, on
fields that no slide has, with the descriptions as captions: no published tower is at hand that
knows such sentences already.
"""

from lrmil_jax import config as configuration


def get_config(arg: str | None = None):
    """60 slides a seed to train on, 20 to choose by, 60 to test; towers trained from scratch."""
    config = configuration.default()
    config.method = "wise_fuse"
    config.folds = 1
    if arg != "tiny":  # the smoke test has procedural slides
        for name in ("slides", "tiles", "masks"):
            config.data[name] = f"composed/seed_{{seed}}/{name}"
        config.data.labels = "composed/seed_{seed}/labels.csv"
    config.geometry.update(hr_mpp=0.5, lr_mpp=2.0, patch_px=64)
    config.prepare.hr = "skip"
    config.encoder.update(name="vit-tiny", batch=16)
    # An HR patch is a quarter of a field's side: crops of about that size, larger and smaller.
    config.pretrain.update(smallest_crop=0.18, largest_crop=0.5, even_classes=True)
    config.pretrain.update(steps=1000, batch=64, warmup_steps=50, weight_decay=0.05)
    config.text.descriptions = "shipped:oral_mucosa"
    # As published: prompts alone, and patches scored as a whole.
    config.align.update(how="prompts", lambda_layer=0.0, learning_rate=1e-2)
    config.align.update(steps=500, batch=48, eval_every=100, flips=True)
    config.select.score = "patch"
    config.select.classes = ("oscc",)  # what is looked for; normal is its absence
    config.distill.update(steps=900, batch=48, learning_rate=3e-3, eval_every=100, layers=(0, 2))
    config.distill.flips = True
    for block in (config.teacher, config.student, config.mil):
        block.update(epochs=40, bags=1, hidden=128, learning_rate=1e-3, select="auc")
    config.evaluate.timed_slides = 10
    config.study.update(seeds=(1, 2, 3, 4, 5), budgets=(0.0625, 0.125, 0.25, 0.5), workers=0)
    return configuration.finish(config, arg)
