"""What `prepare` refuses before it takes anything away."""

import pytest

from lrmil_jax import config as configuration
from lrmil_jax import files
from lrmil_jax.errors import DataError, WorkdirError
from lrmil_jax.stages import prepare
from lrmil_jax.workspace import cohorts, layout, shards, statuses


@pytest.fixture
def enlarged(tmp_path):
    """A config, and a working directory whose six slides of 1 um/px were prepared for 0.5."""
    rows = [f"s{i},p{i},{'ab'[i % 2]},{('train', 'val', 'test')[i // 2]}" for i in range(6)]
    (tmp_path / "labels.csv").write_text("\n".join(["slide_id,patient_id,label,fold_1", *rows]))
    (tmp_path / "slides").mkdir()
    for i in range(6):
        (tmp_path / "slides" / f"s{i}.tif").write_text(f"slide {i}")
    config = configuration.default()
    config.update_from_flattened_dict(
        {"data.labels": str(tmp_path / "labels.csv"), "data.slides": str(tmp_path / "slides"),
         "folds": 1, "prepare.workers": 1}
    )  # fmt: skip
    workdir = tmp_path / "run"
    cohorts.record_regions(config, workdir)
    for job in cohorts.slide_jobs(config, workdir, cohorts.read(config, workdir).table):
        status = {"status": "ok", "reason": "", "mpp": 1.0, "hr": False, "source": job.source()}
        files.write_json(job.status_path, status)
        for path in (job.shard, workdir / "features" / "hr" / job.shard.name):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("made in hours")
    cohorts.forget()
    return config, workdir


def test_slides_that_were_enlarged_are_refused_and_nothing_is_lost(enlarged):
    config, workdir = enlarged
    with pytest.raises(WorkdirError, match=r"6 slides .*s0, .*set prepare\.upsample=True, or use"):
        prepare.run(config, workdir)
    for folder in (layout.regions_folder(workdir), workdir / "features" / "hr"):
        assert len(list(folder.glob("*.array_record"))) == 6


def test_a_shard_of_which_no_slide_can_be_prepared_is_no_mistake(enlarged, caplog):
    config, workdir = enlarged
    jobs = cohorts.slide_jobs(config, workdir, cohorts.read(config, workdir).table)
    for job in jobs:
        status = {"slide_id": job.slide_id, "status": "failed", "reason": f"{job.path}: broken"}
        files.write_json(job.status_path, status)
    statuses.forget()
    with shards.joined("1/6", config, workdir):
        prepare._tell(workdir, jobs[:1])
    assert "s0.tif: broken" in caplog.text
    with pytest.raises(DataError, match="none of the 6 slides could be prepared"):
        prepare._tell(workdir, jobs)
