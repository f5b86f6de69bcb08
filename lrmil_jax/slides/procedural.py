"""Procedural tissue: a map of tissue kinds, and its painting in two stains.

Optical density is additive, so tissue is painted as amounts of haematoxylin and eosin per pixel and
turned into colour once (Beer-Lambert). Lengths are in pixels of 0.5 um.
"""

import itertools

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from scipy.spatial import cKDTree

TISSUES = ("stroma", "lymphoid", "fat", "benign", "tumour")
STROMA, LYMPHOID, FAT, BENIGN, TUMOUR = range(5)
GLASS = -1

# Stain vectors after Ruifrok and Johnston (2001): optical density per unit in R, G, B.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], np.float32)

_PATCH = 64  # density of nuclei counts per square of this side
_NUCLEI = {STROMA: 2.2, LYMPHOID: 14.0, FAT: 0.5, BENIGN: 6.0, TUMOUR: 6.0}
_RADIUS = {STROMA: 4.5, LYMPHOID: 4.0, FAT: 3.5, BENIGN: 8.0, TUMOUR: 8.0}
_ELONGATION = {STROMA: 2.4, LYMPHOID: 1.1, FAT: 1.8, BENIGN: 1.15, TUMOUR: 1.15}
_DEPTH = {STROMA: 0.85, LYMPHOID: 1.0, FAT: 0.8, BENIGN: 0.55, TUMOUR: 0.55}
_EOSIN = {STROMA: 0.42, LYMPHOID: 0.16, FAT: 0.03, BENIGN: 0.26, TUMOUR: 0.26, GLASS: 0.0}

_SIZE_SPREAD = {TUMOUR: 0.35}  # of the log area; elsewhere:
_SIZE_SPREAD_ELSE = 0.08
_INCLUSIONS = {BENIGN: 5, TUMOUR: 1}  # granules, or one nucleolus, of the same total area
_INCLUSION_RADIUS = 3.2  # of one that holds the whole area
_INCLUSION_DEPTH = 0.7
_NOISE = 0.03  # SD per pixel and channel, in units of full white

_BAND = 64  # rows that are painted at once


def smooth_field(
    rng: np.random.Generator, size_px: int, length_px: float | int
) -> Float[np.ndarray, "h w"]:
    """A smooth random field, about standard normal, with blobs of about `length_px`."""
    knots = max(3, round(size_px / length_px) + 3)
    coarse = Image.fromarray(rng.standard_normal((knots, knots)).astype(np.float32))
    # Two pixels of margin a side: bicubic interpolation flattens at the rim.
    scale = size_px / (knots - 2)
    box = (1.0, 1.0, 1 + size_px / scale, 1 + size_px / scale)
    return np.asarray(coarse.resize((size_px, size_px), Image.Resampling.BICUBIC, box=box))


def slide_map(
    rng: np.random.Generator, *, size_px: int, positive: bool, background: float | int
) -> Int[np.ndarray, "h w"]:
    """Tissue kind per pixel: 40 % epithelium, 10 % lymphoid, 8 % fat, stroma between.

    Quantiles and not thresholds, so that every slide has the same shares whatever its label.
    """
    inside = _tissue_outline(rng, size_px, background)
    kinds = np.full((size_px, size_px), GLASS, np.int8)
    kinds[inside] = STROMA
    gland = smooth_field(rng, size_px, 220) + 0.3 * smooth_field(rng, size_px, 70)
    other = smooth_field(rng, size_px, 180)
    low, high = np.quantile(other[inside], [0.08, 0.90])
    kinds[inside & (other < low)] = FAT
    kinds[inside & (other > high)] = LYMPHOID
    room = kinds == STROMA
    share = min(1.0, 0.40 * inside.sum() / room.sum())
    kinds[room & (gland > np.quantile(gland[room], 1 - share))] = BENIGN
    clumps, area = rng.integers(1, 4), rng.uniform(0.05, 0.10)  # drawn for negatives as well
    ripple = smooth_field(rng, size_px, 60)
    if positive:
        _grow_tumour(rng, kinds, ripple, clumps=int(clumps), area_px=area * inside.sum())
    return kinds


def random_map(rng: np.random.Generator, *, size_px: int, main: int) -> Int[np.ndarray, "h w"]:
    """A small field that is mostly of kind `main`, with another kind in its corners."""
    kinds = np.full((size_px, size_px), main, np.int8)
    other = rng.choice([k for k in (STROMA, LYMPHOID, FAT, BENIGN) if k != main])
    field = smooth_field(rng, size_px, 90)
    kinds[field < np.quantile(field, rng.uniform(0.0, 0.2))] = other
    return kinds


