"""The space that images and the classes' descriptions share."""

from pathlib import Path
from typing import Any

import numpy as np

from lrmil_jax.data import param_files
from lrmil_jax.encoders import contrastive
from lrmil_jax.errors import WeightsError
from lrmil_jax.selection import ClassTexts


class SharedSpace:
    """The space of images and texts, as the stages after `text` need it.

    Attributes:
      texts: the classes.
      scale: factor on cosines that makes logits of them.
      kernel: [D, d] from an image embedding into the space, or None if it is there already.
    """

    def __init__(self, file: Path):
        """Reads what `run` wrote.

        Raises:
          WeightsError: the file is missing or broken.
        """
        tree, facts = param_files.load_params(file)
        try:
            self._read(tree, facts)
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                f"{file} holds no classes in words ({error!r}); copy the model folder again, or "
                "delete the file and run again"
            ) from error

    def _read(self, tree: dict[str, Any], facts: dict[str, Any]) -> None:
        ends = np.cumsum(tree["counts"])[:-1]
        self.texts = ClassTexts(
            classes=tuple(facts["classes"]),
            sentences=tuple(map(tuple, facts["sentences"])),
            embedding=tree["embedding"],
            sentence_embedding=tuple(np.split(tree["sentence_embedding"], ends)),
        )
        self.scale = float(tree["logit_scale"])
        self.kernel = tree.get("projection")

    def project(self, embedding):
        """Image embeddings [..., D] in the space, each of length 1; NumPy or traced."""
        if self.kernel is not None:
            embedding = embedding @ self.kernel
        return contrastive.normalise(embedding)
