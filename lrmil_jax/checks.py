"""What every config key may be, and what must hold between them."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lrmil_jax import heads, methods, storage, tasks
from lrmil_jax.config import flatten
from lrmil_jax.data import leaks
from lrmil_jax.errors import ConfigError
from lrmil_jax.interchange import registry
from lrmil_jax.methods import given_features
from lrmil_jax.models import tower_pair, trained
from lrmil_jax.slides.readers import READERS
from lrmil_jax.workspace import teachers


def _one_of(*choices: str) -> Callable[[Any], bool]:
    check = lambda value: value in choices  # noqa: E731
    check.wanted = "one of " + ", ".join(choices)
    return check


def _range(low: float | int, high: float | int) -> Callable[[Any], bool]:
    check = lambda value: low <= value <= high  # noqa: E731
    check.wanted = f"from {low} to {high}"
    return check


def _optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """The same where the key is set."""
    either = lambda value: value is None or check(value)  # noqa: E731
    either.wanted = f"{check.wanted}, or unset"
    return either


def _tracking_uri(value: str) -> bool:
    """Whether MLflow may take it, and not for a folder's name."""
    kinds = ("http", "https", "file", "sqlite", "postgresql", "mysql", "mssql", "databricks")
    return value.partition(":")[0].partition("+")[0] in kinds


_tracking_uri.wanted = "a tracking URI such as http://host:5000 or sqlite:///mlflow.db"
_INFINITE = float("inf")
_TRAINING_CHECKS = {
    "optimizer": _one_of("adamw"),
    "schedule": _one_of("cosine", "constant"),
    "learning_rate": _range(0, _INFINITE),
    "layer_decay": _range(0.1, 1),
    "stain_jitter": _range(0, 0.9),
    "warmup_steps": _range(0, _INFINITE),
    "weight_decay": _range(0, _INFINITE),
    "clip_norm": _range(0, _INFINITE),
    "accumulate": _range(1, _INFINITE),
    "eval_every": _range(1, _INFINITE),
    "log_every": _range(1, _INFINITE),
    "patience": _range(0, _INFINITE),
    "checkpoint_seconds": _range(0, 1e6),
    "epochs": _range(1, _INFINITE),
    "steps": _range(1, _INFINITE),
    "batch": _range(1, _INFINITE),
    "budget": _range(1, _INFINITE),
    "bags": _range(1, _INFINITE),
    "instances": _range(1e-3, 1),
    "mixup": _range(0, 1000),
    "balance": _one_of("none", "weights", "sampling"),
    "dropout": _range(0, 0.99),
    "dtype": _one_of("float32", "bfloat16"),
    "hidden": _range(1, _INFINITE),
    "resident_gib": _optional(_range(0, _INFINITE)),
}
_CHECKS = {
    "method": _one_of(*methods.METHODS),
    "data.bins": _range(2, 100),
    "data.val_share": _optional(_range(0.01, 0.9)),
    "data.staging_gib": _range(1e-6, 10**6),
    "data.leaks": _one_of(*leaks.HOW),
    "data.patient": _one_of(*tasks.POOLINGS),
    "align.how": _one_of("prompts", "lora", "prompts+lora", "full", "distilled", "none"),
    "align.prompts": _range(1, 1024),
    "align.rank": _range(1, 1024),
    "align.beta": _range(0, 1e6),
    "align.lambda_layer": _range(0, _INFINITE),
    "align.val_patches": _range(1, 10**9),
    "fuse.tau": _range(1e-3, 1e4),
    "select.rho": _range(1e-6, 1.0),
    "select.count": _range(0, 10**9),
    "select.score": _one_of("patch", "window"),
    "select.windows": _range(1, 64),
    "select.rule": _one_of("max", "per_class", "random"),
    "fuse.how": _one_of("concatenate", "residual", "cross_attention", "none"),
    "deliver": _one_of("final", "ensemble"),
    "seed": _range(0, 2**32 - 1),
    "folds": _range(1, 100),
    "geometry.hr_mpp": _range(0.1, 10),
    "geometry.lr_mpp": _range(0.1, 10),
    "geometry.patch_px": _range(16, 4096),
    "prepare.reader": _one_of("auto", *READERS),
    "prepare.hr": _one_of("store", "skip"),
    "prepare.min_tissue": _range(0, 1),
    "prepare.tissue_mpp": _range(0.5, 64),
    "prepare.tissue_threshold": _range(0, 255),
    "prepare.tissue_close_um": _range(0, 1000),
    "prepare.jpeg_quality": _range(1, 100),
    "prepare.workers": _range(0, 1024),
    "prepare.seconds_per_slide": _range(0, 10**7),
    "study.workers": _range(0, 1024),
    "encoder.px": _optional(_range(16, 4096)),
    "encoder.lr_px": _optional(_range(16, 4096)),
    "encoder.batch": _range(1, _INFINITE),
    "encoder.dtype": _one_of("float32", "bfloat16", "int8"),
    "encoder.threads": _range(1, 256),
    "encoder.workers": _range(0, 256),
    "text.power": _one_of("low", "high", "both"),
    "features.dtype": _one_of("float16", "bfloat16"),
    "features.rows": _range(64, 2048),
    "pretrain.image": _one_of(*tower_pair.LEARNING),
    "pretrain.rank": _range(1, 1024),
    "distill.rank": _range(0, 1024),
    "pretrain.val_share": _range(0.01, 0.5),
    "pretrain.smallest_crop": _range(0.1, 1),
    "pretrain.largest_crop": _range(0.1, 1),
    "pretrain.jitter": _range(0, 1),
    "pretrain.projection": _range(1, _INFINITE),
    "pretrain.text_width": _range(1, _INFINITE),
    "pretrain.text_depth": _range(1, _INFINITE),
    "pretrain.text_heads": _range(1, _INFINITE),
    "pretrain.text_tokens": _range(4, _INFINITE),
    "pretrain.vocabulary": _range(257, 65_536),
    "distill.val_patches": _range(1, _INFINITE),
    "distill.lambda_layer": _range(0, _INFINITE),
    "distill.lambda_attn": _range(0, _INFINITE),
    "student.seed": _optional(_range(0, 2**32 - 1)),
    "student.lambda_ce": _range(0, _INFINITE),
    "student.lambda_bag": _range(0, _INFINITE),
    "student.lambda_soft": _range(0, _INFINITE),
    "student.lambda_hard": _range(0, _INFINITE),
    "student.temperature_bag": _range(1e-3, 1e3),
    "student.temperature_attn": _range(1e-3, 1e3),
    "student.topk": _range(1, _INFINITE),
    "student.guide": _one_of("mass", "mean", "max"),
    "student.hard": _one_of("rank", "instance"),
    "evaluate.lesion_share": _range(1e-6, 1),
    "evaluate.sensitivity": _range(0.01, 1),
    "evaluate.timed_slides": _range(0, _INFINITE),
    "report.heatmaps": _range(0, _INFINITE),
    "report.slides": _range(0, _INFINITE),
    "report.tiles": _range(1, 100),
    "tracking.mlflow": _optional(_tracking_uri),
    "export.features": _one_of("hr", "lr", "distilled"),
    "synthetic.slides": _range(0, 1_000_000),
    "synthetic.size_px": _range(256, 100_000),
    "synthetic.tiles_per_class": _range(2, 1_000_000),
}

