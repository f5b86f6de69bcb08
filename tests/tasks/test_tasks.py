"""Every registered task keeps the promises of `Task`; figures agree with independent ones."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk

from lrmil_jax import tasks
from lrmil_jax.errors import ConfigError, DataError, WeightsError
from lrmil_jax.evals import intervals, survival
from lrmil_jax.tasks import predictions
from lrmil_jax.tasks.ordinal import Ordinal, quadratic_kappa
from lrmil_jax.tasks.regression import Regression
from lrmil_jax.tasks.survival import Survival

DATA = {"label_column": "label", "classes": (), "time_column": "time", "event_column": "event",
        "bins": 3}  # fmt: skip
CSV = {
    "classification": {"label": list("abc") * 20},
    "ordinal": {"label": list("abc") * 20},
    "multi_label": {"x": [0, 1, 1] * 20, "y": [0, 1] * 30},
    "regression": {"label": np.linspace(-3, 5, 60)},
    "survival": {"time": np.linspace(0.5, 30, 60), "event": [1, 1, 0] * 20},
    "cox": {"time": np.linspace(0.5, 30, 60), "event": [1, 1, 0] * 20},
}


@pytest.fixture(params=tasks.TASKS)
def given(request):
    """A task read from a CSV of 60 slides and fitted, its targets, and logits of a head."""
    name = request.param
    frame = pd.DataFrame(CSV[name]).astype(str)
    data = DATA | ({"label_column": "x, y"} if name == "multi_label" else {})
    task, table = tasks.kind(name).read(frame, data, "labels.csv")
    targets = task.targets(table)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, task.width)).astype(np.float32)
    return task.fitted(targets), table, targets, logits


def test_every_task_is_tried():
    assert set(CSV) == set(tasks.TASKS)


def test_shapes_and_names(given):
    task, table, targets, logits = given
    assert targets.shape == (60, len(task.columns))
    assert list(table) == list(task.columns)
    assert task.loss(logits, targets).shape == (60,)
    assert np.isfinite(task.loss(logits, targets)).all()
    values = task.link(logits)
    assert isinstance(values, np.ndarray)
    assert values.shape == (60, len(task.values))
    assert len(task.parts) == len(task.values)
    np.testing.assert_allclose(jax.jit(task.link)(logits), values, atol=1e-6)
    groups = task.groups(targets)
    assert set(groups) == set(range(groups.max() + 1))
    assert task.headline in task.metrics
    assert task.headline in task.titles
    assert task.sentence(values[0])
    assert task.summary(table)


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn(given):
    task, _, _, logits = given
    teacher = jnp.asarray(logits)
    same = task.distillation(teacher, teacher, temperature=2.0)
    np.testing.assert_allclose(same, 0, atol=1e-6)
    gradient = jax.grad(lambda s: task.distillation(s, teacher, temperature=2.0).sum())(teacher)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    other = task.distillation(
        teacher + jnp.arange(task.width)[None] - 1.5, teacher, temperature=2.0
    )
    assert (np.asarray(other) > 0).all()


def test_the_loss_is_least_at_the_truth(given):
    """Gradient descent on the slides' logits finds the predictions that their targets ask for."""
    task, _, targets, logits = given
    wanted = jnp.asarray(targets)

    @jax.jit
    def step(logits):
        return logits - 0.4 * jax.grad(lambda x: task.loss(x, wanted).sum())(logits)

    found = jnp.asarray(logits)
    for _ in range(300):
        found = step(found)
    measured = task.measure(targets.astype(np.float64), np.asarray(task.link(found), np.float64))
    # Of one interval, survival tells no order.
    assert measured[task.headline] > (0.8 if task.name == "survival" else 0.98)
    assert measured["loss"] < (0.4 if task.joint else 0.2)  # an event alone costs nothing


def test_outputs_are_found_again_from_values(given):
    task, *_, logits = given
    logits = np.minimum.accumulate(logits, 1) if task.name == "ordinal" else logits
    found = task.unlink(np.asarray(task.link(logits.astype(np.float64))))
    if task.name == "classification":  # up to a constant a slide
        logits = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-5)


