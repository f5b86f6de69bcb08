"""The command line in a process forked from one that has imported what a run needs.

Imports take most of a short run. All else is as in a process of its own: arguments, folder, exit
status, signals, lines on stderr, the processes that a run starts.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import sys
from multiprocessing import resource_tracker
from unittest import mock

# What `main` imports late. None of this starts a backend of JAX, which no fork would survive.
IMPORTS = (
    *("checks", "pipeline", "preflight", "studies.study", "stages.pretrain", "stages.prepare"),
    *("stages.encode_hr", "stages.teacher", "stages.distill", "stages.encode_lr"),
    *("stages.student", "stages.baseline", "stages.evaluate", "stages.report", "stages.predict"),
)
LIBRARIES = ("sklearn.metrics", "lifelines")  # imported later still
_context = multiprocessing.get_context("forkserver")
_served: list[dict[str, str]] = []


class Process(_context.Process):
    """As `subprocess.Popen`, less what nobody asks for."""

    def poll(self):
        """The exit status, or None while it runs."""
        return self.exitcode

    def wait(self):
        """The exit status."""
        self.join()
        return self.exitcode


def start(arguments, *, environment, folder):
    """A process that is `python -m lrmil_jax.main ARGUMENTS`, and the descriptor of its stderr."""
    _serve(environment)
    lines, writer = _context.Pipe(duplex=False)
    process = Process(target=_go, args=(writer, folder, arguments))
    process.start()
    writer.close()
    descriptor = os.dup(lines.fileno())
    lines.close()
    return process, descriptor


def _serve(environment):
    """Starts the process that is forked, once: JAX reads its environment when it is imported."""
    wanted = {name: text for name, text in environment.items() if name != "PYTEST_CURRENT_TEST"}
    if not _served:
        modules = [__name__, *(f"lrmil_jax.{name}" for name in IMPORTS), *LIBRARIES]
        _context.set_forkserver_preload(modules)
        with mock.patch.dict(os.environ, wanted, clear=True):
            multiprocessing.forkserver.ensure_running()
        _served.append(wanted)
    assert _served == [wanted], "all runs have one environment"


def _go(writer, folder, arguments):
    os.dup2(writer.fileno(), 2)
    writer.close()
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
    os.chdir(folder)
    resource_tracker._resource_tracker._fd = None  # its own one tells of what a kill leaves
    sys.argv[1:] = arguments
    runpy.run_module("lrmil_jax.main", run_name="__main__", alter_sys=True)
