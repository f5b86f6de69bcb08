"""Predicts with a model that `lrmil convert` wrote; this file lies beside it and needs jax and
numpy alone.

    python read_exported.py TILES.npy

TILES.npy: uint8 RGB [N, px, px, 3], all tissue tiles of one slide, `um_px` um a pixel, as
exported.json says.
"""

import json
import sys
from pathlib import Path

import numpy as np
from jax import export


def predict(folder, tiles, batch=64):
    """Values by name (of a classification: probabilities) and attention [N] of a slide's tiles."""
    folder = Path(folder)
    facts = json.loads((folder / "exported.json").read_text(encoding="utf-8"))
    if facts["format"] != "stablehlo":
        raise SystemExit(f"{folder} holds {facts['format']}; this reads stablehlo")
    values, attention = [], []
    for member in range(facts["members"]):
        encode, head = (
            export.deserialize(bytearray((folder / f"{part}_{member}.stablehlo").read_bytes())).call
            for part in ("encoder", "head")
        )
        features = [encode(tiles[at : at + batch]) for at in range(0, len(tiles), batch)]
        for kept, part in zip((values, attention), head(np.concatenate(features)), strict=True):
            kept.append(part)
    mean = np.mean(values, axis=0)
    return dict(zip(facts["values"], mean.tolist(), strict=True)), np.mean(attention, axis=0)


if __name__ == "__main__":
    sys.stdout.write(f"{predict(Path(__file__).parent, np.load(sys.argv[1]))[0]}\n")
