"""Trainings in MLflow, read back with its own client; and what happens where it fails."""

import json
import logging
import socket

import pytest

from lrmil_jax import checks
from lrmil_jax import config as configuration
from lrmil_jax.cluster.stopping import StoppedError
from lrmil_jax.errors import ConfigError
from lrmil_jax.train import MetricWriter, tracking
from lrmil_jax.train.tracking import Tracking


@pytest.fixture
def mlflow(monkeypatch):
    # Its store of files is to go one day; a data base takes packages that its small part has not.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return pytest.importorskip("mlflow")


@pytest.fixture
def told(tmp_path):
    params = {"seed": 1, "student.topk": 8, "data.classes": ("a", "b")}
    return Tracking(
        uri=f"file:{tmp_path / 'store'}", experiment="mine", params=params, root=tmp_path
    )


def runs(mlflow, told):
    client = mlflow.MlflowClient(told.uri)
    experiment = client.get_experiment_by_name(told.experiment)
    return client, client.search_runs([experiment.experiment_id])


def history(client, run, name):
    return [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]


def write(folder, steps, *, after=0, error=None):
    with MetricWriter(folder, resume_step=after) as writer:
        for step in steps:
            loss = None if step == 2 else 1 / step
            writer.write(step, {"train/loss": loss, "validation/auc": step / 8})
        if error is not None:
            raise error


def test_a_training_is_a_run_with_the_config_and_metrics_by_step(mlflow, told, tmp_path):
    with tracking.tracked(told):
        write(tmp_path / "folds/1/teacher", [1, 2, 4])
        write(tmp_path / "folds/1/student", [1])
    write(tmp_path / "untold", [1])
    client, found = runs(mlflow, told)
    assert sorted(run.info.run_name for run in found) == ["folds/1/student", "folds/1/teacher"]
    run = next(run for run in found if run.info.run_name == "folds/1/teacher")
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "1", "student.topk": "8", "data.classes": "('a', 'b')"}
    assert run.data.tags["lrmil_jax.training"] == "folds/1/teacher"
    assert history(client, run, "train/loss") == [(1, 1.0), (4, 0.25)]
    assert history(client, run, "validation/auc") == [(1, 0.125), (2, 0.25), (4, 0.5)]


def test_a_resumed_training_is_the_same_run_and_says_nothing_twice(mlflow, told, tmp_path):
    with tracking.tracked(told):
        with pytest.raises(StoppedError):
            write(tmp_path / "a", [1, 2, 3], error=StoppedError())
        client, (run,) = runs(mlflow, told)
        assert run.info.status == "KILLED"
        write(tmp_path / "a", [3, 4], after=2)  # the third step was told before the stop
        with pytest.raises(ZeroDivisionError):
            write(tmp_path / "a", [4, 5], after=4, error=ZeroDivisionError())
        client, (run,) = runs(mlflow, told)
        assert run.info.status == "FAILED"
        assert [step for step, _ in history(client, run, "validation/auc")] == [1, 2, 3, 4, 5]
        client.delete_run(run.info.run_id)
        write(tmp_path / "a", [6], after=5)
    client, (other,) = runs(mlflow, told)
    assert other.info.run_id != run.info.run_id
    assert json.loads((tmp_path / "a/mlflow.json").read_text()) == {
        "run_id": other.info.run_id, "uri": told.uri}  # fmt: skip


def test_a_server_that_is_gone_is_one_warning(mlflow, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
    gone = Tracking(uri=uri, experiment="mine", params={}, root=tmp_path)
    with tracking.tracked(gone), caplog.at_level(logging.WARNING, "lrmil_jax"):
        for name in "ab":
            write(tmp_path / name, range(1, 40))
    lines = [one.message for one in caplog.records if one.name.startswith("lrmil_jax")]
    assert len(lines) == 1
    assert lines[0].startswith(f"MLflow at {uri} is not told of everything (")
    for name in "ab":
        assert len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) == 39
        assert not (tmp_path / name / "mlflow.json").exists()


def test_the_key_is_a_uri_and_needs_the_package(monkeypatch):
    config = configuration.default()
    config.data.labels = "labels.csv"
    for uri in ("mlruns", "s3://bucket/runs"):
        config.tracking.mlflow = uri
        with pytest.raises(
            ConfigError, match=r"config\.tracking\.mlflow is .* a tracking URI such"
        ):
            checks.validate(config)
    config.tracking.mlflow = "http://host:5000"
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda _: object())
    checks.validate(config)
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        ConfigError, match=r"^tracking\.mlflow needs MLflow: pip install 'lrmil_jax"
    ):
        checks.validate(config)
