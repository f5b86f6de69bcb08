"""A process that watches over another one of a run of several: when the system or JAX ends that
one without a word, it says in a sentence what has happened."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

_KEPT = "LRMIL_JAX_KEPT_BY"  # in the environment of the process that is watched

_AGAIN = "what is done is kept: run the same command on all again"
_SENTENCES = {
    signal.SIGABRT: "JAX has ended this process of a run of several, most likely because another "
    f"process of it is gone (its own log says why); {_AGAIN}",
    signal.SIGKILL: "this process of a run of several was killed from outside (too little memory, "
    f"or by hand), and the others stop with it; {_AGAIN}",
}


def is_needed() -> bool:
    """Whether this process is not watched yet; one that is ends with whoever watches."""
    keeper = os.environ.get(_KEPT)
    if keeper is None:
        return True

    def watch() -> None:
        while os.getppid() == int(keeper):
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return False


def run(command: Sequence[str]) -> int:
    """Runs a command with its output as this one's, hands SIGTERM on, and gives its exit status."""
    child = subprocess.Popen(command, env={**os.environ, _KEPT: str(os.getpid())})
    signal.signal(signal.SIGTERM, lambda *_: child.send_signal(signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    status = child.wait()
    if status >= 0:
        return status
    ended = _SENTENCES.get(-status, f"this process was ended by signal {-status}; {_AGAIN}")
    sys.stderr.write(f"{ended}\n")
    return 1
