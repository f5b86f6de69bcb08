"""What a plain installation and a container are made of."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lrmil_jax import config_files

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONTAINERS = [ROOT / "scripts/container" / name for name in ("Dockerfile", "lrmil_jax.def")]


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.name)
def test_containers_take_what_the_build_needs_and_extras_that_there_are(path):
    text = path.read_text()
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "configs",
                 "lrmil_jax"):  # fmt: skip
        assert re.search(rf"^(COPY|   ) .*\b{re.escape(name)}\b", text, re.MULTILINE), name
        assert (ROOT / name).exists()
    asked = re.findall(r"EXTRAS=([\w,]+)", text)
    assert {"openslide,dicom", "openslide,dicom,cuda"} == set(asked)
    assert {extra for one in asked for extra in one.split(",")} <= set(
        PROJECT["optional-dependencies"]
    )
    assert "-c constraints.txt" in text


def test_the_script_is_the_command():
    module, name = PROJECT["scripts"]["lrmil"].split(":")
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
    assert name == "main"


@pytest.mark.slow
def test_a_plain_wheel_has_the_configs_and_runs_elsewhere(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    # A copy: a build leaves folders beside the code.
    copy = tmp_path / "copy"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", wheels, copy], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", site, wheel], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def lrmil(*arguments):
        code = f"import sys; sys.path.insert(0, {str(site)!r}); import lrmil_jax.command as c; "
        code += "print(c.__file__, file=sys.stderr); sys.exit(c.main())"
        command = [sys.executable, "-c", code, *arguments]
        environment = {"HOME": str(tmp_path)}
        result = subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True
        )
        assert str(site) in result.stderr
        return result

    listed = lrmil("init")
    assert listed.returncode == 0, listed.stderr
    assert all(name in listed.stdout for name in config_files.names())
    assert lrmil("init", "tcga_nsclc", "mine.py").returncode == 0
    refused = lrmil("check", "--config", "mine.py", "--workdir", "runs")
    assert refused.returncode == 1
    assert "data.labels is not set" in refused.stderr
