"""Plans of batches: every bag once, few shapes, little waste, the same on any number of devices."""

import grain
import numpy as np
import pytest

from lrmil_jax.data.batching import (
    BagBatches,
    balanced_probabilities,
    bucket_lengths,
    padding_waste,
    plan_epoch,
)


def sizes_of(kind, count, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        return rng.integers(200, 1201, count)
    if kind == "alike":
        return rng.integers(190, 210, count)
    return np.clip(rng.lognormal(6.0, 1.0, count), 1, 30_000).astype(np.int64)


def brute_force_waste(sizes, shapes, multiple):
    """The least filling with so many lengths, by trying all of them."""
    import itertools

    candidates = sorted({-(-int(size) // multiple) * multiple for size in sizes})
    best = np.inf
    for chosen in itertools.combinations(candidates[:-1], shapes - 1):
        lengths = np.array([*chosen, candidates[-1]])
        best = min(best, lengths[np.searchsorted(lengths, sizes)].sum())
    return 1 - sizes.sum() / best


@pytest.mark.parametrize("shapes", [1, 2, 3, 4])
def test_lengths_are_the_best_possible(shapes):
    sizes = sizes_of("uniform", 12, seed=shapes)
    lengths = bucket_lengths(sizes, max_shapes=shapes, multiple=8, waste=0.0)
    assert len(lengths) == shapes
    filled = np.array(lengths)[np.searchsorted(lengths, sizes)].sum()
    assert 1 - sizes.sum() / filled == pytest.approx(brute_force_waste(sizes, shapes, 8))


def test_lengths_are_as_few_as_the_waste_allows():
    assert bucket_lengths(np.full(50, 100), multiple=4) == (100,)
    assert bucket_lengths(np.array([8] * 9 + [800] * 9), multiple=8) == (8, 800)
    many = bucket_lengths(sizes_of("wide", 5000), max_shapes=6)
    assert len(many) == 6
    assert all(length % 8 == 0 for length in many)


@pytest.mark.parametrize("sizes", [[], [3, 0]])
def test_empty_bags_are_refused(sizes):
    with pytest.raises(ValueError, match="at least one instance"):
        bucket_lengths(np.array(sizes, np.int64))


@pytest.mark.parametrize("kind", ["uniform", "alike", "wide"])
@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("budget", [256, 4096])
def test_every_bag_once_within_the_budget(kind, count, budget):
    sizes = sizes_of(kind, count)
    lengths = bucket_lengths(sizes)
    order = np.random.default_rng(1).permutation(count)
    plan = plan_epoch(sizes, order, lengths, budget=budget, max_bags=9)
    bags = np.concatenate([batch.bags for batch in plan])
    assert sorted(bags[bags >= 0]) == list(range(count))
    for batch in plan:
        assert batch.length * len(batch.bags) <= budget or len(batch.bags) == 1
        assert len(batch.bags) <= 9
        assert sizes[batch.bags].max() <= batch.length


@pytest.mark.parametrize("count", [60, 100, 300, 1000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_waste_is_at_most_a_tenth_with_few_shapes(count, seed):
    source = BagBatches(sizes_of("uniform", count, seed), budget=4096, seed=seed)
    plans = [source.plan(epoch) for epoch in range(5)]
    assert max(padding_waste(plan, source.sizes) for plan in plans) <= 0.10
    shapes = {(len(batch.bags), batch.length) for plan in plans for batch in plan}
    assert len(shapes) <= 13


def test_drawn_epochs_have_few_shapes_and_balance():
    labels = np.repeat([0, 1], [90, 10])
    source = BagBatches(
        sizes_of("uniform", 100),
        budget=4096,
        draw=balanced_probabilities(labels),
        num_batches=1000,
    )
    plans = [source.plan(epoch) for epoch in range(30)]
    drawn = np.concatenate([batch.bags for plan in plans for batch in plan])
    assert labels[drawn[drawn >= 0]].mean() == pytest.approx(0.5, abs=0.03)
    assert len({(len(batch.bags), batch.length) for plan in plans for batch in plan}) <= 30
    assert (drawn >= 0).sum() == 30 * 100


def test_epochs_differ_and_repeat_exactly():
    def epoch_bags(seed, epoch):
        plan = BagBatches(sizes_of("uniform", 50), budget=2048, seed=seed).plan(epoch)
        return [tuple(batch.bags) for batch in plan]

    assert epoch_bags(0, 3) == epoch_bags(0, 3)
    assert epoch_bags(0, 3) != epoch_bags(0, 4)
    assert epoch_bags(0, 3) != epoch_bags(1, 3)


def bank(sizes, width=3):
    """A feature bank whose rows say which bag and instance they are."""
    bags = np.repeat(np.arange(len(sizes)), sizes)
    within = np.concatenate([np.arange(size) for size in sizes])
    return np.stack([bags, within, np.ones_like(bags)], axis=1)[:, :width].astype(np.float32)


def test_items_point_at_the_right_rows():
    sizes = np.array([3, 9, 1, 30, 5])
    rows = bank(sizes)
    source = BagBatches(
        sizes,
        budget=40,
        bags=np.array([0, 1, 3, 4]),
        num_batches=20,
        weight=np.array([1.0, 2.0, 3.0, 4.0, 5.0]),
        per_bag={"label": np.array([0, 1, 1, 0, 1]), "logits": np.eye(5, dtype=np.float32)},
        per_instance={"guide": rows[:, 1] + 1},
    )
    seen = []
    for index in range(len(source)):
        item = source[index]
        for slot, bag in enumerate(item["bag"]):
            mask = item["mask"][slot]
            if bag < 0:
                assert not mask.any()
                assert item["weight"][slot] == 0
                continue
            seen.append(int(bag))
            got = rows[item["rows"][slot]][mask]
            np.testing.assert_array_equal(got[:, 0], bag)
            np.testing.assert_array_equal(got[:, 1], np.arange(sizes[bag]))
            np.testing.assert_array_equal(item["guide"][slot], np.where(mask, got_guide(mask), 0))
            assert item["weight"][slot] == bag + 1
            assert item["label"][slot] == [0, 1, 1, 0, 1][bag]
            np.testing.assert_array_equal(item["logits"][slot], np.eye(5)[bag])
    assert set(seen) == {0, 1, 3, 4}


def got_guide(mask):
    return np.arange(len(mask)) + 1.0


def test_streamed_features_are_those_of_the_bank():
    sizes = sizes_of("wide", 20) // 20 + 1
    rows = bank(sizes)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    kwargs = {"budget": 100, "seed": 4, "num_batches": 30}
    resident = BagBatches(sizes, **kwargs)
    streamed = BagBatches(sizes, read=lambda bag: rows[offsets[bag] : offsets[bag + 1]], **kwargs)
    for index in range(30):
        left, right = resident[index], streamed[index]
        np.testing.assert_array_equal(left["mask"], right["mask"])
        gathered = np.where(left["mask"][..., None], rows[left["rows"]], 0)
        np.testing.assert_array_equal(gathered, right["features"])


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_every_batch(count):
    sizes = sizes_of("uniform", 31)
    kwargs = {"budget": 4096, "num_batches": 20}
    whole = BagBatches(sizes, **kwargs)
    parts = [BagBatches(sizes, shard=(index, count), **kwargs) for index in range(count)]
    for index in range(20):
        items = [part[index] for part in parts]
        assert len({item["mask"].shape for item in items}) == 1
        bags = np.concatenate([item["bag"] for item in items])
        np.testing.assert_array_equal(bags[bags >= 0], whole[index]["bag"])


@pytest.mark.parametrize("draw", [False, True])
def test_iterator_goes_on_after_its_state(draw):
    def source():
        sizes = sizes_of("uniform", 40)
        return BagBatches(
            sizes, budget=2048, num_batches=60, draw=np.full(40, 1 / 40) if draw else None
        ).dataset()

    def bags(iterator):
        return [tuple(item["bag"]) for item in iterator]

    iterator = iter(source())
    for _ in range(33):
        next(iterator)
    state = iterator.get_state()
    rest = bags(iterator)
    again = iter(source())
    again.set_state(state)
    assert bags(again) == rest
    assert len(rest) == 27
    assert isinstance(source(), grain.IterDataset)


def test_one_epoch_by_default():
    sizes = sizes_of("uniform", 40)
    bags = np.concatenate([item["bag"] for item in BagBatches(sizes, budget=2048).dataset()])
    assert sorted(bags[bags >= 0]) == list(range(40))
