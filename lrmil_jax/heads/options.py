"""Options of MIL heads as a config gives them: `("bag_weight=0.7", "subtyping=true")`."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from lrmil_jax.errors import ConfigError
from lrmil_jax.heads.base import Head

# Given by the task, or by config keys of their own.
_OWN_KEYS = ("hidden", "dropout", "dtype")
_INSIDE = ("num_classes", "instance_classes", "parent", "name")
_TRUTH = {"true": True, "false": False}


def defaults(head: type[Head]) -> dict[str, Any]:
    """Every field of a head that a caller may set, with its default."""
    return {
        field.name: field.default
        for field in dataclasses.fields(head)
        if field.name not in ("num_classes", "parent", "name")
    }


def parse(name: str, head: type[Head], texts: Iterable[str]) -> dict[str, Any]:
    """Options of a head from "name=value" texts.

    Args:
      name: of the head, for messages.
      head: its class.
      texts: one an option.

    Raises:
      ConfigError: an unknown option, one with a config key of its own, or a value of a wrong type
        or out of its range.
    """
    known, options = defaults(head), {}
    free = {key: value for key, value in known.items() if key not in (*_OWN_KEYS, *_INSIDE)}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if key in _OWN_KEYS:
            raise ConfigError(f"{key} of a head is a config key of its own, beside options")
        if not equals or key not in free:
            raise ConfigError(_unknown(name, text, key, list(free)))
        options[key] = _typed(name, key, value, free[key])
    check(name, head, options)
    return options


def check(name: str, head: type[Head], options: Mapping[str, Any]) -> None:
    """Refuses what a head cannot be.

    Raises:
      ConfigError: an option is not one of its words, or out of its range.
    """
    for key, words in head.choices.items():
        if options.get(key, words[0]) not in words:
            raise ConfigError(
                f"option {key} of MIL head {name!r} is {options[key]!r}, but it must be one of "
                f"{', '.join(words)}"
            )
    for key, (low, high) in head.limits.items():
        if not low <= options.get(key, low) <= high:
            raise ConfigError(
                f"option {key} of MIL head {name!r} is {options[key]}, but it must be from {low} "
                f"to {high}"
            )


def _unknown(name: str, text: str, key: str, known: list[str]) -> str:
    if not known:
        return f"MIL head {name!r} has no options, but {text!r} is given"
    if key in known:
        return f"option {text!r} of MIL head {name!r} has no value; write {key}=VALUE"
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? It has" if close else "it has"
    return f"MIL head {name!r} has no option {key!r}: {hint} {', '.join(known)}"


def _typed(name: str, key: str, text: str, default: Any) -> Any:
    kind = type(default)
    try:
        return _TRUTH[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise ConfigError(
            f"option {key} of MIL head {name!r} is {text!r}, but it must be {wanted}"
        ) from error
