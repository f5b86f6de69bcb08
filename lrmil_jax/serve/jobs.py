"""The server's jobs, in one SQLite file: each is on disk before it is answered, and a server that
was killed goes on where it was."""

import contextlib
import dataclasses
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from lrmil_jax.errors import UserError, WorkdirError

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
STATES = (QUEUED, RUNNING, DONE, FAILED, CANCELLED)
_SCHEMA = 1
_MOST_STARTS = 3  # of a slide that ends the whole server
_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE, key TEXT UNIQUE, state TEXT NOT NULL, slide_id TEXT NOT NULL,
  path TEXT NOT NULL, uploaded INTEGER NOT NULL, mpp REAL, trust_mpp INTEGER NOT NULL,
  starts INTEGER NOT NULL, regions INTEGER NOT NULL, reason TEXT NOT NULL,
  created REAL NOT NULL, started REAL, finished REAL
);
CREATE INDEX IF NOT EXISTS by_state ON jobs (state, number);
"""


class FullError(UserError):
    """As many jobs wait as may."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One slide that is to be predicted.

    Attributes:
      id: 32 hex digits that nobody can guess.
      slide_id: the slide's name; path: its file; uploaded: the file is the server's own copy.
      mpp: um/px of its level 0, if its own is not right; trust_mpp: as `SlideModel.predict`.
      key: by which the client knows it, or None.
      number: counted in the order in which jobs came; 0 before it is stored.
      state: one of STATES; reason: why it failed.
      starts: how often a server began with it; regions: that were read of it, once it is done.
      created, started, finished: seconds since 1970.
    """

    id: str
    slide_id: str
    path: str
    uploaded: bool
    mpp: float | None = None
    trust_mpp: bool = False
    key: str | None = None
    number: int = 0
    state: str = QUEUED
    reason: str = ""
    starts: int = 0
    regions: int = 0
    created: float = 0.0
    started: float | None = None
    finished: float | None = None


_COLUMNS = tuple(field.name for field in dataclasses.fields(Job) if field.name != "number")


def new_id() -> str:
    """An id for a job."""
    return secrets.token_hex(16)


class JobStore:
    """Jobs of one server, below one folder; any thread may call.

    Args:
      folder: made if need be; the caller holds it alone.
      limit: how many jobs may wait.

    Raises:
      WorkdirError: the file is another program's or version's, or cannot be written.
    """

    def __init__(self, folder: Path, *, limit: int):
        self.folder, self._limit = folder, limit
        self._receiving, self._lock = 0, threading.RLock()
        path = folder / "jobs.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            with contextlib.ExitStack() as stack:
                stack.callback(self._base.close)
                self._prepare(path)
                stack.pop_all()
        except (OSError, sqlite3.Error) as error:
            raise WorkdirError(
                f"{path} cannot be used ({error}); choose a --jobs folder on a disk of this machine"
            ) from error

    def _prepare(self, path: Path) -> None:
        (version,) = self._base.execute("PRAGMA user_version").fetchone()
        if version not in (0, _SCHEMA):
            raise WorkdirError(
                f"{path} has schema {version}, this version reads schema {_SCHEMA}; choose another "
                "--jobs folder"
            )
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("PRAGMA synchronous = FULL")  # a job that is told of is on disk
        self._base.executescript(f"{_TABLE} PRAGMA user_version = {_SCHEMA};")

    def close(self) -> None:
        """Lets go of the file."""
        with self._lock:
            self._base.close()

    def home(self, job_id: str) -> Path:
        """The folder of a job's files."""
        return self.folder / "files" / job_id

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Keeps a place in the queue while a job is being received.

        Raises:
          FullError: there is none.
        """
        with self._lock:
            if self.counts()[QUEUED] + self._receiving >= self._limit:
                raise FullError(f"{self._limit} jobs wait already; come again later")
            self._receiving += 1
        try:
            yield
        finally:
            with self._lock:
                self._receiving -= 1

    def add(self, job: Job) -> tuple[Job, bool]:
        """Stores a job, whose files are on disk.

        Returns:
          It, and whether it is new: under a key that is there already it is that job.
        """
        job = dataclasses.replace(job, created=time.time())
        marks = ", ".join("?" * len(_COLUMNS))
        values = [getattr(job, name) for name in _COLUMNS]
        with self._lock:
            known = None if job.key is None else self.by_key(job.key)
            if known is not None:
                return known, False
            self._base.execute(f"INSERT INTO jobs ({', '.join(_COLUMNS)}) VALUES ({marks})", values)
            return self.get(job.id), True

    def get(self, job_id: str) -> Job | None:
        """The job of an id."""
        return self._one("SELECT * FROM jobs WHERE id = ?", job_id)

    def by_key(self, key: str) -> Job | None:
        """The job that a client gave this key."""
        return self._one("SELECT * FROM jobs WHERE key = ?", key)

    def begin_next(self) -> Job | None:
        """Begins with the job that waits for longest."""
        return self._one(
            "UPDATE jobs SET state = 'running', starts = starts + 1, started = ? WHERE number = "
            "(SELECT min(number) FROM jobs WHERE state = 'queued') RETURNING *",
            time.time(),
        )

    def finish(self, job_id: str, state: str, *, reason: str = "", regions: int = 0) -> bool:
        """Ends a running job; False if it is not running, so that none is answered twice."""
        return self._changes(
            "UPDATE jobs SET state = ?, reason = ?, regions = ?, finished = ? WHERE id = ? AND "
            "state = 'running'", state, reason, regions, time.time(), job_id,
        )  # fmt: skip

    def put_back(self, job_id: str) -> bool:
        """Lets a running job wait again, in its old place."""
        return self._changes(
            "UPDATE jobs SET state = 'queued', starts = starts - 1, started = NULL WHERE id = ? "
            "AND state = 'running'", job_id,
        )  # fmt: skip

    def cancel(self, job_id: str) -> bool:
        """Cancels a job that waits; False if it does not."""
        return self._changes(
            "UPDATE jobs SET state = 'cancelled', finished = ? WHERE id = ? AND state = 'queued'",
            time.time(), job_id,
        )  # fmt: skip

    def forget(self, job_id: str) -> bool:
        """Removes a job that has ended, with all its files; False if it has not."""
        gone = self._changes(
            "DELETE FROM jobs WHERE id = ? AND state NOT IN ('queued', 'running')", job_id
        )
        if gone:
            shutil.rmtree(self.home(job_id), ignore_errors=True)
        return gone

    def recover(self) -> int:
        """Lets jobs that a killed server had begun wait again, and removes files that belong to no
        job; gives their number. A slide that ended the server again and again has failed."""
        reason = (
            f"the server was ended {_MOST_STARTS} times while it predicted this slide (out of "
            "memory?); leave the slide out or convert it"
        )
        with self._lock:
            self._changes(
                "UPDATE jobs SET state = 'failed', reason = ?, finished = ? WHERE "
                "state = 'running' AND starts >= ?", reason, time.time(), _MOST_STARTS,
            )  # fmt: skip
            again = self._base.execute(
                "UPDATE jobs SET state = 'queued', started = NULL WHERE state = 'running'"
            ).rowcount
            known = {row[0] for row in self._base.execute("SELECT id FROM jobs")}
        for folder in (self.folder / "files").glob("*"):
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)
        return again

    def forget_older(self, seconds: float | int) -> int:
        """Forgets jobs that ended longer ago, and gives their number."""
        with self._lock:
            rows = self._base.execute(
                "SELECT id FROM jobs WHERE finished < ?", [time.time() - seconds]
            ).fetchall()
        return sum(self.forget(row[0]) for row in rows)

    def counts(self) -> dict[str, int]:
        """How many jobs are in each of STATES."""
        with self._lock:
            rows = self._base.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()
        return dict.fromkeys(STATES, 0) | dict(rows)

    def ahead(self, job: Job) -> int:
        """How many jobs wait before this one."""
        with self._lock:
            (count,) = self._base.execute(
                "SELECT count(*) FROM jobs WHERE state = 'queued' AND number < ?", [job.number]
            ).fetchone()
        return count

    def _one(self, command: str, value: str | float) -> Job | None:
        with self._lock:
            cursor = self._base.execute(command, [value])
            rows = cursor.fetchall()  # to its end, or the change would wait
        if not rows:
            return None
        names = [column[0] for column in cursor.description]
        values = dict(zip(names, rows[0], strict=True))
        for name in ("uploaded", "trust_mpp"):
            values[name] = bool(values[name])
        for name in ("mpp", "created", "started", "finished"):  # RETURNING gives 1 for 1.0
            values[name] = None if values[name] is None else float(values[name])
        return Job(**values)

    def _changes(self, command: str, *values: object) -> bool:
        with self._lock:
            return self._base.execute(command, values).rowcount > 0
