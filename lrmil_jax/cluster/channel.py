"""What the processes of a run tell each other beside their arrays: one connection of each to the
first, in lines of JSON. It is how a process learns at once that another one has ended."""

import collections
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

from lrmil_jax.errors import one_line

# Seconds for which the first, about to end, waits for the others to have ended: JAX aborts a
# process whose coordinator is gone, in words of its own.
_LAST_WORDS = 5.0
_WAIT = 0.5  # seconds between two looks of a waiting thread, so that signals are handled


class Channel:
    """The links of one process.

    Args:
      index: of this process, counted from 0.
      count: of all processes.
      links: to every other process from the first one, to the first from all others.
      ended: called in a thread of its own when the run cannot go on, with the sentence that says
        why; it must not return.
      stop: called in a thread of its own when all processes were asked to stop; see `hold`.
    """

    def __init__(
        self,
        index: int,
        count: int,
        links: dict[int, socket.socket],
        *,
        ended: Callable[[str], None],
        stop: Callable[[], None],
    ):
        self.index, self.count = index, count
        self._links, self._ended, self._stop = links, ended, stop
        self._changed = threading.Condition(threading.RLock())
        self._send_lock = threading.Lock()
        self._round = 0
        self._said: dict[int, dict[int, tuple[str, Any]]] = collections.defaultdict(dict)
        self._answers: dict[int, list[Any]] = {}
        self._leaving = False
        self._alive = set(links)
        # A training in lockstep: the last update begun, None outside of one.
        self._begun: int | None = None
        self._held, self._last = False, None
        self._reports: dict[int, int | None] = {}
        for other in links:
            threading.Thread(target=self._listen, args=(other,), daemon=True).start()

    # ---- meeting ----

    def exchange(self, name: str, value: Any) -> list[Any]:
        """What every process says at this place of the run, in their order; waits for all.

        Args:
          name: of the place, the same for all.
          value: that JSON can hold.
        """
        with self._changed:
            place, self._round = self._round, self._round + 1
            if self.index:
                self._send(0, {"at": place, "name": name, "value": value})
            else:
                self._said[place][0] = (name, value)
                self._answer(place)
            while place not in self._answers:
                self._changed.wait(_WAIT)
            return self._answers.pop(place)

    def _answer(self, place: int) -> None:
        """On the first: tells all what all have said, once they have."""
        said = self._said[place]
        if len(said) < self.count:
            return
        del self._said[place]
        names = {name for name, _ in said.values()}
        if len(names) > 1:
            where = ", ".join(f"process {one} at {said[one][0]!r}" for one in sorted(said))
            self._end(f"the processes of this run are not at the same place ({where})")
            return
        self._answers[place] = [said[one][1] for one in range(self.count)]
        for other in self._links:
            self._send(other, {"met": place, "values": self._answers[place]})
        self._changed.notify_all()

    # ---- stopping together ----

    def ask_to_stop(self) -> None:
        """Asks all processes to stop at one place: after the same update, if they train."""
        if self.index:
            self._send(0, {"please": "stop"})
        else:
            self._hold()

    def begin(self, update: int | None) -> bool:
        """Says that an update of a training is about to begin, None that the training is over;
        False if nothing must begin any more, because all processes stop here."""
        with self._changed:
            while self._held and self._last is None:
                self._changed.wait(_WAIT)
            if self._last is not None and (update is None or update > self._last):
                return False
            self._begun = update
            return True

    def _hold(self) -> None:
        """On the first: asks all which update they have begun, and lets them begin no other."""
        with self._changed:
            if self._held:
                return
            self._held = True
            for other in self._links:
                self._send(other, {"hold": True})
            self._report(0, self._begun)

    def _report(self, process: int, begun: int | None) -> None:
        self._reports[process] = begun
        if len(self._reports) < self.count:
            return
        updates = set(self._reports.values())
        last = None if None in updates else max(updates)
        for other in self._links:
            self._send(other, {"last": last})
        self._stop_after(last)

    def _stop_after(self, last: int | None) -> None:
        if last is None:
            self._leaving = True
            threading.Thread(target=self._stop_now, daemon=True).start()
            return
        self._last = last
        self._changed.notify_all()

    def _stop_now(self) -> None:
        self._wait_for_others()
        self._stop()

    # ---- ending ----

    def fail(self, sentence: str) -> None:
        """Tells all others why this process ends; the first waits until they have ended."""
        with self._changed:
            self._leaving = True
        told = f"process {self.index} of {self.count} stopped: {sentence}"
        for other in sorted(self._alive):
            self._send(other, {"failed": told})
        self._wait_for_others()

    def leave(self) -> None:
        """The run is over: from now on the others may end."""
        self.exchange("the end", None)
        with self._changed:
            self._leaving = True
        self._wait_for_others()
        for link in self._links.values():
            link.close()

    def _wait_for_others(self) -> None:
        if self.index:
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._alive, _LAST_WORDS)

    def _end(self, sentence: str) -> None:
        """Ends the run in all processes."""
        with self._changed:
            if self._leaving:
                return
            self._leaving = True
        for other in sorted(self._alive):
            self._send(other, {"failed": sentence})

        def end() -> None:
            self._wait_for_others()
            self._ended(sentence)

        threading.Thread(target=end, daemon=True).start()

    # ---- lines ----

    def _send(self, other: int, message: dict[str, Any]) -> None:
        try:
            with self._send_lock:
                self._links[other].sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass  # its end is told by the thread that listens to it

    def _listen(self, other: int) -> None:
        why = "killed, or its machine was lost"
        try:
            with self._links[other].makefile("r", encoding="utf-8") as lines:
                for line in lines:
                    if not line.endswith("\n"):
                        break  # it was killed while it wrote
                    self._take(other, json.loads(line))
        except OSError as error:
            why += f": {error.strerror or one_line(error)}"
        except Exception as error:  # unheard, this thread would end and the run wait without end
            said = f"{type(error).__name__}: {one_line(error)}"
            self._end(f"what process {other} of {self.count} said cannot be understood ({said})")
            return
        with self._changed:
            self._alive.discard(other)
            self._changed.notify_all()
        self._end(f"process {other} of {self.count} has ended without a word ({why})")

    def _take(self, other: int, message: dict[str, Any]) -> None:
        if "failed" in message:
            self._end(message["failed"])
            return
        with self._changed:
            if "at" in message:
                self._said[message["at"]][other] = (message["name"], message["value"])
                self._answer(message["at"])
            elif "met" in message:
                self._answers[message["met"]] = message["values"]
                self._changed.notify_all()
            elif "please" in message:
                self._hold()
            elif "hold" in message:
                self._held = True
                self._send(0, {"begun": self._begun})
            elif "begun" in message:
                self._report(other, message["begun"])
            elif "last" in message:
                self._stop_after(message["last"])
