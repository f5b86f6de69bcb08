"""Slides read and decoded in processes beside this one, whose decoders may crash or hang, and of
which several read faster than one. What comes, and in which order, does not depend on how many
there are; with none, this process reads."""

import collections
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from lrmil_jax.data.slide_jobs import SlideJob
from lrmil_jax.errors import SlideError, UserError
from lrmil_jax.patches.open_slides import SlideFiles
from lrmil_jax.patches.origins import Places, Region
from lrmil_jax.processes import Answer, LostError, Workers, usable_cores

# Regions asked for at a time: 12 MB of children at 256 px and r = 4, or 6 MB of LR tiles.
_GROUP_SIZE = {True: 4, False: 32}


def _read(files: SlideFiles, *request: Any):
    return files.read(*request)


class FromSlide:
    """LR patches of a slide or their children, read from the slide file by `slide_readers`.

    Args:
      job: the slide.
      readers: processes that hold `SlideFiles`.
      places: of the LR patches; None: those of the slide's shard.
    """

    def __init__(self, job: SlideJob, readers: Workers, places: Places | None = None):
        self._job, self._readers, self._places = job, readers, places
        self._answers: collections.deque[Answer] | None = None
        self.damage: list[dict] = []
        self.levels: dict[int, int] = {}

    def begin(self, indices: Sequence[int] | None, *, high: bool) -> None:
        """See `Origin`."""
        if self._readers.beside:
            with contextlib.suppress(UserError):  # told when it is read
                self._begin(indices, high=high)

    def regions(self, indices: Sequence[int] | None, *, high: bool) -> Iterator[Region]:
        """See `Origin`; after `begin` with the same arguments, or without.

        Raises:
          SlideError: the slide cannot be opened, or the process that read it was lost twice.
        """
        if self._answers is None:
            self._begin(indices, high=high)
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

    def _begin(self, indices: Sequence[int] | None, *, high: bool) -> None:
        places = self._places
        if places is None:
            from lrmil_jax.patches.shards import stored_places  # late: it brings JAX

            places = stored_places(self._job.shard, self._job.settings.geometry)
        if indices is None:
            indices = range(len(places.xy))
        size = _GROUP_SIZE[high]
        groups = ([int(index) for index in indices[start : start + size]]
                  for start in range(0, len(indices), size))  # fmt: skip
        self._requests = (
            self._readers.submit(_read, self._job, group, places.take(group), high)
            for group in groups
        )
        self._answers = collections.deque()
        self._submit(self._readers.room)

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


@contextlib.contextmanager
def slide_readers(workers: int, **limits: Any) -> Iterator[Workers]:
    """The processes for `FromSlide`; see `processes` for their number, `Workers` for limits."""
    count = processes(workers)
    with (
        contextlib.closing(SlideFiles()) as files,
        Workers(count, label="reading", key="encoder.workers", held=files, **limits) as readers,
    ):
        yield readers


def configured_readers(config: ConfigDict) -> contextlib.AbstractContextManager[Workers]:
    """`slide_readers` with the limits of `prepare`, for slides that nothing has prepared."""
    seconds = config.prepare.seconds_per_slide
    return slide_readers(config.encoder.workers, seconds=seconds, apart=seconds > 0)