# Weights of which at least one must be above 0.
_TERMS = {
    "distill": ("lambda_layer", "lambda_attn"),
    "student": ("lambda_ce", "lambda_bag", "lambda_soft", "lambda_hard"),
}


def validate(config: ConfigDict, stages: Sequence[str] = ()) -> None:
    """Checks ranges and choices, and what must hold between keys.

    Args:
      config: of a run.
      stages: those that are asked for by name; `pretrain` alone needs no label CSV.

    Raises:
      ConfigError: naming the key, its value and what it may be.
    """
    flat = flatten(config)
    blocks = ("pretrain", "teacher", "distill", "student", "align", "mil")
    checks = dict(_CHECKS)
    checks |= {
        f"{block}.{key}": check for block in blocks for key, check in _TRAINING_CHECKS.items()
    }
    for key, check in checks.items():
        if key in flat and not check(flat[key]):
            raise ConfigError(f"config.{key} is {flat[key]!r}, but it must be {check.wanted}")
    _heads(config)
    _task(config)
    _names(flat)
    _on_disk(flat)
    _fits_together(config)
    _packages(flat)
    registry.create(config.export.format)
    if config.data.features_format != registry.AUTO:
        registry.create(config.data.features_format)
    if list(stages) != ["pretrain"]:
        given_features.check(config, methods.of(config).bags)
        methods.of(config).check(config)


def _heads(config: ConfigDict) -> None:
    for name in ("teacher", "student", "mil"):
        given = config[name].options
        if isinstance(given, str) or not all(isinstance(text, str) for text in given):
            raise ConfigError(
                f"config.{name}.options is {given!r}, but it must be a tuple of words like ('k=3',)"
            )
        try:
            heads.parse_options(config[name].head, given)
        except ConfigError as error:
            raise ConfigError(f"config.{name}: {error}") from error
        head = config[name].head
        if heads.find(head).reads_cells and methods.of(config).head != head:
            raise ConfigError(
                f"config.{name}.head={head} reads two magnifications, which its own method gives "
                f"it; use --config.method={head}, or choose another head"
            )


