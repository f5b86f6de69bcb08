"""The scripts of Cloud TPU: the commands that they print, what --go runs, and the sum of hours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLICE = ROOT / "scripts/tpu/slice.py"
PLACE = ("--name", "lr", "--zone", "us-east5-b", "--accelerator-type", "v6e-16")
ASKED = (*PLACE, "--workdir", "/mnt/shared/runs/a", "--config", "tcga_nsclc")
AT = "--zone=us-east5-b"
# Notes its arguments; fails at the word in FAIL_AT; a queued request is ready at the second look.
STAND_IN = """#!/bin/sh
printf '%s\\n' "$*" >> "$CALLS"
case "$*" in
  *"${FAIL_AT:-nothing at all}"*) exit 3 ;;
  *describe*) [ "$(grep -c describe "$CALLS")" -gt 1 ] && echo ACTIVE || echo WAITING ;;
esac
"""


def printed(*arguments, path=None, **environment):
    given = os.environ | {"PATH": path or os.environ["PATH"], "TMPDIR": "/tmp"} | environment
    return subprocess.run(
        [sys.executable, SLICE, *arguments], capture_output=True, text=True, env=given, check=False
    )


@pytest.fixture
def gcloud(tmp_path):
    """PATH with the stand-in first, and the file of its calls."""
    script = tmp_path / "gcloud"
    script.write_text(STAND_IN)
    script.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}", tmp_path / "calls"


def test_commands_that_are_printed():
    done = printed("all", *ASKED, "--nfs", "10.0.0.2:/share", "--", "--config.seed=1",
                   "--config.data.labels=/mnt/shared/my labels.csv")  # fmt: skip
    assert done.stderr == ""
    of_vm, on_all = "gcloud compute tpus tpu-vm", "ssh lr --worker=all '--command="
    quote = "'\"'\"'"
    assert done.stdout.splitlines() == [
        f"{of_vm} create lr --accelerator-type=v6e-16 --version=v2-alpha-tpuv6e {AT}",
        f"{of_vm} {on_all}mountpoint -q /mnt/shared || {{ sudo apt-get -q update && sudo apt-get "
        "install -yq nfs-common && sudo mkdir -p /mnt/shared && sudo mount -t nfs 10.0.0.2:/share "
        f"/mnt/shared; }}' {AT}",
        f"git -C {ROOT} archive --format=tar.gz --output=/tmp/lrmil_jax-lr.tar.gz HEAD",
        f"{of_vm} scp /tmp/lrmil_jax-lr.tar.gz lr:lrmil_jax.tar.gz --worker=all {AT}",
        f"{of_vm} {on_all}mkdir -p lrmil_jax && tar -xzf lrmil_jax.tar.gz -C lrmil_jax && cd "
        "lrmil_jax && python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet "
        "--allow-existing --python 3.11 .venv && python3 -m uv pip install --quiet -c "
        f"constraints.txt -e {quote}.[tpu]{quote}' {AT}",
        f"{of_vm} {on_all}mountpoint -q /mnt/shared || {{ echo {quote}/mnt/shared is not mounted "
        f"on this host; run setup{quote} >&2; exit 1; }}; cd lrmil_jax && .venv/bin/python -m "
        "lrmil_jax.main --coordinator auto --config tcga_nsclc --workdir /mnt/shared/runs/a "
        f"--config.seed=1 {quote}--config.data.labels=/mnt/shared/my labels.csv{quote}' {AT}",
        f"{of_vm} delete lr --quiet {AT}",
    ]


def test_queue_spot_and_bucket():
    arguments = (*ASKED, "--queued", "--spot", "--project", "p", "--workdir", "gs://slides/runs/a")
    lines = printed("create", *arguments).stdout.splitlines()
    assert lines == [
        "gcloud compute tpus queued-resources create lr --node-id=lr --accelerator-type=v6e-16 "
        f"--spot --runtime-version=v2-alpha-tpuv6e {AT} --project=p",
        "gcloud compute tpus queued-resources describe lr '--format=value(state.state)' "
        f"{AT} --project=p  # again until it says ACTIVE",
    ]
    assert (
        "gcsfuse --implicit-dirs slides /mnt/buckets/slides" in printed("setup", *arguments).stdout
    )
    assert "--workdir /mnt/buckets/slides/runs/a" in printed("run", *arguments).stdout
    assert printed("delete", *arguments).stdout == (
        f"gcloud compute tpus queued-resources delete lr --force --quiet {AT} --project=p\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", *PLACE, "--config", "c"), "--workdir is missing"),
        (("run", *PLACE, "--workdir", "/mnt/shared/a"), "--config is missing"),
        (
            ("all", *ASKED, "--workdir", "/home/me/a"),
            "--workdir /home/me/a is not on a disk that all",
        ),
        (("all", *ASKED, "--workdir", "/mnt/shared/../a"), "is not on a disk that all hosts share"),
        (("all", *ASKED, "--workdir", "gs://bucket"), "gs://bucket needs a folder"),
        (("create", *PLACE, "--accelerator-type", "v6e-7"), "v6e-7 is none that is known here"),
        (("create", *PLACE, "--accelerator-type", "v5p-12"), "v5p-12 is none that is known here"),
        (("create", *PLACE, "--accelerator-type", "v5e-8"), "is called v5litepod-8 by gcloud"),
        (("create", *PLACE, "--", "--config.seed=1"), "create takes no arguments after --"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence):
    done = printed(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_gcloud(tmp_path):
    done = printed("delete", *PLACE, "--go", path=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("gcloud is not on PATH; install the Google Cloud CLI")


def test_go_runs_them_in_turn(gcloud):
    path, calls = gcloud
    done = printed(
        "create", *PLACE, "--queued", "--pause", "0", "--go", path=path, CALLS=str(calls)
    )
    assert done.returncode == 0, done.stderr
    words = [line.split()[2:4] for line in calls.read_text().splitlines()]
    assert words == [["queued-resources", step] for step in ("create", "describe", "describe")]
    assert "WAITING" in done.stdout


def test_failure_in_the_middle_tells_how_to_delete(gcloud):
    path, calls = gcloud
    environment = {"CALLS": str(calls), "FAIL_AT": "lrmil_jax.main"}
    done = printed("all", *ASKED, "--go", path=path, **environment)
    assert done.returncode == 1
    deletion = f"gcloud compute tpus tpu-vm delete lr --quiet {AT}"
    assert done.stderr.endswith(f"or delete it with: {deletion}\n")
    assert "ended with status 3" in done.stderr
    assert "delete" not in calls.read_text()
    assert printed("delete", *PLACE, "--go", path=path, **environment).returncode == 0
    assert calls.read_text().splitlines()[-1] == deletion.removeprefix("gcloud ")


def test_hours_against_the_sum_by_hand(monkeypatch, capsys):
    monkeypatch.syspath_prepend(SLICE.parent)
    import cost

    counted = {"hr": 3.6e12, "lr": 3.6e11}
    monkeypatch.setattr(cost.cost, "flops_per_patch", lambda *_: counted)
    cost.main(["--slides", "10", "--hr-patches", "100", "--lr-patches", "10", "--models", "2",
               "--steps", "5", "--batch", "20", "--chips", "2", "--share-of-peak", "0.5",
               "--dollars-per-chip-hour", "v5p=2"])  # fmt: skip
    # 10 x 100 x 3.6 + 2 x 5 x 20 x 3 x .36 + 2 x 10 x 10 x .36 TFLOP, at half of 459 TFLOP/s
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    seconds = (3600 + 216 + 72) / (459 / 2)
    assert lines["v5p"][-3:] == [
        f"{n:.2f}" for n in (seconds / 3600, seconds / 7200, seconds / 1800)
    ]
    assert lines["v5e"][-3:] == ["0.01", "0.01", "unknown"]
    for wrong in ("v5p", "v5p=", "v5p=-1", "h100=3"):
        with pytest.raises(SystemExit, match="is none; give CHIP=DOLLARS"):
            cost.main(["--dollars-per-chip-hour", wrong])
