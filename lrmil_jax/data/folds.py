"""Making folds: patients, or whole sites, into parts of even class shares."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Integer

from lrmil_jax.data import tables
from lrmil_jax.errors import DataError

SPLITS = ("train", "val", "test")
TCGA = "tcga"  # `data.site`: the tissue source site in the barcode
_BARCODE = re.compile(r"TCGA-(\w{2})-\w{4}")
_RESTARTS = 20


def make(
    table: pd.DataFrame,
    groups: np.ndarray,
    *,
    folds: int,
    seed: int,
    source: str,
    classes: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Stratified folds in which a patient, or a site, is in one split only: 1/k test, as much val.

    With folds=1 one split of 3/5 train, 1/5 val, 1/5 test is made.

    Args:
      table: slides with `patient_id` and, where whole sites are kept together, `site`.
      groups: [S] of which every fold gets as many as can be.
      folds: how many.
      seed: of the order in which patients are placed.
      source: of the table, for messages.
      classes: names of the groups, where these are classes.

    Raises:
      DataError: a group has fewer patients, or the cohort fewer sites, than there are parts.
    """
    parts = folds if folds > 2 else 5
    patients = table.patient_id.groupby(groups).nunique()
    if patients.min() < parts:
        group, count = int(patients.idxmin()), int(patients.min())
        what = f"class {classes[group]}" if classes else "one group of slides with alike targets"
        raise DataError(_too_few(f"{source}: {what} has {_counted(count)}", count, parts, folds))
    place = _of_sites if "site" in table else _of_patients
    part = place(table, groups, parts=parts, seed=seed, source=source)
    made = {}
    for fold in range(folds):
        names = np.full(len(table), "train", dtype=object)
        names[part == fold] = "test"
        names[part == (fold + 1) % parts] = "val"
        made[f"fold_{fold + 1}"] = names
    return made


def _counted(patients: int) -> str:
    return "1 patient" if patients == 1 else f"{patients} patients"


def _too_few(what: str, patients: int, parts: int, folds: int) -> str:
    """The sentence with what can be done: three folds and more are as many parts, one or two are
    made of five."""
    if folds < 3:
        parted = f"{parts} parts, of which {'one is' if folds == 1 else 'two are'} tested"
    else:
        parted = f"{parts} parts, one a fold"
    ways = [f"ask for --config.folds={patients}"] if patients > 2 else []
    ways += ["name the splits yourself in a column fold_1 of train, val and test"]
    ways += [f"add patients of it ({parts} are needed)"]
    return f"{what}, too few for {parted}; {', or '.join(ways)}"


def _of_patients(
    table: pd.DataFrame, groups: np.ndarray, *, parts: int, seed: int, source: str
) -> Integer[np.ndarray, " S"]:
    from sklearn.model_selection import StratifiedGroupKFold  # late: it takes over a second

    del source
    splitter = StratifiedGroupKFold(n_splits=parts, shuffle=True, random_state=seed)
    part = np.zeros(len(table), np.int64)
    placed = splitter.split(np.zeros(len(table)), groups, table.patient_id)
    for number, (_, members) in enumerate(placed):
        part[members] = number
    return part


def _of_sites(
    table: pd.DataFrame, groups: np.ndarray, *, parts: int, seed: int, source: str
) -> Integer[np.ndarray, " S"]:
    """Source: Howard et al., "The impact of site-specific digital histology signatures on deep
    learning model accuracy and bias", Nature Communications 12 (2021): preserved-site folds."""
    several = table.groupby("patient_id").site.nunique()
    if several.max() > 1:
        raise DataError(
            f"{source}: patient {several.idxmax()} has slides of {several.max()} sites; a patient "
            "is of one site where sites are kept whole (data.site)"
        )
    sites, place = np.unique(table.site.to_numpy(str), return_inverse=True)
    if len(sites) < parts:
        raise DataError(
            f"{source} has slides of {len(sites)} site{'s' if len(sites) > 1 else ''} "
            f"({', '.join(sites[:5])}), which cannot be kept whole in {parts} parts; ask for fewer "
            "folds, or leave data.site away"
        )
    # A patient counts once for every group that his or her slides are of.
    counted = pd.DataFrame({"patient": table.patient_id, "site": place, "group": groups})
    counted = counted.drop_duplicates()
    counts = np.zeros((len(sites), int(groups.max()) + 1))
    np.add.at(counts, (counted.site, counted.group), 1)
    return even_parts(counts, parts, seed=seed)[place]


