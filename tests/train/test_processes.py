"""Two processes train as one does."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


def start(port, index, directory, cache):
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE.parents[1]),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
    }
    return subprocess.Popen(
        [sys.executable, str(HERE / "processes.py"), str(port), str(index), str(directory)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(process):
    output, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(output.strip().splitlines()[-1])


@pytest.mark.slow
def test_two_processes_are_one(tmp_path, cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [start(port, index, tmp_path / "pair", cache) for index in (0, 1)]
    first, second = [answer(process) for process in pair]
    alone = answer(start(port, "alone", tmp_path / "alone", cache))
    assert first == second
    assert first["step"] == alone["step"]
    assert first["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert (tmp_path / "pair" / "result.json").exists()
