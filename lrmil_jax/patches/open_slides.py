"""Regions read from slide files, in whatever process; it runs in workers, so it imports no JAX."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from lrmil_jax import storage
from lrmil_jax.data import regions
from lrmil_jax.data.schema import Geometry
from lrmil_jax.data.slide_jobs import SlideJob
from lrmil_jax.errors import SlideError, TileError, UserError
from lrmil_jax.patches.origins import Places, Region
from lrmil_jax.slides import Slide

# Slides that stay open in a process: of a model whose LR patches choose HR patches, one is read at
# LR while another is read at HR.
_OPEN = 2


class OpenSlide:
    """Regions of an open slide, which this does not close.

    Attributes:
      damage: as `Origin` has it.
      levels: pixels that were read of each level.
    """

    def __init__(self, slide: Slide, geometry: Geometry):
        self._slide, self._geometry = slide, geometry
        self.damage: list[dict] = []
        self._before = dict(slide.read_log)

    @property
    def levels(self) -> dict[int, int]:
        """See `Origin`; since this was made."""
        return {
            int(level): int(pixels) - self._before.get(level, 0)
            for level, pixels in self._slide.read_log.items()
            if pixels != self._before.get(level, 0)
        }

    def regions(self, indices: Sequence[int], places: Places, *, high: bool) -> Iterator[Region]:
        """The LR patches of these numbers, which lie at these places; see `Origin`."""
        for row, index in enumerate(indices):
            xy, mask = places.xy[row], places.child_mask[row].copy()
            side = places.side
            images = self._children(xy, side, mask) if high else self._tile(xy, side)
            yield Region(int(index), xy, side, mask, images)

    def _tile(self, xy: np.ndarray, side: int) -> list[np.ndarray]:
        try:
            return [self._slide.read(xy, self._geometry.patch_px, side)]
        except TileError:
            corner = [int(value) for value in xy]
            self.damage.append({"what": "lr", "xy": corner, "side": side})
            return []

    def _children(self, xy: np.ndarray, side: int, mask: np.ndarray) -> list[np.ndarray]:
        mosaic = regions.read_mosaic(
            self._slide,
            lr_xy=xy,
            lr_side=side,
            geometry=self._geometry,
            mask=mask,
            unreadable=self.damage,
        )
        return present(regions.cut_mosaic(mosaic, self._geometry.ratio), mask)


class SlideFiles:
    """Reads regions of slides from their files; what each reading process has. The last slides
    stay open; any thread may read."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple, Slide] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return type(self), ()  # a process begins with none open

    def read(
        self, job: SlideJob, indices: Sequence[int], places: Places, high: bool
    ) -> tuple[list[Region], list[dict], dict[int, int]]:
        """The regions, what of them could not be decoded, and the pixels read of each level.

        Raises:
          SlideError: the slide cannot be opened, or its reader broke.
        """
        key = job.path, job.mpp, job.trust_mpp, job.settings
        with self._lock:  # taken out, so that no other thread closes it
            slide = self._open.pop(key, None)
        try:
            if slide is None:
                if storage.record(job.path) is not None:
                    self.close()  # copies of other slides may have to make room for this one
                slide = job.open(tell=False)  # who found the places has told
            origin = OpenSlide(slide, job.settings.geometry)
            found = list(origin.regions(indices, places, high=high))
        except UserError:
            raise
        except Exception as error:  # one slide's surprise must not stop the others
            raise SlideError(f"{job.path}: {type(error).__name__}: {error}") from error
        finally:
            if slide is not None:
                self._keep(key, slide)
        return found, origin.damage, origin.levels

    def _keep(self, key: tuple, slide: Slide) -> None:
        with self._lock:
            surplus = [self._open.pop(key)] if key in self._open else []  # of another thread
            self._open[key] = slide
            while len(self._open) > _OPEN:
                surplus.append(self._open.popitem(last=False)[1])
        for other in surplus:
            other.close()

    def close(self) -> None:
        """Releases the slides."""
        while self._open:
            self._open.popitem()[1].close()


def present(
    children: UInt8[np.ndarray, "r r px px 3"], mask: Bool[np.ndarray, "r r"]
) -> list[UInt8[np.ndarray, "px px 3"]]:
    """Views of the children that are there, row by row."""
    return [children[v, u] for v, u in np.argwhere(mask)]
