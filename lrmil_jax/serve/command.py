"""`lrmil serve`: options, start and stop."""

import importlib.util
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from fcntl import LOCK_EX, LOCK_NB
from pathlib import Path
from typing import Any

from lrmil_jax.arguments import Parser
from lrmil_jax.errors import ConfigError, DataError
from lrmil_jax.progress import setup_logging

log = logging.getLogger("lrmil_jax")

TOKEN = "LRMIL_SERVE_TOKEN"
_PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(arguments: Sequence[str] | None = None, prog: str = "lrmil serve") -> int:
    """Serves until SIGTERM or Ctrl-C, then gives 0; 1 if it could not go on.

    Raises:
      UserError: it cannot begin.
    """
    setup_logging()
    given = _parser(prog).parse_args(arguments)
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"lrmil serve needs {', '.join(missing)}: pip install 'lrmil_jax[serve]'")
    _check(given)
    token = _token(given.token_file)
    if token is None and given.host not in _LOOPBACK:
        raise ConfigError(
            f"--host {given.host} lets other machines in; give a token by --token_file, or in the "
            f"environment variable {TOKEN}"
        )
    from lrmil_jax.workspace import layout

    busy = f"another server is at work in {given.jobs}; choose another --jobs"
    with layout.held(given.jobs / ".lock", LOCK_EX | LOCK_NB, busy):
        return _serve(given, token)


def _parser(prog: str) -> Parser:
    parser = Parser(prog, description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument("--jobs", type=Path, required=True, help="folder for jobs and results")
    parser.add_argument("--slides", type=Path, action="append", default=[],
                        help="folder below which slides may be named by path")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--queue", type=int, default=100, help="jobs that may wait")
    parser.add_argument("--max_upload_gib", type=float, default=16.0, help="largest slide")
    parser.add_argument("--keep_hours", type=float, default=168.0, help="of results")
    parser.add_argument("--seconds_per_slide", type=float, default=3600.0, help="0: any")
    parser.add_argument("--stop_seconds", type=float, default=20.0, help="for the job in hand")
    parser.add_argument("--token_file", type=Path, help="holds the token that clients must bring")
    return parser


def _check(given: Any) -> None:
    """Raises UserError for options that cannot be."""
    for name, low, high in (("port", 0, 65535), ("queue", 1, 10**6), ("max_upload_gib", 0, 10**4),
                            ("keep_hours", 0, 10**6), ("seconds_per_slide", 0, 10**6),
                            ("stop_seconds", 0, 10**5)):  # fmt: skip
        if not low <= getattr(given, name) <= high:
            raise ConfigError(
                f"--{name} is {getattr(given, name):g}, but must be from {low} to {high}"
            )
    for folder in given.slides:
        if not folder.is_dir():
            raise DataError(f"--slides {folder} is no folder; name one that holds slides")


def _token(path: Path | None) -> str | None:
    """The token of a file, or of the environment; never of the command line, which others see.

    Raises:
      ConfigError: the file cannot be read, or is no token.
    """
    if path is None:
        text, where = os.environ.get(TOKEN), TOKEN
        if text is None:
            return None
    else:
        where = f"--token_file {path}"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where} cannot be read ({error})") from error
    text = text.strip()
    if len(text) < 16 or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(f"{where} holds no token of at least 16 letters and digits in one word")
    return text


def _serve(given: Any, token: str | None) -> int:
    from lrmil_jax.serve import api
    from lrmil_jax.serve.jobs import JobStore
    from lrmil_jax.serve.metrics import Metrics
    from lrmil_jax.serve.worker import Worker

    with _bound(given.host, given.port) as listener:
        store = JobStore(given.jobs.resolve(), limit=given.queue)
        again = store.recover()
        if again:
            log.info("%d jobs that the last server had begun wait again", again)
        metrics = Metrics(store)
        worker = Worker(
            store,
            lambda: _predictor(given.model, given.seconds_per_slide),
            keep_seconds=given.keep_hours * 3600,
            metrics=metrics,
        )
        settings = api.Settings(
            slides=tuple(folder.resolve() for folder in given.slides),
            max_upload=int(given.max_upload_gib * 2**30),
            token=token,
            hosts=("127.0.0.1", "localhost") if given.host in _LOOPBACK[:2] else ("*",),
        )
        _run(api.create(settings, store, worker, metrics), listener, worker, given)
        if worker.failure is not None:
            log.error("%s", worker.failure)
            return 1
        store.close()
    log.info("stopped; jobs that wait are kept in %s", given.jobs)
    return 0


def _predictor(model: Path, seconds: float) -> Any:
    """The model, in the thread that predicts: the server answers before JAX is there."""
    from lrmil_jax.serve import predictor

    return predictor.opened(model, seconds=seconds)


def _run(app: Any, listener: socket.socket, worker: Any, given: Any) -> None:
    """Serves until it is asked to stop; a job that then takes too long ends the process."""
    server = _stopping_server(app, worker, seconds=given.stop_seconds)
    worker.start(ended=lambda: setattr(server, "should_exit", True))
    host, port = listener.getsockname()[:2]
    where = "this machine alone" if given.host in _LOOPBACK else "all who bring the token"
    address = f"[{host}]" if ":" in host else host
    log.info("serving on http://%s:%d for %s; /docs has the interface", address, port, where)
    server.run(sockets=[listener])
    if not worker.stop(given.stop_seconds - server.stopping_for()):
        logging.shutdown()
        os._exit(0)  # its thread cannot be ended otherwise; the processes that read end with it


def _stopping_server(app: Any, worker: Any, *, seconds: float) -> Any:
    """A uvicorn server whose SIGTERM lets the worker begin with nothing new, and is no mistake."""
    import uvicorn

    class Server(uvicorn.Server):
        asked: float | None = None  # when it was asked to stop

        def handle_exit(self, sig: int, frame: Any) -> None:
            self.asked = self.asked or time.monotonic()
            worker.ask_to_stop()
            super().handle_exit(sig, frame)

        def stopping_for(self) -> float:
            return 0.0 if self.asked is None else time.monotonic() - self.asked

    for name in (signal.SIGTERM, signal.SIGINT):  # raised again once the server has stopped
        signal.signal(name, lambda *_: None)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=max(1, int(seconds)),
    )
    return Server(config)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
      ConfigError: the address is not of this machine, or the port is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--host {host} --port {port} cannot be listened at ({error.strerror}); choose "
            "another port"
        ) from error
    return listener


if __name__ == "__main__":
    sys.exit(main())
