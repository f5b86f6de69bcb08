"""The patches of one slide in order, with one account of what was read."""

import time
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from lrmil_jax.data.features import SlideFeatures, join
from lrmil_jax.errors import SlideError
from lrmil_jax.patches.origins import Origin, Region


class PatchSource:
    """LR patches of a slide or their HR children, all or some, from wherever they are.

    Iterating gives the images [px, px, 3] of one region after the other, and fills the account.

    Args:
      name: of the slide, for messages.
      origin: the slide's shards or its file.
      high: read HR children instead of LR tiles.
      chosen: LR patches that are wanted, in order; None is all.
      encoded: features of other patches of the slide that are there already, or None.

    Attributes:
      seconds: spent in reading and decoding, as far as the caller waited for it.
    """

    def __init__(
        self,
        name: str,
        origin: Origin,
        *,
        high: bool,
        chosen: Sequence[int] | None = None,
        encoded: SlideFeatures | None = None,
    ):
        self.name, self.high = name, high
        self._encoded = encoded
        self.seconds = 0.0
        self._origin, self._chosen = origin, chosen
        self._regions: list[Region] = []

    def begin(self) -> None:
        """Lets whoever reads beside this process begin; iterating then waits less."""
        self._origin.begin(self._chosen, high=self.high)

    def __iter__(self) -> Iterator[Sequence[UInt8[np.ndarray, "px px 3"]]]:
        self._regions, start = [], time.perf_counter()
        for region in self._origin.regions(self._chosen, high=self.high):
            self.seconds += time.perf_counter() - start
            if len(region.images):
                # Without the pixels, which are many.
                self._regions.append(Region(region.index, region.xy, region.side,
                                            region.child_mask, ()))  # fmt: skip
                yield region.images
            start = time.perf_counter()
        self.seconds += time.perf_counter() - start

    @property
    def damage(self) -> list[dict]:
        """What could not be decoded: {"what": "lr" or "hr", "xy", "side"}."""
        return self._origin.damage

    @property
    def levels(self) -> dict[int, int]:
        """Pixels read from the slide itself, per pyramid level; none from shards."""
        return self._origin.levels

    @property
    def regions_read(self) -> Int[np.ndarray, " n"]:
        """The LR patches of which something was read, in order."""
        return np.array([region.index for region in self._regions], np.int32)

    def places(self) -> dict[str, np.ndarray]:
        """Where each image lies: xy [n, 2], parent [n], child [n] and child_mask [n, r, r], as
        `SlideFeatures` has them.

        Raises:
          SlideError: none could be decoded.
        """
        if not self._regions:
            power = "HR" if self.high else "LR"
            raise SlideError(f"{self.name}: none of its {power} patches could be decoded")
        rows = [_children(region) if self.high else _tile(region) for region in self._regions]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def features(self, outputs: dict[str, np.ndarray]) -> SlideFeatures:
        """The slide's features as they are stored, with those that were encoded before.

        Args:
          outputs: what `BatchEncoder.stream` made of the images.

        Raises:
          SlideError: see `places`, where nothing was encoded before either.
        """
        if not outputs and self._encoded is not None:
            return self._encoded
        places = self.places()
        features = SlideFeatures(embedding=outputs["embedding"], cls=outputs.get("cls"), **places)
        return features if self._encoded is None else join([self._encoded, features])


def _tile(region: Region) -> dict[str, np.ndarray]:
    return {
        "xy": region.xy[None].astype(np.int32),
        "parent": np.array([region.index], np.int32),
        "child": np.array([-1], np.int32),
        "child_mask": region.child_mask[None],
    }


def _children(region: Region) -> dict[str, np.ndarray]:
    mask = region.child_mask
    ratio, present = len(mask), np.argwhere(mask)
    side = region.side // ratio
    return {
        "xy": (region.xy + present[:, ::-1] * side).astype(np.int32),
        "parent": np.full(len(present), region.index, np.int32),
        "child": (present[:, 0] * ratio + present[:, 1]).astype(np.int32),
        "child_mask": np.repeat(mask[None], len(present), 0),
    }
