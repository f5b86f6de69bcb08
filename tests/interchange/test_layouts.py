"""Each tool's files, read as it writes them; and what is written is read back unchanged."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from lrmil_jax.errors import ConfigError, DataError, SlideError
from lrmil_jax.interchange import registry
from lrmil_jax.interchange.bag import Bag
from tests.interchange import tools

XY = tools.square(6, 5, step=512, start=(1024, 512))
FEATURES = tools.features_of(len(XY), 8)
NEED_TORCH = ("clam", "slideflow", "pt")


def write(name, folder):
    if name == "npy":
        np.save(folder / "s.1.npy", FEATURES)
        np.save(folder / "s.1.coords.npy", XY)
    elif name == "npz":
        np.savez(folder / "s.1.npz", features=FEATURES, coords=XY)
    elif name == "pt":
        torch = pytest.importorskip("torch")
        torch.save(torch.from_numpy(FEATURES), folder / "s.1.pt")
        np.save(folder / "s.1.coords.npy", XY)
    elif name == "stamp":
        um = tools.stamp_um(XY, tile_um=128.0, mpp=0.25)
        tools.stamp(folder / "uni-0123abcd", "s.1", FEATURES, um)
    elif name == "slideflow":
        pytest.importorskip("torch")
        tools.slideflow(folder, "s.1", FEATURES, XY, side=512)
    elif name == "slide2vec":
        tools.slide2vec(folder, "s.1", FEATURES, XY, side=512)
    elif name == "trident":
        tools.trident(folder / "20x_256px_0px_overlap/features_uni_v1", "s.1", FEATURES, XY)
    elif name == "clam":
        tools.clam(folder, "s.1", FEATURES, XY, px=256, level=1, downsample=2.0)
    else:
        tools.atlaspatch(folder, "s.1", FEATURES, XY)


@pytest.mark.parametrize("name", registry.LAYOUTS)
def test_a_folder_is_told_by_what_it_holds_and_read(tmp_path, name):
    folder = tmp_path / "features"
    folder.mkdir()
    write(name, folder)
    layout = registry.of_folder(folder)
    assert layout.name == name
    ((slide_id, path),) = layout.files(folder).items()
    assert slide_id == "s.1"
    bag = layout.open(path, 0.25)
    assert bag.shape == FEATURES.shape
    np.testing.assert_array_equal(np.asarray(bag.features(), np.float32), FEATURES)
    np.testing.assert_array_equal(bag.xy, XY)
    assert (bag.side, bag.step) == (512, 512)
    assert bag.mpp == 0.25
    assert all(beside.is_file() for beside in layout.beside(path))
    if name not in ("npy", "npz", "pt", "clam"):
        assert bag.encoder in ("uni", "uni_v1")


def stored_bag(dtype):
    side = 507  # of 0.2527 um/px, where no nominal magnification is right
    xy = tools.square(6, 5, step=side, start=(3 * side, 0))
    values = tools.features_of(len(xy), 8, seed=1).astype(dtype)
    return Bag(
        shape=values.shape, features=lambda: values, xy=xy.astype(np.int64), side=side, step=side,
        px=256, mpp=0.2527, encoder="uni", dimensions=(9000, 8000),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", registry.LAYOUTS)
def test_what_is_exported_is_imported_bit_by_bit(tmp_path, name, dtype):
    if name in NEED_TORCH:
        pytest.importorskip("torch")
    layout, bag = registry.create(name), stored_bag(dtype)
    layout.check_export()
    layout.write(tmp_path, "s.1", bag)
    assert layout.target(tmp_path, "s.1", bag).is_file()
    found = registry.of_folder(tmp_path)
    assert found.name == name
    read = found.open(found.files(tmp_path)["s.1"], 0.2527)
    assert np.asarray(read.features()).astype(dtype).tobytes() == bag.features().tobytes()
    np.testing.assert_array_equal(read.xy, bag.xy)
    assert (read.side, read.step, read.shape) == (bag.side, bag.step, bag.shape)
    if name in ("trident", "slide2vec", "atlaspatch"):
        assert (read.px, read.encoder, read.dimensions) == (256, "uni", (9000, 8000))


def test_one_exported_patch_keeps_its_place(tmp_path):
    """With a single patch no coordinates tell the lattice: the file itself must."""
    bag = stored_bag(np.float16)
    values = bag.features()[:1]
    bag = dataclasses.replace(bag, shape=(1, 8), features=lambda: values, xy=bag.xy[:1])
    for name in ("trident", "atlaspatch", "slide2vec", "stamp", "npz"):
        folder = tmp_path / name
        layout = registry.create(name)
        layout.write(folder, "s", bag)
        read = layout.open(layout.files(folder)["s"], 0.2527)
        assert (read.side, read.step, read.xy.tolist()) == (507, 507, bag.xy.tolist()), name


def test_trident_s_step_is_rounded_and_its_side_cut_off(tmp_path):
    px, source, target = 255, 60, 40
    xy = tools.square(5, 4, step=382)  # round(255 * 1.5) to even
    tools.trident(tmp_path, "a", tools.features_of(20, 4), xy, px=px, source=source, target=target)
    bag = registry.of_folder(tmp_path).open(tmp_path / "a.h5", None)
    assert (bag.side, bag.step) == (382, 382)


def test_overlap_leaves_the_step_below_the_side(tmp_path):
    xy = tools.square(5, 4, step=384)
    tools.trident(tmp_path, "a", tools.features_of(20, 4), xy, overlap=64)
    bag = registry.of_folder(tmp_path).open(tmp_path / "a.h5", None)
    assert (bag.side, bag.step) == (512, 384)


def test_a_trident_job_folder_is_read_without_its_patches(tmp_path):
    job = tmp_path / "20x_256px_0px_overlap"
    tools.trident(job / "features_uni_v1", "a", FEATURES, XY)
    tools.trident(job / "patches", "a_patches", FEATURES, XY)
    tools.trident(job / "slide_features_titan", "a", FEATURES[:1], XY[:1])
    assert list(registry.of_folder(tmp_path).files(tmp_path)) == ["a"]
    tools.trident(job / "features_conch", "a", FEATURES, XY)
    with pytest.raises(DataError, match=r"two feature files are called a .*folder of one encoder"):
        registry.of_folder(tmp_path).files(tmp_path)


def test_clam_without_its_patch_file_takes_the_step_of_its_rows(tmp_path):
    tools.clam(tmp_path, "a", FEATURES, XY)
    bag = registry.of_folder(tmp_path).open(tmp_path / "h5_files" / "a.h5", None)
    assert (bag.side, bag.step) == (512, 512)


def test_stamp_s_older_files(tmp_path):
    """Without a unit and 224 px apart, coordinates are px of 256 um tiles."""
    import h5py

    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["feats"] = FEATURES.astype(np.float16)
        file["coords"] = (XY / 512 * 224).astype(np.float32)
    bag = registry.of_folder(tmp_path).open(tmp_path / "old.h5", 0.5)
    np.testing.assert_array_equal(bag.xy, XY)
    assert bag.side == 512


@pytest.mark.parametrize("side", [512, 513])
def test_slideflow_s_centres_become_corners(tmp_path, side):
    pytest.importorskip("torch")
    xy = tools.square(4, 3, step=side)
    tools.slideflow(tmp_path, "a", tools.features_of(12, 4), xy, side=side)
    layout = registry.of_folder(tmp_path)
    for mpp in (None, 128.2 / side):
        bag = layout.open(tmp_path / "a.pt", mpp)
        np.testing.assert_array_equal(bag.xy, xy)
        assert (bag.side, bag.step) == (side, side)


def test_slide2vec_s_regions_become_their_tiles(tmp_path):
    regions = tools.square(3, 2, step=2048)
    values = tools.features_of(6 * 16, 4).reshape(6, 16, 4)
    tools.slide2vec(tmp_path, "a", values, regions, side=2048)
    (tmp_path / "tile_embeddings").rename(tmp_path / "hierarchical_embeddings")
    layout = registry.of_folder(tmp_path)
    bag = layout.open(layout.files(tmp_path)["a"], None)
    assert bag.shape == (96, 4)
    assert (bag.side, bag.step, bag.mpp) == (512, 512, 0.25)
    assert bag.xy[:5].tolist() == [[0, 0], [512, 0], [1024, 0], [1536, 0], [0, 512]]
    assert bag.xy[16].tolist() == [2048, 0]


def test_one_encoder_of_several_is_named(tmp_path):
    tools.atlaspatch(tmp_path, "a", FEATURES, XY, encoders=("conch", "uni"))
    path = tmp_path / "patches" / "a.h5"
    with pytest.raises(SlideError, match=r"of conch, uni; name one .*atlaspatch/ENCODER"):
        registry.of_folder(tmp_path).open(path, None)
    assert registry.of_folder(tmp_path, "atlaspatch/uni").open(path, None).encoder == "uni"


def test_folders_of_no_known_layout(tmp_path):
    with pytest.raises(DataError, match=r"holds no feature file that is known; .*features_format"):
        registry.of_folder(tmp_path)
    with pytest.raises(DataError, match="which is no folder"):
        registry.of_folder(tmp_path / "none")
    with pytest.raises(ConfigError, match="did you mean trident"):
        registry.create("tridant")
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["something"] = np.zeros(3)
    with pytest.raises(DataError, match="HDF5 files of no known kind"):
        registry.of_folder(tmp_path)


def test_what_a_layout_cannot_do_without_is_asked_for(tmp_path):
    bag = dataclasses.replace(stored_bag(np.float16), mpp=None)
    for name in ("stamp", "slide2vec"):
        with pytest.raises(SlideError, match=r"no um/px, .* column mpp of the label CSV"):
            registry.create(name).write(tmp_path, "s", bag)
    large = np.full((30, 8), 1e6, np.float32)
    with pytest.raises(SlideError, match="float16, STAMP's type, cannot hold"):
        registry.create("stamp").write(
            tmp_path, "s", dataclasses.replace(stored_bag(np.float16), features=lambda: large)
        )
