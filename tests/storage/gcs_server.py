"""A stand-in for the JSON interface of Google Cloud Storage, on loopback."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from email import message_from_bytes, policy


class Handler(http.server.BaseHTTPRequestHandler):
    """Lists, gives, takes, copies and removes objects."""

    protocol_version = "HTTP/1.1"
    stored: dict[str, bytes]  # the names of all buckets together
    forbidden = False

    def do_GET(self):
        name, query = self._asked()
        if self.path.partition("?")[0].rstrip("/").endswith("/o"):
            return self._send(200, self._listing(query))
        if name not in self.stored:
            return self._send(404, {"error": {"code": 404, "message": "no such object"}})
        if query.get("alt") != ["media"]:
            return self._send(200, self._of(name))
        first, last = 0, len(self.stored[name])
        if "Range" in self.headers:
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        status = 206 if "Range" in self.headers else 200
        return self._send(status, self.stored[name][first : last + 1])

    def do_POST(self):
        name, query = self._asked()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.forbidden:
            return self._send(403, {"error": {"code": 403, "message": "no storage.objects.create"}})
        if "/rewriteTo/" in self.path:
            source, _, target = name.partition(f"/rewriteTo/b/{self._bucket()}/o/")
            if source not in self.stored:
                return self._send(404, {"error": {"code": 404, "message": "no such object"}})
            self.stored[target] = self.stored[source]
            return self._send(200, {"done": True, "resource": self._of(target)})
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        about, content = message_from_bytes(head + body, policy=policy.HTTP).iter_parts()
        name = json.loads(about.get_payload(decode=True))["name"]
        if query.get("ifGenerationMatch") == ["0"] and name in self.stored:
            return self._send(412, {"error": {"code": 412, "message": "it is there"}})
        self.stored[name] = content.get_payload(decode=True)
        return self._send(200, self._of(name))

    def do_DELETE(self):
        name, _ = self._asked()
        there = self.stored.pop(name, None) is not None
        return self._send(204 if there else 404, {})

    def _asked(self):
        parts = urllib.parse.urlsplit(self.path)
        name = urllib.parse.unquote(parts.path.partition("/o/")[2])
        return name, urllib.parse.parse_qs(parts.query)

    def _listing(self, query):
        prefix = query.get("prefix", [""])[0]
        found = sorted(name for name in self.stored if name.startswith(prefix))
        if "delimiter" not in query:
            return {"items": [self._of(name) for name in found]}
        deeper = {prefix + name[len(prefix) :].split("/")[0] + "/" for name in found
                  if "/" in name[len(prefix) :]}  # fmt: skip
        items = [self._of(name) for name in found if "/" not in name[len(prefix) :]]
        return {"items": items, "prefixes": sorted(deeper)}

    def _of(self, name):
        digest = base64.b64encode(hashlib.md5(self.stored[name]).digest()).decode()
        time = "2026-01-01T00:00:00Z"
        return {"name": name, "bucket": self._bucket(), "size": str(len(self.stored[name])),
                "md5Hash": digest, "etag": "CN=", "generation": "1", "updated": time,
                "timeCreated": time}  # fmt: skip

    def _bucket(self):
        return self.path.partition("/b/")[2].partition("/")[0]

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


@contextlib.contextmanager
def serving():
    """Its address while it answers."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_address[1]}"
    made.shutdown()
    made.server_close()
