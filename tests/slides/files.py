"""Slide files for tests: small TIFFs of any layout, and ways to damage them."""

from pathlib import Path

import numpy as np
import tifffile


def gradient(height: int, width: int) -> np.ndarray:
    """A smooth image in which every place has its own colour: x in red, y in green."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([40 + 180 * x / width, 40 + 180 * y / height, np.full(x.shape, 120.0)], -1)
    return np.rint(image).astype(np.uint8)


def write_tiff(
    path: Path,
    levels: list[np.ndarray],
    *,
    mpp: float | None = 0.5,
    description: str | None = None,
    compression: str | None = "jpeg",
    tile: int | None = 256,
    **kwargs,
) -> Path:
    """A TIFF of the given level images; no resolution tags with mpp None."""
    layout = {"tile": (tile, tile)} if tile else {"rowsperstrip": kwargs.pop("rowsperstrip", 64)}
    if compression == "jpeg":
        layout |= {"compressionargs": {"level": 95}, "photometric": "rgb"}
    with tifffile.TiffWriter(path) as writer:
        for i, image in enumerate(levels):
            resolution = {}
            if mpp is not None:
                per_cm = 1e4 / (mpp * levels[0].shape[1] / image.shape[1])
                resolution = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
            writer.write(
                image,
                compression=compression,
                description=description if i == 0 else None,
                subfiletype=int(i > 0),
                metadata=None,
                **dict(layout),
                **resolution,
                **kwargs,
            )
    return path


def aperio(*, power: float | None, mpp: float | str | None) -> str:
    """An Aperio image description."""
    text = "Aperio Image Library v12.0.0 \r\n100x100 [0,0 100x100] (256x256) JPEG/RGB Q=90"
    if power is not None:
        text += f"|AppMag = {power:g}"
    if mpp is not None:
        text += f"|MPP = {mpp}"
    return text


def damage_tile(path: Path, *, level: int, index: int, how: str) -> None:
    """Overwrite a tile's bytes: "zeros", "half" (its second half zero), "noise" (its middle)."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.series[0].levels[level].keyframe
        start, count = page.dataoffsets[index], page.databytecounts[index]
    data = bytearray(path.read_bytes())
    if how == "zeros":
        data[start : start + count] = bytes(count)
    elif how == "half":
        data[start + count // 2 : start + count] = bytes(count - count // 2)
    elif how == "noise":
        low, high = start + count * 2 // 3, start + count - 2
        noise = np.random.default_rng(0).integers(0, 256, high - low, dtype=np.uint8)
        data[low:high] = noise.tobytes()
    path.write_bytes(bytes(data))
