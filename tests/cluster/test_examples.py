"""What the examples of `scripts/cluster` ask for, without running any of it."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from lrmil_jax.cluster.stopping import STATUS

CLUSTER = Path(__file__).parents[2] / "scripts/cluster"
SBATCH = """#!/bin/sh
for one in "$@"; do printf '%s\\n' "$one"; done >> "$BOOK"
echo 7
"""


@pytest.mark.parametrize("name", ["slurm", "main.nf", "Snakefile", "kubernetes.yaml"])
def test_an_unreadable_slide_stops_no_scheduler(name):
    text = (CLUSTER / name).read_text(encoding="utf-8")
    (command,) = re.findall(r"lrmil run (?:.|\n)*?--left_out_ok", text)
    assert command.count("lrmil run") == text.count("lrmil run")


def test_kubernetes_names_a_shard_for_every_index_and_hands_sigterm_on():
    text = (CLUSTER / "kubernetes.yaml").read_text(encoding="utf-8")
    (count,) = re.findall(r"completions: (\d+)", text)
    assert f"--shard $((JOB_COMPLETION_INDEX + 1))/{count}" in text
    assert "exec lrmil run" in text
    assert f"operator: In, values: [{STATUS}]" in text


def test_what_slurm_is_given(tmp_path):
    """Each job replaces its shell, and a shard has the number of all, whichever of them run."""
    (tmp_path / "sbatch").write_text(SBATCH)
    (tmp_path / "sbatch").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}",
                                "BOOK": str(tmp_path / "book"), "TRAIN": "--nodes=2"}  # fmt: skip
    command = [CLUSTER / "slurm", "tcga_nsclc", tmp_path / "run", "16", "--config.data.site=a b"]
    done = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("7\n", "")
    lines = (tmp_path / "book").read_text().splitlines()
    wraps = [line.removeprefix("--wrap=") for line in lines if line.startswith("--wrap=")]
    assert len(wraps) == 4
    assert all(one.startswith("exec ") and "--left_out_ok" in one for one in wraps)
    assert all(r"--config.data.site=a\ b" in one for one in wraps)
    assert wraps[0].endswith('--stages prepare --shard "$SLURM_ARRAY_TASK_ID/16"')
    assert wraps[3].startswith("exec srun lrmil run")
    signals = [line for line in lines if line.startswith("--signal=")]
    assert signals == ["--signal=B:TERM@300"] * 3 + ["--signal=TERM@300"]
    assert lines.count("--dependency=afterok:7") == 3
    assert lines.count("--array=1-16") == 2
