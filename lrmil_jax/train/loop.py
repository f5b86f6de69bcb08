"""The training loop of every stage: update, log, validate, save, resume, stop, keep the best."""

import collections
import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lrmil_jax.errors import ConfigError, TrainingError
from lrmil_jax.progress import Progress, progress
from lrmil_jax.train import optim, sharding
from lrmil_jax.train.checkpoint import (
    Checkpoints,
    FitResult,
    TrainProgress,
    clear_remainders,
    load_result,
    opened,
    save_result,
)
from lrmil_jax.train.metric_writer import MetricWriter
from lrmil_jax.train.state import TrainSettings, TrainState
from lrmil_jax.train.step import LossFn, Stepper

_log = logging.getLogger(__name__)
# Batches that the host may run ahead of the device; more only hold device memory.
_IN_FLIGHT = 2

Validate = Callable[[Any], dict[str, float | None]]


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

    Raises:
      TrainingError: the loss or the parameters became NaN or infinite (the last good checkpoint
        stays), or `batches` ended too early.
      WorkdirError: nothing can be written, or the checkpoint there is of another model.
      ConfigError: `validate` does not give the metric that chooses the best model.
    """
    directory = Path(directory)
    finished = load_result(directory)
    if jax.process_index() == 0:
        clear_remainders(directory, finished=finished is not None)
    if finished is not None:
        _log.info("%s: already trained, best at step %d", name, finished.step)
        return finished
    mesh = sharding.make_mesh() if mesh is None else mesh
    with opened(directory / "checkpoints") as checkpoints:
        training = _Training(
            name=name,
            directory=directory,
            settings=settings,
            validate=validate,
            mesh=mesh,
            checkpoints=checkpoints,
            iterator=iter(batches),
        )
        training.start(params, loss_fn)
        training.run(sharding.replicate(constants, mesh), jax.random.key(seed))
        result = training.best()
    if jax.process_index() == 0:
        save_result(directory, result)
    _barrier(name)
    if jax.process_index() == 0:
        checkpoints.delete()
    return result


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"{name} finished")


def _better(
    values: list[float | None], best: list[float | None], select: tuple[tuple[str, str], ...]
) -> bool:
    """The first metric that differs decides. An undefined value never beats a defined one; where
    all are undefined the newest is kept."""
    if not best or set(values) == {None}:
        return set(best) <= {None}
    for value, before, (_, direction) in zip(values, best, select, strict=True):
        if value != before:
            if value is None or before is None:
                return before is None
            return value > before if direction == "max" else value < before
    return False


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    checks = [
        jnp.all(jnp.isfinite(leaf))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return jnp.all(jnp.stack(checks)) if checks else jnp.bool_(True)


@dataclasses.dataclass(kw_only=True)
class _Training:
    """One training in progress: what the loop carries besides the device state."""

    name: str
    directory: Path
    settings: TrainSettings
    validate: Validate | None
    mesh: Mesh
    checkpoints: Checkpoints
    iterator: grain.DatasetIterator
    done: TrainProgress = dataclasses.field(default_factory=TrainProgress)
    # Measurements since the last row, still on the device.
    pending: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    in_flight: collections.deque = dataclasses.field(default_factory=collections.deque)

    def start(self, params: Any, loss_fn: LossFn) -> None:
        """Makes the state, or takes it from the newest checkpoint."""
        tx = optim.create(self.settings)

        def init(params: Any) -> TrainState:
            # The copy keeps the caller's arrays alive when the first update donates the state.
            params = jax.tree.map(jnp.copy, params)
            return TrainState(step=jnp.int32(0), params=params, opt_state=tx.init(params))

        abstract = jax.eval_shape(init, params)
        shardings = sharding.state_shardings(abstract, self.mesh, fsdp=self.settings.fsdp)
        self.abstract = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            abstract,
            shardings,
        )
        self.stepper = Stepper(loss_fn, tx, self.mesh, shardings, self.settings.examples)
        restored = self.checkpoints.restore(self.abstract, self.iterator)
        if restored is None:
            self.state = jax.jit(init, out_shardings=shardings)(jax.tree.map(np.asarray, params))
        else:
            self.state, self.done = restored
            _log.info("%s: going on after step %d", self.name, int(self.state.step))

    def run(self, constants: Any, key: jax.Array) -> None:
        """Trains from the present step to the end, or until validation no longer improves."""
        first = int(self.state.step)
        with (
            _writer(self.directory, first) as writer,
            progress(self.name, self.settings.steps, done=first) as bar,
        ):
            for step in range(first + 1, self.settings.steps + 1):
                if self._out_of_patience():
                    _log.info("%s: no improvement any more, stopped early", self.name)
                    break
                self._update(step, constants, key)
                self._after(step, writer, bar)

    def best(self) -> FitResult:
        """The best parameters, as whole host arrays."""
        self.checkpoints.wait()
        done = self.done
        if done.best_step != int(self.state.step):
            del self.state  # two states at once may not fit on the device
            self.state = self.checkpoints.restore_state(done.best_step, self.abstract)
        params = sharding.to_host(self.state.params, self.mesh)
        return FitResult(params=params, step=done.best_step, metrics=done.best_metrics)

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.done.bad_evaluations >= patience

    def _update(self, step: int, constants: Any, key: jax.Array) -> None:
        wanted, whole, summed = self.settings.accumulate, 0, None
        for index, batch in enumerate(self.iterator):
            whole += bool(batch.pop("ends_update", True))
            placed = sharding.place_batch(batch, self.mesh)
            summed, done = self.stepper.add(self.state, constants, placed, key, index, summed)
            self.in_flight.append(done)
            if len(self.in_flight) > _IN_FLIGHT:
                jax.block_until_ready(self.in_flight.popleft())
            if whole == wanted:
                break
        else:
            raise TrainingError(
                f"the data of {self.name!r} ended at step {step} of {self.settings.steps}: give "
                f"at least {self.settings.steps * wanted} batches."
            )
        self.state, measured = self.stepper.update(self.state, summed)
        self.pending.append(measured)

    def _after(self, step: int, writer: MetricWriter | None, bar: Progress) -> None:
        """What is due after an update. Rows come before the checkpoint that covers them, so that
        a resumed run finds every row up to its first step and no other."""
        settings = self.settings
        last = step == settings.steps
        evaluate = last or step % settings.eval_every == 0
        save = last or step % (settings.checkpoint_every or settings.eval_every) == 0
        note = ""
        # A window of averages never spans a checkpoint, or a resumed run would log another mean.
        if evaluate or save or step % settings.log_every == 0:
            note = self._log_window(step, writer)
        if evaluate or save:
            self._check_state(step)
        if evaluate:
            save |= self._evaluate(step, writer)
        if save:
            if writer is not None:
                writer.flush()
            self.checkpoints.save(self.state, self.iterator, self.done)
        bar.advance(note=note)

    def _log_window(self, step: int, writer: MetricWriter | None) -> str:
        """Writes the weighted means since the last row; stops at the first non-finite step."""
        window = jax.device_get(self.pending)
        self.pending = []
        for offset, measured in enumerate(window):
            if not (np.isfinite(measured["terms"]["loss"]) and np.isfinite(measured["grad_norm"])):
                self._diverged("the loss or its gradient", step - len(window) + 1 + offset)
        sums: dict[str, float] = collections.defaultdict(float)
        for measured in window:
            for name, value in measured["terms"].items():
                sums[name] += float(value)
        weight = max(sum(float(measured["weight"]) for measured in window), 1e-8)
        row = {f"train/{name}": value / weight for name, value in sums.items()}
        row["train/grad_norm"] = float(np.mean([measured["grad_norm"] for measured in window]))
        row["train/learning_rate"] = float(optim.schedule(self.settings)(step - 1))
        if writer is not None:
            writer.write(step, row)
        return f"loss {row['train/loss']:.4g}"

    def _check_state(self, step: int) -> None:
        if not bool(_all_finite((self.state.params, self.state.opt_state))):
            self._diverged("a parameter", step)

    def _diverged(self, what: str, step: int) -> None:
        self.checkpoints.wait()
        good = self.checkpoints.latest_step()
        kept = (
            "no checkpoint was made before"
            if good is None
            else f"the last good checkpoint, of step {good}, stays in {self.checkpoints.directory}"
        )
        raise TrainingError(
            f"{what} became NaN or infinite at step {step} of {self.name!r}; {kept}: lower the "
            "learning rate or the loss weights, or look for broken features."
        )

    def _evaluate(self, step: int, writer: MetricWriter | None) -> bool:
        """Validates and remembers; True if these are the best parameters so far."""
        select = self.settings.select
        metrics = {} if self.validate is None else self.validate(self.state.params)
        metrics = {
            name: None if value is None or not math.isfinite(value) else float(value)
            for name, value in metrics.items()
        }
        missing = [name for name, _ in select if name not in metrics]
        if self.validate is not None and missing:
            raise ConfigError(
                f"the best model of {self.name!r} is to be chosen by {missing[0]!r}, but "
                f"validation gives only {sorted(metrics)}."
            )
        if writer is not None and metrics:
            writer.write(step, {f"validation/{name}": value for name, value in metrics.items()})
        values, done = [metrics.get(name) for name, _ in select], self.done
        better = _better(values, done.best_values, select)
        if better:
            self.done = TrainProgress(
                best_values=values, best_step=step, best_metrics=metrics, bests=done.bests + 1
            )
        else:
            self.done = dataclasses.replace(done, bad_evaluations=done.bad_evaluations + 1)
        return better


def _writer(directory: Path, step: int) -> Any:
    """A metric writer on the first process, nothing on the others."""
    if jax.process_index() == 0:
        return MetricWriter(directory, resume_step=step)
    return contextlib.nullcontext()
