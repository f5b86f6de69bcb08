"""Slides read and decoded in processes beside this one, for a device that is faster than one
process can read. What comes, and in which order, does not depend on how many there are."""

import collections
from collections.abc import Iterator, Sequence
from typing import Any

from lrmil_jax.data.slide_jobs import SlideJob
from lrmil_jax.errors import SlideError
from lrmil_jax.patches.origins import OpenSlide, Region, stored_places
from lrmil_jax.processes import Answer, LostError, Workers, usable_cores

_GROUP_SIZE = 4  # regions asked for at a time: 12 MB of children at 256 px and r = 4


class SlideFiles:
    """Reads regions of prepared slides from their files; what each process of `SlideBeside` has.
    The last slide stays open."""

    def __init__(self) -> None:
        self._job: SlideJob | None = None

    def read(
        self, job: SlideJob, indices: Sequence[int], high: bool
    ) -> tuple[list[Region], list[dict], dict[int, int]]:
        """The regions, what of them could not be decoded, and the pixels read of each level."""
        if job != self._job:
            if self._job is not None:
                self._slide.close()
            self._job = None
            self._slide = job.open()
            self._places = stored_places(job.shard, job.settings.geometry)
            self._job = job
        slide = OpenSlide(self._slide, self._places, job.settings.geometry)
        before = slide.levels
        regions = list(slide.regions(indices, high=high))
        pixels_read = {
            level: pixels - before.get(level, 0)
            for level, pixels in slide.levels.items()
            if pixels != before.get(level, 0)
        }
        return regions, slide.damage, pixels_read


def _read(files: SlideFiles, job: SlideJob, indices: Sequence[int], high: bool):
    return files.read(job, indices, high)


class SlideBeside:
    """HR patches of a prepared slide whose shard has none, read from the slide file in processes.

    Args:
      job: the slide.
      readers: processes that hold `SlideFiles`.
    """

    def __init__(self, job: SlideJob, readers: Workers):
        self._job, self._readers = job, readers
        self._answers: collections.deque[Answer] | None = None
        self.damage: list[dict] = []
        self.levels: dict[int, int] = {}

    def begin(self, indices: Sequence[int] | None, *, high: bool) -> None:
        """See `Origin`."""
        if indices is None:
            indices = range(len(stored_places(self._job.shard, self._job.settings.geometry).xy))
        groups = (
            indices[start : start + _GROUP_SIZE] for start in range(0, len(indices), _GROUP_SIZE)
        )
        self._requests = (
            self._readers.submit(_read, self._job, [int(index) for index in group], high)
            for group in groups
        )
        self._answers = collections.deque()
        self._submit(self._readers.room)

    def regions(self, indices: Sequence[int] | None, *, high: bool) -> Iterator[Region]:
        """See `Origin`; after `begin` with the same arguments, or without."""
        if self._answers is None:
            self.begin(indices, high=high)
        while self._answers:
            try:
                regions, damage, levels = self._answers.popleft().result()
            except LostError as error:
                raise SlideError(f"{self._job.path}: {error.reason}") from error
            self._submit(1)
            self.damage += damage
            for level, pixels in levels.items():
                self.levels[level] = self.levels.get(level, 0) + pixels
            yield from regions
        self._answers = None

    def _submit(self, count: int) -> None:
        for _, answer in zip(range(count), self._requests, strict=False):
            self._answers.append(answer)


def processes(workers: int) -> int:
    """How many processes read: `encoder.workers`, where 0 leaves all cores but one to them, and
    none where the device is this CPU, whose cores then have enough to do."""
    if workers:
        return workers
    import jax  # late: the processes themselves need none

    return 1 if jax.default_backend() == "cpu" else max(1, usable_cores() - 1)


def slide_readers(workers: int, **limits: Any) -> Workers:
    """The processes for `SlideBeside`; see `processes` for their number, `Workers` for limits."""
    count = processes(workers)
    return Workers(count, label="reading", key="encoder.workers", held=SlideFiles(), **limits)
