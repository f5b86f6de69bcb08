"""Progress with and without a terminal, and where the log goes."""

import logging

import rich.console

from lrmil_jax import progress as progress_module
from lrmil_jax.progress import progress, setup_logging


def test_progress_without_a_terminal_logs_now_and_then(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO), progress("slides", 10, done=2) as bar:
        for _ in range(5):
            now[0] += 4.0
            bar.advance(note="x.tiff")
    assert [record.message for record in caplog.records] == [
        "slides: 5/10, 0.25/s, 12.0 s, 20 s left, x.tiff",
        "slides: 7/10, 0.25/s, 20.0 s, 12 s left",
    ]


def test_progress_in_a_terminal_nests(monkeypatch, capsys):
    console = rich.console.Console(force_terminal=True, width=100)
    monkeypatch.setattr(progress_module.sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(progress_module._shared, "console", console)
    with progress("outer", 2) as outer, progress("inner", None) as inner:
        inner.advance(note="a.tiff")
        outer.advance()
        assert progress_module._shared["bar"] is not None
    assert progress_module._shared["bar"] is None
    with progress("again", 1) as bar:
        bar.advance()


def test_setup_logging_replaces_handlers():
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        setup_logging()
        setup_logging()
        assert len(root.handlers) == 1
        assert logging.getLogger("orbax").level == logging.WARNING
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def test_time_left_does_not_count_the_first_step(caplog, monkeypatch):
    """A compilation of 100 s, then a step a second: 9 s are left of 20 steps, and not 90."""
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO), progress("steps", 20) as bar:
        for seconds in (100.0, *[1.0] * 11):
            now[0] += seconds
            bar.advance()
    told = [record.message for record in caplog.records]
    assert told[0] == "steps: 1/20, 0.01/s, 100.0 s, 1,900 s left"  # nothing else is known yet
    assert told[1] == "steps: 11/20, 0.1/s, 110.0 s, 9 s left"


def test_rates_have_three_digits():
    rates = (0.01234, 1.2345, 99.44, 123.4, 1284.2)
    told = [progress_module.per_second(rate) for rate in rates]
    assert told == ["0.0123/s", "1.23/s", "99.4/s", "123/s", "1,284/s"]
