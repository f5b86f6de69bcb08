"""The bags of one fold as batches for training and validation: where features lie, what every bag
weighs, and whether its longest bag fits on a device."""

import dataclasses
import functools
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from lrmil_jax import heads
from lrmil_jax.data.bag_batches import BagBatches, balanced_probabilities
from lrmil_jax.errors import TrainingError
from lrmil_jax.tasks import Task
from lrmil_jax.train import memory, sharding

_GIB = 2**30
# Lengths that bags are filled up to, at most; each is a compilation. On a CPU, which computes
# filling as slowly as features, more of them pay.
_FEW_SHAPES, _DEAR_FILLING = 4, 8
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
      data, block: as given.
      mean, sd: [D] on the host, of the training slides' patches.
      resident: whether the features of all slides fit on the device.
      room: bytes of a device that are left for what is computed.
      need: bytes of them that the longest bag takes in training.
    """

    def __init__(
        self,
        data: BagData,
        block: Mapping[str, Any] | ConfigDict,
        mesh: Mesh,
        name: str,
        *,
        head: heads.Head,
    ):
        """
        Args:
          data: bags, targets and splits.
          block: a config block (`config.bag_training`).
          mesh: devices that the batches are split over.
          name: of the training, for messages.
          head: that will be trained; what it computes takes memory.

        Raises:
          TrainingError: a bag is too long for the device.
        """
        self.data, self.block, self._mesh, self._packed = data, block, mesh, head.packs
        self.mean, self.sd = data.store.statistics(data.train.tolist())
        free = memory.free_bytes(mesh)
        features = int(data.store.sizes.sum()) * self.mean.size * 2
        limit = block["resident_gib"]
        limit = _RESIDENT_SHARE * free if limit is None else limit * _GIB
        self.resident = features <= limit
        self.room = free - (features if self.resident else 0)
        self.need = head.instance_bytes(self.mean.size) * int(data.store.sizes.max())
        self._refuse_long_bags(name)

    @property
    def scale(self) -> dict[str, np.ndarray]:
        """`mean` and `sd` as constants of a training."""
        return {"mean": self.mean, "sd": self.sd}

    @functools.cached_property
    def bank(self) -> dict[str, Array]:
        """`bank`, the features of all slides on every device, or nothing where they do not fit.
        Placed once, and shared by training and validation: it may fill half of the memory."""
        return sharding.replicate({"bank": _bank(self.data.store)} if self.resident else {},
                                  self._mesh)  # fmt: skip

    @functools.cached_property
    def constants(self) -> dict[str, Array]:
        """Scale and bank, on every device."""
        return sharding.replicate(self.scale, self._mesh) | self.bank

    def training(self, *, seed: int) -> BagBatches:
        """Endless batches of the training slides, classes balanced as the block says; of a task
        without classes every slide weighs the same."""
        data = self.data
        balance = self.block["balance"] if data.task.has_classes else "none"
        groups = data.task.groups(data.targets)
        labels = groups[data.train]
        weight = np.ones(len(groups))
        if balance == "weights":
            counts = np.bincount(labels, minlength=int(groups.max()) + 1)
            weight = (len(labels) / np.maximum(counts, 1) / np.count_nonzero(counts))[groups]
        sampling = balance == "sampling"
        return self._batches(
            bags=data.train,
            bags_per_update=self.block["bags"] * self.block["accumulate"],
            draw=balanced_probabilities(labels) if sampling else None,
            weight=weight,
            per_bag={"target": data.targets, **data.per_bag},
            per_instance=data.per_instance,
            instances=self.block["instances"],
            mixup=self.block["mixup"],
            seed=seed,
            max_lengths=_DEAR_FILLING if self._platform == "cpu" else _FEW_SHAPES,
        )

    def validation(self) -> BagBatches:
        """The validation slides once; few shapes, as only the forward pass is computed."""
        places = {key: value for key, value in self.data.per_instance.items() if key == "xy"}
        return self._batches(bags=self.data.val, max_lengths=_FEW_SHAPES, per_instance=places)

    @property
    def _platform(self) -> str:
        return self._mesh.devices.flat[0].platform

    def _batches(self, **options: Any) -> BagBatches:
        return BagBatches(
            self.data.store.sizes,
            budget=self.block["budget"],
            devices=self._mesh.size,
            shard=sharding.part(self._mesh),
            read=None if self.resident else self.data.store.embedding,
            packed=self._packed,
            **options,
        )

    def _refuse_long_bags(self, name: str) -> None:
        if self.need <= self.room:
            return
        sizes = self.data.store.sizes
        longest = int(sizes.argmax())
        fitting = self.room * int(sizes[longest]) // self.need
        raise TrainingError(
            f"{name}: slide {self.data.store.slide_ids[longest]} has {int(sizes[longest]):,} "
            f"patches, whose training needs about {self.need / _GIB:.1f} GiB on a device with "
            f"{self.room / _GIB:.1f} GiB free; up to {fitting:,} patches would fit: take a device "
            "with more memory, a narrower head, or leave the slide out of the CSV"
        )


def stacked(trees: Sequence[Any]) -> Any:
    """Trees of the same structure as one, on the host, with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def together(loaders: Sequence[BagLoader]) -> dict[str, Any]:
    """The constants of several trainings on the same slides: a scale [S, D] of each, one bank."""
    return stacked([loader.scale for loader in loaders]) | loaders[0].bank


def places_of(store: BagStore) -> Float[np.ndarray, "rows 2"]:
    """Where all instances lie, in patches."""
    xy = [heads.in_patches(store.places(slide)["xy"]) for slide in range(len(store.slide_ids))]
    return np.concatenate(xy)


def _bank(store: BagStore) -> np.ndarray:
    return np.concatenate([store.embedding(slide) for slide in range(len(store.slide_ids))])
