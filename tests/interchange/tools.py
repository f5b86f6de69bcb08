"""Feature files as the tools themselves write them (their keys, types, chunks and attributes)."""

import json
import math

import h5py
import numpy as np


def square(columns, rows, *, step, start=(0, 0)):
    """Corners of a full rectangle of tiles, row by row."""
    v, u = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return np.stack([u, v], -1).reshape(-1, 2) * step + np.array(start)


def features_of(count, width, seed=0):
    """Values that float16 holds exactly."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)).astype(np.float16).astype(np.float32)


def trident(folder, name, features, xy, *, px=256, source=40, target=20, overlap=0, size=None):
    """Features chunked a row each, as TRIDENT does; the folder is that of one encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{name}.h5", "w") as file:
        stored = file.create_dataset(
            "features", data=features, chunks=(1, features.shape[1]), maxshape=(None, None)
        )
        stored.attrs.update({"name": name, "savetodir": "/elsewhere", "encoder": "uni_v1"})
        coords = file.create_dataset("coords", data=np.asarray(xy, np.int64))
        width, height = size or ("None", "None")
        coords.attrs.update(
            {"patch_size": px, "patch_size_level0": px * source // target,
             "level0_magnification": source, "target_magnification": target, "overlap": overlap,
             "name": name, "savetodir": "/elsewhere", "level0_width": width,
             "level0_height": height}
        )  # fmt: skip
    return folder


def clam(folder, name, features, xy, *, px=None, level=0, downsample=1.0):
    """Bare features and coordinates; the patch file, if `px` is given, lies beside the folder."""
    (folder / "h5_files").mkdir(parents=True, exist_ok=True)
    width = features.shape[1]
    with h5py.File(folder / "h5_files" / f"{name}.h5", "w") as file:
        file.create_dataset("features", data=features, chunks=(min(32, len(xy)), width))
        file.create_dataset("coords", data=np.asarray(xy, np.int32))
    if px is not None:
        (folder.parent / "patches").mkdir(exist_ok=True)
        with h5py.File(folder.parent / "patches" / f"{name}.h5", "w") as file:
            coords = file.create_dataset("coords", data=np.asarray(xy, np.int64))
            coords.attrs.update(
                {"patch_size": px, "patch_level": level, "downsample": (downsample,) * 2,
                 "name": name, "save_path": "/elsewhere"}
            )  # fmt: skip
    return folder


def stamp_um(xy_px, *, tile_um, mpp):
    """STAMP's um of tiles at these pixels: exact where a supertile begins, and drifting within."""
    side = math.ceil(tile_um / mpp)
    n = max(1, math.floor(1024 * mpp / tile_um))
    supertile, inside = np.divmod(np.asarray(xy_px) // side, n)
    return (supertile * n * side * mpp + inside * tile_um).astype(np.float32)


def stamp(folder, name, features, um, *, tile_um=128.0, version="2.5.0", kind="tile"):
    """float16, contiguous; the attributes are of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{name}.h5", "w") as file:
        file.create_dataset("feats", data=features.astype(np.float16))
        file.create_dataset("coords", data=np.asarray(um, np.float32))
        file.attrs.update(
            {"stamp_version": version, "extractor": "uni-0123abcd", "unit": "um",
             "tile_size_um": tile_um, "tile_size_px": 224, "code_hash": "0123abcd",
             "feat_type": kind}
        )  # fmt: skip
    return folder


def slideflow(folder, name, features, xy, *, side, um=128):
    """Centres; needs PyTorch."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(features), folder / f"{name}.pt")
    np.savez(folder / f"{name}.index.npz", np.asarray(xy) + int(side / 2))
    about = {"extractor": {"class": "uni", "kwargs": {}}, "normalizer": None,
             "num_features": features.shape[1], "tile_px": 256, "tile_um": um}  # fmt: skip
    (folder / "bags_config.json").write_text(json.dumps(about))
    return folder


def slide2vec(folder, name, features, xy, *, side, mpp=0.25, suffix="npz"):
    """Column by column, as hs2p goes; the sidecar last."""
    for inner in ("tile_embeddings", "tiles"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    xy = np.asarray(xy, np.int64)
    np.savez(
        folder / "tiles" / f"{name}.coordinates.npz",
        tile_index=np.arange(len(xy), dtype=np.int32), x=xy[:, 0], y=xy[:, 1],
        tissue_fractions=np.ones(len(xy), np.float32),
    )  # fmt: skip
    sections = {
        "provenance": {"sample_id": name}, "slide": {"dimensions": [9000, 8000],
        "base_spacing_um": mpp}, "tiling": {"requested_tile_size_px": 256,
        "requested_spacing_um": 0.5, "tile_size_lv0": side, "step_px_lv0": side, "overlap": 0.0,
        "n_tiles": len(xy)}, "artifact": {"coordinate_space": "level0"},
    }  # fmt: skip
    (folder / "tiles" / f"{name}.coordinates.meta.json").write_text(json.dumps(sections))
    path = folder / "tile_embeddings" / f"{name}.{suffix}"
    if suffix == "pt":
        import torch

        torch.save(torch.from_numpy(features), path)
    else:
        np.savez_compressed(path, features=features, tile_index=np.arange(len(xy)))
    about = {"sample_id": name, "encoder_name": "uni", "num_tiles": len(xy)}
    (folder / "tile_embeddings" / f"{name}.meta.json").write_text(json.dumps(about))
    return folder


def atlaspatch(folder, name, features, xy, *, side=512, encoders=("uni_v1",)):
    """Five columns of coordinates, a group of features, attributes of the file."""
    (folder / "patches").mkdir(parents=True, exist_ok=True)
    coords = np.zeros((len(xy), 5), np.int32)
    coords[:, :2], coords[:, 2:4] = xy, 256
    with h5py.File(folder / "patches" / f"{name}.h5", "w") as file:
        file.create_dataset("coords", data=coords)
        file.create_dataset("passports", data=np.full(len(xy), b"-", "S160"))
        for encoder in encoders:
            file.create_dataset(
                f"features/{encoder}", data=features, chunks=(min(32, len(xy)), features.shape[1])
            )
        file.attrs.update(
            {"patch_size": 256, "patch_size_level0": side, "level0_magnification": 40,
             "target_magnification": 20, "overlap": 0, "level0_width": 9000,
             "level0_height": 8000, "mpp": 0.25, "passport_version": 2, "num_patches": len(xy)}
        )  # fmt: skip
    return folder
