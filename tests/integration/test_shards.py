"""`--shard i/n`: parts of the slides done by runs that know nothing of each other, then joined."""

import contextlib
import fcntl

import pytest

from lrmil_jax import cluster, pipeline
from lrmil_jax.data.regions import tile_slide
from lrmil_jax.errors import ConfigError, WorkdirError
from lrmil_jax.workspace import layout, shards
from tests.integration import runs
from tests.integration.test_end_to_end import go, tiny

pytestmark = pytest.mark.usefixtures("one_device", "figures_not_drawn")


def part(name, workdir, *stages, **changes):
    """One shard, in this process."""
    config = tiny(**changes)
    with shards.joined(name, config, workdir):
        return pipeline.run(config, workdir, list(stages))


def same(one, other, pattern):
    """How many files of this pattern are equal, byte for byte; all must be."""
    paths = sorted(path.relative_to(one) for path in one.glob(pattern))
    assert paths == sorted(path.relative_to(other) for path in other.glob(pattern))
    for path in paths:
        assert (one / path).read_bytes() == (other / path).read_bytes(), path
    return len(paths)


@pytest.mark.parametrize("count", [1, 3])
def test_parts_together_are_the_whole(finished, tmp_path, count):
    workdir = tmp_path / "run"
    runs.copy_inputs(finished.workdir, workdir)
    for number in range(count, 0, -1):  # in any order, each twice
        for _ in range(2):
            assert part(f"{number}/{count}", workdir, "prepare") == 0
    assert not (workdir / "slides.csv").exists()  # of all slides: nobody's alone
    assert go(tiny(), workdir, "prepare") == 0
    assert same(finished.workdir, workdir, "regions/*.array_record") == 20
    for number in range(1, count + 1):
        assert part(f"{number}/{count}", workdir, "encode_hr") == 0
    assert go(tiny(), workdir, "encode_hr") == 0
    assert same(finished.workdir, workdir, "features/hr*/*.array_record") == 40
    assert (workdir / "slides.csv").read_text().count("\n") == 21


def test_a_stage_of_a_fold(finished, tmp_path):
    workdir = finished.copy(tmp_path / "run")
    config = tiny(distill__lambda_attn=3.0)
    assert go(config, workdir, "distill") == 0
    for number in (1, 2):
        assert part(f"{number}/2", workdir, "encode_lr", distill__lambda_attn=3.0) == 0
    made = {p: p.stat().st_mtime_ns for p in workdir.glob("folds/1/encode_lr/features/*.array_*")}
    assert len(made) == 20
    assert go(config, workdir, "encode_lr") == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made  # joined, not made again


def test_a_shard_does_its_own_slides_alone(finished, tmp_path, monkeypatch):
    workdir, done = tmp_path / "run", []
    runs.copy_inputs(finished.workdir, workdir)

    def note(job):
        done.append(job.slide_id)
        return tile_slide(job)

    monkeypatch.setattr("lrmil_jax.stages.prepare.tile_slide", note)
    part("2/3", workdir, "prepare")
    assert done == [f"slide_{number:04d}" for number in range(1, 20, 3)]


@pytest.mark.parametrize("text", ["5/4", "0/4", "4", "a/b", "1/0", "-1/4", "1/4/2"])
def test_no_such_shard(text):
    with pytest.raises(ConfigError, match="give i/n"):
        shards.parse(text)


def test_shards_of_different_configs_are_not_joined(finished, tmp_path):
    workdir = finished.copy(tmp_path / "run")
    part("1/2", workdir, "prepare")
    with pytest.raises(WorkdirError, match=r"this shard has seed=7, but a shard before it had 0"):
        part("2/2", workdir, "prepare", seed=7)
    part("2/2", workdir, "prepare", prepare__workers=2)  # which changes nothing of the slides


@pytest.mark.parametrize("stages", [(), ("teacher",), ("prepare", "report")])
def test_what_is_not_done_slide_by_slide(finished, tmp_path, stages):
    with pytest.raises(ConfigError, match="done slide by slide: give --stages with some of"):
        part("1/2", tmp_path / "run", *stages)
    assert not (tmp_path / "run/regions").exists()


def test_who_may_work_beside_whom(finished, tmp_path):
    workdir, config = finished.copy(tmp_path / "run"), tiny()
    with shards.joined("1/2", config, workdir):
        with shards.joined("2/2", config, workdir):
            pass
        with (
            pytest.raises(WorkdirError, match="at work as shard 1/2"),
            shards.joined("1/2", config, workdir),
        ):
            pass
        with (
            cluster.apart(),  # as another process is
            pytest.raises(WorkdirError, match="another run is at work"),
            layout.locked(workdir),
        ):
            pass
    with (
        layout.locked(workdir),
        pytest.raises(WorkdirError, match="another run is at work"),
        shards.joined("1/2", config, workdir),
    ):
        pass


def test_without_file_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        contextlib.ExitStack() as stack,
        pytest.raises(WorkdirError, match="on a disk that has file locks"),
    ):
        stack.enter_context(shards.joined("1/2", tiny(), tmp_path / "run"))
