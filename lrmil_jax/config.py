"""Every config key once, with its default, unit and reason; and `:tiny`. `checks.py` has their
ranges.

A file of `configs/` starts from `default()`, sets what differs and ends with `finish(config, arg)`.
Keys that may be unset are placeholders: they print as None and keep their type.
"""

import ast
import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lrmil_jax.errors import ConfigError


def training(**changes: Any) -> ConfigDict:
    """Optimisation of one stage; every stage that learns has this block, read by one trainer."""
    block = ConfigDict()
    block.optimizer = "adamw"
    block.learning_rate = 1e-3
    block.warmup_steps = 0
    block.schedule = "cosine"  # or "constant"
    block.weight_decay = 1e-2  # never on biases and norms
    block.clip_norm = 1.0  # global gradient norm; 0 switches clipping off
    block.accumulate = 1  # batches per update
    block.eval_every = 50  # steps between validations
    # A kill costs at most so many seconds and the steps to the next validation; 0: none but those.
    block.checkpoint_seconds = 20.0
    block.log_every = 25  # steps between log rows
    block.patience = 20  # validations without improvement before stopping; 0 never stops early
    block.fsdp = False  # shard parameters over the devices too (large encoders)
    block.update(changes)
    return block


def bag_training(**changes: Any) -> ConfigDict:
    """Training on bags of patch features, its length and rhythm in epochs."""
    block = training(learning_rate=5e-4, weight_decay=1e-2)
    block.eval_every = 1  # epochs between validations
    block.log_every = 1  # epochs between log rows
    block.patience = 20  # epochs without improvement before stopping; 0 never stops early
    block.epochs = 100
    # Of the head, beyond its hidden, dropout and dtype: ("bag_weight=0.7", "subtyping=true").
    block.options = ()
    block.bags = 16  # slides of an update, drawn at random; what is learned depends on it
    # Share of a training slide's patches that an epoch reads, drawn anew each time: fewer are
    # faster, and a head cannot learn slides by heart.
    block.instances = 1.0
    # Above 0 every training slide is mixed, anew in each epoch: a share s of its patches with 1 - s
    # of another's, s of Beta(mixup, mixup), and their targets alike. 0: none is.
    block.mixup = 0.0
    block.dtype = "float32"  # compute of the head; "bfloat16" on GPU and TPU, sums stay float32
    # Instances that a device computes at once, padding included: bags of an update are computed in
    # so many goes. Speed and memory depend on it, what is learned does not.
    block.budget = 4096
    block.balance = "weights"  # class balance: "none", "weights" (of the loss) or "sampling"
    # Validation figure that picks the checkpoint: "loss", "headline" (the task's own: auc, kappa,
    # pearson, c_index) or any other of its metrics.
    block.select = "loss"
    # Features up to this size stay on the device, larger ones are streamed; unset asks the device
    # how much memory it has free.
    block.resident_gib = placeholder(float)
    block.update(changes)
    return block


def default() -> ConfigDict:
    """The whole tree of keys with defaults for a TCGA-like cohort at 20x against 5x."""
    config = ConfigDict()
    # Or "wise_fuse"; "zoom_mil" or "hdmil", which choose regions too; plain MIL, the baselines:
    # "mil" at HR, "mil_lr" at LR; or "zero_shot": tiles.
    config.method = "lrmil"
    # What is said of a slide: "classification", "ordinal", "multi_label", "regression", "survival"
    # or "cox".
    config.task = "classification"
    config.seed = 0
    config.folds = 5
    # What `model/` holds after several folds: "final", one model trained on all patients but those
    # that choose its checkpoint, its quality being what the folds measured; or "ensemble", the
    # folds' own models, whose mean needs every LR patch encoded once a fold.
    config.deliver = "final"
    _slides(config)
    _encoding(config)
    _teaching(config)
    _student(config)
    _guided(config)
    _results(config)
    return config.lock()  # a key mistyped in a config file is refused like one on the command line


