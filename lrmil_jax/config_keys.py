"""Every key of the config with its default and what `config.py` says of it, for `lrmil keys`."""

import functools
import inspect
import re
from collections.abc import Mapping

from lrmil_jax import config as configuration
from lrmil_jax.errors import ConfigError

_OF_BAGS = ("teacher", "student", "mil")  # trainings on bags
# `    student.topk = 8  # of what`: the key, and the comment behind it.
_LINE = re.compile(r"    (?:config\.)?(\w+(?:\.\w+)*) = (?:.*?  # (.*)|.*)$")


@functools.cache
def _notes() -> Mapping[str, str]:
    """What the comments beside and above each key say; keys that all trainings have are
    `training.KEY`, those of trainings on bags `bag_training.KEY`."""
    every, above, block = {}, [], ""
    for line in inspect.getsource(configuration).splitlines():
        begins = re.match(r"def (\w+)", line)
        comment, key = re.fullmatch(r"    # (.*)", line), _LINE.match(line)
        if begins:
            block = begins[1]
        elif comment:
            above.append(comment[1])
            continue
        elif key and block != "tiny":
            name = re.sub(r"^block\b", block, key[1])
            every[name] = " ".join([*above, key[2] or ""]).strip()
        above = []
    return every


def _note(key: str) -> str:
    section, _, name = key.rpartition(".")
    of_bags = (f"bag_training.{name}",) if section in _OF_BAGS else ()
    names = (key, *of_bags, f"training.{name}")
    return next((_notes()[one] for one in names if _notes().get(one)), "")


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
