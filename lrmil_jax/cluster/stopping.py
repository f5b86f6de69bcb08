"""SIGTERM, as batch systems and preempted machines send it: what is done is kept, a training saves
where it is, and the exit status says that the same command goes on."""

import logging
import os
import signal
import threading
from typing import Any

log = logging.getLogger(__name__)

STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again later
SENTENCE = (
    "stopped, as SIGTERM asked: what is done is kept, and the same command goes on from there"
)


class StoppedError(BaseException):
    """The run was asked to stop. No mistake, so nothing that catches mistakes catches it."""


class Stopping:
    """Whether this process was asked to stop, and whether a training is there to see to it."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._channel: Any = None
        self._training = False

    def listen(self, channel: Any = None) -> None:
        """Takes SIGTERM from now on; only the main thread can, and in others nothing happens.

        Args:
          channel: of a run of several processes, which then stop together.
        """
        self._asked.clear()
        self._channel = channel
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGTERM, self._on_signal)
        if channel is not None:
            threading.Thread(target=self._tell, daemon=True).start()

    def ignore(self) -> None:
        """SIGTERM ends the process at once again."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._channel = None

    def before(self, update: int) -> bool:
        """Says that a training is about to begin an update.

        Returns:
          False if it must not begin: the training is to be saved as it is, and to end with
          `StoppedError`.
        """
        self._training = True
        if self._channel is not None:
            return self._channel.begin(update)
        return not self._asked.is_set()

    def training_is_over(self) -> None:
        """Says that a training has ended and its result is saved.

        Raises:
          StoppedError: the run was asked to stop meanwhile.
        """
        self._training = False
        asked = self._asked.is_set() if self._channel is None else not self._channel.begin(None)
        if asked:
            raise StoppedError

    def _on_signal(self, *_: Any) -> None:
        self._asked.set()
        if self._channel is None and not self._training:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
            raise StoppedError

    def _tell(self) -> None:
        channel = self._channel
        self._asked.wait()
        if channel is self._channel:
            channel.ask_to_stop()

    @staticmethod
    def end_now() -> None:
        """Ends a process of several that do not train: finished slides are kept anyway."""
        log.error("%s", SENTENCE)  # of every process, also of those that tell mistakes alone
        logging.shutdown()
        os._exit(STATUS)


stopping = Stopping()
