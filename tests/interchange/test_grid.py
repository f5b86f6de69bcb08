"""Exact LR parents of another tool's coordinates, or a reason why there are none."""

import numpy as np
import pytest

from lrmil_jax.interchange import grid, stamp
from lrmil_jax.slides import lattice
from tests.interchange import tools


class Slide:
    mpp, dimensions, path = 0.25, (5 * 2048 - 100, 3 * 2048), "a slide"


def test_parents_are_those_of_this_package_s_own_lattice():
    own = lattice.build(Slide(), hr_mpp=0.5, lr_mpp=2.0, patch_px=256)
    present = np.argwhere(own.child_mask)
    xy = own.child_xy[own.child_mask]
    found = grid.from_lattice(xy, side=512, step=512, ratio=4)
    np.testing.assert_array_equal(found.lr_xy, own.lr_xy)
    np.testing.assert_array_equal(found.child_mask, own.child_mask)
    np.testing.assert_array_equal(found.parent, present[:, 0])
    np.testing.assert_array_equal(found.child, present[:, 1] * 4 + present[:, 2])
    assert found.lr_side == own.lr_side


def test_every_order_of_the_file_gives_the_same_places():
    xy = tools.square(7, 5, step=100, start=(300, 200))
    order = np.random.default_rng(0).permutation(len(xy))
    whole = grid.from_lattice(xy, side=100, step=100, ratio=4)
    mixed = grid.from_lattice(xy[order], side=100, step=100, ratio=4)
    np.testing.assert_array_equal(mixed.parent, whole.parent[order])
    np.testing.assert_array_equal(mixed.child, whole.child[order])
    # Column 3 is the last child of the first LR patch, (0, 0) to (400, 400).
    assert whole.lr_xy.tolist() == [[0, 0], [400, 0], [800, 0], [0, 400], [400, 400], [800, 400]]
    assert (whole.parent[0], whole.child[0]) == (0, 2 * 4 + 3)


def test_children_tile_their_parents_on_a_shifted_lattice_too():
    xy = tools.square(9, 9, step=256, start=(128, 77))
    found = grid.from_lattice(xy, side=256, step=256, ratio=2)
    v, u = np.divmod(found.child, 2)
    np.testing.assert_array_equal(found.lr_xy[found.parent] + np.stack([u, v], 1) * 256, xy)


@pytest.mark.parametrize(
    ("xy", "step", "sentence"),
    [
        (np.concatenate([tools.square(3, 3, step=256), tools.square(2, 2, step=256,
                                                                    start=(5000, 100))]),
         256, "lie on 2 lattices of 256"),
        (tools.square(3, 3, step=128), 128, "256 level-0 px wide and 128 px apart"),
        (np.array([[0, 0], [256, 0], [0, 0]]), 256, "several patches at one place"),
    ],
)  # fmt: skip
def test_no_exact_parents(xy, step, sentence):
    with pytest.raises(grid.GridError, match=sentence):
        grid.from_lattice(xy, side=256, step=step, ratio=4)


def test_the_reason_names_what_the_tool_does():
    xy = np.array([[0, 0], [300, 0]])
    with pytest.raises(grid.GridError, match=r"2 lattices .*\(CLAM begins anew\); extract"):
        grid.from_lattice(xy, side=256, step=256, ratio=4, why="CLAM begins anew")


def test_lr_patches_that_are_there_are_the_parents():
    xy = tools.square(8, 4, step=100)
    lr_xy = np.array([[400, 0], [0, 800]])  # not that at (0, 0)
    found = grid.from_lr_patches(xy, lr_xy, side=100, step=100, lr_side=400, ratio=4)
    inside = xy[:, 0] >= 400
    assert (found.parent[inside] == 0).all()
    assert (found.parent[~inside] == -1).all()
    assert found.child_mask[0].all()
    assert not found.child_mask[1].any()


@pytest.mark.parametrize(
    ("lr_xy", "lr_side", "sentence"),
    [
        ([[0, 0]], 399, "399 level-0 px wide and its HR patches 100, which is not 4 times"),
        ([[50, 0]], 400, "do not begin where"),
        ([[4000, 0]], 400, "none of its HR patches lies in any"),
    ],
)
def test_lr_patches_that_are_no_parents(lr_xy, lr_side, sentence):
    xy = tools.square(4, 4, step=100)
    with pytest.raises(grid.GridError, match=sentence):
        grid.from_lr_patches(xy, np.array(lr_xy), side=100, step=100, lr_side=lr_side, ratio=4)


def test_the_step_is_that_of_most_neighbours():
    xy = np.concatenate([tools.square(4, 4, step=256), tools.square(3, 3, step=256,
                                                                    start=(900, 30))])  # fmt: skip
    assert grid.infer_step(xy) == 256
    assert grid.infer_step(xy[:1]) is None


@pytest.mark.parametrize("mpp", [0.25, 0.2527, 0.5021, 0.4991])
@pytest.mark.parametrize("tile_um", [128.0, 256.0])
def test_stamp_s_drift_within_supertiles_is_snapped(mpp, tile_um):
    side = int(np.ceil(tile_um / mpp))
    xy = tools.square(40, 30, step=side, start=(7 * side, 2 * side))
    um = tools.stamp_um(xy, tile_um=tile_um, mpp=mpp).astype(np.float64)
    np.testing.assert_array_equal(stamp.to_pixels(um, tile_um=tile_um, mpp=mpp), xy)


def test_um_of_another_grid_are_left_as_they_are():
    um = np.array([[0.0, 0.0], [128.0, 40.0]])
    found = stamp.to_pixels(um, tile_um=128.0, mpp=0.25)
    assert found.tolist() == [[0, 0], [512, 160]]
