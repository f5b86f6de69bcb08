"""Eight fake CPU devices, strict ranks, parsed flags, and one cache of compiled programs: all set
before any test touches JAX, which looks for its cache at the first compilation and never again."""

import shutil
import tempfile
from pathlib import Path

import jax
import pytest
from absl import flags

_FOLDER = pytest.StashKey[Path]()
_LONGEST = {name: place for place, name in enumerate((
    *("test_resume.py", "test_study.py", "test_folds.py", "test_pretrain.py"),
    *("test_wise_fuse.py", "test_end_to_end.py", "test_devices.py", "test_bad_input.py"),
))}  # fmt: skip


def pytest_configure(config):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # One a process: two writing the same program at once could read half of it.
    config.stash[_FOLDER] = Path(tempfile.mkdtemp(prefix="lrmil_jax_programs_"))
    jax.config.update("jax_compilation_cache_dir", str(config.stash[_FOLDER]))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain 0.2.18 reads a flag of its own


def pytest_collection_modifyitems(items):
    """Files that take minutes first: one that began last would be waited for alone."""
    items.sort(key=lambda item: _LONGEST.get(item.path.name, len(_LONGEST)))


def pytest_unconfigure(config):
    shutil.rmtree(config.stash[_FOLDER], ignore_errors=True)


@pytest.fixture(scope="session")
def cache(request):
    """Where compiled programs are kept, for processes that a test starts."""
    return request.config.stash[_FOLDER]
