"""A server between a client and S3 that cuts off what it is told to."""

import http.client
import http.server
import socket
import threading
import urllib.parse


class BrokenServer:
    """Hands requests on, and closes the connection in the middle of some answers.

    Args:
      url: of the server behind.

    Attributes:
      url: of this one.
      broken: parts of paths whose bodies are cut off.
      cut: how many were.
      unlucky: of how many writes one is cut off, in turn before and after it was done; 0: none.
      bucket: the server behind, as its owner fills it.
    """

    def __init__(self, url):
        self.broken, self.cut, self.bucket = set(), 0, None
        self.unlucky, self._writes, self._lock = 0, 0, threading.Lock()
        self.behind = urllib.parse.urlsplit(url).netloc
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # so that `Expect` is answered

            def handle_any(self):
                owner._hand_on(self)

            do_GET = do_HEAD = handle_any  # noqa: N815 - http.server's names
            do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def _hand_on(self, request):
        headers = {k: v for k, v in request.headers.items() if k != "Expect"}  # it was answered
        sent = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fate = self._fate(request)
        if fate == "before":
            return self._hang_up(request)
        behind = http.client.HTTPConnection(self.behind)
        behind.request(request.command, request.path, sent or None, headers)
        answer = behind.getresponse()
        body = answer.read()
        if fate == "after":
            return self._hang_up(request)
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                request.send_header(name, value)
        request.send_header("Connection", "close")
        request.end_headers()
        if request.command == "GET" and any(part in request.path for part in self.broken):
            body, self.cut = body[: len(body) // 2], self.cut + 1
        request.wfile.write(body)
        behind.close()
        request.close_connection = True
        return None

    @staticmethod
    def _hang_up(request):
        request.close_connection = True
        request.connection.shutdown(socket.SHUT_RDWR)

    def _fate(self, request):
        """Whether a write is cut off before or after it is done; None: it is not."""
        if request.command in ("GET", "HEAD") or not self.unlucky:
            return None
        with self._lock:
            self._writes += 1
            turn, rest = divmod(self._writes, self.unlucky)
            self.cut += not rest
        return None if rest else ("before", "after")[turn % 2]