def _slides(config: ConfigDict) -> None:
    config.data = data = ConfigDict()
    data.labels = placeholder(str)  # label CSV; unset needs synthetic.slides > 0
    # Folder of slides, or s3://bucket/path or gs://bucket/path, where data.labels may lie too.
    data.slides = placeholder(str)
    # Local folder of copies of slides in object storage, on every host; unset: in the user's cache.
    data.staging = placeholder(str)
    data.staging_gib = 100.0  # of all copies together; those read longest ago make room
    # Folder of HR features that another tool extracted, in place of slides; and of LR features,
    # without which stage 1 of LRMIL reads data.slides. Method mil_lr needs LR features alone.
    data.features = placeholder(str)
    data.features_lr = placeholder(str)
    # The tool, which is else told by what the folder holds: "trident", "clam", "stamp",
    # "slideflow", "slide2vec", "atlaspatch" (or "atlaspatch/ENCODER"), "npy", "npz", "pt".
    data.features_format = "auto"
    # Tiles, one folder a class, for `pretrain` and `zero_shot`; their patients in a patients.csv
    # (tile, patient_id) or, for `pretrain`, as folders: <class>/<patient>/tile.png.
    data.tiles = placeholder(str)
    data.captions = placeholder(str)  # CSV of tiles with captions of your own, for `pretrain`
    # um/px of the CSV win even where a slide's file and its objective agree, by more than a factor
    # of 2, against them: most often it is the CSV that is wrong.
    data.trust_mpp = False
    # Folder of what was drawn in QuPath, <slide_id>.geojson: nothing outside of it is tissue; the
    # classifications that count, () being all.
    data.annotations = placeholder(str)
    data.annotation_classes = ()
    # Folder of lesion masks, <slide_id>.png, each a whole slide, or of QuPath's <slide_id>.geojson,
    # and the classifications in it that are lesion, () being all.
    data.masks = placeholder(str)
    data.mask_classes = ()
    data.classes = ()  # names in order; empty takes the CSV's, sorted
    data.slide_table = placeholder(str)  # STAMP's slide table, where data.labels is its clini table
    # Columns of train, val, test in the label table, a fold each; empty: fold_1, ..., or `split`.
    data.split_columns = ()
    # Splits instead: STAMP's splits.json, or CLAM's folder of splits_<k>.csv.
    data.splits = placeholder(str)
    # Folds that are made keep whole sites in one split: a column, or "tcga", the barcode's code.
    data.site = placeholder(str)
    # Share of a fold's training patients that choose the checkpoint where the fold has no val;
    # unset: 0.2 of Patho-Bench's and STAMP's splits, which know none; else such a fold is refused.
    data.val_share = placeholder(float)
    # A patient or a slide (its bytes, or what its thumbnail shows) in two splits: "refuse", "warn".
    data.leaks = "refuse"
    # One prediction of a patient's slides: mean of "probability", or of "logit"; or all of them in
    # one "bag", which the head then sees as a single slide.
    data.patient = "probability"
    data.label_column = "label"  # the class or number; of "multi_label" the findings, "a,b,c"
    data.time_column = "time"  # of "survival" and "cox": any unit, above 0
    data.event_column = "event"  # 1 where the event was observed, 0 where the time is censored
    # Of "survival": intervals of time, by the training slides' events; of "cox": times at which
    # survival is told.
    data.bins = 4

    config.geometry = geometry = ConfigDict()
    geometry.hr_mpp = 0.5  # um/px, 20x
    geometry.lr_mpp = 2.0  # um/px, 5x
    geometry.patch_px = 256  # px, at both resolutions

    config.prepare = prepare = ConfigDict()
    prepare.reader = "auto"  # by the content of each file; or "tifffile", "openslide", "fastslide"
    prepare.tissue_mpp = 8.0  # um/px of the thumbnail in which tissue is found
    # HSV saturation, 0 to 255 on neutral glass, from which a pixel is tissue; 0: each slide's own,
    # between the noise of its glass and its palest stain.
    prepare.tissue_threshold = 0.0
    prepare.tissue_close_um = 16.0  # radius in um within which gaps of tissue are closed; 0: none
    prepare.ink = True  # leave marker ink and black out; False where a stain is taken for ink
    prepare.min_tissue = 0.25  # share of a child's area that must be tissue
    # Slides up to twice as coarse as geometry.hr_mpp are taken, their pixels enlarged; else those
    # that are more than a tenth coarser are refused, since HR patches would show no more than LR.
    prepare.upsample = False
    prepare.hr = "store"  # "store" HR mosaics as JPEG, or "skip" and read the slide when encoding
    prepare.keep_hr = True  # False deletes the mosaics once encode_hr is done
    prepare.jpeg_quality = 90
    prepare.workers = 0  # processes; 0 is one per core
    # A slide that takes longer to look at or to prepare is left out, and its process is ended; so
    # is one whose decoder crashes. 0: no limit, and a single worker is no process of its own.
    prepare.seconds_per_slide = 3600.0


