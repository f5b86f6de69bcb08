"""From a slide file to a prediction by WISE-FUSE, timed by phase: LR patches are looked at, the few
that the descriptions choose are read at HR, and only those."""

import dataclasses
import time
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict
from scipy.special import softmax

from lrmil_jax.data import regions
from lrmil_jax.distill import guidance as attention_mass
from lrmil_jax.errors import SlideError
from lrmil_jax.models import inference, text_guidance
from lrmil_jax.models.inference import Guidance, PatchReader, SlideResult
from lrmil_jax.selection.shared_space import SharedSpace
from lrmil_jax.train.encode import BatchEncoder
from lrmil_jax.train.mil import BagClassifier


@dataclasses.dataclass
class GuidedClassifier:
    """WISE-FUSE of one or several folds.

    Attributes:
      members: per fold, what reads LR tiles, and the head.
      hr_encoder: the frozen tower on HR patches.
      space: classes and images in one space.
      config: `select`, `fuse`, `features` and `seed` of the run that trained it.
      settings: how tissue and lattice are found.
      batch: images per encoder step.
    """

    members: list[tuple[BatchEncoder, BagClassifier]]
    hr_encoder: BatchEncoder
    space: SharedSpace
    config: ConfigDict
    settings: regions.TilingSettings
    batch: int

    def __call__(self, path: Path, mpp: float | None = None) -> SlideResult:
        """Classifies one slide.

        Raises:
          SlideError: it cannot be opened, has no um/px, no tissue or no readable patch.
        """
        plan = regions.plan_slide(path, mpp=mpp, settings=self.settings)
        cells, geometry = plan.lattice, self.settings.geometry
        seconds = {"open_tissue": plan.seconds, "read": 0.0, "encode": 0.0, "select": 0.0}
        seconds |= {"read_hr": 0.0, "encode_hr": 0.0, "mil": 0.0}
        with plan.slide as slide:
            low = PatchReader(slide, cells, geometry, high_resolution=False)
            embeddings = self._encode([encode for encode, _ in self.members], low, seconds, "")
            if not low.read:
                raise SlideError(f"{path}: none of its {len(cells.lr_xy)} patches can be decoded")
            there = np.array(low.read)
            choices = [self._choose(rows, path, seconds) for rows in embeddings]
            # The tower on HR patches is one for all folds: what several chose is read once.
            wanted = np.unique(np.concatenate([choice.chosen for choice in choices]))
            high = PatchReader(slide, cells, geometry, True, there[wanted].tolist())
            found = self._encode([self.hr_encoder], high, seconds, "_hr")
            if not found:
                raise SlideError(f"{path}: none of the chosen regions can be decoded")
            drawn_on = inference.picture(slide, geometry, plan.tissue)
            log = {int(level): int(pixels) for level, pixels in slide.read_log.items()}
            allowed = slide.source_level(geometry.patch_px, cells.child_side)
            mpp = slide.mpp
        counts = [len(xy) for xy in high.xy]
        parent = np.repeat(np.searchsorted(there, high.read), counts)
        said = [
            self._member(head, choice, found[0], parent, len(there), path, seconds)
            for choice, (_, head) in zip(choices, self.members, strict=True)
        ]
        first = choices[0]
        return SlideResult(
            probabilities=np.mean([probabilities for probabilities, _ in said], axis=0),
            attention=np.mean([attention for _, attention in said], axis=0),
            xy=cells.lr_xy[low.read],
            side=cells.lr_side,
            mpp=mpp,
            seconds=seconds,
            encoded=sum(map(len, embeddings)) + len(found[0]),
            read_log=log,
            finest_allowed=allowed,
            unreadable=low.unreadable,
            picture=drawn_on[0],
            picture_downsample=drawn_on[1],
            guidance=Guidance(
                xy=cells.lr_xy[low.read],
                side=cells.lr_side,
                scores=first.scores,
                likeness=first.scores[:, text_guidance.guides(self.config, self.space)].max(1),
                chosen=wanted,
                sentences=self._fitting(embeddings[0][wanted]),
            ),
        )

    def _encode(
        self,
        encoders: list[BatchEncoder],
        reader: PatchReader,
        seconds: dict[str, float],
        suffix: str,
    ) -> list[Float[np.ndarray, "n D"]]:
        """`encode_patches`, its time and the reader's added to `seconds`."""
        features, spent = inference.encode_patches(
            encoders, reader, dtype=self.config.features.dtype, batch=self.batch
        )
        seconds["encode" + suffix] += spent
        seconds["read" + suffix] += reader.seconds
        return features

    def _choose(
        self, rows: Float[np.ndarray, "N D"], path: Path, seconds: dict[str, float]
    ) -> "_Choice":
        start = time.perf_counter()
        # By its file's name, as a cohort's slide is by its id: the same slide, the same control.
        choice = _Choice(*text_guidance.choose(self.config, self.space, rows, path.stem))
        seconds["select"] += time.perf_counter() - start
        return choice

    def _member(
        self,
        head: BagClassifier,
        choice: "_Choice",
        features: Float[np.ndarray, "M D"],
        parent: Int[np.ndarray, " M"],
        patches: int,
        path: Path,
        seconds: dict[str, float],
    ) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " N"]]:
        """Probabilities, and attention over LR patches, of one fold from what it chose."""
        own = np.isin(parent, choice.chosen)
        if not own.any():
            raise SlideError(f"{path}: none of the chosen regions can be decoded")
        start = time.perf_counter()
        logits, weights = head.predict(
            text_guidance.fused_features(self.config, self.space, features[own])
        )
        seconds["mil"] += time.perf_counter() - start
        present = np.ones(int(own.sum()), bool)
        mass = attention_mass.mass(weights, parent[own], patches, present)
        return softmax(logits), np.asarray(mass)

    def _fitting(self, rows: Float[np.ndarray, "n D"]) -> list[str]:
        """The description that fits each LR patch best."""
        texts = self.space.texts
        every = [sentence for of_class in texts.sentences for sentence in of_class]
        seen = np.asarray(self.space.project(np.asarray(rows, np.float32)))
        best = (seen @ np.concatenate(texts.sentence_embedding).T).argmax(1)
        return [every[index] for index in best]


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Scores [N, C] of the LR patches that were read, and the places of those chosen."""

    scores: Float[np.ndarray, "N C"]
    chosen: Int[np.ndarray, " n"]
