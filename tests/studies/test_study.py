"""What a study says between its runs."""

import logging
import types

from ml_collections import ConfigDict

from lrmil_jax.studies import study
from lrmil_jax.studies.plan import Run


def test_what_is_to_come_is_priced_by_the_longest_run(tmp_path, monkeypatch, caplog):
    now, seconds = [0.0], iter([100, 20, 30])

    def run(*_arguments, after_stage) -> int:
        now[0] += next(seconds)
        return 0

    monkeypatch.setattr(study, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(study, "pipeline", types.SimpleNamespace(run=run))
    monkeypatch.setattr(study, "_share", lambda *_arguments: None)
    runs = [Run(4, name, {}, ConfigDict(), tmp_path / name) for name in "abc"]
    with caplog.at_level(logging.INFO, logger="lrmil_jax"):
        study._run_seed(study.SeedJob(tmp_path, runs, []))
    assert [line for line in caplog.messages if "still" in line] == [
        "runs of seed 4 still to come: 2, about 200 s if each takes the 100 s of the longest so "
        "far",
        "runs of seed 4 still to come: 1, about 100 s if each takes the 100 s of the longest so "
        "far",
    ]
