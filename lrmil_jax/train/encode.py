"""Images through a frozen encoder: one fixed batch shape, split over the devices."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from lrmil_jax.encoders import Transform
from lrmil_jax.train import sharding

# Batches that may be on their way: the host decodes the next while the device computes.
_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A frozen encoder with everything that binds its features to it."""

    name: str
    options: dict[str, Any]
    module: Any
    params: Any
    transform: Transform
    weights_hash: str

    def identity(self) -> dict[str, Any]:
        """What must be the same for two sets of features to be comparable."""
        return {
            "name": self.name,
            "options": self.options,
            "weights": self.weights_hash,
            "transform": dataclasses.asdict(self.transform),
        }


class BatchEncoder:
    """Encodes images of one size in batches of one shape, so it compiles once.

    Args:
      encoder: module, parameters and transform.
      batch: images per step; filled up at the end of each call, so that what a slide's features
        are does not depend on the slides before it, nor on where a killed run went on.
      blocks: blocks whose CLS is wanted beside the embedding.
      mesh: devices to split over; default all.
    """

    def __init__(
        self, encoder: Encoder, *, batch: int, blocks: Sequence[int] = (), mesh: Any = None
    ):
        self._mesh = sharding.make_mesh() if mesh is None else mesh
        self._batch = batch
        self._params = sharding.replicate(encoder.params, self._mesh)
        blocks = tuple(blocks)

        def apply(params, images):
            normalised = encoder.transform.normalise(images)
            output = encoder.module.apply({"params": params}, normalised, blocks=blocks)
            cls = [output.cls[block] for block in blocks]
            return {
                "embedding": output.embedding.astype(jnp.float32),
                **({"cls": jnp.stack(cls, 1).astype(jnp.float32)} if blocks else {}),
            }

        self._apply = jax.jit(apply, out_shardings=sharding.replicated(self._mesh))

    def __call__(
        self, images: Iterable[UInt8[np.ndarray, "_ px px 3"]]
    ) -> dict[str, Float[np.ndarray, "n ..."]]:
        """`embedding` [n, D] and, with blocks, `cls` [n, L, W] of all images in order; {} of none.

        Args:
          images: groups of any size, one after another; only a batch of them is held at once.
        """
        waiting: collections.deque = collections.deque()
        parts: list[dict[str, np.ndarray]] = []
        for group in rebatch(images, self._batch):
            count = len(group)
            filled = np.zeros((self._batch, *group.shape[1:]), np.uint8)
            filled[:count] = group
            placed = sharding.place_batch({"images": filled}, self._mesh)["images"]
            waiting.append((self._apply(self._params, placed), count))
            if len(waiting) > _IN_FLIGHT:
                parts.append(_fetch(*waiting.popleft()))
        parts += [_fetch(*item) for item in waiting]
        names = parts[0] if parts else ()
        return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _fetch(output: dict[str, jax.Array], count: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(value)[:count] for name, value in output.items()}


def rebatch(
    groups: Iterable[UInt8[np.ndarray, "_ px px 3"]], batch: int
) -> Iterator[UInt8[np.ndarray, "_ px px 3"]]:
    """Groups of any size as groups of `batch`; the last may be smaller, an empty one is skipped."""
    held: list[np.ndarray] = []
    count = 0
    for group in groups:
        while len(group):
            taken = group[: batch - count]
            held.append(taken)
            count += len(taken)
            group = group[len(taken) :]
            if count == batch:
                yield np.concatenate(held)
                held, count = [], 0
    if held:
        yield np.concatenate(held)
