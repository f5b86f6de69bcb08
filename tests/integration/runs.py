"""Runs of the command line in processes of their own, and what they leave on disk."""

import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import COMPILED_FAST
from tests.integration import forked

ROOT = Path(__file__).parents[2]
TINY = "configs/tcga_nsclc.py:tiny"  # on synthetic slides; trains its encoder itself
GUIDED = "configs/wise_fuse_tcga_brca.py:tiny"  # the same by WISE-FUSE
STAGES = (
    *("pretrain", "prepare", "encode_hr", "teacher", "distill"),
    *("encode_lr", "student", "baseline", "evaluate", "report"),
)
# What must not depend on interruptions; timings may.
_RESULTS = ("*.safetensors", "predictions.csv", "metrics.json", "metrics.jsonl", "result.json")
_BEGINNING = re.compile(r"\[\d+/\d+\] (\w+)")
_started: list["Run"] = []


def environment(cache: Path) -> dict[str, str]:
    """One device, as a user has; compiled as tests are, which takes a quarter of a run less."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": COMPILED_FAST,
    }


class Run:
    """One command line at work; its log lines are read as they come.

    Args:
      cache: where compiled programs are kept; the same for all runs.
      arguments: of `python -m lrmil_jax.main`.
      fresh: that very command; else a fork of a process that has done the imports, which are most
        of a short run.
      devices: that the process of a fresh command sees; None: one.
    """

    def __init__(
        self, cache: Path, *arguments: object, fresh: bool = False, devices: int | None = None
    ):
        self.lines: list[str] = []
        command = [*map(str, arguments)]
        if fresh:
            lines, writer = os.pipe()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lrmil_jax.main", *command],
                cwd=ROOT,
                env={
                    **environment(cache),
                    **({} if devices is None else {"JAX_NUM_CPU_DEVICES": str(devices)}),
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=writer,
            )
            os.close(writer)
        else:
            self._process, lines = forked.start(
                command, environment=environment(cache), folder=ROOT
            )
        self._reader = threading.Thread(target=self._read, args=(lines,), daemon=True)
        self._reader.start()
        _started.append(self)

    def _read(self, descriptor: int) -> None:
        with open(descriptor) as stream:
            for line in stream:
                self.lines.append(line.rstrip())

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def stage(self) -> int:
        """Stages begun so far."""
        return sum("] " in line and f"/{len(STAGES)}] " in line for line in list(self.lines))

    def begun(self) -> list[str]:
        """Names of the stages begun so far, also of those that were done before."""
        matches = (_BEGINNING.search(line) for line in list(self.lines))
        return [match[1] for match in matches if match]

    def wait(self) -> int:
        """The exit status, however long that takes: a busy machine is no mistake of the run.

        Workers write to the same pipe, so once it ends they have ended too.
        """
        status = self._process.wait()
        self._reader.join()
        return status

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> bool:
        """Kills this process alone, as the system would; True if it still ran."""
        self._process.kill()
        return self.wait() == -signal.SIGKILL


def copy_inputs(finished: Path, workdir: Path) -> None:
    """What stands before a run's first slide is prepared: slides with labels, and an encoder."""
    for name in ("synthetic", "pretrain"):
        shutil.copytree(finished / name, workdir / name)


def together(
    cache: Path,
    workdir: Path,
    count: int,
    *flags: str,
    config: str = TINY,
    devices: Sequence[int] = (),
    **own: Sequence[str],
) -> list["Run"]:
    """As many processes of one run, with two devices each or those given; `own` has flags of one of
    them, as `process_1`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        Run(cache, "--config", config, "--workdir", workdir, *flags,
            f"--coordinator=127.0.0.1:{port}", f"--processes={count}", f"--process={number}",
            *own.get(f"process_{number}", ()), fresh=True,
            devices=devices[number] if devices else 2)
        for number in range(count)
    ]  # fmt: skip


def end_all() -> None:
    """Ends what a failed test left running."""
    while _started:
        run = _started.pop()
        if run.running:
            run.kill()


def train(cache: Path, workdir: Path, *flags: str, config: str = TINY, fresh: bool = False) -> Run:
    """A tiny configuration on `workdir`, started."""
    return Run(cache, "--config", config, "--workdir", workdir, *flags, fresh=fresh)


@dataclasses.dataclass(frozen=True)
class Finished:
    """A whole tiny run that nothing disturbed: tests read it and never write to it."""

    workdir: Path
    cache: Path
    log: str

    def copy(self, folder: Path) -> Path:
        """The same, to be changed."""
        return Path(shutil.copytree(self.workdir, folder, symlinks=True))


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file below `folder` but the lock."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def changed(before: dict, after: dict) -> set[str]:
    """Names of files that are new, gone, or not what they were."""
    return {name for name in before | after if before.get(name) != after.get(name)}


def results(workdir: Path) -> dict[str, bytes]:
    """Parameters, predictions and metrics of every stage, byte by byte."""
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for pattern in _RESULTS
        for path in sorted(workdir.rglob(pattern))
    }


def leftovers(workdir: Path) -> list[str]:
    """Temporary files and folders, and checkpoints of trainings that are finished."""
    found = [*workdir.rglob(".*.tmp"), *workdir.rglob(".*.stale"), *workdir.rglob("checkpoints")]
    found += [*workdir.rglob(".model.new"), *workdir.rglob("*orbax-checkpoint-tmp*")]
    return sorted(str(path.relative_to(workdir)) for path in found)
