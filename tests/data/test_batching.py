"""Plans of batches: every bag once, few shapes, little waste, the same on any number of devices."""

import grain
import numpy as np
import pytest

from lrmil_jax.data.bag_batches import BagBatches, balanced_probabilities
from lrmil_jax.data.batching import bucket_lengths, pack, padding_waste
from lrmil_jax.data.packing import pack_rows


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
    lengths = bucket_lengths(sizes, max_lengths=shapes, multiple=8, waste=0.0)
    assert len(lengths) == shapes
    filled = np.array(lengths)[np.searchsorted(lengths, sizes)].sum()
    assert 1 - sizes.sum() / filled == pytest.approx(brute_force_waste(sizes, shapes, 8))


def test_lengths_are_as_few_as_the_waste_allows():
    assert bucket_lengths(np.full(50, 100), multiple=4) == (100,)
    assert bucket_lengths(np.array([8] * 9 + [800] * 9), multiple=8) == (8, 800)
    many = bucket_lengths(sizes_of("wide", 5000), max_lengths=6)
    assert len(many) == 6
    assert all(length % 8 == 0 for length in many)


@pytest.mark.parametrize("sizes", [[], [3, 0]])
def test_empty_bags_are_refused(sizes):
    with pytest.raises(ValueError, match="at least one instance"):
        bucket_lengths(np.array(sizes, np.int64))


@pytest.mark.parametrize("kind", ["uniform", "alike", "wide"])
@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("budget", [256, 4096])
@pytest.mark.parametrize("devices", [1, 8])
def test_every_bag_once_within_the_budget_and_work_for_every_device(kind, count, budget, devices):
    sizes = sizes_of(kind, count)
    lengths = bucket_lengths(sizes)
    bags = np.random.default_rng(1).permutation(count)
    plan = pack(sizes, bags, lengths, budget=budget, devices=devices)
    packed = np.concatenate([batch.bags for batch in plan])
    assert sorted(packed[packed >= 0]) == list(range(count))
    for batch in plan:
        each, rest = divmod(len(batch.bags), devices)
        assert rest == 0
        assert batch.length * each <= budget or each == 1
        assert sizes[batch.bags[batch.bags >= 0]].max() <= batch.length


