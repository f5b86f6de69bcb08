"""A Cloud TPU slice by gcloud: created, set up, used by all of its hosts at once, and deleted.

  python scripts/tpu/slice.py STEP --name NAME --zone ZONE --accelerator-type v6e-16 \\
    [--config CONFIG --workdir DIR] [--go] [-- more arguments of lrmil_jax.main]

STEP is create, setup, run, delete, or all of them in turn. The commands are printed, one a line,
and nothing is done; with --go they are run. docs/cloud_tpu.md says how to begin.
"""

import argparse
import dataclasses
import posixpath
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import chips

ROOT = Path(__file__).parents[2]
STEPS = ("create", "setup", "run", "delete")
_BUCKETS = "/mnt/buckets"  # where buckets are mounted, each in a folder of its name
_DONE, _FAILED = "ACTIVE", ("FAILED", "SUSPENDED")  # states of a queued request


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
      words: of it.
      waits: it prints the state of a queued request, and is repeated until that is ready.
    """

    words: tuple[str, ...]
    waits: bool = False

    @property
    def line(self) -> str:
        """As a shell reads it."""
        return shlex.join(self.words) + (f"  # again until it says {_DONE}" if self.waits else "")


def main(arguments: Sequence[str]) -> None:
    """Prints the commands or, with --go, runs them.

    Raises:
      SystemExit: a mistake in the arguments, or a command that failed.
    """
    own, more = _parted(arguments)
    args = _parser().parse_args(own)
    planned = plan(args, more)
    if not args.go:
        for command in planned:
            print(command.line)
        return
    if shutil.which("gcloud") is None:
        raise SystemExit(
            "gcloud is not on PATH; install the Google Cloud CLI (cloud.google.com/sdk), or leave "
            "--go away to see the commands"
        )
    carry_out(planned, args)


def _parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before and after `--`."""
    place = list(arguments).index("--") if "--" in arguments else len(arguments)
    return list(arguments[:place]), list(arguments[place + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("step", choices=(*STEPS, "all"))
    parser.add_argument("--name", required=True, help="of the slice")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", help="by default that of `gcloud config`")
    parser.add_argument(
        "--accelerator-type", required=True, help="v5litepod-16, v5p-32, v6e-8, ..."
    )
    parser.add_argument("--runtime-version", help="by default the one for JAX on this chip")
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be taken away")
    parser.add_argument("--queued", action="store_true", help="wait in the queue for free chips")
    parser.add_argument("--nfs", metavar="SERVER:/EXPORT", help="shared disk, mounted at --shared")
    parser.add_argument("--shared", default="/mnt/shared", help="where the shared disk is mounted")
    parser.add_argument("--extras", default="tpu", help="extras of lrmil_jax to install")
    parser.add_argument("--before", help="shell command that each host runs before the setup")
    parser.add_argument("--config", help="of lrmil_jax.main")
    parser.add_argument("--workdir", help="below --shared, or gs://bucket/folder")
    parser.add_argument(
        "--pause", type=float, default=30, help="seconds between looks at the queue"
    )
    parser.add_argument("--go", action="store_true", help="run the commands")
    return parser


def plan(args: argparse.Namespace, more: Sequence[str]) -> list[Command]:
    """The commands of a step, in their order.

    Args:
      args: of the command line.
      more: arguments handed to `lrmil_jax.main`.

    Raises:
      SystemExit: one sentence on a mistake in the arguments.
    """
    generation, _ = chips.of_type(args.accelerator_type)
    args.runtime_version = args.runtime_version or generation.runtime
    steps = STEPS if args.step == "all" else (args.step,)
    if {"setup", "run"} & set(steps):
        _check_workdir(args)
    if "run" in steps and not args.config:
        raise SystemExit("--config is missing: what lrmil_jax.main is to run on the slice")
    if more and "run" not in steps:
        raise SystemExit(f"{args.step} takes no arguments after --; run and all do")
    made = {"create": _create, "setup": _setup, "delete": _delete}
    return [
        command
        for step in steps
        for command in (_run(args, more) if step == "run" else made[step](args))
    ]


def _check_workdir(args: argparse.Namespace) -> None:
    """Raises SystemExit if not every host would see the same folder."""
    if not args.workdir:
        raise SystemExit("--workdir is missing: a folder that all hosts of the slice share")
    inside = posixpath.normpath(args.workdir).startswith(f"{args.shared.rstrip('/')}/")
    bucket = args.workdir.startswith("gs://")
    if not (inside or bucket):
        raise SystemExit(
            f"--workdir {args.workdir} is not on a disk that all hosts share; give a folder below "
            f"{args.shared} (--shared, mounted by --nfs) or gs://bucket/folder"
        )
    if bucket and not all(args.workdir.removeprefix("gs://").partition("/")[::2]):
        raise SystemExit(f"--workdir {args.workdir} needs a folder: gs://bucket/folder")


def _gcloud(args: argparse.Namespace, *words: str) -> Command:
    place = [f"--zone={args.zone}", *([f"--project={args.project}"] if args.project else [])]
    return Command(("gcloud", "compute", "tpus", *words, *place))


def _on_all(args: argparse.Namespace, command: str) -> Command:
    """A shell command on every host, at the same time."""
    return _gcloud(args, "tpu-vm", "ssh", args.name, "--worker=all", f"--command={command}")


def _create(args: argparse.Namespace) -> list[Command]:
    kind = [f"--accelerator-type={args.accelerator_type}", *(["--spot"] if args.spot else [])]
    version = args.runtime_version
    if not args.queued:
        return [_gcloud(args, "tpu-vm", "create", args.name, *kind, f"--version={version}")]
    name = ("queued-resources", "create", args.name, f"--node-id={args.name}")
    state = ("queued-resources", "describe", args.name, "--format=value(state.state)")
    return [
        _gcloud(args, *name, *kind, f"--runtime-version={version}"),
        dataclasses.replace(_gcloud(args, *state), waits=True),
    ]


def _setup(args: argparse.Namespace) -> list[Command]:
    archive = posixpath.join(tempfile.gettempdir(), f"lrmil_jax-{args.name}.tar.gz")
    packed = ("git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={archive}", "HEAD")
    # The images of older chips have a Python older than 3.11; uv brings one.
    install = (
        "mkdir -p lrmil_jax && tar -xzf lrmil_jax.tar.gz -C lrmil_jax && cd lrmil_jax && "
        "python3 -m pip install --quiet --user uv && "
        "python3 -m uv venv --quiet --allow-existing --python 3.11 .venv && "
        f"python3 -m uv pip install --quiet -c constraints.txt -e '.[{args.extras}]'"
    )
    before = [_on_all(args, args.before)] if args.before else []
    copied = ("tpu-vm", "scp", archive, f"{args.name}:lrmil_jax.tar.gz", "--worker=all")
    return [*before, *_mount(args), Command(packed), _gcloud(args, *copied), _on_all(args, install)]


def _mount(args: argparse.Namespace) -> list[Command]:
    folder = _mounted_at(args)
    make = f"sudo mkdir -p {shlex.quote(folder)}"
    if args.workdir.startswith("gs://"):
        owner = f'sudo chown "$USER" {shlex.quote(folder)}'
        mount = f"gcsfuse --implicit-dirs {shlex.quote(_bucket(args))} {shlex.quote(folder)}"
        make = f"{make} && {owner}"
    elif args.nfs:
        install = "sudo apt-get -q update && sudo apt-get install -yq nfs-common"
        mount = f"sudo mount -t nfs {shlex.quote(args.nfs)} {shlex.quote(folder)}"
        make = f"{install} && {make}"
    else:
        return []
    return [_on_all(args, f"mountpoint -q {shlex.quote(folder)} || {{ {make} && {mount}; }}")]


def _bucket(args: argparse.Namespace) -> str:
    return args.workdir.removeprefix("gs://").partition("/")[0]


def _mounted_at(args: argparse.Namespace) -> str:
    """Where the disk or the bucket of the working directory is on every host."""
    if args.workdir.startswith("gs://"):
        return f"{_BUCKETS}/{_bucket(args)}"
    return args.shared


def _run(args: argparse.Namespace, more: Sequence[str]) -> list[Command]:
    folder = _mounted_at(args)
    workdir = args.workdir
    if workdir.startswith("gs://"):
        workdir = posixpath.join(_BUCKETS, workdir.removeprefix("gs://"))
    words = [".venv/bin/python", "-m", "lrmil_jax.main", "--coordinator", "auto"]
    words += ["--config", args.config, "--workdir", workdir, *more]
    # A host without the disk would write to its own, and the others would wait for its files.
    missing = f"echo {shlex.quote(f'{folder} is not mounted on this host; run setup')} >&2; exit 1"
    guard = f"mountpoint -q {shlex.quote(folder)} || {{ {missing}; }}"
    return [_on_all(args, f"{guard}; cd lrmil_jax && {shlex.join(words)}")]


def _delete(args: argparse.Namespace) -> list[Command]:
    if args.queued:
        return [_gcloud(args, "queued-resources", "delete", args.name, "--force", "--quiet")]
    return [_gcloud(args, "tpu-vm", "delete", args.name, "--quiet")]


def carry_out(commands: Sequence[Command], args: argparse.Namespace) -> None:
    """Runs commands one after another.

    Args:
      commands: to run.
      args: of the command line.

    Raises:
      SystemExit: one failed, or was interrupted; the sentence says how the slice is deleted.
    """
    for command in commands:
        print(f"$ {command.line}", flush=True)
        try:
            problem = _wait(command, args.pause) if command.waits else _once(command)
        except KeyboardInterrupt:
            problem = "was interrupted"
        if problem:
            raise SystemExit(
                f"{command.line} {problem}; the slice may be there and cost money: mend it and "
                f"repeat this step, or delete it with: {_delete(args)[0].line}"
            )


def _once(command: Command) -> str:
    """Runs it; what went wrong, or nothing."""
    status = subprocess.run(command.words, check=False).returncode
    return f"ended with status {status}" if status else ""


def _wait(command: Command, pause: float) -> str:
    """Repeats it until the request is ready; what went wrong, or nothing."""
    while True:
        done = subprocess.run(command.words, stdout=subprocess.PIPE, text=True, check=False)
        state = done.stdout.strip()
        if done.returncode or state in _FAILED:
            return f"ended with status {done.returncode}" if done.returncode else f"says {state}"
        if state == _DONE:
            return ""
        print(f"{state}; asked again in {pause:g} s", flush=True)
        time.sleep(pause)


if __name__ == "__main__":
    main(sys.argv[1:])
