"""WISE-FUSE on CAMELYON16: lymph node metastasis or none.

Classes: normal, tumor.
Slides:  400 slides (.tif, 40x) from camelyon17.grand-challenge.org, with the publishers' test set.
CSV:     slide_id,patient_id,label[,path][,mpp][,fold_1..fold_k]; label is one of the class names.
Geometry: HR 20x = 0.5 um/px, LR 5x = 2.0 um/px, patches of 256 px: 16 HR patches per LR patch.
Texts:   shipped:camelyon16; edit a copy and name it by --config.text.descriptions=FILE.toml
         (python -m lrmil_jax.selection FILE checks it). No pathologist has reviewed ours.
Figures: none are quoted, since none were measured here.
Split:   give train, val and the publishers' test set as column fold_1; one fold.
         Lesions can be far smaller than an LR patch, where choosing by text is weak: look at
         the recall of lesion area (data.masks) before trusting it.

Run:   python -m lrmil_jax.main --config configs/wise_fuse_camelyon16.py --workdir DIR
         --config.data.labels=LABELS.csv --config.data.slides=FOLDER
         --config.encoder.weights=pytorch_model.bin --config.text.tokenizer=FOLDER (of CONCH)
Check: the same with --stages check, before the long run.
Smoke: python -m lrmil_jax.main --config configs/wise_fuse_camelyon16.py:tiny --workdir DIR
"""

from lrmil_jax import config as configuration


def get_config(arg: str | None = None):
    """Metastasis detection, a quarter of every slide read at 20x."""
    config = configuration.default()
    config.method = "wise_fuse"
    config.folds = 1
    config.data.classes = ("normal", "tumor")
    config.encoder.update(name="conch", dtype="bfloat16")  # on CPU: --config.encoder.dtype=float32
    config.text.descriptions = "shipped:camelyon16"
    config.select.classes = ("tumor",)  # what is looked for; normal is its absence
    config.prepare.hr = "skip"  # only what is chosen is ever read at HR
    # A lesion may fill one patch of thousands, so less tissue is left out than elsewhere.
    config.prepare.min_tissue = 0.1
    return configuration.finish(config, arg)
