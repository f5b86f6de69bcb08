"""Slides prepared by a job of Apache Beam: what this program's own processes do with a slide, done
by the workers of Flink, Spark, Dataflow or Beam's own DirectRunner.

Such a run is shard 1 of 1 (`shards`): finished slides are whole files, so it may be killed and
started again, and a run without Beam joins them.
"""

import contextlib
import dataclasses
import fcntl
import io
import logging
import re
import socket
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lrmil_jax import processes, storage
from lrmil_jax.data.slide_jobs import SlideJob
from lrmil_jax.errors import ConfigError, WorkdirError, one_line
from lrmil_jax.workspace import layout, shards

log = logging.getLogger(__name__)

_FLAG = "--beam_pipeline_options"
# These tell what Beam discards, what its workers log, which write to the terminal themselves, and
# what the job ended with, which a sentence tells.
_NOISY = (
    "options.pipeline_options", "runners.portability.local_job_service", "runners.common",
    "runners.worker.sdk_worker", "runners.portability.fn_api_runner.fn_runner",
)  # fmt: skip
_jobs: list["_Job"] = []  # the last one is in force


@dataclasses.dataclass(frozen=True)
class _Job:
    options: Any  # Beam's
    workdir: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlideWork:
    """What Beam's workers do with a slide, one after the other each.

    Attributes:
      function: of one slide, as a process of `prepare` calls it.
      lost: see `processes.map_jobs`; `seconds` and `apart` too.
      workdir: of the run.
      seen: name of a file that the run has written there.
      gib: of copies of slides in object storage, on each host.
    """

    function: Callable[[SlideJob], dict]
    lost: Callable[[SlideJob, str], dict]
    seconds: float
    apart: bool
    workdir: Path
    seen: str
    gib: float

    def workers(self) -> processes.Workers:
        """The process that one worker of Beam hands its slides to, or itself."""
        return processes.Workers(1, label="prepare", seconds=self.seconds, apart=self.apart)

    def do(self, workers: processes.Workers, job: SlideJob, record: storage.Record | None) -> dict:
        """The status of a slide, which it writes too.

        Args:
          workers: see there.
          job: the slide.
          record: of its object, if it lies in object storage: this host may not have listed it.

        Raises:
          WorkdirError: this host does not see the working directory, cannot write to it, or
            another run holds it since the job began.
        """
        if not (self.workdir / self.seen).is_file():
            raise WorkdirError(
                f"a Beam worker on {socket.gethostname()} does not see the --workdir of the run: "
                f"{self.workdir} must be the same folder on all of its hosts"
            )
        busy, how = layout.BUSY.format(self.workdir), fcntl.LOCK_SH | fcntl.LOCK_NB
        with layout.held(self.workdir / layout.LOCK, how, busy):
            if record is not None:
                storage.remember(record, self.gib)
            return processes.outcome(workers.submit(self.function, job), job, self.lost)


@contextlib.contextmanager
def joined(given: Sequence[str], config: ConfigDict, workdir: Path) -> Iterator[None]:
    """Within this, `map_slides` is a Beam job, and the run a shard.

    Args:
      given: Beam's options, each `name=value`, of the flag.
      config: of the run.
      workdir: of the run.

    Raises:
      ConfigError: Beam is not installed, or cannot use the options.
      WorkdirError: see `shards.joined`.
    """
    job = _Job(_options(given), workdir)
    with shards.joined("1/1", config, workdir):
        _jobs.append(job)
        try:
            yield
        finally:
            _jobs.pop()


def is_on() -> bool:
    """Whether slides go to a Beam job."""
    return bool(_jobs)


