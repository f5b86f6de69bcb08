"""What lies in a folder of slides: slide files, and all else with the reason why it is none.

Folders come as scanners, copies and operating systems leave them: with hidden files, trash, links,
archives, halves of downloads, and formats that nothing here reads. A file passed over in silence is
a patient lost, so each has its reason.
"""

import collections
import dataclasses
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import pandas as pd

from lrmil_jax import files, storage

log = logging.getLogger(__name__)

_TRASH = {
    *("trash", "$recycle.bin", "#recycle", "recycler", "@eadir", "lost+found", "__macosx"),
    *("system volume information", ".trash", ".trashes", ".snapshot"),
}
_OF_MRXS = "belongs to the .mrxs beside its folder"
_CONVERT = "which no reader here opens; convert it to a pyramidal TIFF, OME-TIFF or DICOM"
_REASONS = {
    **dict.fromkeys((".vsi", ".ets"), f"a slide of Olympus, {_CONVERT}"),
    **dict.fromkeys((".zvi", ".lif", ".nd2", ".lsm", ".oir", ".oib", ".i2syntax", ".kfb", ".sdpc",
                     ".tmap", ".bkr"), f"a microscope's own format, {_CONVERT}"),
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".jp2", ".webp"),
                    "a plain picture, no slide"),
    **dict.fromkeys((".zip", ".gz", ".tgz", ".tar", ".7z", ".rar", ".bz2", ".xz", ".zst"),
                    "an archive; unpack it"),
    **dict.fromkeys((".part", ".partial", ".crdownload", ".download", ".filepart", ".tmp",
                     ".aspx", ".aspera-ckpt"), "an unfinished download or copy"),
}  # fmt: skip
_SEVERAL = {".mrxs", ".vms", ".vmu", ".dcm"}  # whose other files a reader finds by their names
_told: dict[Path, collections.Counter[str]] = {}


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A file, or a folder that was not entered, that is no slide of the run.

    Attributes:
      path: of it.
      reason: why, in a few words.
    """

    path: Path
    reason: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """All that lies below a folder.

    Attributes:
      slides: slide files, those behind links last.
      left_out: all else.
    """

    slides: list[Path]
    left_out: list[LeftOut]


def read(folder: Path, suffixes: Collection[str]) -> Listing:
    """Walks a folder and all below it; links to folders are followed, each folder is read once.

    Args:
      folder: that must be there.
      suffixes: of slide files, in small letters.
    """
    listing = _of_bucket(folder, suffixes)
    if listing.slides or listing.left_out:
        return listing
    visited: set[tuple[int, int]] = set()
    waiting = collections.deque([(folder, "")])
    linked: list[tuple[Path, str]] = []
    while waiting or linked:  # links last: a folder keeps its own name if it is here under two
        if not waiting:
            waiting.append(linked.pop(0))
        here, inherited = waiting.popleft()
        try:
            identity = here.stat()
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            listing.left_out.append(LeftOut(here, f"cannot be read: {error.strerror}"))
            continue
        if (identity.st_dev, identity.st_ino) in visited:
            listing.left_out.append(LeftOut(here, "a link to a folder that was read already"))
            continue
        visited.add((identity.st_dev, identity.st_ino))
        names = {entry.name for entry in entries}
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir():
                reason = inherited or _why_not_entered(entry.name, names)
                (linked if entry.is_symlink() else waiting).append((path, reason))
                continue
            reason = inherited or _why_not(path, suffixes)
            if reason:
                listing.left_out.append(LeftOut(path, reason))
            else:
                listing.slides.append(path)
    return listing


def _of_bucket(folder: Path, suffixes: Collection[str]) -> Listing:
    """The same of a folder that stands for a bucket, whose files need not be here."""
    listing, names = Listing([], []), collections.defaultdict(set)
    paths = list(storage.paths(folder))
    for path in paths:
        for part in (path, *path.parents):
            names[part.parent].add(part.name)
    for path in paths:
        within = [part for part in path.parents if folder in part.parents]
        reasons = (_why_not_entered(part.name, names[part.parent]) for part in reversed(within))
        reason = next(filter(None, reasons), "") or _why_not(path, suffixes)
        if not reason and path.suffix.lower() in _SEVERAL:
            reason = "a slide of several files, which are not read from a bucket; copy them here"
        if reason:
            listing.left_out.append(LeftOut(path, reason))
        else:
            listing.slides.append(path)
    return listing


def _why_not_entered(name: str, beside: Collection[str]) -> str:
    """Why nothing in a folder is a slide; empty if something may be."""
    if name.casefold() in _TRASH or name.casefold().startswith(".trash-"):
        return "in a folder of trash or of the system"
    if name.startswith("."):
        return "in a hidden folder"
    if f"{name}.mrxs" in beside:
        return _OF_MRXS
    return _REASONS[".ets"] if f"{name.strip('_')}.vsi" in beside else ""


def _why_not(path: Path, suffixes: Collection[str]) -> str:
    """Why a file is no slide; empty if it is one."""
    name, suffix = path.name, path.suffix.lower()
    if name.startswith("._"):
        return "what macOS notes of another file, no slide"
    if name.startswith("."):
        return "a hidden file"
    if not storage.exists(path):
        return "a link to nothing" if path.is_symlink() else "gone while it was listed"
    if path.exists() and not path.is_file():
        return "no file (a device or a socket)"
    if suffix in suffixes:
        return ""
    return _REASONS.get(suffix, f"no suffix of a slide ({suffix or 'none'})")


def tell(folder: Path, left_out: Iterable[LeftOut]) -> None:
    """Logs how many files were left out, by reason; the same of a folder only once."""
    counts = collections.Counter(one.reason for one in left_out if one.reason != _OF_MRXS)
    if counts and _told.get(folder) != counts:
        parts = [f"{count} x {reason}" for reason, count in counts.most_common(6)]
        more = f"; and {len(counts) - 6} more reasons" if len(counts) > 6 else ""
        log.warning("%s: %d files were left out: %s%s", folder, counts.total(), "; ".join(parts),
                    more)  # fmt: skip
    _told[folder] = counts


def write(path: Path, folder: Path, listing: Listing, used: Iterable[Path], source: str) -> None:
    """Writes `left_out.csv`: path below `folder`, and reason, of every file that no run reads.

    Args:
      path: to write.
      folder: that was read.
      listing: what it holds.
      used: slide files that the run reads.
      source: of what the run reads, for the reason of other slides.
    """
    rows = [(one.path, one.reason) for one in listing.left_out]
    rows += [(slide, f"not listed in {source}") for slide in _others(listing.slides, used)]
    relative = [(os.path.relpath(one, folder), reason) for one, reason in rows]
    files.write_table(path, pd.DataFrame(sorted(relative), columns=["path", "reason"]))


def _others(slides: Iterable[Path], used: Iterable[Path]) -> Iterator[Path]:
    taken = {os.path.realpath(path) for path in used}
    return (slide for slide in slides if os.path.realpath(slide) not in taken)
