"""Command lines of the programs beside `main`."""

import argparse
from typing import Any, NoReturn

from lrmil_jax.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Its mistakes are one sentence and exit status 1, as all others; options are written out."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")
