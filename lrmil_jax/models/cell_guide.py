"""How a head with two magnifications chooses HR patches by LR patches, and reads both."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import softmax

from lrmil_jax.data import cells
from lrmil_jax.heads import choice
from lrmil_jax.models.guided import Choices
from lrmil_jax.models.result import Guidance
from lrmil_jax.models.visit import Visit
from lrmil_jax.report import heatmap
from lrmil_jax.selection import score
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.train.encode import BatchEncoder


def choose(
    head: BagModel, logits: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, "N 1"], Int[np.ndarray, " n"]]:
    """Scores of a slide's LR patches, and the places of those that a head chooses.

    Args:
      head: whose head reads cells.
      logits: its attention logits of the slide.
    """
    options = head.options
    wanted = choice.size(len(logits), rho=options["rho"], count=options["count"])
    scores = np.asarray(logits, np.float32)[:, None]
    return scores, score.select(scores, int(wanted))


@dataclasses.dataclass(frozen=True)
class CellGuide:
    """What such a model has beside encoders of LR patches and heads; as `guided.Guide`.

    Attributes:
      hr_encoder: the frozen tower on HR patches, one for all members.
    """

    hr_encoder: BatchEncoder

    def choose(
        self,
        heads: list[BagModel],
        features: list[Float[np.ndarray, "N D"]],
        child_mask: Bool[np.ndarray, "N r r"],
        slide_id: str,
    ) -> Choices:
        """Regions to read at HR, by each member's head."""
        del slide_id
        empty = np.zeros((0, features[0].shape[1]), features[0].dtype), np.zeros(0, np.int64)
        selections = []
        for head, low in zip(heads, features, strict=True):
            rows = _rows(low, *empty, empty[1], child_mask.shape[-1])
            selections.append(choose(head, head.predict(rows)[1]))
        return Choices(features[0], selections[0][0], [chosen for _, chosen in selections])

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
        parent, places = choices.parents(visit), visit.sources[1].places()
        # What other members chose may be there too: each head chooses again, and the same.
        ratio = places["child_mask"].shape[-1]
        bag = _rows(choices.embedding, rows, parent, places["child"], ratio)
        predictions = []
        for head in heads:
            logits, attention = head.predict(bag)
            predictions.append((head.task.link(logits), softmax(attention)))
        return predictions

    def guidance(self, choices: Choices, xy: Int[np.ndarray, "N 2"], side: int) -> Guidance:
        """What led the choice, for those who look at it."""
        return Guidance(
            classes=("choice",),
            xy=xy,
            side=side,
            scores=choices.scores,
            likeness=choices.scores[:, 0],
            chosen=choices.union,
            sentences=[""] * len(choices.union),
            label=heatmap.CHOICE,
        )


def _rows(low, high, place, child, ratio: int) -> Float[np.ndarray, "N E"]:
    return cells.assemble(low, high, place, child, children=ratio**2)
