"""Google Cloud Storage by gcsfs, from a stand-in for its JSON interface on loopback."""

import hashlib

import pytest

from lrmil_jax import storage
from lrmil_jax.errors import DataError
from lrmil_jax.storage import objects

pytest.importorskip("gcsfs")
pytestmark = pytest.mark.filterwarnings("ignore")  # gcsfs's own, of credentials and sockets
CONTENT = {f"cohort/slides/s{number}.svs": bytes([number]) * 3000 for number in range(2)}


def test_a_bucket(gcs, tmp_path, monkeypatch):
    gcs.update(CONTENT)
    monkeypatch.setattr(objects, "_PART", 1000)
    staging = storage.Staging(str(tmp_path), 1.0)
    folder = storage.local_folder("gs://b/cohort/slides", staging)
    assert [path.name for path in storage.paths(folder)] == ["s0.svs", "s1.svs"]
    digest = hashlib.md5(CONTENT["cohort/slides/s1.svs"]).hexdigest()
    assert storage.record(folder / "s1.svs").object == objects.StoredObject(
        "gs://b/cohort/slides/s1.svs", 3000, digest, digest
    )
    with storage.hold(folder / "s1.svs"):
        assert (folder / "s1.svs").read_bytes() == CONTENT["cohort/slides/s1.svs"]
    with pytest.raises(DataError, match=r"^gs://b/none (holds no object|is not there); check"):
        storage.local_folder("gs://b/none", staging)