def test_teachers_are_averaged_by_what_they_predict(given):
    """The weighted mean of the values, as a head's outputs; equal teachers change nothing."""
    task, *_, logits = given
    logits = np.minimum.accumulate(logits, 1) if task.name == "ordinal" else logits
    other = logits[::-1]
    found = task.link(task.ensembled(np.stack([logits, other]), [1.0, 3.0]))
    first, second = (np.asarray(task.link(one.astype(np.float64))) for one in (logits, other))
    wanted = 0.25 * first + 0.75 * second
    if task.name == "cox":  # a mean of log risks; what follows from them is not averaged
        found, wanted = found[:, :1], wanted[:, :1]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    same = task.ensembled(np.stack([logits, logits, logits]), [1.0, 0.5, 2.0])
    again = task.distillation(jnp.asarray(logits), jnp.asarray(same, jnp.float32), temperature=2.0)
    np.testing.assert_allclose(again, 0, atol=1e-5)


def test_slides_of_a_patient_are_pooled_by_value_or_by_output(given, tmp_path):
    """Three slides a patient, against plain loops; the CSV tells which way it was."""
    task, table, _, logits = given
    logits = np.minimum.accumulate(logits, 1) if task.name == "ordinal" else logits
    values = np.asarray(task.link(logits.astype(np.float64)))
    names = [f"p{number // 3:02d}" for number in range(60)]
    slides = table.assign(slide_id=[f"s{number}" for number in range(60)], case_id=names)
    first = slides.groupby("case_id")[list(task.columns)].transform("first")
    slides = slides.assign(**first)  # a patient has one outcome
    for pooling in tasks.POOLINGS:
        pooled = dataclasses.replace(task, pooling=pooling)
        predictions.rows(pooled, "model", slides, values).to_csv(tmp_path / "rows.csv", index=False)
        rows = pd.read_csv(tmp_path / "rows.csv")
        assert ("pooling" in rows) == (pooling != "probability")
        read = tasks.of_columns(rows)
        assert read.pooling == pooling
        found = predictions.patients(pooled, rows)[2]
        for patient in range(20):
            part = slice(3 * patient, 3 * patient + 3)
            wanted = values[part].mean(0)
            if pooling == "logit":
                wanted = np.asarray(task.link(logits[part].astype(np.float64).mean(0)[None]))[0]
            np.testing.assert_allclose(found[patient], wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="pooled by sum"):
        tasks.of_columns(rows.assign(pooling="sum"))
    rows.loc[0, "pooling"] = None  # as of a table that was joined to another
    with pytest.raises(DataError, match="pooled by probability and bag"):
        tasks.of_columns(rows)


def test_facts_of_an_earlier_version_pool_by_value(given):
    task, *_ = given
    facts = {name: value for name, value in task.facts().items() if name != "pooling"}
    assert tasks.of_facts(facts) == task


def test_facts_make_the_same_task_again(given):
    task, *_ = given
    assert tasks.of_facts(json.loads(json.dumps(task.facts()))) == task


def test_predictions_csv_says_all_that_figures_need(given, tmp_path):
    """Written, read and measured again, without the task: the same figures."""
    task, table, _, logits = given
    ids = [f"s{number:02d}" for number in range(60)]
    slides = table.assign(slide_id=ids, patient_id=ids, case_id=ids)
    rows = predictions.rows(task, "model", slides, task.link(logits))
    rows.to_csv(tmp_path / "predictions.csv", index=False)
    again = pd.read_csv(tmp_path / "predictions.csv")
    told = tasks.of_columns(again)
    assert told.name == task.name
    one, other = predictions.measure(task, rows), predictions.measure(told, again)
    for name in set(task.metrics) - {"loss"}:  # the loss asks for what training slides were like
        assert other["metrics"][name] == pytest.approx(one["metrics"][name], abs=1e-6), name
        if one["intervals"][name] is not None:
            assert other["intervals"][name] == pytest.approx(one["intervals"][name], abs=1e-5)
    assert not task.missing(again).any()
    assert task.missing(again.drop(columns=[task.written[0]])).all()


def test_a_patients_values_are_the_mean_of_the_slides(given):
    task, table, _, logits = given
    twice = pd.concat([table, table], ignore_index=True)
    ids = [f"p{number:02d}" for number in range(60)] * 2
    slides = twice.assign(slide_id=np.arange(120).astype(str), patient_id=ids, case_id=ids)
    values = task.link(np.concatenate([logits, -logits]))
    names, _, means = predictions.patients(task, predictions.rows(task, "a", slides, values))
    assert names.tolist() == sorted(set(ids))
    np.testing.assert_allclose(means, (values[:60] + values[60:]) / 2, atol=1e-6)