def _encoding(config: ConfigDict) -> None:
    config.encoder = encoder = ConfigDict()
    encoder.name = "vit-b16"
    # Safetensors file, or "shipped:NAME" of lrmil_jax/weights; unset trains one in `pretrain`.
    encoder.weights = placeholder(str)
    # Side in px to which HR patches are resampled, a multiple of the encoder's patch; unset: its
    # publisher's. What encoding costs grows with its square.
    encoder.px = placeholder(int)
    # The same of LR patches; unset: the largest within a tile that gives every child whole tokens.
    # A larger one shows no more, but suits an encoder that was trained at 224 px.
    encoder.lr_px = placeholder(int)
    encoder.batch = 64  # images per step of encode_hr, encode_lr and predict
    encoder.fsdp = False  # split the encoder's parameters over the devices, where one is too small
    # Compute; "bfloat16" on GPU and TPU; "int8": float32 with products of tokens and weights of
    # 8-bit integers, in encoding alone, for CPUs that have instructions for them.
    encoder.dtype = "float32"
    encoder.threads = 4  # decoding threads
    # Processes that read slides and make stage 1's examples; 0 is one per core but one, or none
    # where the CPU is the device.
    encoder.workers = 0

    config.text = text = ConfigDict()
    # TOML file of class descriptions, or "shipped:NAME" of lrmil_jax/selection/descriptions.
    text.descriptions = placeholder(str)
    text.power = "both"  # sentences used: "low" (5x to 10x), "high" (20x to 40x) or "both"
    # The text tower's file; unset: a published encoder's own file, else text.safetensors beside it.
    text.weights = placeholder(str)
    # Of a published text tower, its file or folder; unset: the folder of encoder.weights.
    text.tokenizer = placeholder(str)

    config.features = features = ConfigDict()
    features.dtype = "float16"  # or "bfloat16"
    features.rows = 1024  # patches per record, 64 to 2048


