"""The one place where the cohort benchmark touches the inside of the product.

What is measured should outlive the code that it measures: where a function here patches or names
something that is not public, its docstring says what, and a change of that part is mended here.
"""

import contextlib
import dataclasses
import json
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import grain
import jax
import numpy as np
import optax
import pandas as pd
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from lrmil_jax import pipeline, tasks
from lrmil_jax.data.bag_batches import BagBatches
from lrmil_jax.distill import guidance
from lrmil_jax.evals import intervals
from lrmil_jax.models import text_guidance
from lrmil_jax.patches import PatchSource
from lrmil_jax.stages import predict
from lrmil_jax.tasks import predictions
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.train import loop, mil, optim
from lrmil_jax.workspace import layout

_COMPILED = "/jax/core/compile/backend_compile_duration"
_compilations: list[float] = []


def _count_compilation(event: str, seconds: float, **_: Any) -> None:
    if event == _COMPILED:
        _compilations.append(seconds)


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def cpu_seconds() -> float:
    """Of this process with all its threads, and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_mib() -> float:
    """Highest resident memory so far of this process or of its largest child that has ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usage.ru_maxrss for usage in usages) / 1024


@contextlib.contextmanager
def measured(rows: list[dict], stage: str, slides: int) -> Iterator[dict]:
    """Appends a row on what the block costs: seconds, host CPU, compilations, memory's peak.

    Host CPU counts all threads, XLA's too: on CPU the device's own work is part of it.
    """
    row: dict[str, Any] = {"stage": stage, "slides": slides}
    start, cpu, before = time.perf_counter(), cpu_seconds(), len(_compilations)
    yield row
    row["wall_s"] = time.perf_counter() - start
    row["cpu_s_per_slide"] = (cpu_seconds() - cpu) / max(1, slides)
    row["compilations"] = len(_compilations) - before
    row["compile_s"] = sum(_compilations[before:])
    row["peak_mib"] = peak_mib()
    rows.append(row)
    print(f"  {stage}: {slides} slides, {row['wall_s']:.1f} s", flush=True)


def training_block(block: ConfigDict, **changes: Any) -> ConfigDict:
    """A copy of a config block of bag training with some keys changed."""
    changed = block.copy_and_resolve_references()
    changed.update(changes)
    return changed


def bag_weights(
    data: mil.BagData, block: ConfigDict, *, epochs: int, seed: int = 0
) -> Float[np.ndarray, " S"]:
    """Each bag's weight in the gradient, summed over the updates of some epochs.

    The trainer itself is asked: `train_head` makes its batches and settings, and `fit` runs with a
    model that has one number a bag, whose loss for a bag is that number, by plain gradient descent
    at rate 1. What a bag's number has fallen by is what its loss weighed. Patches `mil.fit`, to put
    the model in place of the head, and the optimiser that the trainer makes.
    """
    weights = np.zeros(len(data.targets))

    def loss_fn(params, constants, batch, key, train):
        del constants, key, train
        return {"loss": params["theta"][batch["bag"]]}

    def probe(**arguments: Any):
        settings = arguments["settings"]
        arguments |= {
            "params": {"theta": np.zeros(len(weights), np.float32)},
            "loss_fn": loss_fn,
            "validate": None,
            "constants": None,
            "settings": dataclasses.replace(settings, eval_every=settings.steps, patience=None),
        }
        result = loop.fit(**arguments)
        weights[:] = -np.asarray(result.params["theta"])
        return result

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(optim, "create", return_value=optax.sgd(1.0)),
        mock.patch.object(mil, "fit", probe),
    ):
        mil.train_head(
            name="gradient weights",
            directory=Path(folder) / "training",
            block=training_block(block, epochs=epochs),
            loss=mil.SlideLoss(),
            data=data,
            seed=seed,
        )
    return weights


class Waiting:
    """Seconds that the training thread spends on getting batches, see `waiting`."""

    def __init__(self):
        self.seconds = 0.0
        self.thread = threading.current_thread()

    def timed(self, function: Callable) -> Any:
        """Calls it; its time counts where the training thread waits for it."""
        if threading.current_thread() is not self.thread:
            return function()
        start = time.perf_counter()
        try:
            return function()
        finally:
            self.seconds += time.perf_counter() - start


class _TimedIterator(grain.DatasetIterator):
    def __init__(self, parent: grain.DatasetIterator, account: Waiting):
        super().__init__(parent)
        self._account = account

    def __next__(self):
        return self._account.timed(lambda: next(self._parent))

    def get_state(self):
        return self._parent.get_state()

    def set_state(self, state):
        self._parent.set_state(state)


