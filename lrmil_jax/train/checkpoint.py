"""Orbax checkpoints of state, data iterator and progress; finished parameters as safetensors.

Orbax is hidden behind this file: nothing else in the package names it.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lrmil_jax.data import param_files
from lrmil_jax.errors import WorkdirError
from lrmil_jax.files import disk_errors, write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitResult:
    """The chosen model: host arrays, the step they are from, and `validate` at that step."""

    params: Any
    step: int
    metrics: dict[str, float | None]


def load_result(directory: Path) -> FitResult | None:
    """What a finished training left in its directory, None if it is not finished."""
    # result.json is written last: where it is, best.safetensors is whole.
    path = directory / "result.json"
    if not path.is_file():
        return None
    saved = json.loads(path.read_text(encoding="utf-8"))
    params, _ = param_files.load_params(directory / "best.safetensors")
    return FitResult(params=params, step=saved["step"], metrics=saved["metrics"])


def save_result(directory: Path, result: FitResult) -> None:
    """Writes `best.safetensors`, then `result.json`, which says that the training is finished."""
    summary = {"step": result.step, "metrics": result.metrics}
    param_files.save_params(directory / "best.safetensors", result.params, summary)
    write_json(directory / "result.json", summary)


def clear_remainders(directory: Path, *, finished: bool) -> None:
    """Removes what a kill left: half-written files and, once finished, the checkpoints."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)
    if finished:
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """What early stopping and model choice must remember over a kill.

    Attributes:
      best_values: the selecting metrics at their best, None where undefined; empty before the
        first evaluation.
      best_step: the step of the best parameters; 0 before the first evaluation.
      best_metrics: all of `validate` at that step.
      bests: how often a new best was found; Orbax keeps the checkpoint with the highest.
      bad_evaluations: evaluations since then.
    """

    best_values: list[float | None] = dataclasses.field(default_factory=list)
    best_step: int = 0
    best_metrics: dict[str, float | None] = dataclasses.field(default_factory=dict)
    bests: int = 0
    bad_evaluations: int = 0


def _signature(state: Any) -> str:
    """Names, shapes and dtypes of a state: Orbax itself would silently cast dtypes."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    text = [f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}" for path, leaf in leaves]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


def _arrays(measured: Any) -> Any:
    """Nested dicts of numbers or lists of them, as float32 arrays."""
    if isinstance(measured, dict):
        return {name: _arrays(value) for name, value in measured.items()}
    return np.asarray(measured, np.float32)


class Checkpoints:
    """The newest and the best checkpoint of one training, under `directory`.

    A checkpoint appears under its name only when it is whole: after a kill at any moment the
    newest one that is there is good.
    """

    def __init__(self, directory: Path | str):
        self.directory = Path(directory).absolute()
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(1),
                preservation_policy.BestN(get_metric_fn=lambda metrics: metrics["rank"], n=1),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            # On the CPU the saved bytes are the live buffers, which the next step overwrites.
            enable_async_checkpointing=jax.default_backend() != "cpu",
        )
        with disk_errors(self.directory):
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(
        self,
        state: Any,
        iterator: grain.DatasetIterator,
        done: Sequence[TrainProgress],
        window: Sequence[Any] = (),
        *,
        devices: int = 1,
    ) -> None:
        """Saves all that a resumed run needs; the state must be finite (the caller checks).

        Args:
          state: `TrainState`; one without `best` is kept as long as it is the best.
          iterator: of the batches; its state counts them, so that it is every process's.
          done: of the model, or of each model of the state.
          window: measured since the last row of metrics, an entry an update.
          devices: over which batches are split.

        Raises:
          WorkdirError: the disk is full, read-only or forbidden; the last checkpoint stays.
        """
        step = int(state.step)
        bests = [one.bests for one in done if state.best is None and one.best_step == step]
        progress = [dataclasses.asdict(one) for one in done]
        meta = {
            "progress": progress,
            "signature": _signature(state),
            "iterator": iterator.get_state(),
            "devices": devices,
            "window": jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), list(window)),
        }
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        with disk_errors(self.directory):
            rank = float(max(bests, default=-1))
            self._manager.save(step, args=items, metrics={"rank": rank})

    def restore(
        self,
        abstract: Any,
        iterator: grain.DatasetIterator,
        *,
        devices: int = 1,
        place: Callable[[int], int] | None = None,
    ) -> tuple[Any, list[TrainProgress], list[Any]] | None:
        """State, progress and window of the newest checkpoint, arrays placed as `abstract` says;
        sets `iterator` too.

        Args:
          abstract: shapes, types and shardings of the state.
          iterator: of the batches.
          devices: over which batches are split now.
          place: the number of batches before a step, where it depends on the devices.

        Returns None where nothing was saved yet.

        Raises:
          WorkdirError: the checkpoint is of another model, or of an earlier version.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        only_meta = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = self._manager.restore(step, args=only_meta)["meta"]
        if meta["signature"] != _signature(abstract) or "iterator" not in meta:
            whose = "another model or optimiser" if "iterator" in meta else "an earlier version"
            raise WorkdirError(
                f"the checkpoint in {self.directory} is of {whose}: delete "
                "that folder or choose another working directory."
            )
        where = meta["iterator"]
        if place is not None and meta["devices"] != devices:
            where = {**where, "next_index": place(step)}
        iterator.set_state(where)
        state = self.restore_state(step, abstract)
        done = [TrainProgress(**one) for one in meta["progress"]]
        return state, done, [_arrays(one) for one in meta["window"]]

    def restore_state(self, step: int, abstract: Any) -> Any:
        """The state alone, of a step that is still kept."""
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        return self._manager.restore(step, args=items)["state"]

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        with disk_errors(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of Orbax's threads."""
        with disk_errors(self.directory):
            self._manager.close()

    def delete(self) -> None:
        """Removes all checkpoints: the training is finished and its result written."""
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def opened(directory: Path | str) -> Iterator[Checkpoints]:
    """Checkpoints that are closed again whatever happens."""
    checkpoints = Checkpoints(directory)
    try:
        yield checkpoints
    finally:
        checkpoints.close()
