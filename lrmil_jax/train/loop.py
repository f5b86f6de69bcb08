"""The training of every stage: one model or several, resumed where it was, its best kept."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from lrmil_jax import cluster
from lrmil_jax.cluster.stopping import stopping
from lrmil_jax.train import sharding
from lrmil_jax.train.checkpoint import (
    FitResult,
    clear_remainders,
    load_result,
    opened,
    save_result,
)
from lrmil_jax.train.joint import Joint
from lrmil_jax.train.price import Price
from lrmil_jax.train.state import Several, TrainSettings
from lrmil_jax.train.step import LossFn
from lrmil_jax.train.training import Training, Validate, ValidateSeveral

_log = logging.getLogger(__name__)


def fit(
    *,
    name: str,
    directory: Path | str,
    params: Any,
    loss_fn: LossFn,
    batches: grain.IterDataset,
    validate: Validate | None,
    settings: TrainSettings,
    constants: Any = None,
    mesh: Mesh | None = None,
    seed: int = 0,
    joint: Joint | None = None,
    place: Callable[[int], int] | None = None,
) -> FitResult:
    """Trains `params` and gives back the best ones; the same call again goes on where it was.

    Killed at any moment and called again, it gives bit-identical parameters and metrics on the
    same devices. Once finished, `directory` holds `best.safetensors`, `result.json`,
    `metrics.jsonl` and TensorBoard events, the checkpoints are deleted, and a further call
    returns at once.

    Args:
      name: what is trained, for messages and progress.
      directory: belongs to this training alone; whose it is the caller must know.
      params: nested dict of arrays to start from; it is copied.
      loss_fn: `(params, constants, batch, key, train) -> {"loss": [B], ...}`, one number for each
        example; "loss" is minimised, the others are logged.
      batches: gives dicts of numpy arrays [B, ...], at least `steps * accumulate` of them; a
        "weight" [B] says how much each example counts (0 = filling), 1 where it is missing.
        Where they have "ends_update", a batch is what stands between two True ones, its parts
        computed one after another. With several processes each gives its own part.
      validate: `params -> metrics`, on the host; None keeps the last parameters.
      settings: see TrainSettings.
      constants: arrays that the loss reads but that do not learn (features, a frozen teacher);
        copied to every device once.
      mesh: from `make_mesh`; default: all devices.
      seed: of everything random in the steps (dropout).
      joint: of a loss that looks at all examples of an update at once.
      place: the number of batches before so many steps, where it depends on the devices; None: as
        many for any number of devices. A training may go on with another number of them.

    Raises:
      TrainingError: the loss or the parameters became NaN or infinite (the last good checkpoint
        stays), or `batches` ended too early.
      WorkdirError: nothing can be written, or the checkpoint there is of another model.
      ConfigError: `validate` does not give the metric that chooses the best model.
    """
    return _trained(
        [Path(directory)], params, batches, validate, constants, jax.random.key(seed),
        name=name, directory=Path(directory), loss_fn=loss_fn, settings=settings,
        mesh=mesh, joint=joint, several=None, place=place,
    )[0]  # fmt: skip


def fit_several(
    *,
    name: str,
    directory: Path | str,
    several: Several,
    params: Any,
    loss_fn: LossFn,
    batches: grain.IterDataset,
    validate: ValidateSeveral | None,
    settings: TrainSettings,
    constants: Any = None,
    mesh: Mesh | None = None,
    joint: Joint | None = None,
    place: Callable[[int], int] | None = None,
    price: Price | None = None,
) -> list[FitResult]:
    """`fit` of several models in one program: each gets what it would get alone.

    A model that validation no longer improves learns no more, whatever the others do. Everything
    is as for `fit`, kills included, but that `directory` has a folder for each model's result and
    one row of metrics for all, and that the best parameters are kept on the device.

    Args:
      name, directory, settings, mesh, joint, place: as for `fit`, of all models.
      several: what the models differ in.
      params: of all, leaves [M, ...].
      loss_fn: of one model, as for `fit`.
      batches: as for `fit`, with leaves [S, B, ...]; `ends_update` is one for all.
      validate: `params of all -> metrics of each`.
      constants: as for `fit`; some may be each model's own, see `Several`.
      price: tells early what the training costs.

    Raises:
      As `fit`.
    """
    keys = jax.vmap(jax.random.key)(np.asarray(several.seeds, np.uint32))
    folders = [Path(directory) / one for one in several.names]
    return _trained(
        folders, params, batches, validate, constants, keys,
        name=name, directory=Path(directory), loss_fn=loss_fn, settings=settings,
        mesh=mesh, joint=joint, several=several, place=place, price=price,
    )  # fmt: skip


def _trained(
    folders, params, batches, validate, constants, key, *, name, directory, mesh, **options
) -> list[FitResult]:
    """The results of one model or of several, each kept in a folder."""
    finished = [load_result(folder) for folder in folders]
    whole = None not in finished
    cluster.first_only(f"{name} begins", _clear, {directory, *folders}, whole)
    if whole:
        steps = ", ".join(str(one.step) for one in finished)
        _log.info("%s: already trained, best at step %s", name, steps)
        return finished
    mesh = sharding.make_mesh() if mesh is None else mesh
    with opened(directory / "checkpoints") as checkpoints:
        training = Training(
            name=name, directory=directory, mesh=mesh, checkpoints=checkpoints,
            iterator=iter(batches), validate=validate, **options,
        )  # fmt: skip
        training.start(params)
        training.run(sharding.replicate(constants, mesh), key)
        results = training.best()
    cluster.first_only(f"{name} ends", _save, folders, results)
    if cluster.is_first():
        checkpoints.delete()
    stopping.training_is_over()
    return results


def _clear(folders: Iterable[Path], finished: bool) -> None:
    for folder in folders:
        clear_remainders(folder, finished=finished)


def _save(folders: Iterable[Path], results: Iterable[FitResult]) -> None:
    for folder, result in zip(folders, results, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        save_result(folder, result)
