"""One run at a time in a working directory of a bucket: an object says who is at work there."""

import json
import logging
import os
import posixpath
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from lrmil_jax.errors import UserError, WorkdirError
from lrmil_jax.storage.bucket_folder import BucketFolder
from lrmil_jax.storage.manifests import FOLDER

log = logging.getLogger(__name__)

_RENEWED = 60.0  # seconds between two signs of life
_STALE = 300.0  # seconds after the last of them, a run is taken for ended
_SETTLED = 2.0  # seconds in which two that take over the same lease have both written


class Lease:
    """Says that this run is at work, until it ends.

    Args:
      folder: the working directory.
      part: of this run: "3-of-8" of a shard, else "".
      ended: the token of a run that is known to have ended, whatever its lease says.

    Attributes:
      token: of this run, which no other has.

    Raises:
      WorkdirError: another run is at work there, or it cannot be written to.
    """

    def __init__(self, folder: BucketFolder, part: str, ended: str):
        self.token = uuid.uuid4().hex
        self._folder, self._part, self._known_ended = folder, part, ended
        self._name = _name(part)
        self._since = time.time()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> "Lease":
        self._take()
        try:
            self._refuse_others()
        except BaseException:
            self._folder.remove(self._name)
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()  # or it would write the lease again
        try:
            if self._holder(self._name).get("token") == self.token:
                self._folder.remove(self._name)
        except UserError as error:
            log.warning("%s; the next run must wait five minutes", error)

    def require(self) -> None:
        """Looks whether this run still may write.

        Raises:
          WorkdirError: another run has taken over.
        """
        holder = self._holder(self._name)
        if holder.get("token") != self.token:
            raise WorkdirError(
                f"this run was taken for ended, as {self._folder.url} did not hear of it for five "
                f"minutes, and {_shown(holder)} has taken over: nothing more is saved here"
            )

    def _take(self) -> None:
        if not self._holder(self._name):
            self._folder.create(self._name, self._content())
        holder = self._holder(self._name)  # also where an answer was lost, or conditions not known
        if self._is_alive(holder) and holder["token"] != self.token:
            raise WorkdirError(self._busy(holder))
        if holder.get("token") != self.token:
            self._folder.write(self._name, self._content())
            time.sleep(_SETTLED)
            holder = self._holder(self._name)
        if holder.get("token") != self.token:
            raise WorkdirError(self._busy(holder))

    def _refuse_others(self) -> None:
        """Looks for others after the own lease is there, so that of two that begin at once not
        both go on."""
        count = self._part.rpartition("-")[2]
        for name in self._folder.names(FOLDER):
            if not posixpath.basename(name).startswith("lease") or name == self._name:
                continue
            beside = self._part and name.endswith(f"-of-{count}.json")  # another shard of as many
            holder = {} if beside else self._holder(name)
            if self._is_alive(holder):
                raise WorkdirError(self._busy(holder))

    def _busy(self, holder: dict[str, Any]) -> str:
        return (
            f"{_shown(holder)} is at work in {self._folder.url}; wait for it (a run that was "
            "killed is forgotten after five minutes), or choose another --workdir"
        )

    def _is_alive(self, holder: dict[str, Any]) -> bool:
        ended = holder.get("token") in (None, self._known_ended)
        return not ended and time.time() - float(holder.get("renewed", 0)) < _STALE

    def _holder(self, name: str) -> dict[str, Any]:
        content = self._folder.read(name)
        try:
            value = json.loads(content) if content else {}
        except ValueError:
            value = {}
        return value if isinstance(value, dict) else {}

    def _content(self) -> bytes:
        value = {"token": self.token, "host": socket.gethostname(), "process": os.getpid(),
                 "part": self._part, "since": self._since, "renewed": time.time()}  # fmt: skip
        return json.dumps(value, indent=1).encode()

    def _renew(self) -> None:
        while not self._over.wait(_RENEWED):
            try:
                self.require()
                self._folder.write(self._name, self._content())
            except UserError as error:
                log.warning("%s", error)


def _name(part: str) -> str:
    return f"{FOLDER}/lease{part and '-'}{part}.json"


def _shown(holder: dict[str, Any]) -> str:
    if not holder:
        return "another run"
    shard = holder.get("part", "").replace("-of-", "/")
    since = datetime.fromtimestamp(float(holder.get("since", 0)), UTC)
    return (
        f"{f'shard {shard}' if shard else 'a run'} on {holder.get('host')} (process "
        f"{holder.get('process')}, since {since:%Y-%m-%d %H:%M} UTC)"
    )
