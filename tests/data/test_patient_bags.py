"""Bags of patients: their slides' features together, and on one lattice."""

import numpy as np
import pytest

from lrmil_jax.data.patient_bags import PatientBags, side_by_side
from lrmil_jax.heads import in_patches
from lrmil_jax.places import NO_PLACE

CASES = ["a", "a", "b", "c", "c", "c"]


class Store:
    """Six slides of one to six patches of three features."""

    sizes = np.arange(1, 7)

    def embedding(self, slide):
        return np.full((slide + 1, 3), slide, np.float32)

    def places(self, slide):
        return {"xy": np.stack([np.arange(slide + 1) * 512 + 7, np.zeros(slide + 1, int)], 1)}

    def statistics(self, slides):
        rows = np.concatenate([self.embedding(slide) for slide in slides])
        return rows.mean(0), rows.std(0)


def test_a_bag_is_all_slides_of_its_patient():
    bags = PatientBags(Store(), CASES)
    assert bags.slide_ids == ["a", "b", "c"]
    assert bags.first.tolist() == [0, 2, 3]
    assert bags.sizes.tolist() == [3, 3, 15]
    assert bags.embedding(0)[:, 0].tolist() == [0, 1, 1]
    assert bags.embedding(2).shape == (15, 3)
    mean, sd = bags.statistics([0, 1])
    np.testing.assert_allclose(mean, 8 / 6)  # of 0, 1, 1, 2, 2, 2
    np.testing.assert_allclose(sd, np.std([0, 1, 1, 2, 2, 2]), rtol=1e-6)


def test_slides_of_a_patient_that_do_not_follow_each_other_are_no_bag():
    with pytest.raises(ValueError, match="must follow each other"):
        PatientBags(Store(), ["a", "b", "a", "c", "c", "c"])


def test_slides_lie_side_by_side_in_patches():
    """Two columns of 512 px, then three of 300 px on a slide of other um/px."""
    first = np.array([[1000, 40], [1512, 40], [1000, 552]])
    second = np.array([[5, 5], [605, 305]])
    placed = side_by_side([first, second])
    assert placed[:3].tolist() == [[0, 0], [1, 0], [0, 1]]
    assert placed[3:].tolist() == [[10, 0], [12, 1]]  # 8 empty columns between
    np.testing.assert_array_equal(in_patches(placed), placed)
    np.testing.assert_array_equal(side_by_side([first]), in_patches(first))


def test_a_slide_without_coordinates_leaves_its_bag_without():
    nowhere = np.full((2, 2), NO_PLACE)
    placed = side_by_side([np.array([[0, 0], [512, 0]]), nowhere])
    assert (placed == NO_PLACE).all()
    assert len(placed) == 4
