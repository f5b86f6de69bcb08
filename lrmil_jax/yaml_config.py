"""A config as YAML: keys over those of a config that comes along, `config: NAME` (else the
defaults). `--config FILE.yaml` loads this module as ml_collections loads `configs/X.py`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

from lrmil_jax import config as configuration
from lrmil_jax import config_files
from lrmil_jax.errors import ConfigError, one_line

BASE = "config"


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise ConfigError(
                    f"has {key!r} twice in the part from line {line} on; keep one of them"
                )
        return super().construct_mapping(node, deep)


def get_config(arg: str) -> ConfigDict:
    """The config of a YAML file.

    Args:
      arg: its path, and `:tiny` after it if wanted.

    Raises:
      ConfigError: it is no YAML, or has a key that is not there or a value of another type.
    """
    name, _, after = arg.partition(":")
    path = Path(name)
    try:
        keys = _flat(_read(path))
        base = keys.pop(BASE, None)
        config = configuration.default() if base is None else config_files.load(str(base))
        configuration.update(config, keys)
        return configuration.finish(config, after)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _read(path: Path) -> Mapping[Any, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise ConfigError(f"cannot be read as YAML: {one_line(error)}") from error
    if not isinstance(content, Mapping | None):
        raise ConfigError("must be keys and values, such as `student: {topk: 4}`")
    return content or {}


def _flat(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Keys with dots and their values; both ways of writing a key may be mixed.

    Raises:
      ConfigError: a key is no text, or is there in both ways.
    """
    every: dict[str, Any] = {}
    for key, value in content.items():
        if not isinstance(key, str):
            raise ConfigError(f"has the key {prefix}{key!r}, which is no text")
        name = f"{prefix}{key}"
        parts = _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
        twice = sorted(every.keys() & parts.keys())
        if twice:
            raise ConfigError(f"has {twice[0]!r} twice; keep one of them")
        every |= parts
    return every
