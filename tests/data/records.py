"""Small region and feature shards of known content, for the tests of this folder."""

import imagecodecs
import numpy as np

from lrmil_jax.data import features, schema, slide_jobs, writer

GEOMETRY = schema.Geometry(hr_mpp=0.5, lr_mpp=1.0, patch_px=8)


def place(index, *, mask=None, slide_id="s"):
    """Where a region lies."""
    r = GEOMETRY.ratio
    return {
        "slide_id": slide_id,
        "index": index,
        "lr_xy": np.array([index * 16, 32], np.int32),
        "lr_side": 16,
        "child_mask": np.ones((r, r), bool) if mask is None else np.array(mask, bool),
    }


def region(index, *, mask=None, slide_id="s"):
    """A region whose LR tile holds its index."""
    tile = np.full((GEOMETRY.patch_px, GEOMETRY.patch_px, 3), index, np.uint8)
    return place(index, mask=mask, slide_id=slide_id) | {"lr": imagecodecs.png_encode(tile)}


def mosaic(index, *, mask=None, slide_id="s"):
    """Its children: child (v, u) is grey 20 + 50 v + 100 u."""
    px, r = GEOMETRY.patch_px, GEOMETRY.ratio
    grey = np.array([[20 + 50 * v + 100 * u for u in range(r)] for v in range(r)], np.uint8)
    pixels = np.repeat(np.kron(grey, np.ones((px, px), np.uint8))[..., None], 3, 2)
    encoded = imagecodecs.jpeg8_encode(pixels, level=95)
    return place(index, mask=mask, slide_id=slide_id) | {"hr": encoded}


def write_regions(path, masks, *, slide_id="s"):
    """A shard with one region a mask."""
    found = (region(i, mask=mask, slide_id=slide_id) for i, mask in enumerate(masks))
    writer.write_records(path, schema.region_features(GEOMETRY), found)
    return path


def write_mosaics(path, masks, *, slide_id="s"):
    """The children of the same regions, where a reader of `path` looks for them."""
    found = (mosaic(i, mask=mask, slide_id=slide_id) for i, mask in enumerate(masks))
    hr = slide_jobs.mosaics_path(path)
    writer.write_records(hr, schema.mosaic_features(GEOMETRY), found)
    return hr


def rows_of(masks, *, width=4, layers=2, seed=0):
    """The features that encoding these regions' children would give, in their order."""
    rng = np.random.default_rng(seed)
    places = [(i, v, u) for i, mask in enumerate(masks) for v, u in np.argwhere(mask)]
    parent, v, u = np.array(places, np.int32).T
    shape = (len(places), layers, width)
    return features.SlideFeatures(
        embedding=rng.normal(size=(len(places), width)).astype(np.float32),
        xy=np.stack([parent * 16 + u * 8, 32 + v * 8], 1).astype(np.int32),
        parent=parent,
        child=(v * 2 + u).astype(np.int32),
        child_mask=np.array(masks, bool)[parent],
        cls=rng.normal(size=shape).astype(np.float32) if layers else None,
    )


def parser(rows, names=None, dtype="float16"):
    """Reads shards of such rows."""
    return schema.RecordParser(features.row_features(rows, dtype), names)
