"""The console script `lrmil`: each command is a call of what `python -m lrmil_jax...` calls too.

What a command is for, and its options, stand in `command_help.py`. Nothing here imports JAX before
a command needs it.
"""

import difflib
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from lrmil_jax import __version__, command_help
from lrmil_jax.errors import ConfigError, UserError

_HELP = ("-h", "--help")
_LINE = 80  # columns of what is printed, whatever the terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is not 0 if anything could not be done."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    # Figures go to files. A notebook's `!lrmil` hands on a backend that may not be installed here.
    os.environ["MPLBACKEND"] = "agg"
    try:
        return _dispatch(given)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except BrokenPipeError:  # of `lrmil ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(given: list[str]) -> int:
    if not given or (given[0] in (*_HELP, "help") and len(given) == 1):
        _print(command_help.overview())
        return 0 if given else 1
    if given[0] == "--version":
        _print(f"lrmil_jax {__version__}")
        return 0
    if given[0] in (*_HELP, "help"):
        given = [*given[1:], "--help"]
    if given[0].startswith("-"):  # `lrmil --config ...` is `lrmil run --config ...`
        given = ["run", *given]
    name, *rest = given
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"lrmil has no command {name!r}{hint} (`lrmil --help` lists them)")
    if any(argument in _HELP for argument in rest):
        _print(command_help.of_command(name))
        return 0
    return COMMANDS[name](rest)


def _job(name: str, stages: str | None) -> Callable[[list[str]], int]:
    """A command that is `python -m lrmil_jax.main` with these stages; None: those that are
    asked for."""

    def run(arguments: list[str]) -> int:
        from absl import app

        from lrmil_jax import main as job

        if stages is not None:
            if _has_flag(arguments, "stages"):
                raise ConfigError(
                    f"lrmil {name} has stages of its own; --stages is an option of lrmil run"
                )
            arguments = [*arguments, f"--stages={stages}"]
        return app.run(job.main, argv=["lrmil", *arguments], flags_parser=job.parse_flags)

    return run


def _has_flag(arguments: Sequence[str], name: str) -> bool:
    """Whether a flag is there; a word without dashes is another flag's value."""
    return any(argument.split("=")[0] in (f"-{name}", f"--{name}") for argument in arguments)


def _evaluate(arguments: list[str]) -> int:
    """With `--cohort` a model on new slides, else figures from files of predictions."""
    if _has_flag(arguments, "cohort"):
        return _job("evaluate", "evaluate")(arguments)
    from lrmil_jax.evals.__main__ import main as run

    return run(arguments, prog="lrmil evaluate")


def _verify(arguments: list[str]) -> int:
    from lrmil_jax.verify import main as run

    return run(arguments, prog="lrmil verify")


def _convert(arguments: list[str]) -> int:
    from lrmil_jax.models.exported import main as run

    return run(arguments, prog="lrmil convert")


def _serve(arguments: list[str]) -> int:
    from lrmil_jax.serve.command import main as run

    return run(arguments, prog="lrmil serve")


def _descriptions(arguments: list[str]) -> int:
    from lrmil_jax.selection.__main__ import main as run

    return run(arguments, prog="lrmil descriptions")


def _encoders(arguments: list[str]) -> int:
    _at_most("encoders", arguments, 1)
    from lrmil_jax.encoders.__main__ import main as run

    return run(arguments)


def _doctor(arguments: list[str]) -> int:
    _at_most("doctor", arguments, 0)
    from lrmil_jax.doctor import main as run

    return run()


def _init(arguments: list[str]) -> int:
    """Copies a config that comes along, or lists them."""
    _at_most("init", arguments, 2)
    from lrmil_jax import config_files

    if not arguments:
        rows = [(name, config_files.title(name)) for name in config_files.names()]
        width = max(len(name) for name, _ in rows)
        for name, title in rows:
            _print(textwrap.fill(title, _LINE - 1, initial_indent=f"{name:{width}}  ",
                                 subsequent_indent=" " * (width + 2)))  # fmt: skip
        return 0
    name = arguments[0]
    target = Path(arguments[1] if len(arguments) == 2 else f"{Path(name).name}.py")
    config_files.copy(name, target)
    _print(f"Written to {target}; edit it, then:")
    _print(f"  lrmil check --config {target} --workdir DIR")
    return 0


def _keys(arguments: list[str]) -> int:
    _at_most("keys", arguments, 1)
    from lrmil_jax import config_keys

    for key, (default, note) in config_keys.matching(*arguments).items():
        _print(f"{key} = {default!r}")
        if note:
            _print(textwrap.fill(note, _LINE - 1, initial_indent="    ", subsequent_indent="    "))
    return 0


def _at_most(name: str, arguments: Sequence[str], most: int) -> None:
    unknown = [argument for argument in arguments if argument.startswith("-")]
    if unknown or len(arguments) > most:
        raise ConfigError(
            f"lrmil {name} takes no {(unknown or arguments[most:])[0]!r}; see lrmil {name} --help"
        )


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _job("run", None),
    "check": _job("check", "check"),
    "predict": _job("predict", "predict"),
    "evaluate": _evaluate,
    "serve": _serve,
    "verify": _verify,
    "report": _job("report", "report"),
    "import": _job("import", "prepare,import_features"),
    "export": _job("export", "export"),
    "convert": _convert,
    "init": _init,
    "keys": _keys,
    "encoders": _encoders,
    "descriptions": _descriptions,
    "doctor": _doctor,
}


if __name__ == "__main__":
    sys.exit(main())
