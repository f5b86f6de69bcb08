"""Eight fake CPU devices, strict ranks, parsed flags, and one cache of compiled programs: all set
before any test touches JAX, which looks for its cache at the first compilation and never again."""

import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import jax
import pytest
from absl import flags
from matplotlib.figure import Figure
from PIL import Image

# Most of the time goes into compiling small programs that run once: without the emitters of fused
# loops that takes half of it.
COMPILED_FAST = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)
_PROGRAMS = "LRMIL_JAX_TEST_PROGRAMS"  # the cache's folder, for workers and what they start
_MADE = pytest.StashKey[bool]()
_LONGEST = {name: place for place, name in enumerate((
    # The second needs nothing of the run that the first begins with and others wait for.
    *("test_resume.py", "test_folds.py", "test_study.py", "test_end_to_end.py"),
    *("test_several.py", "test_wise_fuse.py", "test_mil.py", "test_bad_input.py"),
    *("test_heads.py", "test_pretrain.py", "test_devices.py", "test_fit.py"),
))}  # fmt: skip


def pytest_configure(config):
    flags_of_user = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags_of_user} {COMPILED_FAST}".strip()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # One for all workers: whoever reads a program while another writes it compiles it anew.
    config.stash[_MADE] = _PROGRAMS not in os.environ
    if config.stash[_MADE]:
        os.environ[_PROGRAMS] = tempfile.mkdtemp(prefix="lrmil_jax_programs_")
    jax.config.update("jax_compilation_cache_dir", os.environ[_PROGRAMS])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain 0.2.18 reads a flag of its own


def pytest_collection_modifyitems(items):
    """Files that take minutes first: one that began last would be waited for alone."""
    items.sort(key=lambda item: _LONGEST.get(item.path.name, len(_LONGEST)))


def pytest_unconfigure(config):
    if config.stash[_MADE]:
        shutil.rmtree(os.environ.pop(_PROGRAMS), ignore_errors=True)


@pytest.fixture(scope="module")
def one_device():
    """What is asked for no mesh takes the first device: that compiles and runs much faster than all
    eight. For files in which the number of devices is not the point."""
    from lrmil_jax.train import sharding  # late: no test file before jaxtyping's hook

    make_mesh = sharding.make_mesh

    def of_one(devices=None):
        return make_mesh(jax.devices()[:1] if devices is None else devices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", of_one)
        yield


@pytest.fixture(scope="module")
def figures_not_drawn():
    """Figures are files a pixel high: drawing takes half of a report, and in these files what is
    drawn is not the point."""

    def savefig(figure, path, **options):
        width = round(figure.get_figwidth() * options["dpi"])
        Image.new("RGB", (width, 1)).save(path, format="PNG")

    with mock.patch.object(Figure, "savefig", savefig):
        yield


@pytest.fixture(scope="module")
def optimised_encoders():
    """Compiles encoders with optimisation: for files that encode a thousand images and more, each
    of which then takes a quarter of the time; half a second more for the program."""
    from lrmil_jax.train import encode, sharding  # late, see above

    start = encode.BatchEncoder.__init__

    def optimised(self, *arguments, **options):
        level = {"xla_backend_optimization_level": 1}
        with mock.patch.object(sharding, "compiler_options", return_value=level):
            start(self, *arguments, **options)

    with mock.patch.object(encode.BatchEncoder, "__init__", optimised):
        yield


@pytest.fixture(scope="session")
def cache():
    """Where compiled programs are kept, for processes that a test starts."""
    return Path(os.environ[_PROGRAMS])
