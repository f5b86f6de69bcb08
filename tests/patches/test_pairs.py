"""Stage 1's examples: every child beside its own LR tile, target and attention."""

import dataclasses

import numpy as np
import pytest

from lrmil_jax import processes
from lrmil_jax.data import features
from lrmil_jax.errors import DataError
from lrmil_jax.patches.pairs import Change, PatchPairs
from tests.data import records

NONE, ALL = np.zeros((2, 2), bool), np.ones((2, 2), bool)
SLIDES = {
    "a": [NONE, np.array([[False, True], [True, False]]), NONE, ALL],
    "b.1": [ALL, NONE, np.array([[False, False], [False, True]])],
}


@pytest.fixture
def cohort(tmp_path):
    """Two slides with regions that have no child, and a pair source over both."""
    tables, attention, paths = {}, {}, {}
    for number, (name, masks) in enumerate(SLIDES.items()):
        region, target = tmp_path / f"{name}.array_record", tmp_path / f"{name}.t.array_record"
        records.write_regions(region, masks)
        tables[name] = records.rows_of(masks, seed=number)
        features.write(target, name, tables[name], dtype="float16", block=None)
        # The logit says whose it is: slide, parent, child.
        rows = tables[name]
        attention[name] = 100.0 * number + 10.0 * rows.parent + rows.child
        paths[name] = region, target
    pairs = PatchPairs(
        [region for region, _ in paths.values()],
        [target for _, target in paths.values()],
        counts=[len(masks) for masks in SLIDES.values()],
        geometry=records.GEOMETRY,
        target_parser=records.parser(tables["a"], ("embedding", "cls", "parent", "child")),
        attention=list(attention.values()),
    )
    return pairs, tables


def places():
    """(slide number, slide, index of the region) of every example in order."""
    return [
        (number, name, index)
        for number, (name, masks) in enumerate(SLIDES.items())
        for index, mask in enumerate(masks)
        if np.any(mask)
    ]


def test_regions_without_children_are_left_out(cohort):
    pairs, _ = cohort
    assert len(pairs) == len(places()) == 4


def test_every_part_of_an_example_belongs_together(cohort):
    pairs, tables = cohort
    for position, (number, name, index) in enumerate(places()):
        item, rows = pairs[position], tables[name]
        mask = np.asarray(SLIDES[name][index])
        assert (item["lr"] == index).all()  # the tile holds its index
        np.testing.assert_array_equal(item["child_mask"], mask)
        own = rows.parent == index
        np.testing.assert_array_equal(item["child_cls"][mask], rows.cls[own].astype(np.float16))
        np.testing.assert_array_equal(
            item["child_embedding"][mask.ravel()], rows.embedding[own].astype(np.float16)
        )
        expected = 100.0 * number + 10.0 * index + np.flatnonzero(mask)
        np.testing.assert_array_equal(item["attention"][mask.ravel()], expected)


def test_absent_children_hold_zeros_and_types_stay(cohort):
    pairs, _ = cohort
    item = pairs[0]
    assert item["child_cls"].shape == (2, 2, 2, 4)
    assert item["child_embedding"].shape == (4, 4)
    assert item["child_cls"].dtype == item["child_embedding"].dtype == np.float16
    assert item["attention"].dtype == np.float32
    absent = ~item["child_mask"]
    assert not item["child_cls"][absent].any()
    assert not item["child_embedding"][absent.ravel()].any()
    assert not item["attention"][absent.ravel()].any()


def of_another_encoder(folder, tables, change=None):
    """Target files with the same rows and three features, which say parent and child."""
    paths = []
    for name, table in tables.items():
        rows = table if change is None else change(table)
        own = np.stack([rows.parent, rows.child, np.ones(len(rows.parent))], 1)
        other = dataclasses.replace(rows, embedding=own.astype(np.float32), cls=None)
        paths.append(folder / f"{name}.other.array_record")
        features.write(paths[-1], name, other, dtype="float16", block=None)
    return paths, records.parser(other, ("embedding",))


def with_another(folder, tables, change=None):
    names = list(SLIDES)
    return PatchPairs(
        [folder / f"{name}.array_record" for name in names],
        [folder / f"{name}.t.array_record" for name in names],
        counts=[len(masks) for masks in SLIDES.values()],
        geometry=records.GEOMETRY,
        target_parser=records.parser(tables["a"], ("embedding", "child")),
        others=[of_another_encoder(folder, tables, change)],
    )


def test_another_encoders_children_lie_where_the_own_do(cohort, tmp_path):
    _, tables = cohort
    pairs = with_another(tmp_path, tables)
    for position, (_, name, index) in enumerate(places()):
        mask = np.asarray(SLIDES[name][index]).ravel()
        other = pairs[position]["other_0"]
        assert other.shape == (4, 3)
        assert not other[~mask].any()
        wanted = [[index, child, 1] for child in np.flatnonzero(mask)]
        np.testing.assert_array_equal(other[mask], wanted)
    flipped = next(iter(pairs.batches(batch=4, seed=3, steps=1, threads=1, flips=True)))
    real = flipped["other_0"][..., 2] > 0
    np.testing.assert_array_equal(real.reshape(-1, 2, 2), flipped["child_mask"])