def test_intervals_hold_the_figure(given):
    task, _, targets, logits = given
    ids = np.arange(60).astype(str)
    values = np.asarray(task.link(logits), np.float64)
    for name, figure in task.figures(targets.astype(np.float64), values, ids).items():
        low, high = intervals.summarise([figure]).interval
        assert low < figure.value < high, name
        assert figure.value == pytest.approx(task.measure(targets, values)[name])


def test_what_chooses_a_checkpoint(given):
    task, *_ = given
    assert task.select("headline", balance="none") == ((task.headline, "max"), ("loss", "min"))
    loss = "balanced_loss" if task.has_classes else "loss"
    assert task.select("loss", balance="weights") == ((loss, "min"),)
    with pytest.raises(ConfigError, match=r"select='nonsense' is no metric of the task"):
        task.select("nonsense", balance="none")


@pytest.mark.parametrize(
    ("name", "columns", "said"),
    [
        ("classification", {"label": ["a", "a"]}, "only class a"),
        ("classification", {"label": ["a", ""]}, "no label in line 3"),
        ("regression", {"label": ["1.5", "high"]}, "label 'high' in line 3 is no number"),
        ("regression", {"label": ["1.5", "inf"]}, "label 'inf' in line 3 is no number"),
        ("survival", {"time": ["1", "-2"], "event": ["1", "0"]}, "time must be above 0; line 3"),
        ("survival", {"time": ["1", "2"], "event": ["1", "2"]}, "event must be 0 or 1; line 3"),
        ("survival", {"time": ["1", "2"], "event": ["0", "0"]}, "no event at all"),
        ("survival", {"time": ["1", None], "event": ["1", "0"]}, "no time in line 3"),
        ("survival", {"time": ["1", "2"]}, "has no column event"),
        ("multi_label", {"label": ["0", "3"]}, "label must be 0 or 1; line 3"),
    ],
)
def test_mistakes_in_the_csv_are_told_with_their_line(name, columns, said):
    with pytest.raises(DataError, match=said) as caught:
        tasks.kind(name).read(pd.DataFrame(columns), DATA, "labels.csv")
    assert "labels.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_tasks_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'survival'"):
        tasks.kind("survivel")
    with pytest.raises(WeightsError, match="task cannot be read"):
        tasks.of_facts({"name": "horoscope"})
    with pytest.raises(DataError, match="no known task"):
        tasks.of_columns(pd.DataFrame({"slide_id": ["a"]}))


# Figures against well-kept libraries, and losses by hand.


def test_kappa_is_scikit_learns():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 5, (2, 200))
    predicted = np.where(rng.random(200) < 0.5, labels, predicted)
    wanted = sk.cohen_kappa_score(labels, predicted, weights="quadratic")
    assert quadratic_kappa(labels, predicted, 5) == pytest.approx(wanted)
    assert quadratic_kappa(np.zeros(4, int), np.zeros(4, int), 3) is None


def test_ordinal_probabilities_by_hand():
    task = Ordinal(("low", "middle", "high"))
    logit = np.log(np.array([0.8, 0.3]) / (1 - np.array([0.8, 0.3])))[None]
    np.testing.assert_allclose(task.link(logit), [[0.2, 0.5, 0.3]], atol=1e-7)
    above = task.loss(logit, np.array([[1.0]]))
    np.testing.assert_allclose(above, [-(np.log(0.8) + np.log(0.7)) / 2], rtol=1e-6)
    crossed = task.link(logit[:, ::-1])  # steps the wrong way round: no class has less than 0
    np.testing.assert_allclose(crossed, [[0.7, 0.0, 0.3]], atol=1e-7)


def test_regression_figures_are_scipys():
    rng = np.random.default_rng(1)
    true = rng.normal(size=50)
    said = true + rng.normal(size=50)
    found = Regression().measure(true[:, None], said[:, None])
    assert found["pearson"] == pytest.approx(stats.pearsonr(true, said).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(true, said).statistic)
    assert found["r2"] == pytest.approx(sk.r2_score(true, said))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(true, said))
    assert Regression().measure(np.ones((3, 1)), np.ones((3, 1)))["pearson"] is None