def _teaching(config: ConfigDict) -> None:
    config.pretrain = training(learning_rate=1e-3, eval_every=100)
    config.pretrain.steps = 600
    # Weights from which the image tower starts: any file that encoder.weights could name, whose
    # encoder encoder.name says; unset starts anew.
    config.pretrain.init = placeholder(str)
    # What learns of it: "whole"; "adapters", a change of low rank of each matrix, for few tiles or
    # a large tower; "frozen", nothing: a text tower learns to go with it (locked-image tuning).
    config.pretrain.image = "whole"
    config.pretrain.rank = 8  # of the adapters
    # Each block learns so many times as fast as the one behind it, .65 to .9 with pretrained
    # weights, whose first blocks need the least change; 1: all alike.
    config.pretrain.layer_decay = 1.0
    config.pretrain.batch = 64
    config.pretrain.val_share = 0.1
    config.pretrain.smallest_crop = 1.0  # random crops show at least this share of a tile's side
    config.pretrain.largest_crop = 1.0  # and at most this; an HR patch's share lies between them
    config.pretrain.even_classes = False  # show tiles of every class equally often
    config.pretrain.jitter = 0.1  # relative change of each colour channel, at most
    config.pretrain.projection = 64  # width of the space that images and texts share
    config.pretrain.text_width = 64
    config.pretrain.text_depth = 1
    config.pretrain.text_heads = 2
    config.pretrain.text_tokens = 64  # longest caption, in tokens; longer ones are refused
    config.pretrain.vocabulary = 512  # byte pairs, learned from the captions

    config.teacher = bag_training()
    config.teacher.head = "gated_abmil"
    config.teacher.hidden = 128
    config.teacher.dropout = 0.0

    config.distill = distill = training(learning_rate=1e-4, weight_decay=1e-2, eval_every=500)
    distill.steps = 10_000
    distill.batch = 64  # LR patches
    distill.val_patches = 2048  # validation patches that choose the checkpoint, at most
    distill.flips = False  # turn and mirror LR patches in training, their children alike
    # Scale the stains of LR patches at random, by at most this share, the HR targets staying: for
    # slides of other laboratories than those of the training.
    distill.stain_jitter = 0.0
    # Compute blocks anew for the gradient: a third more time, a fraction of the memory. At 256 px
    # and in bfloat16 an image takes .08 GiB of it with ViT-B/16 and .57 with a giant, else .05.
    distill.remat = False
    # LR encoder, where it is to be another one than encoder.name: any encoder of the family, also
    # with arguments, "vit:width=192,depth=6,heads=3,patch=16". Linear maps to the HR encoder's
    # width learn along. And its weights to start from; unset: new.
    distill.student = placeholder(str)
    distill.weights = placeholder(str)
    # False: one LR encoder for all folds, without the teacher's attention and without labels, from
    # the slides that no fold tests, or from all: k folds and the model that is delivered cost one
    # stage 1 and one encoding.
    distill.per_fold = True
    distill.rank = 0  # of low-rank adapters that learn instead of the whole encoder; 0: none
    distill.layer_decay = 1.0  # as of pretrain
    # Blocks of L_layer, from 0; empty: (0, 1, 10) of 12, else first, second and last but one.
    distill.layers = ()
    distill.lambda_layer = 1.0
    distill.lambda_attn = 1.0
    distill.normalise = True  # divide each block's term by the variance of its targets
    # Other runs of the same slides and folds whose teachers teach too, (("runs/other", 1.0), ...):
    # folder and weight, this run's own being 1. Their HR encoders have a term each in stage 1, and
    # their teachers' predictions are averaged with this run's in stage 2.
    distill.teachers = ()


def _student(config: ConfigDict) -> None:
    config.student = student = bag_training()
    student.head = "gated_abmil"
    student.hidden = 128
    student.dropout = 0.0
    student.lambda_ce = 1.0
    student.lambda_bag = 1.0
    student.lambda_soft = 1.0
    student.lambda_hard = 0.1
    student.temperature_bag = 2.0
    student.temperature_attn = 1.0
    student.topk = 8
    student.guide = "mass"  # or "mean", "max": how the teacher's attention reaches LR patches
    student.hard = "rank"  # or "instance"
    student.seed = placeholder(int)  # of start and order of bags; unset: the run's
    student.no_distillation = True  # also train the baseline: undistilled encoder, cross-entropy


def _guided(config: ConfigDict) -> None:
    """WISE-FUSE, `method = "wise_fuse"`."""
    # A cautious rate, for large towers; those of a few blocks, and prompts alone, learn at 1e-2.
    config.align = align = training(learning_rate=1e-3, weight_decay=0.0, eval_every=50)
    # What reads LR tiles: the tower with "prompts" (CS-VPT), with low-rank adapters, "lora", or
    # "prompts+lora"; "full" (the whole tower tuned), "distilled" (the encoder of LRMIL's stage 1,
    # align.encoder), or "none" (the tower as it is).
    align.how = "prompts+lora"
    align.encoder = placeholder(str)  # encoder.safetensors; "{fold}" in it is the fold
    align.prompts = 8  # tokens at every block
    align.deep = True  # each block has its own; False: one set before the first
    align.rank = 16  # of the low-rank adapters
    align.beta = 1.0  # weight of the agreement on classes
    # Weight of L_layer: each child's window of LR tokens learns to say what the child says at HR,
    # block by block; 0: the patch as a whole learns the mean of its children, as published.
    align.lambda_layer = 4.0
    align.layers = ()  # blocks of L_layer, as distill.layers
    align.steps = 500
    align.batch = 64  # LR patches
    align.val_patches = 2048
    align.flips = False
    align.stain_jitter = 0.0
    align.remat = False

    config.select = select = ConfigDict()
    select.rho = 0.25  # share of a slide's LR patches whose children are encoded
    select.count = 0  # or this many of every slide; 0 is rho
    # Classes whose descriptions choose; () is all. Where one class is the absence of the other, as
    # normal of tumour, naming the latter keeps the budget for it. No slide's label is used.
    select.classes = ()
    # What is compared with the descriptions: the "patch" as a whole, as published, or each "window"
    # of it, one a child; then the mean of a patch's select.windows highest counts.
    select.score = "window"
    select.windows = 2
    select.rule = "max"  # best of any class; "per_class" in turns; "random" as a control

    config.fuse = fuse = ConfigDict()
    fuse.how = "concatenate"  # or "residual", "cross_attention", "none"
    fuse.tau = 20.0  # factor on cosines between patches and descriptions

    config.mil = mil = bag_training()
    mil.head = "gated_abmil"
    mil.hidden = 128
    mil.dropout = 0.0


