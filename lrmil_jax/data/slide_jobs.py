"""One slide to prepare: its file, how it is cut, and where what is made of it lies."""

import dataclasses
import hashlib
from pathlib import Path

from lrmil_jax import storage
from lrmil_jax.data.schema import Geometry
from lrmil_jax.slides import Slide, lattice, open_slide
from lrmil_jax.slides.annotations import Annotations
from lrmil_jax.slides.tissue import TissueRule

_SAMPLE = 1 << 16  # bytes


@dataclasses.dataclass(frozen=True)
class TilingSettings:
    """What decides which pixels a region holds; part of a cohort's identity."""

    geometry: Geometry
    reader: str = "auto"
    tissue_mpp: float = 8.0
    tissue_threshold: float = 0.0
    tissue_close_um: float = 16.0
    ink: bool = True
    min_tissue: float = 0.25
    with_hr: bool = True
    jpeg_quality: int = 90
    upsample: bool = False

    @property
    def tissue_rule(self) -> TissueRule:
        """How tissue is found."""
        return TissueRule(self.tissue_mpp, self.tissue_threshold, self.tissue_close_um, self.ink)


@dataclasses.dataclass(frozen=True)
class SlideJob:
    """One slide to prepare: where it is, the um/px to use if not its own, where regions go, and
    whether that um/px wins against a file and an objective that agree with each other; whether
    the settings are a trained model's, so that no config can change them; and what somebody drew,
    outside of which nothing is tissue."""

    slide_id: str
    path: Path
    mpp: float | None
    folder: Path
    settings: TilingSettings
    trust_mpp: bool = False
    of_model: bool = False
    annotations: Annotations | None = None

    def open(self, *, tell: bool = True) -> Slide:
        """The slide itself; see `open_slide`."""
        return open_slide(
            self.path, self.mpp, reader=self.settings.reader, trust_mpp=self.trust_mpp, tell=tell
        )

    @property
    def finest_mpp(self) -> float:
        """um/px of the finest patches that are cut of the slide."""
        return self.settings.geometry.hr_mpp

    @property
    def shard(self) -> Path:
        """The slide's LR tiles."""
        return self.folder / f"{self.slide_id}.array_record"

    @property
    def mosaics(self) -> Path:
        """The HR children of the same LR patches, if they are stored."""
        return mosaics_path(self.shard)

    @property
    def status_path(self) -> Path:
        """What is known of the slide, as JSON."""
        return self.folder / f"{self.slide_id}.json"

    def is_complete(self, status: dict | None) -> bool:
        """Whether the regions are there, and are those of the file as it is now.

        A failed slide is tried again: it costs little, and its file or the reader may be mended.
        """
        return (
            status is not None
            and status["status"] == "ok"
            and status["source"] == self.source()
            and self.shard.is_file()
            and (not status["hr"] or self.mosaics.is_file())
        )

    def was_enlarged(self, status: dict | None) -> bool:
        """Whether the regions are of pixels that were enlarged, which is no longer asked for."""
        return (
            status is not None
            and status["status"] == "ok"
            and status.get("mpp") is not None
            and lattice.is_too_coarse(
                status["mpp"], self.finest_mpp, upsample=self.settings.upsample
            )
            and status["source"] == self.source()  # another file may be finer
        )

    def source(self) -> dict:
        """What must be the same for the regions on disk to be this slide's."""
        return {**file_identity(self.path), "mpp": self.mpp, **drawn_identity(self.annotations)}


def mosaics_path(shard: Path) -> Path:
    """Where the HR mosaics of the LR patches in `shard` lie, record by record."""
    return shard.parent / "hr" / shard.name


def file_identity(path: Path) -> dict:
    """Size, and a hash of beginning, middle and end: a copy of a slide is the same slide.

    A whole hash would read gigabytes a slide, and times change with every copy. Of a file in object
    storage it is the storage's own mark of the content, so that nothing is fetched for it.
    """
    known = storage.record(path)
    if known is not None:
        return {"size": known.object.size, "sample": known.object.version}
    size, digest = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        for start in (0, size // 2, max(0, size - _SAMPLE)):
            file.seek(start)
            digest.update(file.read(_SAMPLE))
    return {"size": size, "sample": digest.hexdigest()}


def drawn_identity(annotations: Annotations | None) -> dict:
    """What must be the same for patches to be those inside of what was drawn; {} without any."""
    if annotations is None:
        return {}
    there = annotations.path.is_file()
    identity = file_identity(annotations.path) if there else {}
    return {"annotations": {**identity, "classes": list(annotations.classes)}}
