"""Bags mixed of two training bags: which, how much of each, and as which arrays."""

import itertools

import numpy as np
import pytest

from lrmil_jax.data import mixup
from lrmil_jax.data.bag_batches import BagBatches

SIZES = np.array([7, 1, 30, 16, 12, 9])
USED = np.array([0, 1, 2, 4])  # the others validate
OFFSETS = np.concatenate([[0], np.cumsum(SIZES)])
ROWS = np.arange(OFFSETS[-1])[:, None]
WEIGHT = np.array([1.0, 3.0, 0.5, 9.0, 2.0, 9.0])
TARGETS = np.array([[0.0], [1.0], [1.0], [5.0], [0.0], [5.0]])


def drawn(epoch=0, **options):
    return mixup.draw(SIZES, USED, **{"alpha": 1.0, "seed": 3, "epoch": epoch, **options})


def test_each_bag_is_a_partner_once_and_never_its_own():
    for epoch in range(30):
        mix = drawn(epoch)
        assert sorted(mix.partner[USED]) == sorted(USED)
        assert (mix.partner[USED] != USED).all()
        for bag in USED:
            own, other = mix.counts[bag]
            share, partner = mix.share[bag], SIZES[mix.partner[bag]]
            assert own == max(1, np.ceil(share * SIZES[bag]))
            assert other in (np.floor((1 - share) * partner), 30 - own)
        assert mix.sizes[USED].max() <= 30  # the longest of the training, so that shapes stay


