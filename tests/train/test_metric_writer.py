"""Metric files, and what TensorBoard reads."""

import json

import pytest

from lrmil_jax.train import MetricWriter


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def events(directory):
    """(step, name, value) of every scalar in the event files, in order of writing."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted((directory / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return found


def test_tensorboard_holds_the_defined_scalars(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"train/loss": 0.5, "train/auc": None})
        writer.write(2, {"train/loss": 0.25})
    with MetricWriter(tmp_path, resume_step=2) as writer:
        writer.write(3, {"train/loss": 0.125})
    assert events(tmp_path) == [
        (1, "train/loss", 0.5),
        (2, "train/loss", 0.25),
        (3, "train/loss", 0.125),
    ]


def test_rows_and_undefined_values(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"a": 0.1, "b": None})
        writer.write(2, {"a": float("nan")})
    assert lines(tmp_path) == [{"step": 1, "a": 0.1, "b": None}, {"step": 2, "a": None}]


@pytest.mark.parametrize("torn", ["", '{"step": 5, "a', '{"step": 5, "a": 1}\n'])
def test_resume_takes_later_and_torn_rows_away(tmp_path, torn):
    with MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3, 4):
            writer.write(step, {"a": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    with MetricWriter(tmp_path, resume_step=3) as writer:
        writer.write(4, {"a": 40.0})
    assert [(row["step"], row["a"]) for row in lines(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]


def test_a_fresh_start_takes_old_rows_away(tmp_path):
    for _ in range(2):
        with MetricWriter(tmp_path) as writer:
            writer.write(1, {"a": 1.0})
    assert len(lines(tmp_path)) == 1
