"""What `--config` names: a config that comes along, a Python file, or a YAML file over one of them.

A clone has its configs in `configs/`, beside the package; an installation in the package itself.
"""

import ast
import difflib
import runpy
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import files
from lrmil_jax.errors import ConfigError

YAML = (".yaml", ".yml")
_PACKAGE = Path(__file__).parent


def folder() -> Path:
    """Of the configs that come along."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> tuple[str, ...]:
    """`tcga_nsclc`, `sweeps/distillation_weights`, ...: every config that comes along."""
    base = folder()
    paths = (path.relative_to(base).with_suffix("") for path in base.rglob("*.py"))
    return tuple(sorted(path.as_posix() for path in paths if path.name != "__init__"))


def locate(name: str) -> Path:
    """The file of a config that comes along.

    Raises:
      ConfigError: there is none of this name.
    """
    every = names()
    if name not in every:
        raise ConfigError(
            f"no config is called {name!r}{_near(name, every)}; `lrmil init` lists those that come "
            "along, and a file of your own ends in .py or .yaml"
        )
    return folder() / f"{name}.py"


def title(name: str) -> str:
    """The first sentence of a config that comes along."""
    text = ast.get_docstring(ast.parse(locate(name).read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def _near(name: str, every: Sequence[str]) -> str:
    close = [one for one in every if name in one] or difflib.get_close_matches(name, every, n=1)
    return f"; did you mean {' or '.join(close[:3])}?" if close and name else ""


def resolve(value: str) -> str:
    """`FILE.py[:ARG]`, as ml_collections' flag reads it, of what a user gives to `--config`.

    Args:
      value: a name, or the path of a Python or YAML file, and `:tiny` after it if wanted.

    Raises:
      ConfigError: no such name or file.
    """
    given, colon, arg = value.partition(":")
    path = Path(given)
    if path.is_file():
        return f"{_PACKAGE / 'yaml_config.py'}:{value}" if path.suffix in YAML else value
    if path.suffix in (".py", *YAML):
        name = path.with_suffix("").as_posix().removeprefix("./").removeprefix("configs/")
        hint = f"; the one that comes along is --config {name}" if name in names() else ""
        raise ConfigError(f"--config names {given}, which does not exist{hint}")
    return f"{locate(given)}{colon}{arg}"


def resolved(arguments: Sequence[str]) -> list[str]:
    """A command line with what follows its `--config` as `resolve` gives it."""
    changed = list(arguments)
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if equals:
            changed[place] = f"{flag}={resolve(value)}"
        elif place + 1 < len(arguments):
            changed[place + 1] = resolve(arguments[place + 1])
    return changed


def load(name: str) -> ConfigDict:
    """The config of a name or a Python file, without `:tiny`.

    Raises:
      ConfigError: no such name or file, or the file gives no config.
    """
    path = Path(name) if Path(name).suffix == ".py" else locate(name)
    if not path.is_file():
        raise ConfigError(f"the config {path} does not exist")
    make = runpy.run_path(str(path)).get("get_config")
    config = make() if callable(make) else None
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path} has no get_config() that returns a config")
    return config


def copy(name: str, target: Path) -> None:
    """Writes a config that comes along to a file of the user's, with its own name in its commands.

    Raises:
      ConfigError: no such name, the file exists already, or is not called `.py`.
      WorkdirError: it cannot be written.
    """
    source = locate(name)
    if target.suffix != ".py":
        raise ConfigError(f"{target} would be a config in Python; give it a name that ends in .py")
    text = source.read_text(encoding="utf-8")
    text = text.replace(f"python -m lrmil_jax.main --config configs/{name}.py",
                        f"lrmil run --config {target}")  # fmt: skip
    with files.disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise ConfigError(f"{target} exists already and is left as it is; give another name")
    files.write_text(target, text)