def _options(given: Sequence[str]) -> Any:
    """Beam's options, with which it finds no fault; see `joined`."""
    beam = _imported()
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    flags, told = [f"--{one.strip().lstrip('-')}" for one in given], io.StringIO()
    try:
        with contextlib.redirect_stderr(told):  # the help of all its options
            options = PipelineOptions(flags)
            options.get_all_options()
            runner = options.view_as(StandardOptions).runner
            if runner is None:
                flags.append(f"--runner={(runner := 'DirectRunner')}")
            if runner.lower() in ("directrunner", "direct"):
                _refuse_unknown(options)
                # Without it Beam would first download another runner, and use that.
                flags.append(f"--update_compatibility_version={beam.__version__}")
            options = PipelineOptions(["--default_sdk_harness_log_level=WARNING", *flags])
            beam.Pipeline(options=options)
    except SystemExit as error:
        raise ConfigError(f"{_FLAG}: {told.getvalue().strip().splitlines()[-1]}") from error
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        raise ConfigError(f"{_FLAG}: {one_line(error, 300)}") from error
    return options


def _imported() -> Any:
    logging.disable(logging.WARNING)  # it tells of Google's clients, which no run needs
    try:
        import apache_beam
    except ImportError as error:
        raise ConfigError(f"{_FLAG} needs Apache Beam: pip install 'lrmil_jax[beam]'") from error
    finally:
        logging.disable(logging.NOTSET)
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    for name in _NOISY:
        logging.getLogger(f"apache_beam.{name}").setLevel(logging.CRITICAL)
    return apache_beam


def _refuse_unknown(options: Any) -> None:
    """Raises ConfigError for an option that is none; other runners have some that Beam does not
    know."""
    every = options.get_all_options(retain_unknown_options=True)
    unknown = sorted(every.keys() - options.get_all_options().keys())
    if unknown:
        raise ConfigError(f"{_FLAG} has {unknown[0]!r}, which is no option of Beam's DirectRunner")


def map_slides(
    function: Callable[[SlideJob], dict],
    jobs: Sequence[SlideJob],
    *,
    lost: Callable[[SlideJob, str], dict],
    gib: float,
    seconds: float = 0.0,
    apart: bool = False,
) -> None:
    """`function` of every slide, by the workers of the job in force; what comes of it is on disk.

    Args:
      function, jobs: see `SlideWork`, whose other fields these are.

    Raises:
      WorkdirError: the job ended before all slides were done; those that are stay.
    """
    from lrmil_jax.workspace import beam_job

    job = _jobs[-1]
    seen = job.workdir / f".seen.{uuid.uuid4().hex[:8]}.tmp"  # as `files.remove_leftovers` knows
    work = SlideWork(
        function=function, lost=lost, seconds=seconds, apart=apart,
        workdir=job.workdir.absolute(), seen=seen.name, gib=gib,
    )  # fmt: skip
    tasks = [  # a worker may have begun in any folder
        (dataclasses.replace(one, folder=one.folder.absolute()), storage.record(one.path))
        for one in jobs
    ]
    log.info("prepare: slides that go to Beam: %d", len(tasks))
    try:
        seen.touch()
        beam_job.run(work, tasks, job.options)
    except Exception as error:
        raise WorkdirError(_sentence(error)) from error
    finally:
        seen.unlink(missing_ok=True)
    log.info("prepare: the same command without %s joins what Beam has done", _FLAG)
    missing = [one for one in jobs if not one.status_path.is_file()]
    if missing:
        raise WorkdirError(
            f"the Beam job has ended, but of {len(missing)} slides, such as {missing[0].slide_id}, "
            f"nothing is to be seen in {job.workdir}; run the same command again"
        )


_OWN = re.compile(r"lrmil_jax\.errors\.\w+: (.*?)(?: \[while running .*)?$", re.MULTILINE)


def _sentence(error: Exception) -> str:
    """Why a job failed: our own sentence, if it is one, from the traceback of a worker."""
    lines = "".join(traceback.format_exception_only(error)).strip()
    own = _OWN.search(lines)
    if own:
        return own[1]
    why = one_line(RuntimeError(lines.splitlines()[-1]), 400)
    return f"the Beam job failed ({why}); what is done is kept: run the same command again"
