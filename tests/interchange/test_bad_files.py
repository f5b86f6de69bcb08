"""Files that are broken, unfinished or something else: one sentence each."""

import json
import pickle

import h5py
import numpy as np
import pytest

from lrmil_jax.errors import DataError, SlideError
from lrmil_jax.interchange import registry
from tests.interchange import tools

XY = tools.square(4, 4, step=512)
FEATURES = tools.features_of(16, 6)


def opened(layout, path, mpp=0.25):
    bag = registry.create(layout).open(path, mpp)
    return bag.features()


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def test_stamp_refusals(tmp_path):
    um = tools.stamp_um(XY, tile_um=128.0, mpp=0.25)
    path = tools.stamp(tmp_path, "a", FEATURES, um, version="2.6.1") / "a.h5"
    with pytest.raises(
        SlideError, match=r"written by STAMP 2\.6\.1, this version reads .* 2\.5\.0"
    ):
        opened("stamp", path)
    tools.stamp(tmp_path, "a", FEATURES, um, kind="slide")
    with pytest.raises(SlideError, match="an embedding of a whole slide, not of its tiles"):
        opened("stamp", path)
    tools.stamp(tmp_path, "a", FEATURES, um)
    with pytest.raises(SlideError, match=r"in um and no um/px: .*column mpp .*data\.slides"):
        opened("stamp", path, mpp=None)
    with h5py.File(path, "r+") as file:
        del file.attrs["tile_size_um"]
    with pytest.raises(SlideError, match="neither tile_size_um nor"):
        opened("stamp", path)


@pytest.mark.parametrize("layout", ["trident", "clam", "stamp", "atlaspatch", "npy", "npz"])
def test_a_file_cut_short(tmp_path, layout):
    write = {
        "trident": lambda: tools.trident(tmp_path, "a", FEATURES, XY) / "a.h5",
        "clam": lambda: tools.clam(tmp_path, "a", FEATURES, XY) / "h5_files/a.h5",
        "stamp": lambda: tools.stamp(tmp_path, "a", FEATURES, XY) / "a.h5",
        "atlaspatch": lambda: tools.atlaspatch(tmp_path, "a", FEATURES, XY) / "patches/a.h5",
        "npy": lambda: np.save(tmp_path / "a.npy", FEATURES) or tmp_path / "a.npy",
        "npz": lambda: np.savez(tmp_path / "a.npz", features=FEATURES) or tmp_path / "a.npz",
    }
    path = write[layout]()
    cut(path)
    with pytest.raises(SlideError, match=r"a.* cannot be read, it was cut short or is no"):
        opened(layout, path)


def test_a_folder_whose_first_files_are_broken_is_still_told(tmp_path):
    tools.trident(tmp_path, "a", FEATURES, XY)
    tools.trident(tmp_path, "b", FEATURES, XY)
    cut(tmp_path / "a.h5")
    assert registry.of_folder(tmp_path).name == "trident"
    cut(tmp_path / "b.h5")
    with pytest.raises(DataError, match=r"no feature file below .* can be read"):
        registry.of_folder(tmp_path)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [((0, 6), "holds no patch"), ((0,), "holds no patch"), ((6,), "features of patches, not of")],
)
def test_shapes_that_are_no_bag(tmp_path, shape, sentence):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = np.zeros(shape, np.float32)
        file["coords"] = np.zeros((len(XY), 2))
    with pytest.raises(SlideError, match=sentence):
        opened("trident", tmp_path / "a.h5")


def test_coordinates_that_do_not_fit(tmp_path):
    path = tools.trident(tmp_path, "a", FEATURES, XY[:9]) / "a.h5"
    with pytest.raises(SlideError, match=r"coordinates of shape \(9, 2\) for 16 patches"):
        opened("trident", path)
    tools.stamp(tmp_path, "b", FEATURES, np.full((16, 2), np.nan))
    with pytest.raises(SlideError, match="coordinates that are not finite"):
        opened("stamp", tmp_path / "b.h5")


def test_another_tool_s_file_by_a_wrong_name(tmp_path):
    tools.stamp(tmp_path, "a", FEATURES, XY)
    with pytest.raises(SlideError, match=r"no dataset features .*feats.*data\.features_format"):
        opened("trident", tmp_path / "a.h5")


def test_slide2vec_s_sidecar_means_complete(tmp_path):
    folder = tools.slide2vec(tmp_path, "a", FEATURES, XY, side=512)
    path = folder / "tile_embeddings/a.npz"
    (folder / "tile_embeddings/a.meta.json").unlink()
    with pytest.raises(SlideError, match="written last: the slide was not finished"):
        opened("slide2vec", path)
    (folder / "tile_embeddings/a.meta.json").write_text(json.dumps({}))
    (folder / "tiles/a.coordinates.npz").unlink()
    with pytest.raises(SlideError, match=r"coordinates\.npz cannot be read"):
        opened("slide2vec", path)


def test_clam_s_tensors_alone_know_no_coordinates(tmp_path):
    (tmp_path / "pt_files").mkdir()
    with pytest.raises(DataError, match="know no coordinates, without its h5_files"):
        registry.of_folder(tmp_path).files(tmp_path)


class Evil:
    def __reduce__(self):
        return open, ("was_run", "w")


@pytest.mark.parametrize("suffix", ["npy", "npz", "pt"])
def test_no_code_of_a_file_is_run(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"a.{suffix}"
    if suffix == "pt":
        pytest.importorskip("torch")
        path.write_bytes(pickle.dumps(Evil()))
    elif suffix == "npy":
        np.save(path, np.array([Evil()], object), allow_pickle=True)
    else:
        np.savez(path, features=np.array([Evil()], object))
    with pytest.raises(SlideError):
        opened(suffix, path)
    assert not (tmp_path / "was_run").exists()


def test_what_only_pytorch_reads_says_so_without_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "a.pt").write_bytes(b"PK")
    with pytest.raises(SlideError, match=r"only PyTorch reads .*lrmil_jax\[torch\].* as npz"):
        opened("pt", tmp_path / "a.pt")
    for name in ("clam", "slideflow", "pt"):
        with pytest.raises(DataError, match=r"lrmil_jax\[torch\]"):
            registry.create(name).check_export()


def test_slideflow_s_broken_parts(tmp_path):
    pytest.importorskip("torch")
    tools.slideflow(tmp_path, "a", FEATURES, XY, side=512)
    (tmp_path / "a.index.npz").unlink()
    with pytest.raises(SlideError, match=r"no a\.index\.npz beside it"):
        opened("slideflow", tmp_path / "a.pt")
    (tmp_path / "bags_config.json").write_text("{")
    tools.slideflow(tmp_path / "b", "a", FEATURES, XY, side=512)
    (tmp_path / "b/bags_config.json").write_text("{")
    with pytest.raises(SlideError, match="is no JSON"):
        opened("slideflow", tmp_path / "b/a.pt")
