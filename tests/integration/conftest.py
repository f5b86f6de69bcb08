"""One whole run of the tiny configuration, shared by every test that needs a finished one."""

import fcntl
import os

import pytest

from tests.integration import runs


@pytest.fixture(autouse=True)
def nothing_stays_running():
    """A failed test leaves no process behind."""
    yield
    runs.end_all()


@pytest.fixture(scope="session")
def finished(cache, tmp_path_factory):
    """The tiny run, from nothing, undisturbed; one for all of pytest's workers."""
    mine = tmp_path_factory.getbasetemp()
    folder = (mine.parent if os.environ.get("PYTEST_XDIST_WORKER") else mine) / "finished"
    folder.mkdir(exist_ok=True)
    workdir, log = folder / "run", folder / "log"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not log.is_file():
            run = runs.train(cache, workdir, fresh=True)  # as a user gives the command
            assert run.wait() == 0, run.log
            log.write_text(run.log)
    return runs.Finished(workdir, cache, log.read_text())