def least_cost(widths, counts, budget, devices):
    """The least cost of any cut of bags in this order into batches, by trying all of them."""
    if not len(widths):
        return 0.0
    return min(
        count * widths[0] + budget / 8 + least_cost(widths[taken:], counts, budget, devices)
        for count in counts
        if count == 1 or count * widths[0] <= budget
        for taken in range(1, count * devices + 1)
        if taken <= len(widths)
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("devices", [1, 2])
def test_packing_costs_the_least(seed, devices):
    sizes = np.random.default_rng(seed).integers(1, 40, 8)
    lengths, budget = (8, 16, 40), 64
    plan = pack(sizes, np.arange(8), lengths, budget=budget, devices=devices)
    cost = sum(batch.length * len(batch.bags) / devices + budget / 8 for batch in plan)
    widths = sorted(np.array(lengths)[np.searchsorted(lengths, sizes)].tolist(), reverse=True)
    assert cost == least_cost(widths, (1, 4, 16), budget, devices)


# Sizes of the cohorts that this is for: log-normal, by median and 95th percentile.
@pytest.mark.parametrize(("median", "high"), [(700, 2500), (9500, 30_000)])
def test_few_shapes_and_little_waste_at_real_sizes(median, high):
    rng = np.random.default_rng(0)
    spread = np.log(high / median) / 1.645
    sizes = np.maximum(1, median * np.exp(spread * rng.standard_normal(600))).astype(int)
    source = BagBatches(sizes, budget=4096, bags_per_update=16)
    plans = [batch for epoch in range(4) for update in source.plan(epoch) for batch in update]
    assert len({(len(batch.bags), batch.length) for batch in plans}) <= 14
    assert padding_waste(plans, sizes) <= 0.22


@pytest.mark.parametrize(("count", "most"), [(100, 16), (96, 4), (7, 16), (33, 16)])
def test_updates_are_random_bags_of_equal_number(count, most):
    sizes = sizes_of("wide", count)
    source = BagBatches(sizes, budget=4096, bags_per_update=most)
    held = []
    for epoch in range(3):
        updates = [np.concatenate([b.bags for b in update]) for update in source.plan(epoch)]
        updates = [bags[bags >= 0] for bags in updates]
        assert sorted(np.concatenate(updates)) == list(range(count))
        held += [len(bags) for bags in updates]
    assert max(held) <= most
    assert max(held) - min(held) <= 1
    assert np.mean(held) == pytest.approx(source.bags_of_an_update)
    assert len(held) == 3 * source.updates


def test_the_length_of_a_bag_does_not_decide_its_neighbours():
    """Long and short bags meet in an update as often as chance has it."""
    sizes = np.repeat([10, 1000], 32)
    source = BagBatches(sizes, budget=1000, bags_per_update=8)
    long = [
        (np.concatenate([batch.bags for batch in update]) >= 32).sum()
        for epoch in range(50)
        for update in source.plan(epoch)
    ]
    assert np.mean(long) == pytest.approx(4)
    # Hypergeometric: 8 of 64, 32 of them long.
    assert np.var(long) == pytest.approx(8 * 0.25 * 56 / 63, rel=0.2)


def test_drawn_epochs_balance_the_classes():
    labels = np.repeat([0, 1], [90, 10])
    source = BagBatches(
        sizes_of("uniform", 100),
        budget=4096,
        bags_per_update=16,
        draw=balanced_probabilities(labels),
    )
    plans = [batch for epoch in range(30) for update in source.plan(epoch) for batch in update]
    drawn = np.concatenate([batch.bags for batch in plans])
    assert labels[drawn[drawn >= 0]].mean() == pytest.approx(0.5, abs=0.03)
    assert (drawn >= 0).sum() == 30 * 100


def test_epochs_differ_and_repeat_exactly():
    def epoch_bags(seed, epoch):
        source = BagBatches(sizes_of("uniform", 50), budget=2048, bags_per_update=8, seed=seed)
        return [tuple(batch.bags) for update in source.plan(epoch) for batch in update]

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
        bags_per_update=3,
        weight=np.array([1.0, 2.0, 3.0, 4.0, 5.0]),
        per_bag={"label": np.array([0, 1, 1, 0, 1]), "logits": np.eye(5, dtype=np.float32)},
        per_instance={"guide": rows[:, 1] + 1},
    )
    seen = []
    for index in range(20):
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
    kwargs = {"budget": 100, "seed": 4, "bags_per_update": 5}
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
    kwargs = {"budget": 4096, "bags_per_update": 8, "devices": 6}
    whole = BagBatches(sizes, **kwargs)
    parts = [BagBatches(sizes, shard=(index, count), **kwargs) for index in range(count)]
    for index in range(20):
        items = [part[index] for part in parts]
        assert len({item["mask"].shape for item in items}) == 1
        np.testing.assert_array_equal(
            np.concatenate([item["bag"] for item in items]), whole[index]["bag"]
        )
    with pytest.raises(ValueError, match="6 devices cannot be split evenly among 4"):
        BagBatches(sizes, shard=(0, 4), **kwargs)


@pytest.mark.parametrize("draw", [False, True])
def test_iterator_goes_on_after_its_state(draw):
    def source():
        sizes = sizes_of("uniform", 40)
        return BagBatches(
            sizes, budget=2048, bags_per_update=8, draw=np.full(40, 1 / 40) if draw else None
        ).dataset()

    def bags(iterator):
        return [
            (tuple(item["bag"]), item["ends_update"])
            for item, _ in zip(iterator, range(27), strict=False)
        ]

    iterator = iter(source())
    for _ in range(33):
        next(iterator)
    state = iterator.get_state()
    rest = bags(iterator)
    again = iter(source())
    again.set_state(state)
    assert bags(again) == rest
    assert {True, False} == {ends for _, ends in rest}
    assert isinstance(source(), grain.IterDataset)


def test_one_pass_without_updates():
    sizes = sizes_of("uniform", 40)
    items = list(BagBatches(sizes, budget=2048).dataset())
    bags = np.concatenate([item["bag"] for item in items])
    assert sorted(bags[bags >= 0]) == list(range(40))
    assert "ends_update" not in items[0]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("kind", ["alike", "uniform", "long tail"])
def test_rows_hold_every_bag_once_with_little_filling(kind, devices):
    """In four shapes at most, and nothing of a bag outside its place."""
    sizes = sizes_of(kind, 200)
    bank = np.arange(sizes.sum())
    source = BagBatches(
        sizes, budget=4096, bags_per_update=16, devices=devices, packed=True, seed=3,
        per_bag={"size_of_bag": sizes}, per_instance={"place": bank},
    )  # fmt: skip
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    shapes, plan = set(), [batch for update in source.plan(0) for batch in update]
    seen = []
    for index in range(len(plan)):
        item = source[index]
        instances = item["instances"]
        shapes.add(instances["rows"].shape)
        owners = np.full(len(instances["rows"]), -1)
        for bag, first, size in zip(item["bag"], item["first"], item["size"], strict=True):
            inside = slice(first, first + size)
            assert (owners[inside] == -1).all()
            owners[inside] = bag
            assert size == (sizes[bag] if bag >= 0 else 0)
            wanted = offsets[bag] + np.arange(size)
            np.testing.assert_array_equal(instances["rows"][inside], wanted)
            np.testing.assert_array_equal(instances["place"][inside], wanted)
        seen += item["bag"][item["bag"] >= 0].tolist()
        assert not item["weight"][item["bag"] < 0].any()
        assert not instances["place"][owners < 0].any()
        assert len(item["bag"]) % devices == len(instances["rows"]) % (8 * devices) == 0
    assert sorted(seen) == list(range(200))
    assert len(shapes) <= 4
    assert padding_waste(plan, sizes) < 0.1


