"""Working directories in a real S3 server on loopback (moto's), over connections that break."""

import contextlib

import pytest

from lrmil_jax.errors import WorkdirError
from lrmil_jax.storage import attempts, bucket_folder, leases, objects, workdirs
from lrmil_jax.storage.workdirs import Work
from tests.storage.broken_server import BrokenServer
from tests.storage.test_workdirs import FIRST, SECOND, URL, put, restored, run

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
MANY = {f"regions/slide_{number}.json": str(number) for number in range(40)}


@pytest.fixture
def server(monkeypatch):
    """An S3 server with the empty bucket `bucket`, behind one that can break connections."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setattr(attempts, "_PAUSE", 0.01)
    real = moto_server.ThreadedMotoServer(port=0, verbose=False)
    real.start()
    forget()
    url = "http://{}:{}".format(*real.get_host_and_port())
    bucket = s3fs.S3FileSystem(endpoint_url=url, use_listings_cache=False)
    bucket.makedirs("bucket", exist_ok=True)  # moto keeps buckets for the life of the process
    with BrokenServer(url) as between:
        between.bucket = bucket
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        yield between
    bucket.rm("bucket", recursive=True)
    real.stop()
    forget()


def forget():
    """As a new process begins."""
    objects.filesystem.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


def test_another_host_finds_what_was_saved(server, tmp_path):
    run(tmp_path / "one", {**FIRST, **MANY})
    assert run(tmp_path / "two", SECOND) == {**FIRST, **MANY}
    assert restored(tmp_path / "three") == SECOND
    stored = server.bucket.find("bucket/runs/a")
    assert stored == sorted(
        f"bucket/runs/a/{name}"
        for name in [*SECOND, ".lrmil_jax/manifest.json"]
        if name != "view/b"
    )


def test_connections_that_break(server, tmp_path):
    server.unlucky = 3
    run(tmp_path / "one", {**FIRST, **MANY})
    assert run(tmp_path / "two", SECOND) == {**FIRST, **MANY}
    assert server.cut > 20
    server.unlucky = 0
    assert restored(tmp_path / "three") == SECOND


def test_a_network_that_is_gone(server, tmp_path, monkeypatch):
    run(tmp_path / "one", FIRST)
    written = r"^s3://bucket/runs/a/.* could not be written in 4 attempts"
    stack = contextlib.ExitStack()
    one = stack.enter_context(workdirs.opened(URL, Work(), str(tmp_path / "one")))
    put(one.folder, SECOND)
    server.unlucky = 1
    with pytest.raises(WorkdirError, match=written):
        one.save()
    with pytest.raises(WorkdirError, match=written):
        stack.close()
    server.unlucky = 0
    monkeypatch.setattr(leases, "_STALE", -1)  # five minutes later
    server.broken = {"regions/a"}
    with pytest.raises(WorkdirError, match=r"^s3://bucket/runs/a/regions/a could not be read in 4"):
        restored(tmp_path / "two")
    server.broken = set()
    assert restored(tmp_path / "two") == FIRST
    assert run(tmp_path / "one", None) == SECOND  # which its own host still has
    assert restored(tmp_path / "two") == SECOND


def test_one_of_two_that_begin_at_once(server, tmp_path):
    run(tmp_path / "one", FIRST)
    folder = bucket_folder.BucketFolder(URL)
    assert folder.create("lease", b"mine")
    assert not folder.create("lease", b"yours")
    assert folder.read("lease") == b"mine"


def test_a_file_that_is_sent_in_parts(server, tmp_path, monkeypatch):
    content = bytes(range(256)) * (1 << 19)  # 128 MiB: s3fs sends parts above 100 MiB
    monkeypatch.setattr(bucket_folder, "LARGE", 1 << 20)
    with workdirs.opened(URL, Work(), str(tmp_path / "one")) as workdir:
        (workdir.folder / "big").write_bytes(content)
    assert "-" in server.bucket.info("bucket/runs/a/big")["ETag"]
    with workdirs.opened(URL, Work(), str(tmp_path / "two")) as workdir:
        assert (workdir.folder / "big").read_bytes() == content


def test_a_bucket_that_is_not_there(server, tmp_path):
    with pytest.raises(WorkdirError, match=r"^s3://none/a/.* cannot be written, as there is no su"):
        run(tmp_path / "one", FIRST, url="s3://none/a")


def test_without_credentials(server, no_credentials, tmp_path):
    forget()
    with pytest.raises(
        WorkdirError, match=r"^s3://bucket/runs/a/.* needs credentials, and none were"
    ):
        run(tmp_path / "one", FIRST)
