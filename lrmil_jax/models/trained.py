"""The encoders and heads of a run: given, or trained by its stages."""

import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lrmil_jax import encoders, heads, processor
from lrmil_jax.encoders import pretrained
from lrmil_jax.errors import ConfigError, WeightsError
from lrmil_jax.models import loading
from lrmil_jax.train.encode import BatchEncoder, Encoder
from lrmil_jax.workspace import cohorts, foreign, layout, provenance, stage_files

log = logging.getLogger(__name__)


def hr_encoder(config: ConfigDict, workdir: Path) -> Encoder:
    """The frozen HR encoder: `encoder.weights`, or the one that `pretrain` trained here.

    Raises:
      WeightsError: neither is there.
    """
    path = hr_weights(config, workdir)
    return _load(config, path)


def low_resolution(config: ConfigDict, encoder: Encoder) -> Encoder:
    """An encoder of the run as it reads LR tiles.

    Raises:
      ConfigError: see `loading.low_resolution`.
    """
    return loading.low_resolution(encoder, cohorts.geometry(config), config.encoder.lr_px)


def _load(config: ConfigDict, path: Path) -> Encoder:
    return _load_named(config, config.encoder.name, path, px=config.encoder.px)


def _load_named(config: ConfigDict, name: str, path: Path, *, px: int | None = None) -> Encoder:
    settings = config.encoder
    return loading.load_encoder(name, path, dtype=settings.dtype, fsdp=settings.fsdp, px=px)


def has_student(config: ConfigDict) -> bool:
    """Whether the LR encoder is another one than the HR encoder."""
    return config.distill.student is not None


def student(config: ConfigDict) -> Encoder:
    """The LR encoder of `distill.student` before stage 1, as it reads LR tiles: with its weights,
    or new.

    Raises:
      ConfigError: no such encoder, or one whose tokens the children cannot share.
      WeightsError: `distill.weights` cannot be read, or is of another encoder.
    """
    name, settings = config.distill.student, config.encoder
    if config.distill.weights is not None:
        path = pretrained.locate(config.distill.weights)
        return low_resolution(config, _load_named(config, name, path))
    side = loading.lr_side(cohorts.geometry(config), encoders.create(name), settings.lr_px)
    options = {"px": side}
    module = encoders.create(name, **options, dtype=loading.DTYPES[settings.dtype])
    params = jax.jit(module.init)(jax.random.key(config.seed), jnp.zeros((1, side, side, 3)))
    transform = encoders.transform(name, **options)
    new = Encoder(
        name,
        options,
        module,
        params["params"],
        transform,
        "untrained",
        eight_bits=settings.dtype == loading.EIGHT_BITS,
    )
    return low_resolution(config, new)


def check_student(config: ConfigDict) -> None:
    """An LR encoder of its own goes with LRMIL on slides, and learns whole.

    Raises:
      ConfigError: naming the keys, and what to do.
    """
    settings = config.distill
    if settings.student is None:
        if settings.weights is not None:
            raise ConfigError(
                "distill.weights is set, but distill.student names no encoder that has them; set "
                "it, or leave distill.weights away: stage 1 starts from the HR encoder"
            )
        return
    if settings.rank:
        raise ConfigError(
            "distill.rank is of adapters of the HR encoder, but distill.student is another one; "
            "leave one of them away"
        )


def reading_facts(config: ConfigDict) -> dict[str, Any]:
    """How the delivered model's encoder reads, for `model.json`; sides of its input only where they
    are not its own."""
    settings = config.encoder
    sides = {key: settings[key] for key in ("px", "lr_px") if settings[key] is not None}
    return {key: settings[key] for key in ("name", "batch", "dtype")} | sides


def hr_weights(config: ConfigDict, workdir: Path) -> Path:
    """The file of the frozen HR encoder.

    Raises:
      WeightsError: see `hr_encoder`.
    """
    if config.encoder.weights is not None:
        return pretrained.locate(config.encoder.weights)
    path = layout.stage_folder(workdir, "pretrain") / "encoder.safetensors"
    if not path.is_file():
        raise WeightsError(
            "encoder.weights is not set and no encoder was trained here; give a weights file, "
            "or data.tiles (a folder of labelled tiles) and run --stages pretrain"
        )
    return path


def encoder_facts(config: ConfigDict, workdir: Path) -> dict:
    """What makes the features of the HR encoder its own; kept in `cohort.json`.

    Raises:
      WeightsError: see `hr_encoder`.
    """
    if not foreign.reads_slides(config):
        # Of another tool, as `prepare` read of its files.
        return provenance.read(workdir)["encoder"]
    encoder = hr_encoder(config, workdir)
    facts = {
        "dtype": config.features.dtype,
        "compute_dtype": config.encoder.dtype,
        "width": encoder.module.embedding_width,
        "layer_width": encoder.module.width,
    }
    if foreign.given(config):
        facts["imported"] = sorted(foreign.named_folders(config))
    return json.loads(json.dumps(encoder.identity() | facts))


def distilled_encoder(config: ConfigDict, workdir: Path, fold: int | None) -> Encoder:
    """The fold's LR encoder after stage 1."""
    path = stage_files.distilled_path(config, workdir, fold)
    if has_student(config):
        return low_resolution(config, _load_named(config, config.distill.student, path))
    return low_resolution(config, _load(config, path))


