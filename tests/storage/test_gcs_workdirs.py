"""Working directories in Google Cloud Storage by gcsfs, in a stand-in for its JSON interface."""

import json

import pytest

from lrmil_jax.errors import WorkdirError
from lrmil_jax.storage import bucket_folder, leases
from tests.storage.gcs_server import Handler
from tests.storage.test_workdirs import FIRST, SECOND, restored, run

pytest.importorskip("gcsfs")
pytestmark = pytest.mark.filterwarnings("ignore")  # gcsfs's own, of credentials and sockets
URL = "gs://bucket/runs/a"


def test_another_host_finds_what_was_saved(gcs, tmp_path):
    run(tmp_path / "one", FIRST, url=URL)
    assert run(tmp_path / "two", SECOND, url=URL) == FIRST
    assert restored(tmp_path / "three", url=URL) == SECOND
    names = {name.removeprefix("runs/a/") for name in gcs}
    assert names == {name for name in SECOND if name != "view/b"} | {".lrmil_jax/manifest.json"}


def test_one_of_two_that_begin_at_once(gcs):
    folder = bucket_folder.BucketFolder(URL)
    assert folder.create("lease", b"mine")
    assert not folder.create("lease", b"yours")
    assert folder.read("lease") == b"mine"


def test_who_may_not_write(gcs, tmp_path, monkeypatch):
    monkeypatch.setattr(Handler, "forbidden", True)
    with pytest.raises(WorkdirError, match=r"^gs://bucket/runs/a/.* may not be written with these"):
        run(tmp_path / "one", FIRST, url=URL)


def test_a_run_that_was_killed(gcs, tmp_path, monkeypatch):
    run(tmp_path / "one", FIRST, url=URL)
    holder = {"token": "of a killed run", "host": "h", "process": 1, "renewed": 1e10}
    gcs["runs/a/.lrmil_jax/lease.json"] = json.dumps(holder).encode()
    with pytest.raises(
        WorkdirError, match=r"^a run on h \(process 1, since 1970-01-01 00:00 UTC\)"
    ):
        run(tmp_path / "one", SECOND, url=URL)
    monkeypatch.setattr(leases, "_SETTLED", 0)
    gcs["runs/a/.lrmil_jax/lease.json"] = json.dumps({**holder, "renewed": 0}).encode()
    run(tmp_path / "one", SECOND, url=URL)
    assert restored(tmp_path / "two", url=URL) == SECOND
