"""Losses in which the examples of an update depend on each other, whatever their batches."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lrmil_jax.train import sharding
from lrmil_jax.train.state import Several, TrainState
from lrmil_jax.train.step import BATCH_ROLES, batch_key


@dataclasses.dataclass(frozen=True)
class Joint:
    """A loss of all examples of an update at once; all of them weigh 1.

    Attributes:
      outputs: `(params, constants, batch, key, train) -> [B, W]`, by the chance of the loss.
      loss: `(outputs [n, W], targets [n, T]) -> [n]`; its sum is minimised. Filling has targets of
        zeros and must change nothing.
    """

    outputs: Callable[..., Array]
    loss: Callable[[Array, Array], Array]


def carried(
    outputs: Float[Array, "B W"], value: Float[Array, " B"], slope: Float[Array, "B W"]
) -> Float[Array, " B"]:
    """A loss that was computed elsewhere: its value, and its slope as the gradient of `outputs`."""
    return value + (slope * (outputs - jax.lax.stop_gradient(outputs))).sum(-1)


class JointPass:
    """A first pass over the batches of an update, for a loss of all its examples.

    The outputs of all batches come first; the loss of them together and its slope then join the
    batches as `joint_value` [B] and `joint_slope` [B, W], of which the loss function takes
    `carried`. So the gradient is exact, and neither packing nor devices have a say in it; the
    price is a second forward pass.

    Args:
      joint: the loss.
      mesh: from `make_mesh`.
      several: models with an axis of their own, before that of the examples; each has a stream of
        batches to itself, which take what is computed here along.
    """

    def __init__(self, joint: Joint, mesh: Mesh, several: Several | None = None):
        self._mesh, self._axis = mesh, 0 if several is None else 1

        def outputs(params, step, constants, batch, key, index):
            key = batch_key(key, step, index)
            return joint.outputs(params, constants, batch, key, True), batch["target"]

        def slope(outputs, targets):
            def total(outputs):
                terms = joint.loss(outputs, targets)
                return terms.sum(), terms

            (_, value), slope = jax.value_and_grad(total, has_aux=True)(outputs)
            return value, slope

        if several is not None:
            outputs, slope = several.over_models(outputs, BATCH_ROLES), jax.vmap(slope)
        self._outputs = jax.jit(
            outputs,
            out_shardings=sharding.replicated(mesh),
            compiler_options=sharding.compiler_options(mesh),
        )
        self._slope = jax.jit(slope)

    def __call__(
        self, state: TrainState, constants: Any, batches: Sequence[dict[str, Any]], key: Any
    ) -> list[dict[str, Any]]:
        """The batches of an update, on the host, each with its part of the loss."""
        parts = []
        for index, batch in enumerate(batches):
            placed = sharding.place_batch(batch, self._mesh, self._axis)
            parts.append(self._outputs(state.params, state.step, constants, placed, key, index))
            jax.block_until_ready(parts[-1])  # one batch at a time on the device
        parts = jax.device_get(parts)
        sizes = [outputs.shape[self._axis] for outputs, _ in parts]
        # A power of two: updates differ in their number of slots, and each number compiles anew.
        slots = 1 << (sum(sizes) - 1).bit_length()
        whole = (self._filled(one, slots) for one in zip(*parts, strict=True))
        told = [
            np.split(one, np.cumsum(sizes), self._axis)
            for one in jax.device_get(self._slope(*whole))
        ]
        return [
            batch | {
                name: self._of_process(one[index], batch)
                for name, one in zip(("joint_value", "joint_slope"), told, strict=True)
            }
            for index, batch in enumerate(batches)
        ]  # fmt: skip

    def _filled(self, parts: Sequence[np.ndarray], slots: int) -> np.ndarray:
        whole = np.concatenate(parts, self._axis)
        missing = slots - whole.shape[self._axis]
        return np.pad(whole, [(0, missing * (axis == self._axis)) for axis in range(whole.ndim)])

    def _of_process(self, whole: np.ndarray, batch: dict[str, Any]) -> np.ndarray:
        """The rows of this process's own part of a batch, without filling."""
        index, count = sharding.part(self._mesh)
        mine = np.split(whole, count, self._axis)[index]
        return np.take(mine, np.arange(batch["target"].shape[self._axis]), self._axis)
