"""A bucket that is a folder, seen as fsspec shows S3, and broken in the ways that networks are."""

import collections
import hashlib
import threading

import pytest

from lrmil_jax import storage
from lrmil_jax.storage import Staging, attempts, objects
from tests.storage import gcs_server


class Bucket:
    """The part of fsspec's file systems that is used.

    Attributes:
      reads: how often each object was asked for a part.
      short: how many parts of an object come cut off; -1: all.
      before_part: called with the place and the start of each part, or None.
    """

    def __init__(self, folder):
        self.folder = folder
        self.reads, self.short = collections.Counter(), collections.Counter()
        self.before_part = None
        self._lock = threading.Lock()

    def put(self, place, content):
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def info(self, place):
        content = (self.folder / place).read_bytes()
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        return {"type": "file", "size": len(content), "ETag": etag, "LastModified": "today"}

    def find(self, place, detail):
        assert detail
        base = self.folder / place
        every = [base] if base.is_file() else [path for path in base.rglob("*") if path.is_file()]
        names = [str(path.relative_to(self.folder)) for path in every]
        return {name: self.info(name) for name in names}

    def cat_file(self, place, start, end):
        with self._lock:
            self.reads[place] += 1
            cut = self.short[place] != 0
            self.short[place] -= self.short[place] > 0
        if self.before_part is not None:
            self.before_part(place, start)
        part = (self.folder / place).read_bytes()[start:end]
        return part[: len(part) // 2] if cut else part

    def invalidate_cache(self):
        pass


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """What s3:// leads to; parts of 10 bytes, and no pause between attempts."""
    made = Bucket(tmp_path / "buckets")
    monkeypatch.setattr(objects, "filesystem", lambda scheme: made)
    monkeypatch.setattr(objects, "_PART", 10)
    monkeypatch.setattr(attempts, "_PAUSE", 0)
    storage.forget()
    yield made
    storage.forget()


@pytest.fixture
def staging(tmp_path):
    """With room for 100 bytes."""
    return Staging(str(tmp_path / "staging"), 100 / 2**30)


@pytest.fixture
def gcs(monkeypatch):
    """Contents by name in any bucket of a stand-in for Google Cloud Storage."""
    monkeypatch.setattr(attempts, "_PAUSE", 0.01)
    monkeypatch.setattr(gcs_server.Handler, "stored", {}, raising=False)
    with gcs_server.serving() as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        objects.filesystem.cache_clear()
        storage.forget()
        yield gcs_server.Handler.stored
    objects.filesystem.cache_clear()
    storage.forget()


@pytest.fixture
def no_credentials(tmp_path, monkeypatch):
    """None for S3, wherever they are looked for."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
