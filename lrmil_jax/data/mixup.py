"""Bags mixed of the instances of two training bags, drawn anew in each epoch.

Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018: a share lambda ~
Beta(alpha, alpha) of one example, 1 - lambda of another, and their targets alike. Of bags it is
their instances that are shared out, none of which is changed.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Mix:
    """The mixed bags of one epoch; of a bag that is not used, the bag itself.

    Attributes:
      partner: [S] the bag that each is mixed with, another one if there is one.
      share: [S] lambda, what the first of both weighs in the target.
      counts: [S, 2] instances that are drawn of the bag, at least one, and of its partner.
    """

    partner: Int[np.ndarray, " S"]
    share: Float[np.ndarray, " S"]
    counts: Int[np.ndarray, "S 2"]

    @property
    def sizes(self) -> Int[np.ndarray, " S"]:
        """Instances of each mixed bag, never more than the longest of all bags has."""
        return self.counts.sum(1)


def draw(
    sizes: Int[np.ndarray, " S"],
    bags: Int[np.ndarray, " n"],
    *,
    alpha: float,
    seed: int,
    epoch: int,
    probabilities: Float[np.ndarray, " n"] | None = None,
) -> Mix:
    """Partners and shares of an epoch, a function of the arguments alone.

    Args:
      sizes: instances that may be drawn of every bag.
      bags: those that are used, each once.
      alpha: of the Beta distribution, above 0: small ones leave most bags almost whole, large ones
        take half of both.
      seed: not negative.
      epoch: from 0.
      probabilities: that draw bags in an epoch, and so partners; None: each is a partner once.
    """
    rng = np.random.default_rng([seed, epoch, 0, 1])
    partner, share = np.arange(len(sizes)), np.ones(len(sizes))
    if len(bags) > 1:
        order = rng.permutation(bags)
        partner[order] = np.roll(order, -1)
        if probabilities is not None:
            drawn = rng.choice(bags, len(bags), p=probabilities)
            partner[bags] = np.where(drawn == bags, partner[bags], drawn)
        share[bags] = rng.beta(alpha, alpha, len(bags))
    sizes = np.asarray(sizes, np.int64)
    own = np.maximum(np.ceil(share * sizes), 1).astype(np.int64)
    other = np.floor((1 - share) * sizes[partner]).astype(np.int64)
    # As one is rounded up and one down, only floating point itself could exceed the longest bag.
    other = np.clip(other, 0, np.maximum(sizes[bags].max() - own, 0))
    return Mix(partner, share, np.stack([own, other], 1))
