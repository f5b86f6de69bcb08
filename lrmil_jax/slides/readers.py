"""Libraries that read slides behind one small protocol, and the choice among them.

tifffile and tiffslide come along; openslide and fastslide are optional extras. A reader serves
in-bounds regions in pixels of one level; everything else (white outside, resampling, um/px rules)
is in `slide.py`, so that all formats behave alike. The file's content decides which reader is
right.
"""

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from lrmil_jax.errors import ConfigError, SlideError, one_line
from lrmil_jax.slides import formats
from lrmil_jax.slides.levels import StoredLevel, verify
from lrmil_jax.slides.libraries import FastSlideReader, OpenSlideReader, TiffSlideReader
from lrmil_jax.slides.tiff import TiffReader

READERS = ("tifffile", "tiffslide", "openslide", "fastslide")
# Asked by name alone: where tifffile fails, tiffslide, which is built on it, fails too.
_BY_NAME = ("tiffslide",)


@runtime_checkable
class Reader(Protocol):
    """One open file. Regions asked for lie inside the level.

    Attributes:
      name: of the library, with its version.
      mpp: (x, y) um/px of the finest level; mpp_problem: why one that is stated is none.
      objective: its power, None where the file does not say.
      levels: the finest first.
      bounds: (x, y, width, height) of the scanned area in level-0 px, None where it is all.
      notes: sentences for the user on what was chosen and left out.
    """

    name: str
    mpp: tuple[float, float] | None
    mpp_problem: str
    objective: float | None
    levels: tuple[StoredLevel, ...]
    bounds: tuple[int, int, int, int] | None
    notes: tuple[str, ...]

    def read_region(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels of `level` from (x, y) on; any exception means that they cannot be decoded."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


def open_reader(path: Path, reader: str) -> Reader:
    """Open `path` with the named reader, or with the right one for its content ("auto").

    Raises:
      ConfigError: the reader is unknown, or its extra is not installed.
      SlideError: no reader opens the file, or none that gives its true pixels is installed.
    """
    if reader != "auto" and reader not in READERS:
        raise ConfigError(f"reader {reader!r} is unknown; use auto, {', '.join(READERS)}.")
    if reader != "auto" and not installed(reader):
        raise ConfigError(f"reader {reader!r} is not installed; run {install(reader)}.")
    kind = formats.identify(path)
    opened = _open_first(path, kind, _suitable(path, kind, reader))
    if reader not in ("auto", "tifffile") and "tifffile" in kind.readers:
        try:
            _check_same_image(path, opened)
        except BaseException:
            opened.close()
            raise
    return opened


def _check_same_image(path: Path, opened: Reader) -> None:
    """A TIFF that is asked of another reader than tifffile: its pages and tags are looked at all
    the same, since others take the first page for the slide, and a grey channel for a picture.

    Raises:
      SlideError: its pixels are no brightfield RGB, or the reader takes another image for it.
    """
    reference = TiffReader(path)
    reference.close()
    sizes = [level.size for level in reference.levels]
    sizes += [level.dimensions for level in verify(reference.levels)[0]]  # without their padding
    others = [level.size for level in opened.levels if not _among(level.size, sizes)]
    if others or opened.levels[0].size != reference.levels[0].size:
        width, height = others[0] if others else opened.levels[0].size
        raise SlideError(
            f"{path}: {opened.name} takes a page of {width} x {height} px for a level of the "
            "slide, which it is not; set prepare.reader to auto or tifffile."
        )


def _among(size: tuple[int, int], sizes: list[tuple[int, int]]) -> bool:
    """Whether a size is one of the others, to the pixel by which readers round differently."""
    return any(all(abs(a - b) <= 1 for a, b in zip(size, other, strict=True)) for other in sizes)


def _suitable(path: Path, kind: formats.Format, reader: str) -> list[str]:
    """The installed readers of a format, or the named one, if it is right for it."""
    if not kind.readers:
        raise SlideError(f"{path}: a {kind.name}, which no reader here opens; {kind.advice}.")
    if reader != "auto":
        if reader not in kind.readers:
            raise SlideError(
                f"{path}: a {kind.name} file, of which {reader} does not give the true pixels; set "
                f"prepare.reader to auto or {kind.readers[0]}."
            )
        return [reader]
    names = [name for name in kind.readers if name not in _BY_NAME and installed(name)]
    if not names:
        raise SlideError(
            f"{path}: a {kind.name} file, which {' or '.join(kind.readers)} reads, and it is not "
            f"installed; run {install(kind.readers[0])}."
        )
    return names


def _open_first(path: Path, kind: formats.Format, names: list[str]) -> Reader:
    if kind is formats.MIRAX and not path.with_suffix("").is_dir():
        raise SlideError(
            f"{path}: an MRXS slide is this file and the folder {path.stem} beside it, which is "
            "missing; copy both."
        )
    reasons: list[str] = []
    for name in names:
        try:
            opened = _OPENERS[name](path)
        except SlideError:
            raise  # the reader knows this format, and knows what is wrong with the file
        except Exception as error:  # readers raise anything at all on a file that is not theirs
            logging.debug("%s does not open %s", name, path, exc_info=True)
            reasons.append(f"{name}: {one_line(error)}")
        else:
            if reasons:
                opened.notes = (*opened.notes, f"read with {name} ({'; '.join(reasons)})")
            return opened
    what = "not a slide, or cut short"
    if kind is not formats.UNKNOWN:
        what = f"a {kind.name} file that cannot be opened: cut short, damaged or of an unusual kind"
    raise SlideError(f"{path}: {what} ({'; '.join(reasons)}).")


def installed(name: str) -> bool:
    """Whether a reader's library is there."""
    return importlib.util.find_spec(name) is not None


def install(name: str) -> str:
    """The command that installs a reader."""
    return f"pip install 'lrmil_jax[{name}]'"


_OPENERS: dict[str, Callable[[Path], Reader]] = {
    "tifffile": TiffReader,
    "tiffslide": TiffSlideReader,
    "openslide": OpenSlideReader,
    "fastslide": FastSlideReader,
}