@pytest.mark.parametrize(
    ("alpha", "variance"), [(0.2, 0.25 / 1.4), (1.0, 1 / 12), (8.0, 0.25 / 17)]
)
def test_shares_are_of_the_beta_distribution(alpha, variance):
    shares = np.concatenate([drawn(epoch, alpha=alpha).share[USED] for epoch in range(1000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(variance, rel=0.08)


def test_epochs_and_seeds_differ_and_repeat_exactly():
    every = [drawn(epoch, seed=seed) for epoch in range(3) for seed in range(3)]
    for one, two in itertools.combinations(every, 2):
        assert (one.share[USED] != two.share[USED]).all()
    np.testing.assert_array_equal(drawn(2).share, drawn(2).share)
    np.testing.assert_array_equal(drawn(2).partner, drawn(2).partner)


def test_partners_are_drawn_as_the_bags_of_an_epoch_are():
    """Classes stay balanced where they are drawn equally often."""
    probabilities = np.array([0.5, 0.1, 0.2, 0.2])
    partners = [drawn(epoch, probabilities=probabilities).partner[USED] for epoch in range(1500)]
    for place, bag in enumerate(USED):
        others = np.concatenate([one[np.arange(4) != place] for one in partners])
        share = (others == bag).mean()
        # Who draws itself takes another, each of the three equally often.
        extra = np.mean([probabilities[other] / 3 for other in range(4) if other != place])
        assert share == pytest.approx(probabilities[place] + extra, abs=0.02)


def test_a_bag_alone_stays_whole():
    mix = mixup.draw(SIZES, np.array([2]), alpha=1.0, seed=0, epoch=0)
    assert (mix.partner[2], mix.share[2], mix.counts[2].tolist()) == (2, 1.0, [30, 0])


def batches(*, alpha=1.0, packed=False, streamed=False, **options):
    options = {"budget": 16, "bags_per_update": 4, "seed": 3, "bags": USED, **options}
    if streamed:
        options["read"] = lambda bag: ROWS[OFFSETS[bag] : OFFSETS[bag + 1]]
    return BagBatches(
        SIZES, mixup=alpha, packed=packed, weight=WEIGHT,
        per_bag={"target": TARGETS}, per_instance={"own": ROWS[:, 0] + 1}, **options,
    )  # fmt: skip


def by_bag(source, epoch, packed, streamed):
    """What an epoch's batches hold of each bag: (rows, of the second, what is of whole bags)."""
    found = {}
    for index in range(source.before(epoch), source.before(epoch + 1)):  # one update an epoch
        item = source[index]
        of_rows = item["instances"] if packed else item
        taken = of_rows["features"][..., 0] if streamed else of_rows["rows"]
        for slot in np.flatnonzero(item["bag"] >= 0):
            first = item["first"][slot] if packed else 0
            inside = (
                np.s_[first : first + item["size"][slot]] if packed else (slot, item["mask"][slot])
            )
            np.testing.assert_array_equal(of_rows["own"][inside], taken[inside] + 1)
            names = ("weight", "share", "label_share", "target", "second_target")
            whole = {name: item[name][slot] for name in names}
            found[int(item["bag"][slot])] = taken[inside], of_rows["second"][inside], whole
        empty = item["bag"] < 0
        assert not item["weight"][empty].any()
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("instances", [1.0, 0.5])
def test_batches_hold_what_was_drawn(packed, streamed, instances):
    source = batches(packed=packed, streamed=streamed, instances=instances)
    sizes = np.ceil(SIZES * instances).astype(int)
    for epoch in range(4):
        mix = mixup.draw(sizes, USED, alpha=1.0, seed=3, epoch=epoch)
        found = by_bag(source, epoch, packed, streamed)
        assert set(found) == set(USED)
        for bag, (rows, second, whole) in found.items():
            partner, share = mix.partner[bag], mix.share[bag]
            parts = ((rows[~second], bag), (rows[second], partner))
            for (part, owner), count in zip(parts, mix.counts[bag], strict=True):
                assert len(part) == len(set(part.tolist())) == count
                assert ((OFFSETS[owner] <= part) & (part < OFFSETS[owner + 1])).all()
            own, other = share * WEIGHT[bag], (1 - share) * WEIGHT[partner]
            assert whole["weight"] == pytest.approx(own + other, rel=1e-6)
            assert whole["share"] == pytest.approx(share, rel=1e-6)
            assert whole["label_share"] == pytest.approx(own / (own + other), rel=1e-6)
            assert whole["target"] == TARGETS[bag]
            assert whole["second_target"] == TARGETS[partner]


@pytest.mark.parametrize("packed", [False, True])
def test_devices_budget_and_where_features_lie_change_no_bag(packed):
    wanted = [by_bag(batches(packed=packed), epoch, packed, False) for epoch in range(3)]
    for other in ({"devices": 4}, {"budget": 200}, {"streamed": True}):
        source = batches(packed=packed, **other)
        for epoch, one in enumerate(wanted):
            found = by_bag(source, epoch, packed, "streamed" in other)
            assert found.keys() == one.keys()
            for bag, (rows, second, whole) in found.items():
                np.testing.assert_array_equal(rows, one[bag][0])
                np.testing.assert_array_equal(second, one[bag][1])
                assert whole == one[bag][2]


def test_an_epoch_weighs_every_label_as_its_class_does():
    """On average over epochs: a bag's label counts by its own share, and by the rest of the one
    whose partner it is."""
    source, total = batches(alpha=0.5), np.zeros(len(SIZES))
    epochs = 1000
    for epoch in range(epochs):
        mix = mixup.draw(SIZES, USED, alpha=0.5, seed=3, epoch=epoch)
        of_bags = source._of_bags(USED, epoch)
        total[USED] += of_bags["weight"] * of_bags["label_share"]
        np.add.at(total, mix.partner[USED], of_bags["weight"] * (1 - of_bags["label_share"]))
    np.testing.assert_allclose(total[USED] / epochs, WEIGHT[USED], rtol=0.05)
    assert not total[[3, 5]].any()


def test_the_iterator_goes_on_after_its_state():
    def rows(iterator):
        taken = (item["instances"]["rows"] for item, _ in zip(iterator, range(20), strict=False))
        return np.concatenate([one[one > 0] for one in taken])

    iterator = iter(batches(packed=True).dataset())
    for _ in range(13):
        next(iterator)
    state = iterator.get_state()
    rest = rows(iterator)
    again = iter(batches(packed=True).dataset())
    again.set_state(state)
    np.testing.assert_array_equal(rows(again), rest)


def test_without_mixup_batches_are_what_they_were():
    plain = BagBatches(SIZES, budget=16, bags_per_update=4, per_bag={"target": TARGETS})
    assert set(plain[0]) == {"rows", "mask", "bag", "weight", "target", "ends_update"}
