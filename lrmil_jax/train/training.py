"""A training in progress: update, log, validate, save, resume, stop, keep the best."""

import collections
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lrmil_jax import cluster
from lrmil_jax.cluster.stopping import StoppedError, stopping
from lrmil_jax.errors import TrainingError
from lrmil_jax.progress import Progress, progress
from lrmil_jax.train import choice, optim, sharding
from lrmil_jax.train.checkpoint import Checkpoints, FitResult, TrainProgress
from lrmil_jax.train.joint import Joint, JointPass
from lrmil_jax.train.metric_writer import MetricWriter
from lrmil_jax.train.price import Price
from lrmil_jax.train.state import Several, TrainSettings, TrainState
from lrmil_jax.train.step import LossFn, Stepper, finite, kept, mean_of_updates

_log = logging.getLogger(__name__)
# Batches that the host may run ahead of the device; more only hold device memory.
_IN_FLIGHT = 2
# One model's best parameters up to this size, bytes, stay beside the present ones: a checkpoint of
# each new best would take longer than the training of a small model.
_KEPT = 64 * 2**20

Metrics = dict[str, float | None]
Validate = Callable[[Any], Metrics]
ValidateSeveral = Callable[[Any], list[Metrics]]


@dataclasses.dataclass(kw_only=True)
class Training:
    """One training in progress: what the loop carries besides the device state."""

    name: str
    directory: Path
    loss_fn: LossFn
    settings: TrainSettings
    validate: Validate | ValidateSeveral | None
    mesh: Mesh
    checkpoints: Checkpoints
    iterator: grain.DatasetIterator
    joint: Joint | None
    several: Several | None
    place: Callable[[int], int] | None
    price: Price | None = None
    # Of each model.
    done: list[TrainProgress] = dataclasses.field(default_factory=list)
    # Measurements since the last row, still on the device.
    pending: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    in_flight: collections.deque = dataclasses.field(default_factory=collections.deque)
    saved_at: float = dataclasses.field(default_factory=time.monotonic)
    waited: float = 0.0  # seconds that the loop has waited for batches

    def start(self, params: Any) -> None:
        """Makes the state, or takes it from the newest checkpoint."""
        tx, several = optim.create(self.settings), self.several
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        self.keeps_best = several is not None or size <= _KEPT

        def init(params: Any) -> TrainState:
            # The copy keeps the caller's arrays alive when the first update donates the state.
            params = jax.tree.map(jnp.copy, params)
            opt_state = tx.init(params) if several is None else jax.vmap(tx.init)(params)
            best = jax.tree.map(jnp.copy, params) if self.keeps_best else None
            return TrainState(jnp.int32(0), params, opt_state, best)

        abstract = jax.eval_shape(init, params)
        shardings = sharding.state_shardings(abstract, self.mesh, fsdp=self.settings.fsdp)
        self.abstract = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            abstract,
            shardings,
        )
        self.stepper = Stepper(
            self.loss_fn, tx, self.mesh, shardings, self.settings.examples, several=several
        )
        self.first_pass = self.joint and JointPass(self.joint, self.mesh, several)
        restored = self.checkpoints.restore(
            self.abstract, self.iterator, devices=self.mesh.size, place=self.place
        )
        if restored is None:
            self.done = [TrainProgress() for _ in self._titles]
            self.state = jax.jit(init, out_shardings=shardings)(jax.tree.map(np.asarray, params))
        else:
            self.state, self.done, self.pending = restored
            _log.info("%s: going on after step %d", self.name, int(self.state.step))

    def run(self, constants: Any, key: jax.Array) -> None:
        """Trains from the present step to the end, or until validation no longer improves."""
        first, start = int(self.state.step), time.monotonic()
        with (
            _writer(self.directory, first) as writer,
            progress(self.name, self.settings.steps, done=first) as bar,
        ):
            for step in range(first + 1, self.settings.steps + 1):
                if not any(self._active):
                    _log.info("%s: no improvement any more, stopped early", self.name)
                    break
                if not stopping.before(step):
                    self._stop(step - 1, writer)
                self._update(step, constants, key)
                self._after(step, writer, bar)
        share = self.waited / max(time.monotonic() - start, 1e-9)
        _log.info("%s: waited for data %.0f %% of the time", self.name, 100 * share)

    def _stop(self, step: int, writer: MetricWriter | None) -> None:
        """Saves where it is, as the run was asked to stop.

        Raises:
          StoppedError: always.
        """
        self._check_state(step)
        if writer is not None:
            writer.flush()
        if step and self.checkpoints.latest_step() != step:
            self._save(self.pending)
        self.checkpoints.wait()
        _log.info("%s: saved after step %d", self.name, step)
        raise StoppedError

    def best(self) -> list[FitResult]:
        """The best parameters of each model, as whole host arrays."""
        self.checkpoints.wait()
        if not self.keeps_best and self.done[0].best_step != int(self.state.step):
            del self.state  # two states at once may not fit on the device
            self.state = self.checkpoints.restore_state(self.done[0].best_step, self.abstract)
        best = self.state.best if self.keeps_best else self.state.params
        params = sharding.to_host(best, self.mesh)
        if self.several is None:
            params = jax.tree.map(lambda leaf: leaf[None], params)
        return [
            FitResult(
                params=jax.tree.map(lambda leaf, model=model: leaf[model, ...], params),
                step=done.best_step,
                metrics=done.best_metrics,
            )
            for model, done in enumerate(self.done)
        ]

    @property
    def _titles(self) -> list[str]:
        """What the models are called in messages."""
        if self.several is None:
            return [self.name]
        return [f"{self.name}, {one}" for one in self.several.names]

    @property
    def _active(self) -> list[bool]:
        """Which models still improve."""
        patience = self.settings.patience
        return [patience is None or done.bad_evaluations < patience for done in self.done]

    def _batches(self, step: int) -> Iterator[dict[str, Any]]:
        """The batches of an update."""
        wanted, whole = self.settings.accumulate, 0
        while (batch := self._next()) is not None:
            whole += bool(batch.pop("ends_update", True))
            yield batch
            if whole == wanted:
                return
        raise TrainingError(
            f"the data of {self.name!r} ended at step {step} of {self.settings.steps}: give "
            f"at least {self.settings.steps * wanted} batches."
        )

    def _next(self) -> dict[str, Any] | None:
        start = time.monotonic()
        batch = next(self.iterator, None)
        self.waited += time.monotonic() - start
        return batch

    def _update(self, step: int, constants: Any, key: jax.Array) -> None:
        batches, summed = self._batches(step), None
        if self.first_pass is not None:
            batches = self.first_pass(self.state, constants, list(batches), key)
        for index, batch in enumerate(batches):
            placed = sharding.place_batch(batch, self.mesh, 0 if self.several is None else 1)
            summed, done = self.stepper.add(self.state, constants, placed, key, index, summed)
            self.in_flight.append(done)
            if len(self.in_flight) > _IN_FLIGHT:
                jax.block_until_ready(self.in_flight.popleft())
        active = None if self.several is None else np.array(self._active)
        self.state, measured = self.stepper.update(self.state, summed, active)
        self.pending.append(measured)

    def _after(self, step: int, writer: MetricWriter | None, bar: Progress) -> None:
        """What is due after an update. Rows come before the checkpoint that covers them, so that
        a resumed run finds every row up to its first step and no other."""
        settings = self.settings
        last = step == settings.steps
        evaluate = last or step % settings.eval_every == 0
        save = self._saves_at(step, evaluate)
        note = ""
        # A window of averages never spans a checkpoint, or a resumed run would log another mean.
        if evaluate or save or step % settings.log_every == 0:
            note = self._log_window(step, writer)
        if evaluate or save:
            self._check_state(step)
        if evaluate:
            save |= self._evaluate(step, writer)
            if self.price is not None:
                self.price.validated(step, settings.steps)
        if save:
            if writer is not None:
                writer.flush()
            self._save()
            self.saved_at = time.monotonic()
        bar.advance(note=note)

    def _save(self, window: Sequence[Any] = ()) -> None:
        devices = self.mesh.size
        self.checkpoints.save(self.state, self.iterator, self.done, window, devices=devices)

    def _saves_at(self, step: int, evaluate: bool) -> bool:
        """Whether a checkpoint is due after this step; all processes must agree."""
        settings = self.settings
        if step == settings.steps:
            return not self.keeps_best  # else the result is written at once
        if settings.checkpoint_every is not None:
            return step % settings.checkpoint_every == 0
        waited = time.monotonic() - self.saved_at
        return evaluate and (cluster.several() or waited >= settings.checkpoint_seconds)

    def _log_window(self, step: int, writer: MetricWriter | None) -> str:
        """Writes the weighted means since the last row; stops at the first non-finite step."""
        window, active = jax.device_get(self.pending), np.array(self._active)
        self.pending = []
        for offset, measured in enumerate(window):
            good = np.isfinite(measured["terms"]["loss"]) & np.isfinite(measured["grad_norm"])
            self._refuse(~np.atleast_1d(good), "the loss or its gradient",
                         step - len(window) + 1 + offset)  # fmt: skip
        means = {f"train/{name}": value for name, value in mean_of_updates(window).items()}
        rate = {"train/learning_rate": float(optim.schedule(self.settings)(step - 1))}
        rows = [{name: one[model] for name, one in means.items()} for model in range(len(active))]
        self._write(writer, step, [row if on else {} for row, on in zip(rows, active, strict=True)],
                    rate)  # fmt: skip
        return f"loss {means['train/loss'][active].mean():.4g}"

    def _write(
        self, writer: MetricWriter | None, step: int, rows: list[Metrics], more: Metrics
    ) -> None:
        """One row of metrics; of several models each metric under the model's name."""
        heads = [""] if self.several is None else [f"{one}/" for one in self.several.names]
        row = {head + name: value for head, one in zip(heads, rows, strict=True)
               for name, value in one.items()} | more  # fmt: skip
        if writer is not None and row:
            writer.write(step, row)

    def _check_state(self, step: int) -> None:
        good = finite((self.state.params, self.state.opt_state), len(self.done))
        self._refuse(~np.asarray(good), "a parameter", step)

    def _refuse(self, wrong: np.ndarray, what: str, step: int) -> None:
        """Ends a training of which some models [M] diverged."""
        if not wrong.any():
            return
        title = self._titles[int(wrong.argmax())]
        self.checkpoints.wait()
        good = self.checkpoints.latest_step()
        kept = (
            "no checkpoint was made before"
            if good is None
            else f"the last good checkpoint, of step {good}, stays in {self.checkpoints.directory}"
        )
        raise TrainingError(
            f"{what} became NaN or infinite at step {step} of {title!r}; {kept}: lower the "
            "learning rate or the loss weights, or look for broken features."
        )

    def _evaluate(self, step: int, writer: MetricWriter | None) -> bool:
        """Validates and remembers; True if one model's parameters are its best so far and must be
        saved, as the state does not keep them."""
        found = [None] * len(self.done)
        if self.validate is not None:
            found = self.validate(self.state.params)
            found = found if self.several is not None else [found]
        active = self._active
        rows = [{f"validation/{name}": value for name, value in (one or {}).items()} if on else {}
                for one, on in zip(found, active, strict=True)]  # fmt: skip
        self.done = [
            choice.judged(done, metrics, step=step, select=self.settings.select, name=title)
            if on else done
            for done, metrics, title, on in
            zip(self.done, found, self._titles, active, strict=True)
        ]  # fmt: skip
        self._write(writer, step, rows, {})
        better = np.array([done.best_step == step for done in self.done])
        if not self.keeps_best:
            return bool(better[0])
        if better.any():
            self.state = kept(self.state, better[0] if self.several is None else better)
        return False


def _writer(directory: Path, step: int) -> Any:
    """A metric writer on the first process, nothing on the others."""
    if cluster.is_first():
        return MetricWriter(directory, resume_step=step)
    return contextlib.nullcontext()