class _TimedDataset(grain.IterDataset):
    def __init__(self, parent: grain.IterDataset, account: Waiting):
        super().__init__(parent)
        self._account = account

    def __iter__(self):
        return _TimedIterator(iter(self._parent), self._account)


@contextlib.contextmanager
def waiting() -> Iterator[Waiting]:
    """Counts the time in which the thread that trains gets its next batch instead of computing.

    That is the time inside `next` of the loader, and inside `BagBatches[index]` where the thread
    makes the batch itself, as validation does. While it waits, updates handed over before (two at
    most) may still be running, so it bounds the device's idle time from above. Patches
    `BagBatches.dataset` and `BagBatches.__getitem__`.
    """
    account = Waiting()
    dataset, item = BagBatches.dataset, BagBatches.__getitem__

    def timed_dataset(batches: BagBatches, **options: Any) -> grain.IterDataset:
        return _TimedDataset(dataset(batches, **options), account)

    def timed_item(batches: BagBatches, index: int) -> dict[str, np.ndarray]:
        return account.timed(lambda: item(batches, index))

    with (
        mock.patch.object(BagBatches, "dataset", timed_dataset),
        mock.patch.object(BagBatches, "__getitem__", timed_item),
    ):
        yield account


def validations(directory: Path) -> int:
    """How often a training in `directory` was validated, from its log."""
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return sum("validation/loss" in json.loads(line) for line in lines)


def guide(
    attention: Float[np.ndarray, " K"], parent: Int[np.ndarray, " K"], patches: int
) -> tuple[Float[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """The teacher's attention on LR patches and which of them have children, as `student` does."""
    present = np.ones(len(parent), bool)
    covered = guidance.covered(parent, patches, present)
    return np.asarray(guidance.mass(attention, parent, patches, present)), np.asarray(covered)


def frame(
    slides: pd.DataFrame, probabilities: Float[np.ndarray, "S 2"], classes: tuple[str, ...]
) -> pd.DataFrame:
    """Rows as `evaluate` writes them to `predictions.csv`."""
    table = slides.assign(case_id=slides.patient_id)
    return predictions.rows(Classification(classes), "model", table, probabilities)


def auc_and_interval(rows: pd.DataFrame) -> tuple[float, tuple[float, float]]:
    """What `evaluate` says of a fold."""
    result = predictions.measure(tasks.of_columns(rows), rows)
    return result["metrics"]["auc"], result["intervals"]["auc"]


def mean_interval(models: list[pd.DataFrame]) -> tuple[float, float]:
    """The 95 % interval of the mean AUC of several models, as the report gives it for folds and a
    study for seeds; equal patient names are one patient."""
    auc = [predictions.figures(tasks.of_columns(rows), rows)["auc"] for rows in models]
    return intervals.summarise(auc).interval


choose = text_guidance.choose
fused_features = text_guidance.fused_features


def run_stages(
    config: ConfigDict, workdir: Path, rows: list[dict], prefix: str, slides: int
) -> float:
    """Runs every stage of the config's method, one after the other, as the command line does.

    Returns:
      HR patches that all stages and folds encoded, over those that there are. Patches
      `PatchSource.features`, through which whatever is encoded comes.
    """
    encoded = [0]
    features = PatchSource.features

    def counted(source: PatchSource, found: dict[str, np.ndarray]) -> Any:
        if source.high and found:
            encoded[0] += len(found["embedding"])
        return features(source, found)

    with mock.patch.object(PatchSource, "features", counted):
        for stage in pipeline.choose_stages(config, []):
            with layout.locked(workdir), measured(rows, f"{prefix} {stage.name}", slides):
                pipeline.run(config, workdir, [stage.name])
    return encoded[0] / pd.read_csv(workdir / "slides.csv").hr_patches.sum()


def run_predict(workdir: Path, slides: Path) -> Mapping[str, float]:
    """Predicts a folder of slides with the model that the run delivers.

    Returns:
      `slides`, `failed`, `folds`, `lr_patches` and `encoded`: patches that went through an encoder.
    """
    trained = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    failed = predict.run(workdir / "model", workdir, slide=None, slides=slides)
    table = pd.read_csv(workdir / "predictions" / "predictions.csv")
    done = table[table.status == "ok"]
    return {
        "slides": len(table),
        "failed": failed,
        "folds": trained["folds"],
        "lr_patches": int(done.lr_patches.sum()),
        "encoded": int(done.patches_encoded.sum()),
    }
