"""Predicts with a model that `python -m lrmil_jax.models.exported` wrote; this file lies beside
it and needs jax and numpy alone.

    python read_exported.py TILES.npy          # uint8 [N, px, px, 3], all LR tiles of one slide
"""

import json
import sys
from pathlib import Path

import numpy as np
from jax import export


def predict(folder, tiles, places=None, batch=64):
    """Values by name (of a classification: probabilities) and attention [N] of a slide's tiles.

    `places` [N, 2], columns and rows of the tiles in the lattice, for heads that ask for them.
    """
    folder = Path(folder)
    facts = json.loads((folder / "exported.json").read_text(encoding="utf-8"))
    inputs = () if not facts["needs_places"] else (np.asarray(places, np.float32),)
    values, attention = [], []
    for member in range(facts["members"]):
        encode, head = (
            export.deserialize(bytearray((folder / f"{part}_{member}.stablehlo").read_bytes())).call
            for part in ("encoder", "head")
        )
        parts = [encode(tiles[at : at + batch]) for at in range(0, len(tiles), batch)]
        said, looked = head(np.concatenate(parts), *inputs)
        values.append(said)
        attention.append(looked)
    mean = np.mean(values, axis=0)
    return dict(zip(facts["values"], mean.tolist(), strict=True)), np.mean(attention, axis=0)


if __name__ == "__main__":
    print(predict(Path(__file__).parent, np.load(sys.argv[1]))[0])  # noqa: T201
