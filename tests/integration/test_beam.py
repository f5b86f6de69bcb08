"""`prepare` by a job of Apache Beam, where it is installed: pip install -e '.[beam]'."""

import time

import psutil
import pytest

from lrmil_jax import pipeline
from lrmil_jax.errors import ConfigError, WorkdirError
from lrmil_jax.workspace import beam
from tests.integration import runs
from tests.integration.test_end_to_end import go, tiny
from tests.integration.test_shards import same

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
pytest.importorskip("apache_beam")
TWO = "direct_running_mode=multi_processing,direct_num_workers=2"


def by_beam(workdir, *options, **changes):
    """A job in this process."""
    config = tiny(**changes)
    with beam.joined(options, config, workdir):
        return pipeline.run(config, workdir, ["prepare"])


def assert_same_regions(one, other):
    assert same(one, other, "regions/*.array_record") == 20
    assert same(one, other, "regions/hr/*.array_record") == 20
    assert same(one, other, "regions/tissue/*.png") == 40


def test_the_same_files_and_only_what_is_left(finished, tmp_path):
    workdir = tmp_path / "run"
    runs.copy_inputs(finished.workdir, workdir)
    assert by_beam(workdir) == 0
    assert_same_regions(finished.workdir, workdir)
    assert not (workdir / "slides.csv").exists()  # of all slides: the run that joins writes it
    before = runs.files(workdir / "regions")
    (workdir / "regions/slide_0003.array_record").unlink()
    assert by_beam(workdir) == 0
    changed = runs.changed(before, runs.files(workdir / "regions"))
    assert {name for name in changed if "array_record" in name} == {
        "slide_0003.array_record", "hr/slide_0003.array_record",
    }  # fmt: skip
    assert go(tiny(), workdir, "prepare") == 0
    assert_same_regions(finished.workdir, workdir)
    assert not runs.leftovers(workdir)


def test_a_slide_that_cannot_be_read(finished, tmp_path, caplog):
    workdir = tmp_path / "run"
    runs.copy_inputs(finished.workdir, workdir)
    (workdir / "synthetic/slides/slide_0005.tif").write_bytes(b"no slide")
    assert by_beam(workdir) == 1
    assert "slide_0005" in caplog.text
    assert len(list((workdir / "regions").glob("*.array_record"))) == 19


@pytest.mark.parametrize("options", ["direct_running_mode=in_memory", TWO])
def test_a_disk_that_cannot_be_written(finished, tmp_path, options):
    workdir = tmp_path / "run"
    runs.copy_inputs(finished.workdir, workdir)
    (workdir / "regions").mkdir()
    (workdir / "regions/tissue").touch()
    with pytest.raises(WorkdirError, match="a file is in the way of a folder") as told:
        by_beam(workdir, *options.split(","))
    assert str(told.value).startswith("cannot write under ")
    assert not [path for path in workdir.rglob("*.array_record") if path.parent.name != "hr"]
    assert not runs.leftovers(workdir)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["runner=DirectRunne"], "Unexpected pipeline runner: DirectRunne"),
        (["direct_num_workers=x"], "direct_num_workers: invalid int value: 'x'"),
        (["direct_workers=2"], "has 'direct_workers', which is no option"),
        (["runner=DataflowRunner"], "Missing required option: project"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        by_beam(tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_a_killed_job_goes_on_in_two_workers(finished, cache, tmp_path):
    workdir = tmp_path / "run"
    runs.copy_inputs(finished.workdir, workdir)
    command = ("--stages=prepare", f"--beam_pipeline_options={TWO}")
    run = runs.train(cache, workdir, *command, fresh=True)
    while run.running and not list((workdir / "regions").glob("*.json")):
        time.sleep(0.01)
    for process in psutil.Process(run.pid).children(recursive=True):  # as where a machine is lost
        process.kill()
    assert run.kill(), run.log
    done = runs.files(workdir / "regions")
    assert 0 < len([name for name in done if "array_record" in name]) < 40
    again = runs.train(cache, workdir, *command, fresh=True)
    assert again.wait() == 0, again.log
    assert "joins what Beam has done" in again.log
    kept = {name for name in done if name.endswith(".json")}
    assert not kept & runs.changed(done, runs.files(workdir / "regions"))
    assert go(tiny(), workdir, "prepare") == 0
    assert_same_regions(finished.workdir, workdir)
    assert not runs.leftovers(workdir)