def _results(config: ConfigDict) -> None:
    config.evaluate = evaluate = ConfigDict()
    evaluate.colour_baseline = False  # also what mean and SD of colour alone say of a slide
    evaluate.lesion_share = 0.1  # an LR patch with this share of lesion counts as one (data.masks)
    # One of the thresholds chosen on validation patients is the highest that reaches this.
    evaluate.sensitivity = 0.95
    # Columns of the label CSV, ("site", "sex", "age"): figures of the patients of each of their
    # levels, and against all others. More than six different numbers are parted into quarters.
    evaluate.subgroups = ()
    evaluate.timed_slides = 3  # test slides read again from the file to time every phase; 0 is none

    config.report = report = ConfigDict()
    # Test slides of each fold drawn with the model's attention, first where it errs or doubts.
    report.heatmaps = 4
    # Slides of all folds with a page of their own, of 1 to 2 MB and some seconds each; so ordered.
    report.slides = 20
    report.tiles = 6  # tiles of each class drawn by `zero_shot`, those that score highest

    config.tracking = tracking = ConfigDict()
    # Trainings are told of in MLflow too: its tracking URI, such as http://host:5000.
    tracking.mlflow = placeholder(str)
    tracking.experiment = placeholder(str)  # its name there; unset: the work directory's

    config.export = export = ConfigDict()  # of `--stages export`
    export.format = "trident"  # any of data.features_format
    export.features = "hr"  # or "lr" of the encoder as it is, or "distilled", LR of every fold

    config.synthetic = synthetic = ConfigDict()
    synthetic.slides = 0  # procedural slides made when data.labels is unset
    synthetic.size_px = 1024
    synthetic.tiles_per_class = 200
    synthetic.tile_scales = (1,)  # magnifications of the tiles: 1 as HR, 4 as LR of ratio 4

    config.study = study = ConfigDict()
    study.seeds = ()  # the whole run once a seed, into one table; "{seed}" in a path of data is it
    study.workers = 1  # seeds at once, each a process, on CPU only; 0 is one per core
    # Shares of regions, as select.rho: WISE-FUSE's curve, its controls and exhaustive HR beside it.
    study.budgets = ()
    # Methods of other groups that choose regions too, each a line of that curve of WISE-FUSE:
    # ("zoom_mil", "hdmil"). They share the HR features of exhaustive HR.
    study.other_methods = ()
    study.variants = ()  # "name: key=value key=value", the keys as in flags: a row of the table

    config.sweep = sweep = ConfigDict()  # settings beside each other, as few programs as it takes
    sweep.each = ()  # every value of a key alone: "student.lambda_bag: 0 0.3 3"
    sweep.grid = ()  # all combinations of the values of several such texts
    sweep.points = ()  # those with names: "name: key=value key=value"


def seed_of(config: ConfigDict, block: ConfigDict) -> int:
    """Of the start and the order of bags of a training: its block's own, or the run's."""
    return config.seed if block.seed is None else block.seed


def finish(config: ConfigDict, arg: str | None) -> ConfigDict:
    """Applies what follows the colon in `--config file.py:arg`."""
    if arg in (None, ""):
        return config
    if arg != "tiny":
        raise ConfigError(f"the config takes ':tiny' or nothing after its name, not ':{arg}'")
    return tiny(config)