def _task(config: ConfigDict) -> None:
    """What the task cannot do is told before anything runs."""
    task = tasks.kind(config.task)
    for name in ("teacher", "student", "mil"):
        block = config[name]
        if heads.find(block.head).needs_classes and not task.has_output_a_class:
            raise ConfigError(
                f"config.{name}.head={block.head} has an output a class, which the task "
                f"{config.task} does not ask for; choose another head"
            )
        if block.mixup:
            _mixup(config, name)
        if task.joint and heads.find(block.head).has_own_loss():
            raise ConfigError(
                f"config.{name}.head={block.head} has a loss of its own, slide by slide, but the "
                f"task {config.task} looks at all slides of an update; choose another head"
            )
        known = ("loss", "headline", *task.metrics)
        if block.select not in known:
            raise ConfigError(
                f"config.{name}.select is {block.select!r}, but it must be one of "
                f"{', '.join(dict.fromkeys(known))}, of the task {config.task}"
            )
    if config.evaluate.colour_baseline and not task.has_classes:
        raise ConfigError(
            f"evaluate.colour_baseline tells classes apart, which the task {config.task} has none "
            "of; switch it off"
        )


def _mixup(config: ConfigDict, name: str) -> None:
    """Two slides can be mixed where their targets have a mean, and places do not count."""
    if not tasks.kind(config.task).mixes:
        raise ConfigError(
            f"config.{name}.mixup mixes the targets of two slides, of which the task {config.task} "
            "knows no mean; leave it at 0"
        )
    block = config[name]
    options = heads.parse_options(block.head, block.options)
    if heads.create(block.head, num_classes=2, **options).needs_xy:
        raise ConfigError(
            f"config.{name}.mixup mixes the patches of two slides, but config.{name}.head="
            f"{block.head} asks where in one slide they lie; leave it at 0, or choose another head"
        )


# Keys that are names, which YAML and Python take for numbers or yes and no without quotes.
_NAMES = {
    "data.classes": "names of classes, each in quotes, like ('0', '1')",
    "data.split_columns": "columns of the label CSV like ('fold_1', 'fold_2')",
    "data.annotation_classes": "classifications of QuPath like ('Tumor',)",
    "data.mask_classes": "classifications of QuPath like ('Tumor',)",
    "evaluate.subgroups": "columns of the label CSV like ('site',)",
}


def _names(flat: Mapping[str, Any]) -> None:
    for key, wanted in _NAMES.items():
        given = flat[key]
        if isinstance(given, str) or not all(isinstance(name, str) for name in given):
            raise ConfigError(f"config.{key} is {given!r}, but it must be a tuple of {wanted}")


_IN_BUCKETS = ("data.labels", "data.slides", "data.slide_table")
_OF_SERVERS = ("tracking.mlflow",)


def _on_disk(flat: Mapping[str, Any]) -> None:
    for key, value in flat.items():
        if (
            isinstance(value, str)
            and storage.is_url(value)
            and key not in (*_IN_BUCKETS, *_OF_SERVERS)
        ):
            raise ConfigError(
                f"config.{key} is {value!r}, but only {', '.join(_IN_BUCKETS)} may lie in object "
                "storage; copy it to a disk"
            )


def _packages(flat: Mapping[str, Any]) -> None:
    """What a key needs is told before anything runs."""
    if flat["tracking.mlflow"] is not None and importlib.util.find_spec("mlflow") is None:
        raise ConfigError("tracking.mlflow needs MLflow: pip install 'lrmil_jax[mlflow]'")


def _fits_together(config: ConfigDict) -> None:
    ratio = config.geometry.lr_mpp / config.geometry.hr_mpp
    if round(ratio) not in (2, 4, 8) or abs(ratio - round(ratio)) > 1e-6:
        raise ConfigError(
            f"geometry.lr_mpp / geometry.hr_mpp is {ratio:g}, but it must be 2, 4 or 8"
        )
    if config.deliver == "ensemble" and config.folds == 1:
        raise ConfigError(
            "deliver=ensemble needs several folds, but folds is 1; raise folds, or leave deliver "
            "at final"
        )
    for folder, classes in (("annotations", "annotation_classes"), ("masks", "mask_classes")):
        if config.data[classes] and config.data[folder] is None:
            raise ConfigError(
                f"data.{classes} names classifications of data.{folder}, which is not set; set it, "
                f"or leave data.{classes} away"
            )
    if config.data.splits is not None and config.data.split_columns:
        raise ConfigError("data.splits and data.split_columns are both set; leave one of them away")
    tower_pair.check(config)
    trained.check_student(config)
    teachers.named(config)
    if config.pretrain.smallest_crop > config.pretrain.largest_crop:
        raise ConfigError("pretrain.smallest_crop is above pretrain.largest_crop; swap them")
    for block, terms in _TERMS.items():
        if not any(config[block][term] for term in terms):
            names = " or ".join(f"{block}.{term}" for term in terms)
            raise ConfigError(f"nothing would be learned: set {names} above 0")
