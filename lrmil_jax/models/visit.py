"""One slide on its way through a model: planned ahead in threads, read, and closed."""

import collections
import concurrent.futures
import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lrmil_jax.data import regions
from lrmil_jax.data.slide_jobs import SlideJob, TilingSettings
from lrmil_jax.errors import SlideError, UserError
from lrmil_jax.models import result
from lrmil_jax.patches import PatchSource
from lrmil_jax.patches.origins import OpenSlide, Places

# Slides that are opened and searched for tissue while one before them is read.
_PLANNED = 2


class Visit:
    """A slide that is being classified.

    Attributes:
      path: the slide file.
      plan: the open slide with tissue and lattice.
      seconds: per phase so far.
      sources: what was read of it, LR or HR or first one and then the other.
    """

    def __init__(self, path: Path, mpp: float | None, *, trust_mpp: bool = False):
        self.path, self._mpp, self._trust_mpp = path, mpp, trust_mpp
        self.seconds: dict[str, float] = {}
        self.sources: list[PatchSource] = []
        self.plan: regions.SlidePlan | None = None
        self._error: UserError | None = None
        self._began = 0.0

    def open(self, settings: TilingSettings, *, high: bool) -> "Visit":
        """Opens the slide and finds its patches; a mistake is kept for when it is read."""
        start = time.perf_counter()
        try:
            job = SlideJob(
                self.path.stem, self.path, self._mpp, Path(), settings, trust_mpp=self._trust_mpp
            )
            self.plan = regions.plan_slide(job, high_resolution=high)
        except UserError as error:
            self._error = error
        except Exception as error:  # one slide's surprise must not stop the others
            self._error = SlideError(f"{self.path}: {type(error).__name__}: {error}")
        self.seconds["open_tissue"] = time.perf_counter() - start
        return self

    def patches(
        self,
        settings: TilingSettings,
        *,
        high: bool,
        chosen: Sequence[int] | None = None,
    ) -> Iterator[Sequence[np.ndarray]]:
        """Images of the slide's patches, group by group.

        Raises:
          SlideError: the slide could not be opened, or has no patches.
        """
        if self._error is not None:
            raise self._error
        self._began = time.perf_counter()
        lattice = self.plan.lattice
        places = Places(lattice.lr_xy, lattice.lr_side, lattice.child_mask)
        origin = OpenSlide(self.plan.slide, places, settings.geometry)
        self.sources.append(PatchSource(str(self.path), origin, high=high, chosen=chosen))
        yield from self.sources[-1]

    def phase(self, read: str, encode: str, since: float) -> float:
        """Notes the seconds of the patches read last; gives the time, which is `since` for the
        next slide: what was done before the last one was ready is not counted twice."""
        now, reading = time.perf_counter(), self.sources[-1].seconds
        self.seconds[read] = reading
        self.seconds[encode] = max(0.0, now - max(since, self._began) - reading)
        return now

    def facts(self, settings: TilingSettings, side: int) -> dict:
        """What a `SlideResult` tells of the slide itself, for patches of this level-0 side.

        Raises:
          SlideError: a level was read that is finer than the patches' own.
        """
        slide, geometry = self.plan.slide, settings.geometry
        picture, downsample = result.picture(slide, geometry, self.plan.tissue)
        levels, allowed = self.sources[0].levels, slide.source_level(geometry.patch_px, side)
        if min(levels) < allowed:
            raise SlideError(f"{self.path}: level {min(levels)} was read, finer than {allowed}")
        damage = [tuple(item["xy"]) for source in self.sources for item in source.damage]
        return {
            "mpp": slide.mpp,
            "bounds": slide.bounds,
            "seconds": self.seconds,
            "read_log": levels,
            "finest_allowed": allowed,
            "unreadable": damage,
            "picture": picture,
            "picture_downsample": downsample,
        }

    def close(self) -> None:
        """Releases the slide."""
        if self.plan is not None:
            self.plan.slide.close()


def planned(
    slides: Iterable[tuple[Path, float | None]],
    settings: TilingSettings,
    *,
    high: bool,
    trust_mpp: bool = False,
) -> Iterator[Visit]:
    """The slides in order, opened and searched for tissue some ahead of the one that is read."""
    waiting: collections.deque[concurrent.futures.Future[Visit]] = collections.deque()
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(_PLANNED))
        stack.callback(_close, waiting)
        for path, mpp in slides:
            visit = Visit(Path(path), mpp, trust_mpp=trust_mpp)
            waiting.append(pool.submit(visit.open, settings, high=high))
            if len(waiting) > _PLANNED:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _close(waiting: Iterable[concurrent.futures.Future[Visit]]) -> None:
    """Releases the slides that nobody will ask for any more."""
    for future in waiting:
        if not future.cancel():
            future.result().close()
