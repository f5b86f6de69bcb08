"""The picture of docs/checking.md: procedural tissue under stains, glass and light as they come.

python scripts/tissue_picture.py --output docs/tissue.png
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lrmil_jax.slides import lattice, synthetic, tissue
from lrmil_jax.slides.tissue import Tissue, TissueRule

DOWNSAMPLE = 16  # of slides of 0.5 um/px: 8 um/px
WARM = np.array([243, 236, 205]) / 245


class _Slide:
    """What `lattice.build` asks of a slide."""

    mpp = 0.5
    path = "procedural"

    def __init__(self, side: int):
        self.dimensions = (side, side)


def examples(seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Titles and thumbnails, [h, w, 3]."""
    rng = np.random.default_rng(seed)
    slide, _ = synthetic.tissue_image(rng, size_px=2560, positive=True, background=0.6)
    image = synthetic.reduced(slide, DOWNSAMPLE).astype(np.float64)
    density = -np.log10(np.clip(image, 1, 245) / 245)
    grey = density.mean(-1, keepdims=True)
    half = np.arange(image.shape[1])[None, :, None] < image.shape[1] / 2
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in image.shape[:2]), indexing="ij")
    vignette = 1 - 0.2 * ((x**2 + y**2) / 2)[..., None] * np.array([0.6, 0.8, 1.2])
    inked = image.copy()
    inked[30:37, 15:140] = (40, 80, 190)
    dab = np.where(half, grey * [1.6, 2.6, 3.6], grey * [0.8, 0.65, 0.35])
    yield "H&E", image
    yield "faded to a fifth", 245 * 10 ** (-density / 5)
    yield "glass of (243, 236, 205)", image * WARM
    yield "dense DAB beside pale nuclei", 245 * 10**-dab
    yield "marker", inked
    yield "no tissue, warm vignette", 243 * vignette


def drawn(thumbnail: np.ndarray) -> Image.Image:
    """The thumbnail as `check` draws it, twice as large."""
    image = np.clip(np.rint(thumbnail), 0, 255).astype(np.uint8)
    mask, findings = tissue.tissue_mask(image, TissueRule())
    found = Tissue(mask, float(DOWNSAMPLE), image, [], findings)
    cells = None
    if mask.any():
        cells = lattice.build(
            _Slide(image.shape[0] * DOWNSAMPLE), hr_mpp=0.5, lr_mpp=2.0, patch_px=128, tissue=found
        )
    picture = Image.fromarray(tissue.overlay(found, cells))
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    pictures = [(title, drawn(thumbnail)) for title, thumbnail in examples(given.seed)]
    width, height = pictures[0][1].size
    sheet = Image.new("RGB", (3 * width + 20, 2 * (height + 26)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (title, picture) in enumerate(pictures):
        corner = (place % 3) * (width + 10), place // 3 * (height + 26)
        draw.text((corner[0] + 2, corner[1] + 5), title, fill="black")
        sheet.paste(picture, (corner[0], corner[1] + 22))
    sheet.quantize(96).save(given.output, optimize=True)


if __name__ == "__main__":
    main()
