"""One whole run of the tiny configuration, shared by every test that needs a finished one."""

import pytest

from tests.integration import runs


@pytest.fixture(autouse=True)
def nothing_stays_running():
    """A failed test leaves no process behind."""
    yield
    runs.end_all()


@pytest.fixture(scope="session")
def finished(cache, tmp_path_factory):
    """The tiny run, from nothing, undisturbed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    run = runs.train(cache, workdir)
    assert run.wait() == 0, run.log
    return runs.Finished(workdir, cache, run.log)
