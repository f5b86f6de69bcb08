"""Damaged and odd slides: right pixels or one sentence, never anything else."""

import pytest

from lrmil_jax.slides import open_slide
from tests.slides import mutations
from tests.slides.corpus import outcome, sources


def test_names_are_unique():
    names = [mutations.name(one) for one in mutations.MUTATIONS]
    assert len(names) == len(set(names))
    assert len(names) >= 120


@pytest.mark.parametrize("name", sources.NAMES)
def test_sources_are_drawn_as_they_are_read(name):
    """tifffile's pixels, with which all others are compared, are those that were written."""
    levels = sources.levels(name)
    for downsample, drawn in ((1, sources.image()), (4, sources.coarse())):
        outcome.compare(levels[downsample], drawn, 12 if name in sources.LOSSY else 0)


@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(one, id=mutations.name(one), marks=[] if one.quick else [pytest.mark.slow])
        for one in mutations.MUTATIONS
    ],
)
def test_mutation(tmp_path, mutation):
    mutations.try_out(mutation, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=mutations.name)
def test_mutation_with_all_readers(tmp_path, mutation):
    mutations.try_out(mutation, tmp_path, reader="auto")


def test_a_damaged_label_is_left_out_and_told(tmp_path):
    (mutation,) = [m for m in mutations.MUTATIONS if mutations.name(m) == "previews-no_width"]
    with open_slide(mutations.write(mutation, tmp_path)) as slide:
        told = " ".join(slide.notes)
    assert "page 4, a preview or a level in strips, is left out" in told
    assert "ImageWidth is missing" in told