def test_rows_that_are_read_hold_what_is_read():
    """From files, and the part of each of two processes."""
    sizes = np.array([5, 3, 9, 2, 7])
    features = [np.full((size, 2), bag + 1.0, np.float16) for bag, size in enumerate(sizes)]
    options = {"budget": 16, "packed": True, "devices": 2, "read": lambda bag: features[bag]}
    whole = BagBatches(sizes, **options)
    halves = [BagBatches(sizes, shard=(index, 2), **options) for index in (0, 1)]
    for index in range(len(whole)):
        item, parts = whole[index], [half[index] for half in halves]
        for bag, first, size in zip(item["bag"], item["first"], item["size"], strict=True):
            row = item["instances"]["features"][first : first + size]
            assert (row == bag + 1).all()
        for name in ("bag", "first", "size"):
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), item[name])
        joined = np.concatenate([part["instances"]["features"] for part in parts])
        np.testing.assert_array_equal(joined, item["instances"]["features"])


def test_a_row_far_from_full_is_made_shorter():
    """Two bags of 40 in rows of at most 100: in one of 80, or in two of 40 if these are cheaper."""
    sizes = np.array([40, 40, 8])
    (row,) = pack_rows(sizes[:2], np.array([7, 9]), (80, 1000), slots=4)
    assert row.length == 80
    assert row.bags.tolist() == [7, 9, -1, -1]
    assert row.first.tolist()[:2] == [0, 40]
    rows = pack_rows(sizes, np.arange(3), (48, 400), slots=3)
    assert [row.length for row in rows] == [48, 48]
    assert sorted(bag for row in rows for bag in row.bags if bag >= 0) == [0, 1, 2]


@pytest.mark.parametrize("packed", [False, True])
def test_batches_before_an_update_are_those_that_end_before_it(packed):
    sizes = np.random.default_rng(0).integers(1, 40, 30)
    source = BagBatches(sizes, budget=48, bags_per_update=7, seed=1, packed=packed)
    ends = [index + 1 for index in range(60) if source[index]["ends_update"]]
    assert [source.before(update) for update in range(len(ends) + 1)] == [0, *ends]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_share_of_the_instances_is_drawn_anew_in_each_epoch(packed, streamed):
    sizes = np.array([7, 1, 30, 16])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    rows = np.arange(offsets[-1])[:, None]
    options = {"budget": 16, "bags_per_update": 4, "instances": 0.5, "packed": packed}
    if streamed:
        options["read"] = lambda bag: rows[offsets[bag] : offsets[bag + 1]]
    source = BagBatches(sizes, per_instance={"own": rows[:, 0] + 1}, **options)
    epochs = [_instances_by_bag(source, epoch, packed, streamed) for epoch in range(3)]
    for found in epochs:
        assert {bag: len(taken) for bag, taken in found.items()} == {0: 4, 1: 1, 2: 15, 3: 8}
        for bag, taken in found.items():
            assert (np.diff(taken) > 0).all()
            assert offsets[bag] <= taken.min()
            assert taken.max() < offsets[bag + 1]
    assert any((epochs[0][2] != epoch[2]).any() for epoch in epochs[1:])
    again = BagBatches(sizes, per_instance={"own": rows[:, 0] + 1}, **options)
    later = _instances_by_bag(again, 2, packed, streamed)
    assert all((later[bag] == epochs[2][bag]).all() for bag in later)


def _instances_by_bag(source, epoch, packed, streamed):
    """Rows of the bank that an epoch takes of each bag."""
    found = {}
    for index in range(source.before(epoch), source.before(epoch + 1)):  # one update an epoch
        item = source[index]
        of_rows = item["instances"] if packed else item
        taken = of_rows["features"][..., 0] if streamed else of_rows["rows"]
        for slot, bag in enumerate(item["bag"].tolist()):
            if bag < 0:
                continue
            if packed:
                inside = np.s_[item["first"][slot] : item["first"][slot] + item["size"][slot]]
            else:
                inside = (slot, item["mask"][slot])
            np.testing.assert_array_equal(of_rows["own"][inside], taken[inside] + 1)
            found[bag] = taken[inside]
    return found
