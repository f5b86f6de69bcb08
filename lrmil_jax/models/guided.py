"""How LR patches choose the HR patches that a model reads, and what its heads make of these."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from lrmil_jax.distill import guidance as attention_mass
from lrmil_jax.errors import SlideError
from lrmil_jax.models import text_guidance
from lrmil_jax.models.result import Guidance
from lrmil_jax.models.visit import Visit
from lrmil_jax.selection.shared_space import SharedSpace
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.train.encode import BatchEncoder, Encoder


@dataclasses.dataclass(frozen=True)
class Choices:
    """What the members chose on one slide.

    Attributes:
      embedding: [N, D] LR features of the first member.
      scores: [N, C] of the first member.
      chosen: of each member, places among the N that were read.
    """

    embedding: Float[np.ndarray, "N D"]
    scores: Float[np.ndarray, "N C"]
    chosen: list[Int[np.ndarray, " n"]]

    @property
    def union(self) -> Int[np.ndarray, " n"]:
        """Those of all members: what several chose is read once."""
        return np.unique(np.concatenate(self.chosen))

    def parents(self, visit: Visit) -> Int[np.ndarray, " M"]:
        """Of the HR patches that were read, the LR patch in which each lies: its place among those
        that were read, as others cannot have been chosen.

        Raises:
          SlideError: nothing of what a member chose could be decoded.
        """
        low, high = visit.sources
        parent = np.searchsorted(low.regions_read, high.places()["parent"])
        if not all(np.isin(parent, chosen).any() for chosen in self.chosen):
            raise SlideError(f"{visit.path}: none of the chosen regions can be decoded")
        return parent


@dataclasses.dataclass(frozen=True)
class Guide:
    """What a guided model has beside encoders of LR patches and heads.

    Attributes:
      hr_encoder: the frozen tower on HR patches, one for all members.
      space: classes and images in one space.
      config: `select`, `fuse` and `seed` of the run that trained it.
    """

    hr_encoder: BatchEncoder
    space: SharedSpace
    config: ConfigDict

    def choose(
        self,
        heads: list[BagModel],
        features: list[Float[np.ndarray, "N E"]],
        child_mask: Bool[np.ndarray, "N r r"],
        slide_id: str,
    ) -> Choices:
        """Regions to read at HR, by each member's LR features; the texts choose, not the heads."""
        del heads
        # By its file's name, as a cohort's slide is by its id: the same slide, the same control.
        selections = [
            text_guidance.choose(self.config, self.space, rows, child_mask, slide_id)
            for rows in features
        ]
        ratio = child_mask.shape[-1]
        embedding = text_guidance.embeddings(self.config, self.space, features[0], ratio)
        return Choices(embedding, selections[0][0], [chosen for _, chosen in selections])

    def scoring_encoder(self, encoder: Encoder, *, ratio: int) -> Encoder:
        """A member's LR encoder with what `choose` needs beside its embedding."""
        return text_guidance.scoring_encoder(self.config, self.space, encoder, ratio=ratio)

    def predict(
        self,
        heads: list[BagModel],
        choices: Choices,
        rows: Float[np.ndarray, "M D"],
        visit: Visit,
    ) -> list[tuple[Float[np.ndarray, " V"], Float[np.ndarray, " N"]]]:
        """Predicted values, and attention over LR patches, of each member from what it chose.

        Raises:
          SlideError: nothing of what a member chose could be decoded.
        """
        parent, xy = choices.parents(visit), visit.sources[1].places()["xy"]
        predictions = []
        for head, chosen in zip(heads, choices.chosen, strict=True):
            in_chosen = np.isin(parent, chosen)
            fused = text_guidance.fused_features(self.config, self.space, rows[in_chosen])
            logits, weights = head.predict(fused, xy[in_chosen])
            mask = np.ones(int(in_chosen.sum()), bool)
            num_patches = len(choices.embedding)
            mass = attention_mass.mass(weights, parent[in_chosen], num_patches, mask)
            predictions.append((head.task.link(logits), np.asarray(mass)))
        return predictions

    def guidance(self, choices: Choices, xy: Int[np.ndarray, "N 2"], side: int) -> Guidance:
        """What led the choice, for those who look at it."""
        guides = text_guidance.guides(self.config, self.space)
        return Guidance(
            classes=tuple(self.space.texts.classes),
            xy=xy,
            side=side,
            scores=choices.scores,
            likeness=choices.scores[:, guides].max(1),
            chosen=choices.union,
            sentences=self._fitting(choices.embedding[choices.union]),
        )

    def _fitting(self, rows: Float[np.ndarray, "n D"]) -> list[str]:
        """The description that fits each LR patch best."""
        texts = self.space.texts
        sentences = [sentence for of_class in texts.sentences for sentence in of_class]
        projected = np.asarray(self.space.project(np.asarray(rows, np.float32)))
        best = (projected @ np.concatenate(texts.sentence_embedding).T).argmax(1)
        return [sentences[index] for index in best]
