"""A slide in the hands of a Beam worker, and what is said of its job: without Beam itself, of which
`tests/integration/test_beam.py` is."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lrmil_jax import config as configuration
from lrmil_jax import main
from lrmil_jax.data.schema import Geometry
from lrmil_jax.data.slide_jobs import SlideJob, TilingSettings
from lrmil_jax.errors import ConfigError, WorkdirError
from lrmil_jax.processes import DIED, LostError
from lrmil_jax.workspace import beam, layout

SETTINGS = TilingSettings(Geometry(hr_mpp=1.0, lr_mpp=4.0, patch_px=64))


def lost(job, reason):
    return {"slide_id": job.slide_id, "lost": reason}


def do(workdir, function, *, seen=".seen"):
    """What a worker makes of one slide; `seen` is a file that the run has written, or not."""
    job = SlideJob("a", workdir / "a.tif", None, workdir / "regions", SETTINGS)
    work = beam.SlideWork(
        function=function, lost=lost, seconds=0.0, apart=False, workdir=workdir, seen=seen, gib=1.0
    )
    (workdir / ".seen").touch()
    with work.workers() as workers:
        return work.do(workers, job, None)


def test_what_a_worker_gives(tmp_path):
    assert do(tmp_path, lambda job: {"slide_id": job.slide_id}) == {"slide_id": "a"}


def test_a_lost_slide(tmp_path):
    def die(job):
        raise LostError("gone", DIED)

    assert do(tmp_path, die) == {"slide_id": "a", "lost": DIED}


def test_no_run_may_begin_while_a_worker_is_at_work(tmp_path):
    def work(job):
        with pytest.raises(WorkdirError, match="another run is at work"), layout.locked(tmp_path):
            pass
        return {}

    assert do(tmp_path, work) == {}


def test_a_worker_whose_run_is_gone_gives_way(tmp_path):
    with layout.locked(tmp_path), pytest.raises(WorkdirError, match="another run is at work"):
        do(tmp_path, pytest.fail)


def test_a_host_that_does_not_see_the_working_directory(tmp_path):
    with pytest.raises(WorkdirError, match=r"a Beam worker on .* does not see the --workdir"):
        do(tmp_path, pytest.fail, seen=".another")


@pytest.fixture
def job_of(tmp_path, monkeypatch):
    """Gives a job of one slide to a stand-in of Beam, from the folder of a relative --workdir."""
    (tmp_path / "here/run/regions").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()

    def give(function):
        def run(work, tasks, options):
            with monkeypatch.context() as patch, work.workers() as workers:
                patch.chdir(tmp_path / "elsewhere")
                for task in tasks:
                    work.do(workers, *task)

        monkeypatch.chdir(tmp_path / "here")
        monkeypatch.setitem(sys.modules, "lrmil_jax.workspace.beam_job", SimpleNamespace(run=run))
        monkeypatch.setattr(beam, "_jobs", [beam._Job(None, Path("run"))])
        job = SlideJob("a", tmp_path / "a.tif", None, Path("run/regions"), SETTINGS)
        beam.map_slides(function, [job], lost=lost, gib=1.0)

    return give


def test_a_worker_in_another_folder_writes_to_the_same(job_of, tmp_path):
    def write(job):
        job.status_path.write_text("{}")
        return {}

    job_of(write)
    assert (tmp_path / "here/run/regions/a.json").is_file()
    assert not list((tmp_path / "here/run").glob(".seen*"))


def test_a_job_that_leaves_nothing_is_told(job_of):
    with pytest.raises(WorkdirError, match="of 1 slides, such as a, nothing is to be seen in run"):
        job_of(lambda job: {})


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (WorkdirError("the disk is full. [while running 'prepare']"), "the disk is full."),
        (
            RuntimeError(
                "Traceback (most recent call last):\n  File ...\nOSError: 28\n\nDuring ...\n"
                "lrmil_jax.errors.WorkdirError: the disk is full.\n\nDuring handling ...\n"
                "lrmil_jax.errors.WorkdirError: the disk is full. [while running 'prepare']\n"
            ),
            "the disk is full.",
        ),
        (
            RuntimeError("Pipeline p failed in state FAILED:\nno worker"),
            "the Beam job failed (no worker); what is done is kept: run the same command again",
        ),
    ],
)
def test_why_a_job_failed(error, sentence):
    assert beam._sentence(error) == sentence


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with (
        pytest.raises(ConfigError, match=r"needs Apache Beam: pip install 'lrmil_jax\[beam\]'"),
        beam.joined([], configuration.default(), tmp_path / "run"),
    ):
        pytest.fail("it began")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"STAGES": []}, "is for --stages prepare, and no other"),
        ({"STAGES": ["prepare", "encode_hr"]}, "is for --stages prepare, and no other"),
        ({"SHARD": "1/2"}, "leave --shard and --coordinator away"),
        ({"COORDINATOR": "host:1"}, "leave --shard and --coordinator away"),
    ],
)
def test_what_it_is_not_for(monkeypatch, flags, sentence):
    for name, value in {"BEAM": [], "STAGES": ["prepare"], **flags}.items():
        monkeypatch.setattr(main, f"_{name}", type("Flag", (), {"value": value}))
    with pytest.raises(ConfigError, match=sentence):
        main._join()
