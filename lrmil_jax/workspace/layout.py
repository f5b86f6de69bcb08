"""Where everything lies in a working directory, and whose it is."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from lrmil_jax import cluster, files
from lrmil_jax.data import splits
from lrmil_jax.errors import WorkdirError

LOCK = ".lock"  # held by whoever works in a working directory
BUSY = "another run is at work in {}; wait for it or choose another --workdir"


def regions_folder(workdir: Path) -> Path:
    """Where `prepare` puts regions and each slide's status."""
    return workdir / "regions"


def features_folder(workdir: Path, name: str, fold: int | None = None) -> Path:
    """Features of one encoder on one resolution; those of a fold's encoder lie with the fold."""
    return (workdir if fold is None else fold_folder(workdir, fold)) / "features" / name


def fold_folder(workdir: Path, fold: int) -> Path:
    """All that belongs to one fold, counted from 1, or to the final model."""
    return workdir / "folds" / fold_name(fold)


def fold_name(fold: int) -> str:
    """A fold's number, or `final`."""
    return "final" if fold == splits.FINAL else str(fold)


def fold_title(fold: int) -> str:
    """What progress and messages call it."""
    return "final model" if fold == splits.FINAL else f"fold {fold}"


def stage_folder(workdir: Path, stage: str, fold: int | None = None) -> Path:
    """The output of one stage, of one fold where it runs per fold."""
    return (workdir if fold is None else fold_folder(workdir, fold)) / stage


def shard(folder: Path, slide_id: str) -> Path:
    """The ArrayRecord file of one slide."""
    return folder / f"{slide_id}.array_record"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the working directory for this run; the lock goes with the process, however it ends.
    Of several processes of a run the first one holds it.

    Raises:
      WorkdirError: another run holds it, it cannot be written to, or not all processes of this run
        see it.
    """
    with contextlib.ExitStack() as stack:
        if cluster.is_first():
            how = fcntl.LOCK_EX | fcntl.LOCK_NB
            stack.enter_context(held(workdir / LOCK, how, BUSY.format(workdir)))
        cluster.sees(workdir)
        yield
        cluster.meet("the lock is let go")


@contextlib.contextmanager
def held(path: Path, how: int, busy: str) -> Iterator[None]:
    """Holds a lock file; the lock goes with the process, however it ends.

    Args:
      path: of the file.
      how: flags of `fcntl.flock`.
      busy: the sentence if another process holds it and nobody waits for it.

    Raises:
      WorkdirError: with that sentence, or the disk has no locks or cannot be written to.
    """
    with files.disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 - held until the run ends
    with file:
        try:
            fcntl.flock(file, how)
        except BlockingIOError as error:
            raise WorkdirError(busy) from error
        except OSError as error:
            raise WorkdirError(
                f"{path.parent} cannot be locked ({error.strerror}), so two runs could spoil each "
                "other; choose a --workdir on a disk that has file locks"
            ) from error
        yield