def test_targets_of_other_patches_are_refused(cohort, tmp_path):
    _, tables = cohort
    fewer = lambda table: table.take(np.arange(len(table.parent)) > 0)  # noqa: E731
    with pytest.raises(DataError, match="is of other patches than"):
        with_another(tmp_path, tables, fewer)


def first_epoch(pairs, **options):
    items = iter(pairs.batches(batch=2, steps=2, threads=1, **options))
    return np.concatenate([next(items)["attention"].max(1) for _ in range(2)])


def test_an_epoch_holds_every_example_once_in_the_seeds_order(cohort):
    pairs, _ = cohort
    expected = sorted(pairs[i]["attention"].max() for i in range(4))
    orders = {seed: first_epoch(pairs, seed=seed) for seed in range(6)}
    for order in orders.values():
        assert sorted(order) == expected
    np.testing.assert_array_equal(first_epoch(pairs, seed=3), orders[3])
    assert len({tuple(order) for order in orders.values()}) > 1


def test_there_are_batches_enough_for_every_step(cohort):
    pairs, _ = cohort
    batches = iter(pairs.batches(batch=3, seed=0, steps=9, threads=2))
    for _ in range(9):
        assert next(batches)["lr"].shape == (3, 8, 8, 3)


def test_samples_are_spread_evenly_and_filled_with_weight_0(cohort):
    pairs, _ = cohort
    batches = pairs.sample(batch=3, most=100)
    assert [batch["weight"].tolist() for batch in batches] == [[1, 1, 1], [1, 0, 0]]
    assert [int(v) for batch in batches for v in batch["lr"][:, 0, 0, 0]] == [1, 3, 0, 2, 2, 2]
    (few,) = pairs.sample(batch=2, most=2)
    assert few["lr"][:, 0, 0, 0].tolist() == [1, 2]


def test_flips_turn_the_tile_and_its_children_alike():
    """Paint each child's quarter of the tile with its number: they must stay on each other."""
    number = np.arange(4, dtype=np.uint8).reshape(2, 2)
    element = {
        "lr": np.kron(number, np.ones((4, 4), np.uint8))[..., None].repeat(3, -1),
        "child_cls": number.astype(np.float16)[..., None, None].repeat(2, 2).repeat(4, 3),
        "child_embedding": number.reshape(4, 1).repeat(4, 1).astype(np.float16),
        "child_mask": number > 0,
        "attention": number.ravel().astype(np.float32),
    }
    seen = set()
    for seed in range(64):
        turned = Change().random_map(element, np.random.default_rng(seed))
        now = turned["lr"][::4, ::4, 0]
        np.testing.assert_array_equal(turned["child_cls"][..., 1, 2], now)
        np.testing.assert_array_equal(turned["child_mask"], now > 0)
        np.testing.assert_array_equal(turned["child_embedding"][:, 3], now.ravel())
        np.testing.assert_array_equal(turned["attention"], now.ravel())
        seen.add(tuple(now.ravel().tolist()))
    assert len(seen) == 8
    assert element["lr"][0, 0, 0] == 0  # the original is not touched


def test_stains_of_the_tile_change_and_its_children_stay():
    rng = np.random.default_rng(0)
    element = {
        "lr": rng.integers(60, 200, (4, 4, 3)).astype(np.uint8),
        "child_embedding": rng.normal(size=(4, 2)).astype(np.float16),
        "child_mask": np.ones((2, 2), bool),
    }
    changed = Change(flips=False, stain_jitter=0.5).random_map(element, np.random.default_rng(1))
    assert changed["lr"].dtype == np.uint8
    assert np.abs(changed["lr"].astype(int) - element["lr"]).mean() > 3
    for name in ("child_embedding", "child_mask"):
        np.testing.assert_array_equal(changed[name], element[name])


def test_processes_make_the_same_batches_and_go_on_anywhere(cohort):
    """Their number is no part of the state: a run goes on with as many as there are then."""
    pairs, _ = cohort
    options = {"batch": 3, "seed": 7, "steps": 6, "threads": 2, "flips": True}
    wanted = list(zip(range(6), pairs.batches(**options), strict=False))
    with processes.Workers(2, label="pairs", held=pairs) as makers:
        iterator = iter(pairs.batches(**options, makers=makers))
        found = [next(iterator) for _ in range(2)]
        state = iterator.get_state()
    with processes.Workers(1, label="pairs", held=pairs, apart=True) as makers:
        iterator = iter(pairs.batches(**options, makers=makers))
        iterator.set_state(state)
        found += [next(iterator) for _ in range(4)]
    assert len(found) == len(wanted)
    for (_, one), other in zip(wanted, found, strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name])
