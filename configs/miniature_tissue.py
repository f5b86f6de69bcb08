"""The miniature's table on slides composed of real tissue: fields of oral mucosa, or your own.

Classes: the two class folders of the fields; a positive slide has 25 % carcinoma fields.
Slides:  composed first, a folder a seed, from fields with one folder a class:
           for seed in 1 2 3; do python scripts/compose_slides.py --tiles FIELDS --positive oscc \
             --output composed/seed_$seed --seed $seed --positive_share 0.25 \
             --shares 0.45 0.2 0.15 0.2 --run_length 10 --even_colour --whole_fields; done
CSV:     composed/seed_<seed>/labels.csv, with the split.
Geometry: as the miniature's; an LR patch is one field. True um/px of such fields are not known.

Run:   python -m lrmil_jax.main --config configs/miniature_tissue.py --workdir runs/tissue
Smoke: python -m lrmil_jax.main --config configs/miniature_tissue.py:tiny --workdir /tmp/tissue

Every seed parts the fields anew (pretrain, train, val, test), in runs of neighbouring numbers, as
neighbours are often of one patient. Colours are made even, or colour alone would tell the classes
apart. The recipe was chosen on seeds 1001 to 1003.
"""

from lrmil_jax import config as configuration

VARIANTS = (
    # Towers that saw the same fields at every scale from HR patch to LR patch, for twice the steps.
    "LR-native: method=mil_lr pretrain.largest_crop=1.0 pretrain.steps=2000",
    "LRMIL without stage 1's L_layer: distill.lambda_layer=0",
    "LRMIL without stage 1's L_attn: distill.lambda_attn=0",
    "LRMIL without L_ce: student.lambda_ce=0",
    "LRMIL without L_bag: student.lambda_bag=0",
    "LRMIL without L_soft: student.lambda_soft=0",
    "LRMIL without L_hard: student.lambda_hard=0",
)


def get_config(arg: str | None = None):
    """60 slides a seed to train on, 20 to choose by, 60 to test; towers trained from scratch."""
    config = configuration.default()
    config.folds = 1
    if arg != "tiny":  # the smoke test has procedural slides
        for name in ("slides", "tiles", "masks"):
            config.data[name] = f"composed/seed_{{seed}}/{name}"
        config.data.labels = "composed/seed_{seed}/labels.csv"
    config.geometry.update(hr_mpp=0.5, lr_mpp=2.0, patch_px=64)
    config.encoder.update(name="vit-tiny", batch=16)
    # An HR patch is a quarter of a field's side: crops of about that size, larger and smaller.
    config.pretrain.update(smallest_crop=0.18, largest_crop=0.5, even_classes=True)
    config.pretrain.update(steps=1000, batch=64, warmup_steps=50, weight_decay=0.05)
    config.distill.update(steps=900, batch=48, learning_rate=3e-3, eval_every=100, layers=(0, 2))
    config.distill.flips = True
    for block in (config.teacher, config.student):
        block.update(epochs=40, bags=1, hidden=128, learning_rate=1e-3, select="auc")
    config.evaluate.colour_baseline = True
    config.study.update(seeds=(1, 2, 3), variants=VARIANTS, workers=0)
    return configuration.finish(config, arg)