def test_survival_loss_by_hand():
    """Three intervals up to 10, 20 and beyond, hazards .2, .5 and .1."""
    task = Survival(3, (10.0, 20.0))
    hazards = np.array([0.2, 0.5, 0.1])
    logits = np.log(hazards / (1 - hazards))[None].repeat(4, 0)
    targets = np.array([[5.0, 1], [15.0, 1], [15.0, 0], [99.0, 1]])
    wanted = -np.log([0.2, 0.8 * 0.5, 0.8 * 0.5, 0.8 * 0.5 * 0.1])
    np.testing.assert_allclose(task.loss(logits, targets), wanted, rtol=1e-5)
    values = task.link(logits)
    np.testing.assert_allclose(values[0], [0.8, 0.4, 0.36], rtol=1e-5)
    assert task.measure(targets, values)["loss"] == pytest.approx(wanted.mean(), rel=1e-5)


def test_edges_part_the_events_and_too_few_are_refused():
    times = np.arange(1.0, 31)
    targets = np.stack([times, np.arange(30) % 2], 1)
    edges = Survival(3).fitted(targets).edges
    counts = np.bincount(np.searchsorted(edges, times[targets[:, 1] > 0]))
    assert counts.tolist() == [5, 5, 5]
    with pytest.raises(DataError, match=r"events at 1 different times.*data\.bins"):
        Survival(3).fitted(np.array([[4.0, 1], [4.0, 1], [9.0, 0]]))


@pytest.fixture
def followed():
    """Times with ties, a third censored, and a risk that says something of them."""
    rng = np.random.default_rng(3)
    time = rng.integers(1, 20, 80).astype(float)
    event = rng.random(80) < 0.67
    return time, event, -time + rng.normal(scale=8, size=80).round()


def test_concordance_is_that_of_lifelines(followed):
    from lifelines.utils import concordance_index

    time, event, risk = followed
    assert survival.concordance(time, event, risk) == pytest.approx(
        concordance_index(time, -risk, event)
    )
    assert survival.concordance(time, np.zeros(80, bool), risk) is None


def test_influence_on_the_concordance_is_the_plain_jackknife(followed):
    time, event, risk = followed
    figure = survival.concordance_figure(time, event, risk, np.arange(80).astype(str))
    without = [
        survival.concordance(*(np.delete(one, place) for one in followed)) for place in range(80)
    ]
    order = np.argsort(np.arange(80).astype(str))
    wanted = np.sqrt(79 / 80) * (np.mean(without) - np.array(without))
    np.testing.assert_allclose(figure.influence, wanted[order], atol=1e-12)
    pairs = np.arange(80) // 2
    grouped = survival.concordance_figure(time, event, risk, pairs)
    left = [survival.concordance(*(one[pairs != place] for one in followed)) for place in range(40)]
    order = np.argsort(np.arange(40).astype(str))
    wanted = np.sqrt(39 / 40) * (np.mean(left) - np.array(left))
    np.testing.assert_allclose(grouped.influence, wanted[order], atol=1e-12)


def test_probability_of_not_being_censored_is_kaplan_meiers(followed):
    from lifelines import KaplanMeierFitter

    time, event, _ = followed
    fitter = KaplanMeierFitter().fit(time + 1e-6 * ~event, ~event)  # the event comes first
    wanted = fitter.survival_function_at_times(time - 1e-3).to_numpy()
    np.testing.assert_allclose(survival._uncensored(time, event), wanted, atol=1e-9)


def test_time_dependent_auc_without_censoring_is_the_plain_one():
    rng = np.random.default_rng(0)
    time = rng.permutation(np.arange(1.0, 41))
    risk = -time + rng.normal(scale=10, size=40)
    limits = np.quantile(time, (0.25, 0.5, 0.75))
    wanted = np.mean([sk.roc_auc_score(time <= limit, risk) for limit in limits])
    event = np.ones(40, bool)
    assert survival.time_dependent_auc(time, event, risk) == pytest.approx(wanted)


