"""Google Cloud Storage by gcsfs, from a stand-in for its JSON interface on loopback."""

import base64
import hashlib
import http.server
import json
import threading
import urllib.parse

import pytest

from lrmil_jax import storage
from lrmil_jax.errors import DataError
from lrmil_jax.storage import attempts, objects

gcsfs = pytest.importorskip("gcsfs")
pytestmark = pytest.mark.filterwarnings("ignore")  # gcsfs's own, of credentials and sockets
CONTENT = {f"cohort/slides/s{number}.svs": bytes([number]) * 3000 for number in range(2)}


class Handler(http.server.BaseHTTPRequestHandler):
    """Lists objects, tells of one, and gives a range of it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        parts = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(parts.query)
        name = urllib.parse.unquote(parts.path.partition("/o/")[2])
        if parts.path.rstrip("/").endswith("/o"):
            prefix = query.get("prefix", [""])[0]
            self._send(200, {"items": [self._of(one) for one in CONTENT if one.startswith(prefix)]})
        elif name not in CONTENT:
            self._send(404, {"error": {"code": 404, "message": "no such object"}})
        elif query.get("alt") == ["media"]:
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self._send(206, CONTENT[name][first : last + 1])
        else:
            self._send(200, self._of(name))

    def _of(self, name):
        digest = base64.b64encode(hashlib.md5(CONTENT[name]).digest()).decode()
        time = "2026-01-01T00:00:00Z"
        return {"name": name, "bucket": "b", "size": str(len(CONTENT[name])), "md5Hash": digest,
                "etag": "CN=", "generation": "1", "updated": time, "timeCreated": time}  # fmt: skip

    def _send(self, status, body):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(attempts, "_PAUSE", 0.01)
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{made.server_address[1]}")
    objects.filesystem.cache_clear()
    storage.forget()
    yield
    made.shutdown()
    made.server_close()
    objects.filesystem.cache_clear()
    storage.forget()


def test_a_bucket(server, tmp_path, monkeypatch):
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