def batch_encoder(config: ConfigDict, encoder: Encoder, blocks: tuple[int, ...] = ()):
    """The encoder in the cohort's batch shape."""
    settings = config.encoder
    return BatchEncoder(encoder, batch=settings.batch, blocks=blocks, fsdp=settings.fsdp)


def layers(config: ConfigDict, module, *, block: str = "distill") -> tuple[int, ...]:
    """The blocks of L_layer, counted from 0, of an encoder module; () with other tools' features.

    Args:
      config: of the run.
      module: the encoder's.
      block: of the config whose `layers` they are, "distill" or "align".

    Raises:
      ConfigError: a block that is not there, or a patch size that does not give every child a
        whole window of tokens.
    """
    loading.lr_side(cohorts.geometry(config), module, config.encoder.lr_px)
    if foreign.given(config):
        return ()  # other tools keep embeddings alone, no CLS at blocks
    chosen = tuple(config[block].layers) or encoders.default_layers(module.depth)
    for index in chosen:
        if not -module.depth <= index < module.depth:
            raise ConfigError(
                f"{block}.layers has block {index}, but {config.encoder.name} has blocks 0 to "
                f"{module.depth - 1}"
            )
    return tuple(sorted({index % module.depth for index in chosen}))


def preflight(config: ConfigDict, *, encodes: bool = True) -> None:
    """Refuses before the first stage what a later stage would refuse after hours.

    Args:
      config: of the run.
      encodes: an encoder will be needed; slides can be prepared while its weights are awaited.

    Raises:
      ConfigError: unknown encoder or head.
      WeightsError: `encoder.weights` names no file.
    """
    for block in (config.teacher, config.student, config.mil):
        heads.find(block.head)
    if not foreign.reads_slides(config):
        return
    weights = config.encoder.weights
    for key, named in (("encoder.weights", weights), ("pretrain.init", config.pretrain.init)):
        if named is not None and not pretrained.locate(named).is_file():
            raise WeightsError(f"{key} names {named}, which does not exist")
    if encodes:
        _tell_type(config.encoder.dtype)
    tiles = (config.data.tiles, config.data.captions)
    trains = any(part is not None for part in tiles) or config.synthetic.slides > 0
    if encodes and weights is None and not trains:
        raise ConfigError(
            "encoder.weights is not set; give --config.encoder.weights=FILE.safetensors, or "
            "--config.data.tiles=FOLDER of labelled tiles, or --config.data.captions=CSV of tiles "
            "and captions, to train a small encoder on"
        )


def _tell_type(dtype: str) -> None:
    """Whether the encoder's type of computation suits the CPU, if that is what computes."""
    if jax.default_backend() != "cpu":
        return
    if dtype == "bfloat16" and not processor.multiplies_bfloat16():
        log.info(
            "encoder.dtype is bfloat16, but this CPU has neither AMX nor AVX-512 BF16, so it is no "
            "faster than --config.encoder.dtype=float32, and less exact"
        )
    if dtype == loading.EIGHT_BITS and not processor.multiplies_int8():
        log.info(
            "encoder.dtype is int8, but this CPU has neither AMX nor VNNI, so it is hardly faster "
            "than --config.encoder.dtype=float32, and less exact"
        )
    if dtype == "float32" and processor.multiplies_bfloat16():
        log.info(
            "this CPU multiplies bfloat16 in hardware: --config.encoder.dtype=bfloat16 encodes "
            "faster, with features that differ by about 1 %%"
        )


def lr_encoder(config: ConfigDict, workdir: Path, fold: int) -> Encoder:
    """The encoder that reads LR tiles in the fold, as `align.how` says.

    Raises:
      WeightsError: a file is missing, broken, or another tower's.
    """
    lr_files = lr_encoder_files(config, workdir, fold)
    own, tuned = lr_files.get("encoder.safetensors"), lr_files.get("prompts.safetensors")
    tower = hr_encoder(config, workdir) if own is None else _load(config, own)
    tower = low_resolution(config, tower)
    return tower if tuned is None else loading.prompted(tower, tuned)


def lr_encoder_files(config: ConfigDict, workdir: Path, fold: int) -> dict[str, Path]:
    """The files that make the fold's LR encoder of the tower, by name; {} if none is needed.

    Raises:
      WeightsError: `align.how` is "distilled", but `align.encoder` is not set.
    """
    how, folder = config.align.how, layout.stage_folder(workdir, "align", fold)
    if how == "none":
        return {}
    if how == "distilled":
        if config.align.encoder is None:
            raise WeightsError(
                "align.how=distilled needs --config.align.encoder=FILE, the encoder.safetensors of "
                "a distillation (folds/{fold}/distill); '{fold}' in the path is the fold"
            )
        return {
            "encoder.safetensors": Path(
                config.align.encoder.replace("{fold}", layout.fold_name(fold))
            )
        }
    names = ["prompts.safetensors"] if "prompts" in how else []
    names += ["encoder.safetensors"] if how != "prompts" else []
    return {name: folder / name for name in names}
