"""One slide on its way through a model: planned ahead, read, and told of."""

import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from lrmil_jax.data import regions
from lrmil_jax.data.slide_jobs import SlideJob, TilingSettings
from lrmil_jax.errors import SlideError, UserError
from lrmil_jax.models import result
from lrmil_jax.patches import PatchSource
from lrmil_jax.patches.beside import FromSlide
from lrmil_jax.patches.open_slides import SlideFiles
from lrmil_jax.patches.origins import Places
from lrmil_jax.processes import LostError, Workers
from lrmil_jax.slides import Lattice
from lrmil_jax.slides.annotations import Annotations

# Slides that are opened and searched for tissue while one before them is read.
_PLANNED = 2
# Told, in the thread that reads, of a slide's path, its regions read so far, and all of them.
OnProgress = Callable[[Path, int, int], None]


@dataclasses.dataclass(frozen=True)
class SlideOverview:
    """What is known of a slide before its patches are read, without the open slide.

    Attributes:
      lattice: where its patches lie.
      mpp: um/px of level 0; bounds, dimensions: as `Slide` has them.
      finest_allowed: the level of the patches themselves.
      picture, picture_downsample: for a heatmap, and level-0 px per px of it.
      levels: pixels read for it from each level.
    """

    lattice: Lattice
    mpp: float
    bounds: tuple[int, int, int, int] | None
    dimensions: tuple[int, int]
    finest_allowed: int
    picture: UInt8[np.ndarray, "h w 3"]
    picture_downsample: float
    levels: dict[int, int]


def survey(_: SlideFiles, job: SlideJob, high: bool) -> SlideOverview:
    """Opens a slide, finds its patches and closes it; runs in processes, so without JAX.

    Args:
      job: the slide.
      high: HR patches will be read.

    Raises:
      SlideError: see `regions.plan_slide`.
    """
    geometry = job.settings.geometry
    try:
        plan = regions.plan_slide(job, high_resolution=high)
        with plan.slide as slide:
            picture, downsample = result.picture(slide, geometry, plan.tissue)
            side = plan.lattice.child_side if high else plan.lattice.lr_side
            return SlideOverview(
                lattice=plan.lattice,
                mpp=slide.mpp,
                bounds=slide.bounds,
                dimensions=slide.dimensions,
                finest_allowed=slide.source_level(geometry.patch_px, side),
                picture=picture,
                picture_downsample=downsample,
                levels={int(level): int(count) for level, count in slide.read_log.items()},
            )
    except UserError as error:
        raise SlideError(str(error)) from None  # without the pictures that some carry
    except Exception as error:  # one slide's surprise must not stop the others
        raise SlideError(f"{job.path}: {type(error).__name__}: {error}") from error


class Visit:
    """A slide that is being classified.

    Attributes:
      path: the slide file.
      overview: what is known of it before it is read; None of one that cannot be.
      seconds: per phase so far.
      sources: what was read of it, LR or HR or first one and then the other.
    """

    def __init__(self, job: SlideJob, readers: Workers, on_progress: OnProgress | None = None):
        self.path, self._job, self._readers = job.path, job, readers
        self._on_progress, self._done, self._total = on_progress, 0, 0
        self.seconds: dict[str, float] = {}
        self.sources: list[PatchSource] = []
        self.overview: SlideOverview | None = None
        self._error: UserError | None = None
        self._began = 0.0

    def open(self, *, high: bool) -> "Visit":
        """Finds the slide's patches; a mistake is kept for when it is read."""
        start = time.perf_counter()
        try:
            self.overview = self._readers.submit(survey, self._job, high).result()
        except LostError as error:
            self._error = SlideError(f"{self.path}: {error.reason}")
        except UserError as error:
            self._error = error
        self.seconds["open_tissue"] = time.perf_counter() - start
        return self

    def patches(
        self, *, high: bool, chosen: Sequence[int] | None = None
    ) -> Iterator[Sequence[np.ndarray]]:
        """Images of the slide's patches, group by group.

        Raises:
          SlideError: the slide could not be opened, or has no patches.
        """
        if self._error is not None:
            raise self._error
        self._began = time.perf_counter()
        lattice = self.overview.lattice
        places = Places(lattice.lr_xy, lattice.lr_side, lattice.child_mask)
        origin = FromSlide(self._job, self._readers, places)
        self.sources.append(PatchSource(str(self.path), origin, high=high, chosen=chosen))
        self._total += len(lattice.lr_xy) if chosen is None else len(chosen)
        for images in self.sources[-1]:
            yield images
            self._done += 1
            if self._on_progress is not None:
                self._on_progress(self.path, self._done, self._total)

    def phase(self, read: str, encode: str, since: float) -> float:
        """Notes the seconds of the patches read last; gives the time, which is `since` for the
        next slide: what was done before the last one was ready is not counted twice."""
        now, reading = time.perf_counter(), self.sources[-1].seconds
        self.seconds[read] = reading
        self.seconds[encode] = max(0.0, now - max(since, self._began) - reading)
        return now

    def facts(self) -> dict:
        """What a `SlideResult` tells of the slide itself.

        Raises:
          SlideError: a level was read that is finer than the patches' own.
        """
        overview, levels = self.overview, collections.Counter(self.overview.levels)
        for source in self.sources:
            levels.update(source.levels)
        finest, allowed = min(levels), overview.finest_allowed
        if finest < allowed:
            raise SlideError(f"{self.path}: level {finest} was read, finer than {allowed}")
        return {
            "path": self.path,
            "mpp": overview.mpp,
            "dimensions": overview.dimensions,
            "bounds": overview.bounds,
            "seconds": self.seconds,
            "read_log": dict(levels),
            "finest_allowed": allowed,
            "unreadable": [tuple(item["xy"]) for one in self.sources for item in one.damage],
            "picture": overview.picture,
            "picture_downsample": overview.picture_downsample,
        }


def planned(
    slides: Iterable[tuple[Path, float | None, Annotations | None]],
    settings: TilingSettings,
    readers: Workers,
    *,
    high: bool,
    trust_mpp: bool = False,
    on_progress: OnProgress | None = None,
) -> Iterator[Visit]:
    """The slides in order, each with its um/px and what was drawn on it if given: opened and
    searched for tissue some ahead of the one that is read."""
    waiting: collections.deque[concurrent.futures.Future[Visit]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(_PLANNED) as pool:
        try:
            for path, mpp, drawn in slides:
                job = SlideJob(path.stem, path, mpp, Path(), settings, trust_mpp, of_model=True,
                               annotations=drawn)  # fmt: skip
                visit = Visit(job, readers, on_progress)
                waiting.append(pool.submit(visit.open, high=high))
                if len(waiting) > _PLANNED:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:  # nobody will ask for them any more
                future.cancel()
