"""Who made which part of a working directory: two configs never mix in one."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from lrmil_jax import cluster, files
from lrmil_jax import config as configuration
from lrmil_jax.data.schema import SCHEMA_VERSION
from lrmil_jax.errors import WorkdirError

SOFTWARE = ("lrmil_jax", "jax", "flax", "optax", "grain", "tifffile", "numpy")


def read(workdir: Path) -> dict[str, Any]:
    """Who made which part of the cohort, from `cohort.json`.

    Raises:
      WorkdirError: it is of another schema.
    """
    path = workdir / "cohort.json"
    content = json.loads(path.read_text()) if path.is_file() else {"schema": SCHEMA_VERSION}
    if content.get("schema") != SCHEMA_VERSION:
        raise WorkdirError(
            f"{workdir} was made with schema {content.get('schema')}, this version writes schema "
            f"{SCHEMA_VERSION}; use another --workdir, or the version that made it"
        )
    return content


def check(workdir: Path, section: str, identity: dict[str, Any]) -> dict[str, Any]:
    """Checks that nobody else made a part of the cohort, and returns all that is known of it.

    Raises:
      WorkdirError: it was made by another config, encoder or schema; both sides are named.
    """
    content = read(workdir)
    identity = json.loads(json.dumps(identity))  # tuples become lists, as they are on disk
    recorded = content.get(section)
    if recorded is not None and recorded != identity:
        flat_old, flat_new = configuration.flatten(recorded), configuration.flatten(identity)
        differing = [
            key for key in sorted(flat_old | flat_new) if flat_old.get(key) != flat_new.get(key)
        ]
        key = differing[0]
        raise WorkdirError(
            f"{workdir} was made by another config: {section} has {key}={flat_old.get(key)!r}, "
            f"this run has {flat_new.get(key)!r}; use another --workdir, or delete this one"
        )
    return content


def record(workdir: Path, section: str, identity: dict[str, Any]) -> None:
    """Writes who made a part of the cohort into `cohort.json`, if it is new.

    Raises:
      WorkdirError: it was made by another config, encoder or schema; both sides are named.
    """
    cluster.first_says(section, lambda: _record(workdir, section, identity))


def _record(workdir: Path, section: str, identity: dict[str, Any]) -> None:
    content = check(workdir, section, identity)
    if section not in content:
        content[section] = json.loads(json.dumps(identity))
        content["software"] = {name: _version(name) for name in SOFTWARE}
        files.write_json(workdir / "cohort.json", content)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