def uncensored_by(time, event, limit, *, before):
    """Kaplan and Meier's estimate of being followed beyond a time, in a plain loop: of censoring,
    to which whoever has the event at a time is no longer at risk."""
    kept = 1.0
    for when in sorted(set(time)):
        if when < limit or (when == limit and not before):
            at_risk = sum(
                t > when or (t == when and not e) for t, e in zip(time, event, strict=True)
            )
            leaving = sum(t == when and not e for t, e in zip(time, event, strict=True))
            kept *= 1 - leaving / at_risk if at_risk else 1.0
    return kept


def test_time_dependent_auc_with_censoring_is_the_plain_loop(followed):
    """Uno et al. (2007): each case weighs one by the chance of not being censored before."""
    time, event, risk = followed
    areas = []
    for limit in np.quantile(time[event], (0.25, 0.5, 0.75)):
        won = weighed = 0.0
        for i in range(len(time)):
            if event[i] and time[i] <= limit:
                weight = 1 / uncensored_by(time, event, time[i], before=True)
                for j in range(len(time)):
                    if time[j] > limit:
                        weighed += weight
                        won += weight * ((risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j]))
        areas.append(won / weighed)
    assert survival.time_dependent_auc(time, event, risk) == pytest.approx(np.mean(areas))


@pytest.mark.parametrize("limit", [0.5, 7.0, 7.5, 18.0, 30.0])
def test_status_weights_are_the_plain_loop(followed, limit):
    time, event, _ = followed
    wanted = []
    for t, e in zip(time, event, strict=True):
        if t > limit:
            wanted.append(1 / uncensored_by(time, event, limit, before=False))
        else:
            wanted.append(1 / uncensored_by(time, event, t, before=True) if e else 0.0)
    np.testing.assert_allclose(survival.status_weights(time, event, limit), wanted)


def test_survival_forecasts_are_calibrated_where_the_model_is():
    """Grafs Brier score and calibration despite censoring: of 4,000 with the hazard that is
    predicted, the error is near what it is without any censoring."""
    rng = np.random.default_rng(0)
    rate = np.exp(rng.normal(scale=0.7, size=4000))
    time, end = rng.exponential(1 / rate), rng.exponential(1.5, 4000)
    task = Survival(3, (0.3, 0.9))
    values = np.stack([np.exp(-rate * t) for t in (0.3, 0.9, 3.0)], 1)
    followed = np.stack([np.minimum(time, end), time <= end], 1)
    told = task.calibration(followed, values, np.arange(4000).astype(str))
    whole = task.calibration(
        np.stack([time, np.ones(4000)], 1), values, np.arange(4000).astype(str)
    )
    assert list(told) == ["event by 0.3", "event by 0.9"]
    for name in told:
        assert abs(told[name]["bias"]) < 0.03
        assert told[name]["ece"] < 0.05
        assert told[name]["brier"] == pytest.approx(whole[name]["brier"], abs=0.01)
        assert told[name]["ece_if_calibrated"] is None
        assert whole[name]["ece"] < 2 * whole[name]["ece_if_calibrated"]


def test_calibration_of_a_number_is_a_straight_line():
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=80)
    true = 2 + 0.5 * predicted + rng.normal(scale=0.2, size=80)
    told = Regression().calibration(true[:, None], predicted[:, None], np.arange(80).astype(str))
    wanted = stats.linregress(predicted, true)
    line = told["number"]
    assert (line["slope"], line["intercept"]) == pytest.approx((wanted.slope, wanted.intercept))
    low, high = line["slope_interval"]
    assert low < 0.5 < high
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 78) * wanted.stderr, rel=0.3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_tempered_values_are_those_of_scaled_logits(given, temperature):
    task, _, targets, logits = given
    values = np.asarray(task.link(logits), np.float64)
    if not task.has_temperature:
        with pytest.raises(NotImplementedError):
            task.tempered(values, temperature)
        return
    tempered = task.tempered(values, temperature)
    if task.name != "ordinal":  # whose probabilities are of steps
        np.testing.assert_allclose(tempered, task.link(logits / temperature), atol=1e-5)
    np.testing.assert_allclose(task.tempered(values, 1.0), values, atol=1e-6)
    assert task.mean_loss(targets.astype(np.float64), values) == pytest.approx(
        task.measure(targets.astype(np.float64), values)["loss"]
    )
