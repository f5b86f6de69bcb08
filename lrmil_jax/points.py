"""Settings that are tried: texts of changed config keys, and grids of them."""

import itertools
from collections.abc import Mapping, Sequence

from lrmil_jax.errors import ConfigError


def parse(texts: Sequence, *, key: str) -> dict[str, dict[str, str]]:
    """{name: {key: value}} of `"name: key=value key=value"`.

    Args:
      texts: to be read.
      key: of the config that has them, for messages.

    Raises:
      ConfigError: a text of another form, or a name given twice.
    """
    parsed: dict[str, dict[str, str]] = {}
    for text in _tuple(texts, key):
        name, colon, rest = text.partition(":")
        name, pairs = name.strip(), [pair.partition("=") for pair in rest.split()]
        if (
            not colon
            or not name
            or not pairs
            or not all(sign and value for _, sign, value in pairs)
        ):
            what = "the variant" if key == "study.variants" else "the point"
            raise ConfigError(
                f"{what} {text!r} of {key} cannot be read; write "
                "'name: key=value key=value', values without spaces"
            )
        if name in parsed:
            raise ConfigError(f"{key} has the name {name!r} twice")
        parsed[name] = {changed: value for changed, _, value in pairs}
    return parsed


def text(name: str, changes: Mapping[str, str]) -> str:
    """What `parse` reads."""
    return f"{name}: {title(changes)}"


def title(changes: Mapping[str, str]) -> str:
    """A point by what it changes."""
    return " ".join(f"{key}={value}" for key, value in changes.items())


def each(texts: Sequence) -> list[dict[str, str]]:
    """Every value of `"key: value value"` alone.

    Raises:
      ConfigError: see `values`.
    """
    return [{key: one} for key, own in values(texts, key="sweep.each").items() for one in own]


def grid(texts: Sequence) -> list[dict[str, str]]:
    """Every combination of the values of several `"key: value value"`.

    Raises:
      ConfigError: see `values`.
    """
    named = values(texts, key="sweep.grid")
    combinations = itertools.product(*named.values()) if named else ()
    return [dict(zip(named, one, strict=True)) for one in combinations]


def values(texts: Sequence, *, key: str) -> dict[str, tuple[str, ...]]:
    """{key: values} of `"key: value value"`.

    Args:
      texts: to be read.
      key: of the config that has them, for messages.

    Raises:
      ConfigError: a text of another form, or a key or one of its values given twice.
    """
    named: dict[str, tuple[str, ...]] = {}
    for line in _tuple(texts, key):
        name, colon, rest = line.partition(":")
        name, own = name.strip(), tuple(rest.split())
        if not colon or not name or not own or any("=" in one for one in own):
            raise ConfigError(
                f"{line!r} of {key} cannot be read; write 'key: value value', values without spaces"
            )
        if name in named or len(set(own)) < len(own):
            raise ConfigError(f"{key} has {name!r} or one of its values twice")
        named[name] = own
    return named


def _tuple(texts: Sequence, key: str) -> Sequence[str]:
    if isinstance(texts, str) or not all(isinstance(one, str) for one in texts):
        raise ConfigError(f"config.{key} is {texts!r}, but it must be a tuple of texts")
    return texts