def tiny(config: ConfigDict) -> ConfigDict:
    """Shrinks any config to a smoke test of a minute: synthetic slides, a tiny ViT, few steps."""
    config.update(folds=1, deliver="final")
    if config.data.labels is None:
        config.synthetic.slides = 20
        config.synthetic.size_px = 512
        config.synthetic.tiles_per_class = 12
        # What synthetic slides have of each task (`slides.outcomes`); "label" of the others.
        config.data.classes = ("none", "small", "large") if config.task == "ordinal" else ()
        asked = {"ordinal": "grade", "regression": "burden"}
        config.data.label_column = asked.get(config.task, "label")
        config.data.update(time_column="time", event_column="event", bins=2)
        if config.text.descriptions is not None:
            config.text.descriptions = "shipped:procedural"
        config.select.classes = ()
        config.geometry.update(hr_mpp=0.5, lr_mpp=2.0, patch_px=64)
    if config.encoder.weights is None:
        config.encoder.name = "vit-tiny"
    config.encoder.update(batch=16, dtype="float32", threads=2)
    config.prepare.workers = 2
    config.pretrain.update(steps=6, batch=16, eval_every=3, log_every=3)
    config.distill.update(steps=6, batch=8, eval_every=3, log_every=3, val_patches=16, layers=())
    config.align.update(steps=6, batch=8, eval_every=3, log_every=3, val_patches=16)
    for block in (config.teacher, config.student, config.mil):
        block.update(epochs=3, bags=4, budget=256, hidden=16)
    config.student.topk = 2
    config.evaluate.timed_slides = 1
    config.report.update(heatmaps=1, slides=2)
    study = config.study
    study.update(seeds=study.seeds[:2], variants=study.variants[:2], budgets=study.budgets[:1])
    config.sweep.update(each=config.sweep.each[:2], grid=config.sweep.grid[:1])
    study.workers = 1
    return config


def replaced(config: ConfigDict, changes: Mapping[str, str]) -> ConfigDict:
    """A copy with some keys changed, given as on the command line: `{"student.topk": "4"}`.

    Raises:
      ConfigError: a key that is not there, or a value of another type.
    """
    changed, flat = config.copy_and_resolve_references(), flatten(config)
    for key, text in changes.items():
        require_key(key, flat)
        try:
            value: Any = text
            if flat[key] is not None and not isinstance(flat[key], str):
                value = ast.literal_eval(text)
            changed.update_from_flattened_dict({key: value})
        except (TypeError, ValueError, SyntaxError) as error:
            raise ConfigError(
                f"config.{key} cannot be {text!r}; by default it is {flat[key]!r}"
            ) from error
    return changed


def near_key(key: str, flat: Collection[str]) -> str:
    """ "; did you mean ...?" of a key that is not there, or nothing."""
    # The last word of a key, whose section was left out or is another one.
    same_end = [one for one in flat if one.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    near = same_end[:3] or difflib.get_close_matches(key, flat, n=1, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def require_key(key: str, flat: Collection[str]) -> None:
    """Raises ConfigError, with the key that may be meant, where there is no such key."""
    if key not in flat:
        raise ConfigError(f"the config has no key {key!r}{near_key(key, flat)}")


def flatten(config: Mapping | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """`{"student.lambda_bag": 1.0, ...}`, with tuples as tuples."""
    flat: dict[str, Any] = {}
    for key in sorted(config.keys()):
        value = config[key]
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def explain(error: Exception) -> str:
    """An error of absl or ml_collections over a flag or a config file, as one sentence."""
    text = str(error.args[0] if error.args else error).replace("\\n", " ")
    if isinstance(error, AttributeError | KeyError):
        name = re.search(r"\w+", text.removeprefix("'Key \"").lstrip("'\\\""))
        if name is not None:
            known = {key.rsplit(".", 1)[-1] for key in flatten(default())}
            close = difflib.get_close_matches(name[0], known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            return f"the config has no key {name[0]!r}{hint} (`lrmil keys` lists all)"
    return " ".join(text.split())
