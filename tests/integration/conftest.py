"""One whole run of the tiny configuration, shared by every test that needs a finished one."""

import jax
import pytest

from tests.integration import runs


@pytest.fixture(autouse=True)
def nothing_stays_running():
    """A failed test leaves no process behind."""
    yield
    runs.end_all()


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """XLA's results on disk, for this process and for those that the tests start."""
    folder = tmp_path_factory.mktemp("xla")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    yield folder
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="session")
def finished(cache, tmp_path_factory):
    """The tiny run, from nothing, undisturbed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    run = runs.train(cache, workdir)
    assert run.wait() == 0, run.log
    return runs.Finished(workdir, cache, run.log)
