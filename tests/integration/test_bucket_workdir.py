"""Working directories in a real S3 server on loopback (moto's): killed, moved, done in shards."""

import json
import os
import shutil
import signal
import time

import pytest

from tests.integration import runs
from tests.integration.test_resume import SAVING

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]
URL = "s3://runs/tiny"


@pytest.fixture
def bucket(monkeypatch):
    """s3://runs, which is empty."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    made = s3fs.S3FileSystem(use_listings_cache=False)
    made.makedirs("runs", exist_ok=True)
    yield made
    made.rm("runs", recursive=True)  # moto keeps buckets for the life of the process
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def forget_holder(bucket):
    """As if five minutes had passed since the run was killed."""
    for name in bucket.ls("runs/tiny/.lrmil_jax", detail=False):
        if "/lease" in name:
            holder = json.loads(bucket.cat_file(name))
            bucket.pipe_file(name, json.dumps({**holder, "renewed": 0}).encode())


def start(cache, *flags):
    """A run in an environment that names the server, which others have not."""
    return runs.train(cache, URL, *flags, fresh=True)


def wait_for(run, text):
    while run.running and text not in run.log:
        time.sleep(0.01)


@pytest.mark.parametrize("kept", [False, True], ids=["on_other_hosts", "on_one_host"])
def test_killed_in_some_stages(bucket, finished, cache, tmp_path, kept):
    for stage, delay in (("pretrain", 4.0), ("prepare", 4.0), ("encode_hr", 0.3), ("distill", 3.0),
                         ("student", 0.5)):  # fmt: skip
        run = start(cache, f"--scratch={tmp_path / 'scratch'}", *SAVING)
        wait_for(run, f"] {stage}")
        time.sleep(delay)
        assert run.kill(), run.log
        if not kept:
            shutil.rmtree(tmp_path / "scratch")
            forget_holder(bucket)
    run = start(cache, f"--scratch={tmp_path / 'scratch'}", *SAVING)
    assert run.wait() == 0, run.log
    assert "pretrain: 6/6" not in run.log  # it was saved before
    wanted = runs.results(finished.workdir)
    found = runs.results(tmp_path / "scratch")
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if wanted[name] != found[name]] == []
    # What lies in the bucket under its plain name is the same.
    for name, content in wanted.items():
        assert bucket.cat_file(f"runs/tiny/{name}") == content
    ours = bucket.ls("runs/tiny/.lrmil_jax", detail=False)
    assert [name.rpartition("/")[2] for name in ours] == ["manifest.json"]


def test_shards_in_folders_of_their_own(bucket, finished, cache, tmp_path):
    source = finished.workdir / "synthetic"
    data = (f"--config.data.labels={source / 'labels.csv'}",
            f"--config.data.slides={source / 'slides'}")  # fmt: skip
    shards = [
        start(cache, "--stages=prepare", f"--shard={number}/2", *data,
                   f"--scratch={tmp_path / f's{number}'}")
        for number in (1, 2)
    ]  # fmt: skip
    for run in shards:
        assert run.wait() == 0, run.log
    whole = start(cache, "--stages=prepare", *data, f"--scratch={tmp_path / 'whole'}")
    assert whole.wait() == 0, whole.log
    local = runs.train(cache, tmp_path / "local", "--stages=prepare", *data, fresh=True)
    assert local.wait() == 0, local.log
    ones = sorted((tmp_path / "local/regions").rglob("*.array_record"))
    assert len(ones) == 40  # of 20 slides, LR and HR
    for one in ones:
        name = one.relative_to(tmp_path / "local")
        assert one.read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert one.read_bytes() == bucket.cat_file(f"runs/tiny/{name}")
    for number in (1, 2):  # each did its half
        assert len(list((tmp_path / f"s{number}/regions/hr").glob("*.array_record"))) == 10
    changed = "--config.prepare.jpeg_quality=50"
    other = start(cache, "--stages=prepare", "--shard=1/2", *data, changed,
                  f"--scratch={tmp_path / 's1'}")  # fmt: skip
    assert other.wait() == 1
    assert "was made by another config" in other.log
    ours = bucket.ls("runs/tiny/.lrmil_jax", detail=False)
    assert [name.rpartition("/")[2] for name in ours] == ["manifest.json"]


def test_sigterm_saves(bucket, cache, tmp_path):
    scratch = tmp_path / "scratch"
    for stage, file in (("prepare", "regions/*.json"), ("distill", "folds/1/distill/stage.json")):
        run = start(cache, f"--scratch={scratch}", *SAVING)
        wait_for(run, f"] {stage}")
        while run.running and not [*scratch.glob(file)]:
            time.sleep(0.01)
        os.kill(run.pid, signal.SIGTERM)
        assert run.wait() == 75, run.log
        assert "stopped, as SIGTERM asked" in run.log
        assert bucket.glob(f"runs/tiny/{file}"), run.log
        shutil.rmtree(scratch)
    assert not bucket.glob("runs/tiny/.lrmil_jax/lease*")  # the next run need not wait
