"""The bags of one fold as batches for training and validation: where features lie, what every bag
weighs, and whether its longest bag fits on a device."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from lrmil_jax import heads
from lrmil_jax.data.batching import BagBatches, balanced_probabilities
from lrmil_jax.errors import TrainingError
from lrmil_jax.tasks import Task
from lrmil_jax.train import memory, sharding
from lrmil_jax.types import AnyArray

_GIB = 2**30
# Share of a device's free memory that the features may take; the rest is for what is computed, and
# on CPU for the copy that they are made from.
_RESIDENT_SHARE = 0.4


@typing.runtime_checkable
class BagStore(typing.Protocol):
    """What training asks of the features of some slides; `data.features.FeatureStore` is one.

    Attributes:
      slide_ids: in order.
      sizes: [S] patches per slide.
    """

    slide_ids: list[str]
    sizes: Int[np.ndarray, " S"]

    def embedding(self, slide: int) -> Float[np.ndarray, "n D"]:
        """Features of the slide at this place in the order."""

    def places(self, slide: int) -> Mapping[str, np.ndarray]:
        """`xy` [n, 2] of its patches, level-0 px; asked for heads with positions alone."""

    def statistics(self, slides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and SD [D] of all patches of some slides."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BagData:
    """The bags of one fold that training may see, and what is known of each slide.

    Attributes:
      store: features of training and validation slides.
      targets: [S, T] of each (`tasks.Task.targets`).
      task: what they are of.
      cases: [S] what counts as one in validation: the patient.
      train, val: places in the store.
      per_bag, per_instance: teacher outputs [S, ...] and guides [rows, ...], for the student.
    """

    store: BagStore
    targets: Float[np.ndarray, "S T"]
    task: Task
    cases: Sequence[str]
    train: Int[np.ndarray, " t"]
    val: Int[np.ndarray, " v"]
    per_bag: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    per_instance: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class BagLoader:
    """Makes a fold's batches, and turns them into bags on the device.

    Attributes:
      constants: on every device: `mean` and `sd` [D] of the training slides' patches and, where the
        features fit, the `bank` of all of them.
      mean, sd: [D] on the host.
    """

    def __init__(self, data: BagData, block: Mapping[str, Any] | ConfigDict, mesh: Mesh, name: str):
        """
        Args:
          data: bags, targets and splits.
          block: a config block (`config.bag_training`).
          mesh: devices that the batches are split over.
          name: of the training, for messages.

        Raises:
          TrainingError: a bag is too long for the device.
        """
        self._data, self._block, self._mesh = data, block, mesh
        self.mean, self.sd = data.store.statistics(data.train.tolist())
        free = memory.free_bytes(mesh)
        features = int(data.store.sizes.sum()) * self.mean.size * 2
        limit = block["resident_gib"]
        limit = _RESIDENT_SHARE * free if limit is None else limit * _GIB
        self.resident = features <= limit
        self._refuse_long_bags(name, free - (features if self.resident else 0))
        # Placed once, and shared by training and validation: the bank may fill half the memory.
        bank = {"bank": _bank(data.store)} if self.resident else {}
        scale = {"mean": self.mean, "sd": self.sd}
        self.constants = sharding.replicate(scale | bank, mesh)

    def training(self, *, seed: int) -> BagBatches:
        """Endless batches of the training slides, classes balanced as the block says; of a task
        without classes every slide weighs the same."""
        data = self._data
        balance = self._block["balance"] if data.task.has_classes else "none"
        groups = data.task.groups(data.targets)
        labels = groups[data.train]
        weight = np.ones(len(groups))
        if balance == "weights":
            counts = np.bincount(labels, minlength=int(groups.max()) + 1)
            weight = (len(labels) / np.maximum(counts, 1) / np.count_nonzero(counts))[groups]
        sampling = balance == "sampling"
        return self._batches(
            bags=data.train,
            bags_per_update=self._block["bags"] * self._block["accumulate"],
            draw=balanced_probabilities(labels) if sampling else None,
            weight=weight,
            per_bag={"target": data.targets, **data.per_bag},
            per_instance=data.per_instance,
            seed=seed,
        )

    def validation(self) -> BagBatches:
        """The validation slides once; few shapes, as only the forward pass is computed."""
        places = {key: value for key, value in self._data.per_instance.items() if key == "xy"}
        return self._batches(bags=self._data.val, max_lengths=4, per_instance=places)

    def _batches(self, **options: Any) -> BagBatches:
        return BagBatches(
            self._data.store.sizes,
            budget=self._block["budget"],
            devices=self._mesh.size,
            shard=(jax.process_index(), jax.process_count()),
            read=None if self.resident else self._data.store.embedding,
            **options,
        )

    def _refuse_long_bags(self, name: str, free: int) -> None:
        sizes = self._data.store.sizes
        # Features as stored, in float32 and once more by chunks; the head's two hidden layers with
        # what their gradients need.
        each = 10 * self.mean.size + 32 * self._block.get("hidden", 0)
        longest = int(sizes.argmax())
        if int(sizes[longest]) * each > free:
            slide_id = self._data.store.slide_ids[longest]
            raise TrainingError(
                f"{name}: slide {slide_id} has {int(sizes[longest]):,} patches, whose training "
                f"needs about {int(sizes[longest]) * each / _GIB:.1f} GiB on a device with "
                f"{free / _GIB:.1f} GiB free; up to {free // each:,} patches would fit: take a "
                "device with more memory, a smaller hidden, or leave the slide out of the CSV"
            )


def with_places(data: BagData) -> BagData:
    """The same with `xy` [rows, 2] of all instances, in patches, for heads with positions."""
    store = data.store
    xy = [heads.in_patches(store.places(slide)["xy"]) for slide in range(len(store.slide_ids))]
    per_instance = {**data.per_instance, "xy": np.concatenate(xy)}
    return dataclasses.replace(data, per_instance=per_instance)


def _bank(store: BagStore) -> np.ndarray:
    return np.concatenate([store.embedding(slide) for slide in range(len(store.slide_ids))])


def standardise(
    features: Float[AnyArray, "B N D"], mean: Float[AnyArray, " D"], sd: Float[AnyArray, " D"]
) -> Float[Array, "B N D"]:
    """Stored features on the scale of the training patients', in float32."""
    return (jnp.asarray(features, jnp.float32) - mean[None, None]) / sd[None, None]


def of_batch(constants: Mapping[str, Array], batch: Mapping[str, Array]) -> Float[Array, "B N D"]:
    """The standardised bags of one of `BagLoader`'s batches."""
    features = batch["features"] if "features" in batch else constants["bank"][batch["rows"]]
    return standardise(features, constants["mean"], constants["sd"])
