"""The examples of `scripts/cluster`, run by stand-ins of their schedulers, and by Snakemake itself
where it is installed. Minutes long."""

import re
import shutil
import stat
import subprocess
import sys

import pytest

from tests.integration import runs

pytestmark = pytest.mark.slow
CLUSTER = runs.ROOT / "scripts/cluster"
LRMIL = f"""#!/bin/sh
exec {sys.executable} -m lrmil_jax.command "$@"
"""
SBATCH = f"""#!{sys.executable}
import os, pathlib, re, subprocess, sys
book = pathlib.Path(os.environ["BOOK"])
ended = book.read_text().splitlines() if book.exists() else []
options = dict(one.lstrip("-").partition("=")[::2] for one in sys.argv[1:])
after = options.get("dependency", "").removeprefix("afterok:")
if after and f"ok {{after}}" not in ended:
    sys.exit(f"job {{after}} has not ended well")
number = str(len(ended) + 1)
first, last = map(int, options.get("array", "1-1").split("-"))
status = 0
for task in range(first, last + 1):
    own = {{"SLURM_JOB_ID": number}}
    if "array" in options:
        own |= {{"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(last)}}
    log = options["output"].replace("%x", options["job-name"])
    log = log.replace("%A_%a", f"{{number}}_{{task}}")
    with open(log, "w") as file:
        status |= subprocess.call(["sh", "-c", options["wrap"]], env={{**os.environ, **own}},
                                  stdout=file, stderr=file)
with book.open("a") as file:
    file.write(f"{{'bad' if status else 'ok'}} {{number}}\\n")
print(number)
"""
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
tasks = [
    subprocess.Popen(sys.argv[1:], env={{
        **os.environ, "SLURM_NTASKS": "2", "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n),
        "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1",
    }}) for n in range(2)
]
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.fixture
def environment(cache, tmp_path):
    """With `lrmil`, `sbatch` and `srun` first on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("lrmil", LRMIL), ("sbatch", SBATCH), ("srun", SRUN)):
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    found = runs.environment(cache)
    return found | {
        "PATH": f"{folder}:{found['PATH']}",
        "PYTHONPATH": str(runs.ROOT),
        "BOOK": str(tmp_path / "jobs"),
    }


def call(command, environment):
    done = subprocess.run(
        [*map(str, command)], env=environment, cwd=runs.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_whole(finished, workdir):
    """The run's results, and slides that are the same, byte for byte."""
    assert (workdir / "report/index.html").is_file()
    shards = sorted((workdir / "regions").glob("*.array_record"))
    assert len(shards) == 20
    for shard in shards:
        assert shard.read_bytes() == (finished.workdir / "regions" / shard.name).read_bytes()


def test_slurm(finished, environment, tmp_path):
    """Arrays, their dependencies, and a training of two processes that find each other."""
    workdir = tmp_path / "run"
    printed = call([CLUSTER / "slurm", "tcga_nsclc:tiny", workdir, 2], environment)
    assert printed.split() == ["4"]
    assert (tmp_path / "jobs").read_text().split() == ["ok", "1", "ok", "2", "ok", "3", "ok", "4"]
    assert len(list((workdir / "slurm").glob("lrmil-prepare-*.log"))) == 2
    assert_whole(finished, workdir)
    assert "[Gloo]" in (workdir / "slurm/lrmil-train-4_1.log").read_text()


def test_nextflow(finished, environment, tmp_path):
    """The scripts of its processes, in the order of its workflow."""
    text = (CLUSTER / "main.nf").read_text(encoding="utf-8")
    found = dict(re.findall(r'process (\w+) \{.*?script:\s*"""(.*?)"""', text, re.DOTALL))
    (command,) = re.findall(r'def command = "(.*)"', text)
    shards, workdir = 2, tmp_path / "run"
    values = {"params.config": "tcga_nsclc:tiny", "params.workdir": workdir, "params.options": "",
              "params.shards": shards}  # fmt: skip
    order = [("PREPARE", n + 1) for n in range(shards)] + [("JOIN", 0)]
    order += [("ENCODE", n + 1) for n in range(shards)] + [("TRAIN", 0)]
    assert {name for name, _ in order} == found.keys()
    for name, shard in order:
        script = found[name].replace("${command}", command)
        for key, value in {**values, "shard": shard}.items():
            script = script.replace(f"${{{key}}}", str(value))
        assert "${" not in script
        call(["sh", "-c", script], environment)
    assert_whole(finished, workdir)


@pytest.mark.skipif(shutil.which("snakemake") is None, reason="snakemake is not installed")
def test_snakemake(finished, environment, tmp_path):
    workdir = tmp_path / "run"
    command = ["snakemake", "--snakefile", CLUSTER / "Snakefile", "--cores", 2, "--directory",
               tmp_path, "--config", "name=tcga_nsclc:tiny", f"workdir={workdir}",
               "shards=2"]  # fmt: skip
    call(command, environment)
    assert_whole(finished, workdir)
    again = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    assert "Nothing to be done" in again.stdout + again.stderr
