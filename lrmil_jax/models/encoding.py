"""Patches of a cohort's slides through an encoder, and their features onto disk."""

import collections
import concurrent.futures
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lrmil_jax import cluster
from lrmil_jax.data import features
from lrmil_jax.data.slide_jobs import SlideJob
from lrmil_jax.errors import DataError, SlideError, UserError
from lrmil_jax.models import trained
from lrmil_jax.patches import PatchSource, beside
from lrmil_jax.processes import Workers
from lrmil_jax.progress import progress
from lrmil_jax.train.encode import BatchEncoder, Encoder
from lrmil_jax.workspace import cohorts, feature_sets, layout, statuses

log = logging.getLogger(__name__)

# Slides whose features wait to be written: more would only fill the memory.
_WAITING = 2
# Slides that are being read before their turn.
_BEGUN = 2

# patches(slide, processes that read slide files)
Patches = Callable[[SlideJob, Workers], PatchSource]
# write(slide, what was read of it, its features)
Write = Callable[[SlideJob, PatchSource, features.SlideFeatures], None]


def encode_slides(
    config: ConfigDict,
    workdir: Path,
    encoder: BatchEncoder,
    pending: Sequence[SlideJob],
    patches: Patches,
    write: Write,
    *,
    label: str,
    total: int,
) -> None:
    """Encodes slide after slide; reading, encoding and writing go on at the same time.

    A slide of which nothing can be decoded is marked as failed, and the others go on.

    Args:
      config, workdir: of the run.
      encoder: in the cohort's batch shape.
      pending: the slides to be done by this process.
      patches: says what is read of a slide.
      write: called in one thread of its own; what it writes must be whole or not there.
      label: for the progress display.
      total: slides that are to have features of this process in the end.

    Raises:
      DataError: a shard cannot be read; the other slides are encoded first.
    """
    errors: list[UserError] = []
    limits = cohorts.slide_limits(config)
    with (
        beside.slide_readers(config.encoder.workers, **limits) as readers,
        progress(label, total, done=total - len(pending)) as bar,
        _Writer() as writer,
    ):
        pairs = _begun((job, patches(job, readers)) for job in pending)
        for (job, source), encoded in encoder.stream((pair, pair[1]) for pair in pairs):
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
        suffix = f" (and {len(errors) - 1} more slides, see above)" if errors[1:] else ""
        raise DataError(f"{errors[0]}{suffix}")


def _begun(patches: Iterable[tuple[SlideJob, PatchSource]]) -> Iterator:
    """The same; who reads beside this process has begun with the next slides before their turn."""
    waiting: collections.deque = collections.deque()
    for pair in patches:
        pair[1].begin()
        waiting.append(pair)
        if len(waiting) > _BEGUN:
            yield waiting.popleft()
    yield from waiting


def encode_lr(
    config: ConfigDict,
    workdir: Path,
    load_encoder: Callable[[], Encoder],
    folder: Path,
    *,
    width: int | None = None,
) -> None:
    """Writes LR features of every slide that has none in `folder` yet; the encoder is loaded only
    if there is one. `width` is that of its embedding, if it is not the HR encoder's."""
    jobs, pending = missing(config, workdir, folder)
    if pending:
        encode_slides(
            config,
            workdir,
            trained.batch_encoder(config, load_encoder()),
            pending,
            lambda job, _: cohorts.patch_source(config, workdir, job, high=False),
            lambda job, source, rows: write(config, folder, job, rows),
            label="encode_lr",
            total=len(jobs),
        )
    statuses.meet("encode_lr")
    cluster.first_only("their view", _write_view, config, workdir, folder, width)


def _write_view(config: ConfigDict, workdir: Path, folder: Path, width: int | None) -> None:
    slide_ids = cohorts.prepared(config, workdir).table.slide_id.tolist()
    features.write_view(folder, slide_ids, feature_sets.record(config, workdir, width=width))


def missing(
    config: ConfigDict, workdir: Path, folder: Path
) -> tuple[list[SlideJob], list[SlideJob]]:
    """This process's slides of the cohort, and those that have no features in `folder`, which is
    made."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = cohorts.slide_jobs(config, workdir, cohorts.prepared(config, workdir).table)
    jobs = cluster.mine(jobs)
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
    recorded = statuses.read(workdir, job.slide_id)["unreadable"]
    kept = [item for item in recorded if item["what"] != "hr"]
    statuses.mark(workdir, job, unreadable=[*kept, *damage])


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
