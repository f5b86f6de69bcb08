"""scripts/quickstart: its flags, and the commands it gives, without installing or training."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "quickstart"
# More names than a pipe holds: what reads only the first of them must not break the rest off.
SLIDES = 3000
FAKE_PYTHON = f"""#!/usr/bin/env bash
set -eu
echo "$@" >> commands
if [ "$3" = --config ]; then
  mkdir -p "$6/synthetic/slides" "$6/report"
  for i in $(seq -w {SLIDES}); do : > "$6/synthetic/slides/slide_of_the_cohort_$i.tif"; done
  echo "the table" > "$6/report/table.txt"
fi
"""


@pytest.fixture
def checkout(tmp_path):
    """The script alone, beside a set-up that installs nothing and a Python that only notes."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "scripts/setup_venv.sh").write_text('setup_venv() { PYTHON="$PWD/python"; }\n')
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def quickstart(checkout, *arguments):
    return subprocess.run(
        ["bash", checkout / "scripts/quickstart", *arguments],
        cwd=checkout, capture_output=True, text=True, check=False,
    )  # fmt: skip


def commands(checkout):
    return (checkout / "commands").read_text().splitlines()


@pytest.mark.parametrize(
    ("arguments", "config", "folder"),
    [
        ((), "configs/quickstart.py", "output/quickstart"),
        (("--tiny",), "configs/quickstart.py:tiny", "output/quickstart_tiny"),
        (("--tiny", "mine"), "configs/quickstart.py:tiny", "mine"),
        (("mine", "--tiny"), "configs/quickstart.py:tiny", "mine"),
        (("my slides",), "configs/quickstart.py", "my slides"),
    ],
)
def test_trains_predicts_the_first_slide_and_prints_the_table(checkout, arguments, config, folder):
    ended = quickstart(checkout, *arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    first = "slide_of_the_cohort_0001"
    assert commands(checkout) == [
        f"-m lrmil_jax.main --config {config} --workdir {folder}",
        f"-m lrmil_jax.main --workdir {folder} --stages predict --model {folder}/model "
        f"--slide {folder}/synthetic/slides/{first}.tif",
    ]
    assert "the table" in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith(f"Output: {folder} ")
    assert first in ended.stdout.splitlines()[-1]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_starts_nothing(checkout, flag):
    ended = quickstart(checkout, flag)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("Usage: scripts/quickstart [--tiny] [OUTPUT_FOLDER]")
    assert sorted(path.name for path in checkout.iterdir()) == ["python", "scripts"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--fast",), "there is no option --fast"),
        (("-t", "mine"), "there is no option -t"),
        (("mine", "yours"), "two output folders are given, mine and yours"),
        (("",), "the output folder has no name"),
    ],
)
def test_mistakes_start_nothing(checkout, arguments, sentence):
    ended = quickstart(checkout, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert sentence in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert sorted(path.name for path in checkout.iterdir()) == ["python", "scripts"]
