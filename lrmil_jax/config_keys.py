"""Every key of the config with its default and what `config.py` says of it: for `lrmil keys` and
docs/configuration.md."""

import functools
import inspect
import re
from collections.abc import Iterator, Mapping

from lrmil_jax import config as configuration
from lrmil_jax.errors import ConfigError

# `    student.topk = 8  # of what`: block, key, value, and the comment beside it.
_ASSIGNED = re.compile(r"    ((?:\w+\.)*\w+)\.(\w+) = (.*?)(?:  # (.*))?$")
_OF_BAGS = ("teacher", "student", "mil")  # trainings on bags


def explained() -> Iterator[tuple[str, str, str]]:
    """Function, key (with its block, if any) and comment of every line that sets a key; those that
    all trainings have are of `training`, those of trainings on bags of `bag_training`."""
    function, comments = "", []
    for line in inspect.getsource(configuration).splitlines():
        match = _ASSIGNED.match(line)
        if line.startswith("def "):
            function = line[4:].partition("(")[0]
        elif line.strip().startswith("# "):
            comments.append(line.strip()[2:])
            continue
        elif match and function != "tiny":  # which sets some of them again
            block, key, value, beside = match.groups()
            block = "" if block in ("config", "block") else block.removeprefix("config.")
            if not re.search(r"(ConfigDict|training)\(", value):
                comment = " ".join([*comments, beside or ""]).strip()
                yield function, f"{block}.{key}".lstrip("."), comment
        comments = []


@functools.cache
def _notes() -> Mapping[tuple[str, str], str]:
    shared = ("training", "bag_training")
    return {
        (function if function in shared else "", key): note for function, key, note in explained()
    }


def _note(key: str) -> str:
    section, _, name = key.rpartition(".")
    of_bags = (("bag_training", name),) if section in _OF_BAGS else ()
    places = (("", key), *of_bags, ("training", name))
    return next((_notes()[place] for place in places if _notes().get(place)), "")


def matching(word: str = "") -> dict[str, tuple[object, str]]:
    """Default and note of every key that contains a word.

    Raises:
      ConfigError: no key does.
    """
    defaults = configuration.flatten(configuration.default())
    keys = [key for key in defaults if word.casefold() in key]
    if not keys:
        hint = configuration.near_key(word, defaults)
        raise ConfigError(f"no key of the config contains {word!r}{hint}")
    return {key: (defaults[key], _note(key)) for key in keys}
