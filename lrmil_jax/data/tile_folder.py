"""A folder of tiles: its image files, who names their patients, and the tiles to score."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int

from lrmil_jax.data import tables
from lrmil_jax.errors import DataError

TILE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"}
PATIENTS = "patients.csv"  # columns tile (path from the folder) and patient_id


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileFolder:
    """Tiles, and what is known of them.

    Attributes:
      folder: where they lie.
      paths: image files.
      labels: the class of each, -1 where it is not known.
      patients: of each; () where they are not known.
    """

    folder: Path
    paths: tuple[Path, ...]
    labels: Int[np.ndarray, " n"]
    patients: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path, *, classes: Sequence[str], described_in: Path) -> "TileFolder":
        """Tiles with a sub-folder a class; those in the folder itself are of unknown class.

        Args:
          folder: with the tiles and, where patients are known, a `patients.csv` of all tiles.
          classes: what sub-folders may be called.
          described_in: the file that has the classes, for the message.

        Raises:
          DataError: no tile, a sub-folder that is no class, or a wrong patients.csv.
        """
        if not folder.is_dir():
            raise DataError(f"data.tiles is {folder}, which is no folder; give a folder of tiles")
        paths = list_tiles(folder)
        if not paths:
            raise DataError(
                f"{folder} has no tiles ({', '.join(sorted(TILE_SUFFIXES))}); give a folder of "
                "tiles, with a sub-folder a class if their classes are known"
            )
        parts = [path.relative_to(folder).parts for path in paths]
        unknown = sorted({one[0] for one in parts if len(one) > 1} - set(classes))
        if unknown:
            raise DataError(
                f"{folder} has tiles of {', '.join(unknown)}, but {described_in} is used for "
                f"{', '.join(classes)}; describe the class there (and name it in data.classes, if "
                "that is set), or give the sub-folder the name of a described class"
            )
        places = {name: place for place, name in enumerate(classes)}
        labels = np.array([places[one[0]] if len(one) > 1 else -1 for one in parts], np.int64)
        found = cls(folder=folder, paths=tuple(paths), labels=labels)
        if not (folder / PATIENTS).is_file():
            return found
        return dataclasses.replace(found, patients=read_patients(folder / PATIENTS, found.names))

    @property
    def names(self) -> tuple[str, ...]:
        """Each tile's path from the folder."""
        return tuple(path.relative_to(self.folder).as_posix() for path in self.paths)

    def at(self, places: Int[np.ndarray, " m"]) -> "TileFolder":
        """These of the tiles."""
        return dataclasses.replace(
            self,
            paths=tuple(self.paths[place] for place in places),
            labels=self.labels[places],
            patients=tuple(self.patients[place] for place in places) if self.patients else (),
        )


def list_tiles(folder: Path) -> list[Path]:
    """All image files below a folder, sorted; none if it does not exist."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in TILE_SUFFIXES)
    # A leading dot: thumbnails and shadow files that systems leave beside the files.
    shown = (p for p in found if not any(q.startswith(".") for q in p.relative_to(folder).parts))
    return sorted(shown)


def file_stats(paths: Sequence[Path], folder: Path) -> list[tuple[str, int, int]]:
    """Path from the folder, size and time of change of each file: an edited one differs."""
    stats = [(os.path.relpath(path, folder), path.stat()) for path in paths]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def sub_folder_patients(tiles: Sequence[str]) -> tuple[str, ...]:
    """The patient of each tile `<class>/<patient>/.../tile.png`: the folder in its class folder.

    Args:
      tiles: paths from the folder that holds the class folders.

    Returns:
      One patient a tile; () if any tile lies in its class folder itself, since sub-folders then
      are something else than patients.
    """
    parts = [PurePosixPath(tile).parts for tile in tiles]
    if not all(len(one) > 2 for one in parts):
        return ()
    return tuple(tables.one_form(one[1]) for one in parts)


def read_patients(path: Path, tiles: Sequence[str]) -> tuple[str, ...]:
    """The patient of each tile, from a CSV with the columns tile and patient_id.

    Args:
      path: the CSV.
      tiles: as the CSV names them: paths from its folder.

    Raises:
      DataError: it cannot be read, lacks a column, or gives a tile no patient or two.
    """
    table = tables.read(path, what="the CSV of patients")
    tables.require_columns(table, ("tile", "patient_id"), path, what="the CSV of patients")
    for name in ("tile", "patient_id"):
        table[name] = table[name].map(tables.one_form)
    tiles = list(map(tables.one_form, tiles))
    several = table.groupby("tile").patient_id.nunique()
    if (several > 1).any():
        raise DataError(f"{path}: the tile {several.idxmax()} is of two patients; give it one")
    patient = dict(zip(table.tile, table.patient_id, strict=True))
    missing = [name for name in tiles if not patient.get(name)]
    if missing:
        raise DataError(
            f"{path} names no patient of the tile {missing[0]} ({len(missing)} of {len(tiles)} "
            "have none); name one of each tile, or delete the file"
        )
    return tuple(patient[name] for name in tiles)
