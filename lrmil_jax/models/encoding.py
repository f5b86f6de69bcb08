"""Patches of a cohort's slides through an encoder, and their features onto disk."""

import collections
import concurrent.futures
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lrmil_jax.data import features
from lrmil_jax.data.regions import SlideJob
from lrmil_jax.errors import DataError, SlideError, UserError
from lrmil_jax.models import trained
from lrmil_jax.patches import PatchSource
from lrmil_jax.train.encode import BatchEncoder, Encoder
from lrmil_jax.train.logging import progress
from lrmil_jax.workspace import cohorts, feature_sets, layout, statuses

log = logging.getLogger(__name__)

# Slides whose features wait to be written: more would only fill the memory.
_WAITING = 2

# write(slide, what was read of it, its features)
Write = Callable[[SlideJob, PatchSource, features.SlideFeatures], None]


def encode_slides(
    workdir: Path,
    encoder: BatchEncoder,
    patches: Iterable[tuple[SlideJob, PatchSource]],
    write: Write,
    *,
    label: str,
    total: int,
    done: int,
) -> None:
    """Encodes slide after slide; reading, encoding and writing go on at the same time.

    A slide of which nothing can be decoded is marked as failed, and the others go on.

    Args:
      workdir: of the run.
      encoder: in the cohort's batch shape.
      patches: the slides to be done.
      write: called in one thread of its own; what it writes must be whole or not there.
      label: for the progress display.
      total: slides of the cohort; done: those that are finished already.

    Raises:
      DataError: a shard cannot be read; the other slides are encoded first.
    """
    errors: list[UserError] = []
    sources = ((pair, pair[1]) for pair in patches)
    with progress(label, total, done=done) as bar, _Writer() as writer:
        for (job, source), encoded in encoder.stream(sources):
            try:
                if isinstance(encoded, UserError):
                    raise encoded
                writer.submit(write, job, source, source.features(encoded))
                if source.damage:
                    _note_damage(workdir, job, source.damage)
            except SlideError as error:
                statuses.mark(workdir, job, status="failed", reason=str(error))
            except DataError as error:
                log.error("slide %s: %s", job.slide_id, error)
                errors.append(error)
            bar.advance()
    if errors:
        others = f" (and {len(errors) - 1} more slides, see above)" if errors[1:] else ""
        raise DataError(f"{errors[0]}{others}")


def encode_lr(
    config: ConfigDict, workdir: Path, load_encoder: Callable[[], Encoder], folder: Path
) -> None:
    """Writes LR features of every slide that has none in `folder` yet; the encoder is loaded only
    if there is one."""
    table = cohorts.prepared(config, workdir).table
    jobs, pending = missing(config, workdir, folder)
    if pending:
        encode_slides(
            workdir,
            trained.batch_encoder(config, load_encoder()),
            ((job, cohorts.patch_source(config, workdir, job, high=False)) for job in pending),
            lambda job, source, rows: write(config, folder, job, rows),
            label="encode_lr",
            total=len(jobs),
            done=len(jobs) - len(pending),
        )
    features.write_view(folder, table.slide_id.tolist(), feature_sets.record(config, workdir))


def missing(
    config: ConfigDict, workdir: Path, folder: Path
) -> tuple[list[SlideJob], list[SlideJob]]:
    """The cohort's slides, and those that have no features in `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = cohorts.slide_jobs(config, workdir, cohorts.prepared(config, workdir).table)
    return jobs, [job for job in jobs if not layout.shard(folder, job.slide_id).is_file()]


def write(
    config: ConfigDict,
    folder: Path,
    job: SlideJob,
    rows: features.SlideFeatures,
    *,
    by_region: bool = False,
) -> None:
    """Writes a slide's features into `folder`; with `by_region` one record an LR patch."""
    path, block = layout.shard(folder, job.slide_id), config.features.rows
    features.write(
        path, job.slide_id, rows, dtype=config.features.dtype, block=None if by_region else block
    )


def _note_damage(workdir: Path, job: SlideJob, damage: Sequence[dict]) -> None:
    """Keeps in the slide's status which HR patches could not be decoded."""
    known = statuses.read(workdir, job.slide_id)["unreadable"]
    others = [item for item in known if item["what"] != "hr"]
    statuses.mark(workdir, job, unreadable=[*others, *damage])


class _Writer:
    """One thread that writes, a few slides behind; its mistakes come up in the caller's."""

    def __enter__(self) -> "_Writer":
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._pending: collections.deque[concurrent.futures.Future] = collections.deque()
        return self

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Calls the function in the thread, once there is room."""
        self._pending.append(self._pool.submit(function, *arguments))
        while len(self._pending) > _WAITING:
            self._pending.popleft().result()

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._pool.shutdown()  # what was begun is finished, also before a mistake is told
        if kind is None:
            for future in self._pending:
                future.result()
