"""Tiles with captions, wherever they come from: a CSV of one's own, or a folder of classes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, Shaped

from lrmil_jax.data import tables, tile_folder
from lrmil_jax.errors import DataError

CAPTIONS = "captions.csv"  # columns class and caption
# Ways of parting the patients that are tried; the one nearest to the share of each class is taken.
_DRAWS = 32
# For class folders without captions.csv.
_TEMPLATES = (
    "an H&E image of {}",
    "a histology slide of {}",
    "a microscope image that shows {}",
    "a field of {} at high power",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionedTiles:
    """Tiles and what is said of them.

    Attributes:
      paths: image files.
      choices: for each tile the captions that describe it, as places in `captions`.
      captions: sentences; one that two classes share is there twice.
      groups: [K] what each caption is of: its class, or where there are no classes itself.
      classes: names of the classes; () where only captions are known.
      patients: of each tile; () where they are not known.
      patients_from: what names the patients, for messages.
    """

    paths: tuple[Path, ...]
    choices: tuple[Int[np.ndarray, " _"], ...]
    captions: tuple[str, ...]
    groups: Int[np.ndarray, " K"]
    classes: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    patients_from: str = ""

    @classmethod
    def from_folder(cls, folder: Path) -> "CaptionedTiles":
        """Tiles in one folder a class, read with their sub-folders, all captions of a class alike.

        Captions come from `captions.csv` in the folder, with the columns class and caption; without
        it they are a few sentences with the class's name in them.

        Patients come from `patients.csv` in the folder, with the columns tile (path from the
        folder) and patient_id. Without it, where every tile of every class lies in a sub-folder
        of its class folder (`<class>/<patient>/tile.png`), that sub-folder's name is its patient.

        Raises:
          DataError: no such folder, fewer than two classes with two tiles each, a captions.csv
            that does not describe them, or a patients.csv that does not name each tile's patient.
        """
        if not folder.is_dir():
            raise DataError(f"data.tiles is {folder}, which is no folder; give one folder a class")
        folders = (path for path in folder.iterdir() if path.is_dir())
        classes = tuple(sorted(path.name for path in folders if not path.name.startswith(".")))
        if len(classes) < 2:
            raise DataError(f"{folder} has {len(classes)} class folders; at least 2 are needed")
        spoken = _class_captions(folder / CAPTIONS, classes)
        captions = [caption for name in classes for caption in spoken[name]]
        groups = np.repeat(np.arange(len(classes)), [len(spoken[name]) for name in classes])
        paths: list[Path] = []
        choices: list[np.ndarray] = []
        for label, name in enumerate(classes):
            found = tile_folder.list_tiles(folder / name)
            if len(found) < 2:
                raise DataError(f"{folder / name} has {len(found)} tiles; a class needs at least 2")
            paths += found
            choices += [np.flatnonzero(groups == label)] * len(found)
        return cls(
            paths=tuple(paths),
            choices=tuple(choices),
            captions=tuple(captions),
            groups=groups,
            classes=classes,
            **_folder_patients(folder, paths),
        )

    @classmethod
    def from_csv(cls, path: Path) -> "CaptionedTiles":
        """Tiles with captions of their own: a row a caption, of which a tile may have several.

        Columns: path (relative to the CSV's folder, or absolute), caption, and perhaps patient_id.

        Raises:
          DataError: the file, a column or a tile is missing, a caption or patient is empty, a tile
            is of two patients, or there are fewer than two tiles or captions.
        """
        table = _read(path, ("path", "caption"), key="data.captions")
        captions, groups = np.unique(table.caption, return_inverse=True)
        if len(captions) < 2:
            raise DataError(f"{path} has {len(captions)} different captions; at least 2 are needed")
        rows = table.assign(group=groups).groupby("path", sort=True)
        paths = tuple(path.parent / name for name in rows.groups)
        missing = [str(one) for one in paths if not one.is_file()]
        if missing:
            raise DataError(
                f"{path}: the tile {missing[0]} does not exist ({len(missing)} of {len(paths)} "
                "tiles are missing); give paths from the CSV's folder, or whole ones"
            )
        if len(paths) < 2:
            raise DataError(f"{path} names {len(paths)} tiles; at least 2 are needed")
        return cls(
            paths=paths,
            choices=tuple(np.unique(group) for _, group in rows["group"]),
            captions=tuple(map(str, captions)),
            groups=np.arange(len(captions)),
            patients=_patients(path, table, rows) if "patient_id" in table else (),
            patients_from=f"the column patient_id of {path}",
        )

    def split(
        self, *, share: float, seed: int
    ) -> tuple[Int[np.ndarray, " t"], Int[np.ndarray, " v"]]:
        """Tiles for training and for validation, both in random order.

        Both sides have tiles of every class, the second about the same share of each. Where
        patients are known, all tiles of one stand on the same side, so that the share is only met
        as nearly as they allow.

        Raises:
          DataError: patients do not allow it, as where all tiles of a class are of one.
        """
        rng = np.random.default_rng(seed)
        labels = self._labels(np.arange(len(self.paths)))
        if self.patients:
            val = self._of_patients(rng, share, labels)
        else:
            members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
            val = np.concatenate([_some(rng, one, share) for one in members])
        rest = np.setdiff1d(np.arange(len(self.paths)), val)
        return rng.permutation(rest), rng.permutation(val)

    def balanced(self, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
        """These tiles, those of small classes repeated until all have as many as the largest."""
        if not self.classes:
            return indices
        labels = self._labels(indices)
        most = np.bincount(labels).max()
        members = [indices[labels == label] for label in np.unique(labels)]
        return np.concatenate([np.resize(one, most) for one in members])

    def _labels(self, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The class of these tiles; 0 of all where there are no classes."""
        if not self.classes:
            return np.zeros(len(indices), np.int64)
        return np.array([self.groups[self.choices[index][0]] for index in indices])

    def _of_patients(
        self, rng: np.random.Generator, share: float, labels: Int[np.ndarray, " n"]
    ) -> Int[np.ndarray, " v"]:
        """All tiles of some patients: about the share of every class, and never all of one."""
        names, patient = np.unique(self.patients, return_inverse=True)
        counts = np.zeros((len(names), labels.max() + 1), np.int64)
        np.add.at(counts, (patient, labels), 1)
        self._require_two_patients(names, counts)
        draws = [_drawn_patients(rng, counts, share) for _ in range(_DRAWS)]
        draws = [held for held in draws if counts[held].sum(0).all()]
        if not draws:
            raise DataError(
                f"no share of the patients named by {self.patients_from} could be held out that "
                "leaves tiles of every class on both sides; add tiles of more patients"
            )
        held = min(draws, key=lambda one: _distance(counts, one, share))
        return np.flatnonzero(held[patient])

    def _require_two_patients(
        self, names: Shaped[np.ndarray, " P"], counts: Int[np.ndarray, "P C"]
    ) -> None:
        alone = np.flatnonzero((counts > 0).sum(0) < 2)
        if len(alone):
            of_class = f" of the class {self.classes[alone[0]]}" if self.classes else ""
            patient = names[counts[:, alone[0]].argmax()]
            raise DataError(
                f"all captioned tiles{of_class} are of the patient {patient}, as named by "
                f"{self.patients_from}; at least 2 patients are needed, to learn from one and to "
                "hold one out: add tiles of another"
            )


def _drawn_patients(
    rng: np.random.Generator, counts: Int[np.ndarray, "P C"], share: float
) -> Bool[np.ndarray, " P"]:
    """Patients in random order, class by class, until each class has its share; the rarest class
    comes first, and of every class one patient at least is left."""
    total, order = counts.sum(0), rng.permutation(len(counts))
    held, taken = np.zeros(len(counts), bool), np.zeros_like(total)
    for label in np.argsort((counts > 0).sum(0), kind="stable"):
        for place in order[counts[order, label] > 0]:
            if taken[label] >= share * total[label]:
                break
            if not held[place] and (taken + counts[place] < total).all():
                held[place] = True
                taken = taken + counts[place]
    return held


def _distance(counts: Int[np.ndarray, "P C"], held: Bool[np.ndarray, " P"], share: float) -> float:
    """How far the held-out shares of the classes are from the one that is wanted."""
    return float(np.abs(counts[held].sum(0) / counts.sum(0) - share).sum())


def _folder_patients(folder: Path, paths: Sequence[Path]) -> dict[str, Any]:
    """`patients` and `patients_from` of the tiles of a folder of classes."""
    names = [path.relative_to(folder).as_posix() for path in paths]
    csv = folder / tile_folder.PATIENTS
    if csv.is_file():
        return {"patients": tile_folder.read_patients(csv, names), "patients_from": str(csv)}
    return {
        "patients": tile_folder.sub_folder_patients(names),
        "patients_from": f"the sub-folders of the class folders in {folder}",
    }


def _some(rng: np.random.Generator, members: np.ndarray, share: float) -> np.ndarray:
    return rng.permutation(members)[: max(1, round(share * len(members)))]


def _read(path: Path, columns: tuple[str, ...], *, key: str) -> pd.DataFrame:
    """A CSV of captions as text, stripped, with the columns that it must have filled in."""
    if not path.is_file():
        raise DataError(f"{key} is {path}, which is no file; give a CSV of {', '.join(columns)}")
    table = tables.read(path, what="the CSV of captions")
    tables.require_columns(table, columns, path, what="the CSV of captions")
    for name in table.columns.intersection([*columns, "patient_id"]):
        if (table[name] == "").any():
            line = tables.line(table, int((table[name] == "").to_numpy().argmax()))
            raise DataError(f"{path}, line {line}: the {name} is empty; fill it in")
    return table


def _class_captions(path: Path, classes: tuple[str, ...]) -> dict[str, list[str]]:
    """{class: its different captions}, each class having at least one."""
    if not path.is_file():
        names = {name: name.replace("_", " ") for name in classes}
        return {name: [text.format(names[name]) for text in _TEMPLATES] for name in classes}
    table = _read(path, ("class", "caption"), key="captions.csv").drop_duplicates()
    for name in classes:
        if name not in set(table["class"]):
            raise DataError(f"{path} has no caption of the class {name}; write at least one")
    unknown = sorted(set(table["class"]) - set(classes))
    if unknown:
        raise DataError(f"{path} has captions of {unknown[0]}, which is no class folder beside it")
    return {name: table.caption[table["class"] == name].tolist() for name in classes}


def _patients(path: Path, table: pd.DataFrame, rows) -> tuple[str, ...]:
    """The patient of each tile, in the order of `rows`."""
    patients = table.patient_id.map(tables.one_form)
    several = patients.groupby(table.path).nunique()
    if several.max() > 1:
        raise DataError(f"{path}: the tile {several.idxmax()} is of two patients; give it one")
    return tuple(map(tables.one_form, rows["patient_id"].first()))
