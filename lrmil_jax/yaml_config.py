"""A config as YAML: keys over those of a config that comes along, `config: NAME` (else the
defaults). `--config FILE.yaml` loads this module as ml_collections loads `configs/X.py`."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

from lrmil_jax import config as configuration
from lrmil_jax import config_files
from lrmil_jax.errors import ConfigError, one_line

BASE = "config"
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text",
          tuple: "a list"}  # fmt: skip


_MERGE = "tag:yaml.org,2002:merge"  # of `<<`


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would silently take the last, and a part
    that holds itself."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._open: list[str | None] = []  # names of the parts around what is read

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._open:
            line = event.start_mark.line + 1
            raise ConfigError(
                f"has *{event.anchor} in line {line} inside the part of that name; write out what "
                "is meant"
            )
        self._open.append(event.anchor)
        node = super().compose_node(parent, index)
        self._open.pop()
        return node

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        scalars = (key for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        keys = [(key.tag, key.value) for key in scalars if key.tag != _MERGE]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise ConfigError(
                    f"has {key[1]!r} twice in the part from line {line} on; keep one of them"
                )
        return node


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
        config = configuration.default() if base is None else _load_base(base)
        _update(config, keys)
        return configuration.finish(config, after)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _load_base(base: Any) -> ConfigDict:
    if not isinstance(base, str) or Path(base).suffix in config_files.YAML:
        raise ConfigError(
            f"has the {BASE} {base!r}, but keys lie over a config that comes along (`lrmil init` "
            "lists them) or over a file that ends in .py"
        )
    return config_files.load(base)


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
        parts = _flat(value, f"{name}.") if value and isinstance(value, Mapping) else {name: value}
        twice = sorted(every.keys() & parts.keys())
        if twice:
            raise ConfigError(f"has {twice[0]!r} twice; keep one of them")
        every |= parts
    return every


def _update(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Changes some keys in place.

    Raises:
      ConfigError: a key that is not there, or a value of another type.
    """
    flat, defaults = configuration.flatten(config), configuration.flatten(configuration.default())
    for key, value in values.items():
        if value in (None, {}) and any(one.startswith(f"{key}.") for one in flat):
            continue  # a section all of whose keys are left out
        configuration.require_key(key, flat)
        *sections, name = key.split(".")
        block = functools.reduce(getattr, sections, config)
        kind = block.get_type(name)
        try:
            block[name] = None if value is None and defaults[key] is None else _cast(value, kind)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"config.{key} cannot be {value!r}; it is {_KINDS.get(kind, kind.__name__)}, by "
                f"default {defaults[key]!r}"
            ) from error


def _cast(value: Any, kind: type) -> Any:
    """The value, where it is of this type or says a value of it: 1 and "1e-3" are numbers."""
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(tuple(one) if isinstance(one, list) else one for one in value)
    if kind is float and not isinstance(value, bool) and isinstance(value, int | float | str):
        return float(value)
    if type(value) is not kind:
        raise TypeError
    return value