def even_parts(
    counts: Float[np.ndarray, "U G"], parts: int, *, seed: int
) -> Integer[np.ndarray, " U"]:
    """Units, whole, into parts that hold as nearly as can be the same of every group.

    The sum over parts and groups of the squared distance from an even share, over the group's size,
    is brought down by the best move of one unit or swap of two until none helps, from several
    random beginnings; the best end is taken.

    Args:
      counts: how much of each group a unit holds.
      parts: how many.
      seed: of the beginnings.

    Returns:
      The part of each unit, from 0; the same for the same arguments.
    """
    total = counts.sum(0)
    # Scaled so that the distance is a plain square.
    scaled = counts[:, total > 0] / np.sqrt(total[total > 0])[None]
    best, lowest = np.zeros(len(counts), np.int64), np.inf
    for stream in np.random.default_rng(seed).spawn(_RESTARTS):
        part = _settled(scaled, stream.permutation(np.arange(len(counts)) % parts), parts)
        cost = float(np.square(_loads(scaled, part, parts)).sum())
        if cost < lowest - 1e-12:
            best, lowest = part, cost
    return best


def _loads(scaled: np.ndarray, part: np.ndarray, parts: int) -> np.ndarray:
    """[parts, G] what each part holds beyond an even share."""
    loads = np.zeros((parts, scaled.shape[1]))
    np.add.at(loads, part, scaled)
    return loads - scaled.sum(0, keepdims=True) / parts


def _settled(scaled: np.ndarray, part: np.ndarray, parts: int) -> np.ndarray:
    """The parts after every move and swap that helps, the best first."""
    part, units = part.copy(), np.arange(len(part))
    product = scaled @ scaled.T
    size = np.diag(product)
    while True:
        along = scaled @ _loads(scaled, part, parts).T  # [U, parts]
        mine = along[units, part]
        move = size[:, None] - mine[:, None] + along
        move[units, part] = 0
        there = along[:, part]  # [u, v]: u against the load of v's part
        swap = size[:, None] + size[None] - 2 * product
        swap += there + there.T - mine[:, None] - mine[None]
        swap[part[:, None] == part[None]] = 0
        if min(move.min(), swap.min()) > -1e-9:
            return part
        if move.min() <= swap.min():
            unit, target = np.unravel_index(move.argmin(), move.shape)
            part[unit] = target
        else:
            one, other = np.unravel_index(swap.argmin(), swap.shape)
            part[one], part[other] = part[other], part[one]


def sites(frame: pd.DataFrame, site: str, source: str) -> pd.Series:
    """The site of every slide.

    Args:
      frame: the rows as read, with `slide_id` and `patient_id`.
      site: `data.site`: a column of the table, or "tcga".
      source: of the table, for messages.

    Raises:
      DataError: there is no such column, or a slide without a site.
    """
    if site == TCGA:
        codes = [_BARCODE.search(f"{row.slide_id} {row.patient_id}") for row in frame.itertuples()]
        missing = [place for place, code in enumerate(codes) if code is None]
        if missing:
            raise DataError(
                f"{source}: slide {frame.slide_id.iloc[missing[0]]} has no barcode of TCGA "
                "(TCGA-05-4244...), from which data.site=tcga takes the site; name a column"
            )
        return pd.Series([code[1] for code in codes], frame.index)
    if site not in frame:
        raise DataError(
            f"{source} has {tables.no_column(frame, site)}; data.site names one, and "
            "data.site=tcga reads TCGA's barcodes"
        )
    empty = np.flatnonzero(frame[site] == "")
    if len(empty):
        number = tables.line(frame, empty[0])
        raise DataError(f"{source} has no {site} in line {number}, which data.site needs")
    return frame[site]


def draw_val(
    train: np.ndarray, patients: pd.Series, groups: np.ndarray, *, share: float, seed: int
) -> np.ndarray:
    """[S] slides of training patients who become validation patients, stratified by group.

    Args:
      train: [S] slides of the training patients.
      patients: [S] whose slides they are.
      groups: [S] which slides are alike.
      share: of the training patients of each group; at least one of two or more, and never all.
      seed: of the draw.
    """
    first = pd.DataFrame({"patient": patients[train], "group": groups[train]})
    first = first.drop_duplicates("patient").sort_values("patient")
    rng, drawn = np.random.default_rng(seed), []
    for _, members in first.groupby("group"):
        count = min(max(1, round(share * len(members))), len(members) - 1)
        drawn += rng.permutation(members.patient.to_numpy(object))[:count].tolist()
    return train & patients.isin(drawn).to_numpy()