def paint(rng: np.random.Generator, kinds: Int[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of a map of tissue kinds, with a stain of its own."""
    stains = _STAINS * (1 + 0.04 * rng.standard_normal(_STAINS.shape)).astype(np.float32)
    stains *= rng.uniform(0.88, 1.12, (2, 1)).astype(np.float32)
    light = rng.uniform(0.93, 0.98)
    haematoxylin = np.zeros(kinds.shape, np.float32)
    eosin = np.array([_EOSIN[k] for k in (*range(5), GLASS)], np.float32)[kinds]
    eosin *= 1 + _texture(rng, kinds)
    _paint_fat(rng, kinds, eosin)
    for kind in range(5):
        _paint_nuclei(rng, kinds == kind, kind, haematoxylin)
    noise = np.where(kinds == GLASS, np.float32(0.01), np.float32(_NOISE))
    image = np.empty((*kinds.shape, 3), np.uint8)
    # A band of rows at a time stays in the processor's cache.
    bands = [slice(top, top + _BAND) for top in range(0, len(kinds), _BAND)]
    for channel, band in itertools.product(range(3), bands):
        white = haematoxylin[band] * -stains[0, channel]
        white -= eosin[band] * stains[1, channel]
        np.exp(white, out=white)
        white *= light
        white += noise[band] * rng.standard_normal(white.shape, dtype=np.float32)
        white *= 255
        np.rint(white, out=white)
        image[band, :, channel] = np.clip(white, 0, 255, out=white)
    return image


def _tissue_outline(rng: np.random.Generator, size_px: int, background: float) -> np.ndarray:
    """A ragged island that covers 1 - background of the slide, with holes; or all of it."""
    if background == 0:
        return np.ones((size_px, size_px), bool)
    axis = np.linspace(-1, 1, size_px, dtype=np.float32)
    distance = np.maximum(np.abs(axis[:, None]), np.abs(axis[None, :])) ** 3
    field = 3 * distance + 0.35 * smooth_field(rng, size_px, size_px / 5)
    return field <= np.quantile(field, 1 - background)


def _grow_tumour(
    rng: np.random.Generator, kinds: np.ndarray, ripple: np.ndarray, *, clumps: int, area_px: float
) -> None:
    """Turn the epithelium nearest to a few seeds into tumour, `area_px` in all."""
    rows, columns = np.nonzero(kinds == BENIGN)
    seeds = rng.integers(len(rows), size=clumps)
    distance = np.full(len(rows), np.inf, np.float32)
    for seed in seeds:
        squared = (rows - rows[seed]) ** 2 + (columns - columns[seed]) ** 2
        distance = np.minimum(distance, np.sqrt(squared).astype(np.float32))
    distance += 12 * ripple[rows, columns]
    count = min(int(area_px), len(rows) - 1)
    chosen = np.argpartition(distance, count)[:count]
    kinds[rows[chosen], columns[chosen]] = TUMOUR


def _texture(rng: np.random.Generator, kinds: np.ndarray) -> Float[np.ndarray, "h w"]:
    """Relative variation of eosin: wavy fibres in stroma, fine grain elsewhere."""
    size_px = kinds.shape[0]
    angle, wave = rng.uniform(0, np.pi), rng.uniform(9, 13)
    bend = 3.0 * smooth_field(rng, size_px, 120) + 0.8 * smooth_field(rng, size_px, 25)
    texture = (0.15 * smooth_field(rng, size_px, 5)).astype(np.float64)
    rows, columns = np.nonzero(kinds == STROMA)
    axis = np.arange(size_px, dtype=np.float32)
    along = (np.cos(angle) * axis)[columns] + (np.sin(angle) * axis)[rows]
    texture[rows, columns] += 0.35 * np.sin(2 * np.pi * along / wave + 2 * bend[rows, columns])
    return texture


def _paint_fat(rng: np.random.Generator, kinds: np.ndarray, eosin: np.ndarray) -> None:
    """Thin walls between large empty cells: the ridge between the two nearest cell centres."""
    rows, columns = np.nonzero(kinds == FAT)
    if not len(rows):
        return
    centres = _jittered_grid(rng, kinds.shape[0], spacing=38.0, jitter=0.35)
    near, _ = cKDTree(centres).query(np.stack([rows, columns], 1), k=2)
    wall = np.exp(-(((near[:, 1] - near[:, 0]) / 2.5) ** 2))
    eosin[rows, columns] += 0.45 * wall


def _jittered_grid(
    rng: np.random.Generator, size_px: int, *, spacing: float, jitter: float
) -> Float[np.ndarray, "k 2"]:
    """(row, column) points in all places, kept apart: one in every cell of a square grid."""
    count = max(1, round(size_px / spacing))
    places = np.stack(np.meshgrid(np.arange(count), np.arange(count), indexing="ij"), -1)
    moved = places + 0.5 + rng.uniform(-jitter, jitter, places.shape)
    return moved.reshape(-1, 2) * (size_px / count)


def _paint_nuclei(
    rng: np.random.Generator, mask: np.ndarray, kind: int, haematoxylin: np.ndarray
) -> None:
    """Add the nuclei of one kind whose centres lie in `mask`."""
    size_px = mask.shape[0]
    spacing = _PATCH / np.sqrt(_NUCLEI[kind])
    centres = _jittered_grid(rng, size_px, spacing=spacing, jitter=0.3)
    pixels = np.floor(centres).astype(int)
    chosen = mask[pixels[:, 0], pixels[:, 1]]
    centres, pixels = centres[chosen], pixels[chosen]
    if not len(centres):
        return
    stamps = _nucleus_stamps(rng, kind, centres - pixels)
    reach = stamps.shape[1] // 2
    padded = np.pad(haematoxylin, reach)
    for (row, column), stamp in zip(pixels, stamps, strict=True):
        window = padded[row : row + 2 * reach + 1, column : column + 2 * reach + 1]
        np.maximum(window, stamp, out=window)  # nuclei overlap without darkening
    haematoxylin[:] = padded[reach : reach + size_px, reach : reach + size_px]


def _nucleus_stamps(
    rng: np.random.Generator, kind: int, offset: Float[np.ndarray, "k 2"]
) -> Float[np.ndarray, "k s s"]:
    """Haematoxylin of nuclei centred `offset` off the middle of each stamp."""
    count = len(offset)
    spread = _SIZE_SPREAD.get(kind, _SIZE_SPREAD_ELSE)
    # A log-normal area of mean one, whatever its spread.
    area = np.exp(spread * rng.standard_normal(count) - spread**2 / 2)
    radius = _RADIUS[kind] * np.sqrt(np.clip(area, 0.3, 2.5))
    stretch = np.sqrt(_ELONGATION[kind])
    reach = int(np.ceil(_RADIUS[kind] * np.sqrt(2.5) * stretch)) + 2
    axis = np.arange(-reach, reach + 1, dtype=np.float32)
    y = axis[None, :, None] - offset[:, 0, None, None].astype(np.float32)
    x = axis[None, None, :] - offset[:, 1, None, None].astype(np.float32)
    angle = rng.uniform(0, np.pi, (count, 1, 1)).astype(np.float32)
    long = (np.cos(angle) * x + np.sin(angle) * y) / stretch
    short = (np.cos(angle) * y - np.sin(angle) * x) * stretch
    body = _soft(np.sqrt(long * long + short * short), radius[:, None, None])
    chromatin = 1 + 0.12 * rng.standard_normal(body.shape, dtype=np.float32)
    depth = _DEPTH[kind] * rng.uniform(0.9, 1.1, (count, 1, 1)).astype(np.float32)
    stamps = depth * body * chromatin
    if kind in _INCLUSIONS:
        stamps += _inclusions(rng, _INCLUSIONS[kind], radius, y, x)
    return stamps


def _inclusions(
    rng: np.random.Generator, number: int, radius: np.ndarray, y: np.ndarray, x: np.ndarray
) -> Float[np.ndarray, "k s s"]:
    """`number` dark dots in each nucleus; their summed density does not depend on `number`."""
    count = len(radius)
    dot = _INCLUSION_RADIUS / np.sqrt(number)
    turn = rng.uniform(0, 2 * np.pi, count)
    total = np.zeros(np.broadcast_shapes(y.shape, x.shape), np.float32)
    for i in range(number):
        angle = turn + 2 * np.pi * i / number + rng.normal(0, 0.1, count)
        distance = radius * (
            rng.uniform(0.45, 0.62, count) if number > 1 else rng.uniform(0, 0.2, count)
        )
        _add_dots(
            total, dot, y[:, :, 0], x[:, 0], distance * np.sin(angle), distance * np.cos(angle)
        )
    target = _INCLUSION_DEPTH * np.pi * _INCLUSION_RADIUS**2
    return total * (target / total.sum((1, 2), keepdims=True))


def _add_dots(
    total: np.ndarray, radius: float, y: np.ndarray, x: np.ndarray, row: np.ndarray, col: np.ndarray
) -> None:
    """Add one dot to each stamp at (row, col), computed in the few pixels around it alone."""
    reach = int(np.ceil(radius + 0.5))
    around = np.arange(-reach, reach + 1)
    rows = np.abs(y - row[:, None]).argmin(1)[:, None] + around
    columns = np.abs(x - col[:, None]).argmin(1)[:, None] + around
    dy = np.take_along_axis(y, rows, 1) - row[:, None]
    dx = np.take_along_axis(x, columns, 1) - col[:, None]
    dots = _soft(np.hypot(dy[:, :, None], dx[:, None, :]), radius)
    nucleus = np.arange(len(total))[:, None, None]
    total[nucleus, rows[:, :, None], columns[:, None, :]] += dots


def _soft(distance: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """One inside `radius`, zero outside, with an edge about a pixel wide."""
    return np.clip(radius - distance + 0.5, 0, 1).astype(np.float32)
