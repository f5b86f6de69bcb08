"""A simulated cohort of another tool's features: HR and LR of one grid, with a class to tell."""

import numpy as np
import pandas as pd

from tests.interchange import tools

WIDTH = {"hr": 12, "lr": 8}
SIDE = 512


def make(folder, *, slides=24, write=tools.trident, seed=0):
    """Writes `hr/`, `lr/` and `labels.csv`; a tumour slide has LR patches that are shifted, with
    their children. LR patches at the edge lack children, and some children lack an LR patch.

    Returns:
      The label CSV.
    """
    rows = []
    for number in range(slides):
        rng = np.random.default_rng([seed, number])
        name, tumour = f"s{number:02d}", number % 2
        low = tools.square(4, 3, step=4 * SIDE, start=(4 * SIDE, 0))
        high = tools.square(14, 13, step=SIDE, start=(4 * SIDE, 0))
        shifted = (np.arange(len(low)) < 3) & bool(tumour)
        parent = (high[:, 1] // (4 * SIDE)) * 4 + high[:, 0] // (4 * SIDE) - 1
        inside = high[:, 1] < 3 * 4 * SIDE
        signal = {"lr": shifted, "hr": inside & shifted[np.where(inside, parent, 0)]}
        for level, xy, power in (("hr", high, 20), ("lr", low, 5)):
            values = rng.normal(size=(len(xy), WIDTH[level]))
            values[signal[level], 0] += 6
            values = values.astype(np.float16).astype(np.float32)
            order = rng.permutation(len(xy))
            write(folder / level, name, values[order], xy[order], target=power)
        rows.append({"slide_id": name, "patient_id": f"p{number}",
                     "label": ("benign", "tumour")[tumour]})  # fmt: skip
    labels = folder / "labels.csv"
    pd.DataFrame(rows).to_csv(labels, index=False)
    return labels
