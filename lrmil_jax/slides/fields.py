"""Labelled pictures of tissue, fields: which there are, and which of them belong together.

Fields are parted into pools, one for training an encoder and one for each split of the slides that
are composed of them, so that no field stands on two sides.
"""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lrmil_jax.errors import DataError

log = logging.getLogger(__name__)

POOLS = ("pretrain", "train", "val", "test")


def part_fields(
    folder: Path, *, shares: Sequence[float], run_length: int, seed: int
) -> dict[str, dict[str, list[Path]]]:
    """{pool: {class: fields}}; a field is in one pool.

    A picture that is there twice is taken once, and one that is there in both classes not at all.

    Args:
      folder: has one folder of pictures for each of two classes.
      shares: of the fields that go to each of `POOLS`.
      run_length: fields whose numbers follow each other stay in one pool, in runs of about so many.
      seed: of the order of the runs.

    Raises:
      DataError: `folder` has not exactly two class folders, or too few fields.
    """
    fields = _distinct_fields(folder)
    rng = np.random.default_rng(seed)
    pools: dict[str, dict[str, list[Path]]] = {pool: {} for pool in POOLS}
    for name, images in fields.items():
        if len(images) < 20:
            raise DataError(f"{folder / name} has {len(images)} fields; at least 20 are needed")
        parts: dict[str, list[Path]] = {pool: [] for pool in POOLS}
        for series in _series(images):
            runs = np.array_split(np.arange(len(series)), -(-len(series) // run_length))
            order = rng.permutation(len(runs))
            ends = np.round(np.cumsum(shares) * len(runs)).astype(int)
            for pool, part in zip(POOLS, np.split(order, ends[:-1]), strict=True):
                parts[pool] += [series[index] for run in part for index in runs[run]]
        for pool, members in parts.items():
            if not members:
                raise DataError(
                    f"{folder / name} has too few fields for runs of {run_length}: the "
                    f"{pool} pool is empty; use shorter runs"
                )
            pools[pool][name] = members
    return pools


def runs_of_fields(folder: Path, run_length: int) -> Iterator[tuple[int, list[Path]]]:
    """(0 or 1, fields) of every run of neighbours of the two classes, in order of their names.

    Raises:
      DataError: `folder` has not exactly two class folders.
    """
    for number, images in enumerate(_distinct_fields(folder).values()):
        for series in _series(images):
            count = -(-len(series) // run_length)
            for run in np.array_split(np.arange(len(series)), count):
                yield number, [series[index] for index in run]


def _distinct_fields(folder: Path) -> dict[str, list[Path]]:
    """{class: its pictures, in order}, less those that are there twice."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one with a folder of fields a class")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if len(classes) != 2:
        raise DataError(f"{folder} has {len(classes)} class folders; a mosaic needs two")
    copies: dict[str, list[Path]] = {}
    for name in classes:
        for path in sorted((folder / name).iterdir()):
            if path.suffix.lower() in {".jpg", ".png"}:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                copies.setdefault(digest, []).append(path)
    distinct: dict[str, list[Path]] = {name: [] for name in classes}
    for paths in copies.values():
        if len({path.parent for path in paths}) == 1:
            distinct[paths[0].parent.name].append(paths[0])
    dropped = sum(map(len, copies.values())) - sum(map(len, distinct.values()))
    if dropped:
        log.warning("%s: %d pictures left out: copies, or there in both classes", folder, dropped)
    return {name: sorted(paths, key=_numbered) for name, paths in distinct.items()}


def _numbered(path: Path) -> tuple[str, int]:
    """A name's text before its last number, and that number."""
    match = re.fullmatch(r"(.*?)(\d+)\D*", path.stem)
    return (match[1], int(match[2])) if match else (path.stem, 0)


def _series(images: Sequence[Path]) -> list[list[Path]]:
    """Pictures numbered in one series, by number."""
    by_name: dict[str, list[Path]] = {}
    for path in images:
        by_name.setdefault(_numbered(path)[0], []).append(path)
    return list(by_name.values())
