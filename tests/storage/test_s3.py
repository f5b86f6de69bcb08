"""Slides in a real S3 server on loopback (moto's): `prepare` makes what it makes of local files."""

import json

import numpy as np
import pandas as pd
import pytest

from lrmil_jax import config as configuration
from lrmil_jax.data import schema, source
from lrmil_jax.errors import DataError
from lrmil_jax.slides import synthetic
from lrmil_jax.stages import prepare
from lrmil_jax.storage import attempts, objects
from lrmil_jax.workspace import cohorts, layout
from tests.storage.broken_server import BrokenServer

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
NAMES = [f"slide_{number:04d}" for number in range(10)]


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A cohort of ten small slides on the disk."""
    path = synthetic.write_cohort(
        tmp_path_factory.mktemp("cohort"), seed=0, slides=10, size_px=256,
        run=lambda function, jobs: [function(job) for job in jobs],
    )  # fmt: skip
    table = pd.read_csv(path)
    table["fold_1"] = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    table.to_csv(path, index=False)
    return path


@pytest.fixture
def server(labels, monkeypatch):
    """An S3 server with the cohort in s3://cohort, behind one that can cut answers off."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setattr(attempts, "_PAUSE", 0.01)
    real = moto_server.ThreadedMotoServer(port=0, verbose=False)
    real.start()
    _, port = real.get_host_and_port()
    forget()
    bucket = s3fs.S3FileSystem(endpoint_url=f"http://127.0.0.1:{port}")
    bucket.makedirs("cohort", exist_ok=True)  # moto keeps buckets for the life of the process
    bucket.put(str(labels.parent / "slides") + "/", "cohort/slides/", recursive=True)
    bucket.put(str(labels), "cohort/labels.csv")
    with BrokenServer(f"http://127.0.0.1:{port}") as between:
        between.bucket = bucket
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        yield between
    real.stop()
    forget()


def forget():
    """As a new process begins."""
    objects.filesystem.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    cohorts.forget()


def config_of(labels, slides, staging=None, gib=1.0):
    config = configuration.tiny(configuration.default())
    config.update_from_flattened_dict(
        {"data.labels": str(labels), "data.slides": str(slides), "data.staging_gib": gib,
         "folds": 1, "prepare.workers": 1, "prepare.seconds_per_slide": 0.0, "synthetic.slides": 0}
    )  # fmt: skip
    config.geometry.patch_px = 32
    config.data.staging = None if staging is None else str(staging)
    return config


def of_bucket(tmp_path, **changes):
    return config_of(
        "s3://cohort/labels.csv", "s3://cohort/slides", tmp_path / "staging", **changes
    )


def prepared(config, workdir):
    """Records of every slide that was prepared, and its status."""
    geometry = cohorts.geometry(config)
    kinds = schema.region_features(geometry), schema.mosaic_features(geometry)
    found = {}
    for name in NAMES:
        folder = layout.regions_folder(workdir)
        status = json.loads((folder / f"{name}.json").read_text())
        rows = []
        if status["status"] == "ok":
            for part, kind in zip((folder, folder / "hr"), kinds, strict=True):
                path = part / f"{name}.array_record"
                read = source.RecordSource([path], schema.RecordParser(kind))
                rows += [read[place] for place in range(len(read))]
        found[name] = rows, status
    return found


def test_prepare_equals_that_of_local_files(server, labels, tmp_path):
    local = config_of(labels, labels.parent / "slides")
    prepare.run(local, tmp_path / "local")
    config = of_bucket(tmp_path, gib=100_000 / 2**30)  # room for two of ten slides
    prepare.run(config, tmp_path / "bucket")
    ones, others = prepared(local, tmp_path / "local"), prepared(config, tmp_path / "bucket")
    for name in NAMES:
        (rows, status), (copied, copied_status) = ones[name], others[name]
        assert len(rows) == len(copied) > 0
        for row, copy in zip(rows, copied, strict=True):
            assert row.keys() == copy.keys()
            for key, value in row.items():
                np.testing.assert_array_equal(value, copy[key], err_msg=key)
        assert copied_status["path"] == f"s3://cohort/slides/{name}.tif"
        differing = ("path", "source", "seconds")
        assert {k: v for k, v in status.items() if k not in differing} == {
            k: v for k, v in copied_status.items() if k not in differing
        }
    forget()
    shards = list((tmp_path / "bucket/regions").rglob("slide_*.array_record"))
    before = [path.stat().st_mtime_ns for path in shards]
    for copy in (tmp_path / "staging").rglob("*.tif"):
        copy.unlink()
    prepare.run(config, tmp_path / "bucket")  # nothing is read again
    assert not list((tmp_path / "staging").rglob("*.tif"))
    assert before == [path.stat().st_mtime_ns for path in shards]


def test_a_slide_that_is_cut_off_fails_and_the_others_go_on(server, tmp_path):
    server.broken = {"slides/slide_0001"}
    config = of_bucket(tmp_path)
    prepare.run(config, tmp_path / "run")
    found = prepared(config, tmp_path / "run")
    assert [name for name in NAMES if found[name][1]["status"] != "ok"] == ["slide_0001"]
    reason = found["slide_0001"][1]["reason"]
    assert reason.startswith("s3://cohort/slides/slide_0001.tif could not be read in 4 attempts (")
    assert server.cut <= 2 * 4  # ahead of the slide's turn, and when it was opened
    assert not list((tmp_path / "staging").rglob("*slide_0001.tif"))
    server.broken = set()
    forget()
    prepare.run(config, tmp_path / "run")
    assert prepared(config, tmp_path / "run")["slide_0001"][1]["status"] == "ok"


def test_a_slide_that_is_changed_under_the_run(server, labels, tmp_path):
    config = of_bucket(tmp_path)
    cohorts.read(config, tmp_path / "run")
    other = (labels.parent / "slides/slide_0003.tif").read_bytes()
    server.bucket.pipe("cohort/slides/slide_0002.tif", other)
    prepare.run(config, tmp_path / "run")
    status = prepared(config, tmp_path / "run")["slide_0002"][1]
    assert status["reason"].startswith("s3://cohort/slides/slide_0002.tif was changed after this")
    forget()
    prepare.run(config, tmp_path / "run")
    found = prepared(config, tmp_path / "run")
    assert found["slide_0002"][1]["source"] == found["slide_0003"][1]["source"]


def test_a_slide_without_room(server, tmp_path):
    config = of_bucket(tmp_path, gib=10_000 / 2**30)
    with pytest.raises(DataError, match="none of the 10 slides could be prepared"):
        prepare.run(config, tmp_path / "run")
    for _, status in prepared(config, tmp_path / "run").values():
        assert status["reason"].endswith("raise data.staging_gib")


def test_without_credentials(server, no_credentials, tmp_path):
    forget()
    sentence = "s3://cohort/labels.csv needs credentials, and none were found; give AWS_ACCESS_KEY"
    with pytest.raises(DataError, match=f"^{sentence}"):
        prepare.run(of_bucket(tmp_path), tmp_path / "run")


def test_a_bucket_that_is_not_there(server, tmp_path):
    config = config_of("s3://cohort/labels.csv", "s3://other/slides", tmp_path / "staging")
    with pytest.raises(
        DataError, match=r"^s3://other/slides (is not there|holds no object); check"
    ):
        prepare.run(config, tmp_path / "run")
