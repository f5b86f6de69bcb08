"""The benchmark of a GPU at a size for a CPU, on a machine that has JAX and little else."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What a bare machine lacks, made impossible to import.
ABSENT = (
    *("grain", "tifffile", "ml_collections", "tensorflow_datasets", "array_record"),
    *("tensorboardX", "imagecodecs", "torch", "timm"),
)
BARE = f"""
import importlib.abc, runpy, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def test_it_runs_on_a_bare_machine(tmp_path):
    script = ROOT / "scripts" / "bench_gpu.py"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(script.parent))),
        "JAX_PLATFORMS": "cpu",
    }
    parts = ["--parts", "encoder", "mil", "--tiny", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BARE, str(script), *parts],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rows beside them are left out" in done.stdout
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["part"] for row in rows] == ["encoder", "encoder", "mil"]
    assert all(row["rate"] > 0 and row["compilations"] > 0 for row in rows)
    assert all(row["what"] in (tmp_path / "gpu.md").read_text() for row in rows)
