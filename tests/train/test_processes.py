"""Two processes train as one does."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


pytestmark = pytest.mark.slow


def start(port, index, directory, cache, *calls):
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE.parents[1]),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }
    arguments = [str(one) for one in (port, index, directory, *calls)]
    return subprocess.Popen(
        [sys.executable, str(HERE / "processes.py"), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def pair(directory, cache, *calls):
    """Both processes, started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(port, index, directory, cache, *calls) for index in (0, 1)]


def answer(process):
    output, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(output.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """The folder of an undisturbed training of two processes, and what each said."""
    directory = tmp_path_factory.mktemp("pair") / "training"
    return directory, [answer(process) for process in pair(directory, cache)]


def test_two_processes_are_one(whole, tmp_path, cache):
    directory, (first, second) = whole
    alone = answer(start(0, "alone", tmp_path / "alone", cache))
    assert first == second
    assert first["step"] == alone["step"]
    assert first["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert (directory / "result.json").exists()


def test_each_of_four_devices_holds_a_quarter(whole):
    """Weights [16, 32] and [32, 2] and a bias [32] divide by four, the bias [2] does not: float32,
    as parameters, in both moments of Adam and as the best parameters so far."""
    split = 4 * 4 * (16 * 32 + 32 * 2 + 32)
    for said in whole[1]:
        assert said["bytes"] == {"split": split, "held": [split // 4, split // 4]}


def test_an_equal_number_goes_on_bit_for_bit(whole, tmp_path, cache):
    for process in pair(tmp_path, cache, 3):
        process.communicate()
        assert process.returncode == 1
    assert not (tmp_path / "result.json").exists()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    for process, said in zip(pair(tmp_path, cache), whole[1], strict=True):
        assert answer(process)["saved"] == said["saved"] - 3  # it did not begin anew
    for name in ("best.safetensors", "result.json", "metrics.jsonl"):
        assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()
