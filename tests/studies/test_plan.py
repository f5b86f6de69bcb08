"""Which runs a study has, what they share, and what is refused before any of them begins."""

import pytest

from lrmil_jax import config as configuration
from lrmil_jax import graph
from lrmil_jax.errors import ConfigError
from lrmil_jax.studies import plan


def study(*variants, seeds=(1, 2), **changes):
    config = configuration.tiny(configuration.default())
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config.update_from_flattened_dict(changes)
    config.study.update(seeds=seeds, variants=variants)
    return config


def test_every_seed_with_every_variant(tmp_path):
    runs = plan.plan(study("no bag: student.lambda_bag=0", "LR: method=mil_lr"), tmp_path)
    assert [(run.seed, run.variant) for run in runs] == [
        *((1, "base"), (1, "no bag"), (1, "LR")),
        *((2, "base"), (2, "no bag"), (2, "LR")),
    ]
    assert [run.config.seed for run in runs] == [1, 1, 1, 2, 2, 2]
    assert [run.config.student.lambda_bag for run in runs[:2]] == [1.0, 0.0]
    assert runs[2].config.method == "mil_lr"
    assert len({run.folder for run in runs}) == 6
    assert runs[1].folder == tmp_path / "runs/seed_1/no_bag"
    assert not any(plan.is_study(run.config) for run in runs)


def test_what_describes_cost_and_cohort_is_done_once():
    base, variant = plan.plan(study("no bag: student.lambda_bag=0", seeds=(1,)), plan.Path("x"))
    assert base.config.student.no_distillation
    assert base.config.evaluate.timed_slides > 0
    assert not variant.config.student.no_distillation
    assert variant.config.evaluate.timed_slides == 0


def test_seed_in_paths():
    config = study(data__labels="cohort_{seed}/labels.csv", encoder__weights="w_{seed}")
    runs = plan.plan(config, plan.Path("x"))
    assert [run.config.data.labels for run in runs] == [
        "cohort_1/labels.csv",
        "cohort_2/labels.csv",
    ]
    assert [run.config.encoder.weights for run in runs] == ["w_1", "w_2"]


def test_no_study_without_seeds_or_variants():
    assert not plan.is_study(configuration.default())
    assert plan.is_study(study(seeds=(1,)))
    assert plan.is_study(study("a: seed=3", seeds=()))


def guided(**changes):
    config = study(seeds=(1,), method="wise_fuse", synthetic__slides=20, mil__budget=32)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def test_budgets_are_variants():
    runs = plan.plan(guided(study__budgets=(0.125, 0.25)), plan.Path("x"))
    assert [run.variant for run in runs] == [
        *("base", "WISE-FUSE 0.125", "without CS-VPT 0.125", "random 0.125"),
        *("without CS-VPT 0.25", "random 0.25", "exhaustive HR", "LRMIL"),
    ]
    assert plan.is_study(guided(study__seeds=(), study__budgets=(0.5,)))
    # What a budget costs is part of the curve, so its runs are timed.
    assert all(run.config.evaluate.timed_slides for run in runs)
    assert [run.config.select.rho for run in runs[:5]] == [0.25, 0.125, 0.125, 0.125, 0.25]
    assert [run.config.align.how for run in runs[:3]] == ["prompts+lora", "prompts+lora", "none"]
    assert runs[3].config.select.rule == "random"


def test_other_methods_are_lines_of_the_curve():
    changes = {"study__budgets": (0.125, 0.25), "study__other_methods": ("zoom_mil",)}
    runs = plan.plan(guided(**changes), plan.Path("x"))
    added = [run for run in runs if run.variant.startswith("ZoomMIL")]
    assert [(run.variant, run.config.select.rho) for run in added] == [
        ("ZoomMIL 0.125", 0.125), ("ZoomMIL 0.25", 0.25),
    ]  # fmt: skip
    assert {run.config.method for run in added} == {"zoom_mil"}
    alone = plan.plan(guided(method="zoom_mil", study__budgets=(0.125, 0.25)), plan.Path("x"))
    assert [run.variant for run in alone] == ["base", "ZoomMIL 0.125"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"study__other_methods": ("mil",)}, "'mil', but with method wise_fuse it must be one of"),
        ({"method": "lrmil"}, "study.budgets has no meaning for method lrmil"),
        ({"select__count": 4}, "select.count is 4; set it to 0"),
        ({"study__budgets": (0.5, 1.5)}, "above 0 and up to 1"),
        ({"study__budgets": (0.5, 0.5)}, "different shares"),
        ({"study__variants": ("random 0.5: select.rho=0.5",)}, "'random 0.5' twice"),
    ],
)
def test_budgets_that_cannot_be(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        plan.plan(guided(**{"study__budgets": (0.5,)} | changes), plan.Path("x"))


@pytest.mark.parametrize(
    ("variants", "sentence"),
    [
        (("student.lambda_bag=0",), "cannot be read; write 'name: key=value"),
        (("a: student.lambda_bag",), "cannot be read"),
        (("a: ",), "cannot be read"),
        ((": seed=1",), "cannot be read"),
        (("a: seed=1", "a: seed=2"), "the name 'a' twice"),
        (("base: seed=1",), "the name 'base' twice"),
        (("a b: seed=1", "a?b: seed=2"), "the same name but for signs"),
        (("a: student.lamda_bag=0",), "'a' of study.variants: .*did you mean student.lambda_bag"),
        (("a: student.topk=x",), "'a' of study.variants: config.student.topk cannot be 'x'"),
        (("a: student.topk=0",), "'a' of study.variants: .*topk is 0, but it must be"),
    ],
)
def test_a_variant_that_cannot_be_is_named(variants, sentence):
    with pytest.raises(ConfigError, match=sentence):
        plan.plan(study(*variants), plan.Path("x"))


def test_a_seed_twice_is_refused():
    with pytest.raises(ConfigError, match="a seed twice"):
        plan.plan(study(seeds=(1, 1)), plan.Path("x"))


@pytest.mark.parametrize(
    ("changes", "variant", "slides", "features"),
    [
        ({}, "student.lambda_bag=0", True, True),
        ({}, "distill.layers=(0,)", True, True),
        ({}, "prepare.min_tissue=0.5", False, False),
        ({}, "geometry.lr_mpp=1.0", False, False),
        ({}, "pretrain.steps=7", True, False),  # trains another encoder
        ({"encoder__weights": "w"}, "pretrain.steps=7", True, True),  # does not
        ({"encoder__weights": "w"}, "encoder.weights=v", True, False),
        ({}, "encoder.dtype=bfloat16", True, False),
        ({}, "seed=9", False, False),  # synthetic slides are the seed's
        ({"data__labels": "l"}, "seed=9", True, False),  # the encoder is
        ({"data__labels": "l", "encoder__weights": "w"}, "seed=9", True, True),
    ],
)
def test_what_two_runs_share(changes, variant, slides, features):
    base, other = plan.plan(study(f"v: {variant}", seeds=(1,), **changes), plan.Path("x"))
    assert plan.same_slides(base, other) == slides
    assert plan.same_features(base, other) == features


def swept(**changes):
    return study(seeds=(1,), **{f"sweep__{key}": value for key, value in changes.items()})


def test_points_of_stage_2_share_a_run_and_others_have_their_own():
    config = swept(
        each=("student.topk: 1 2 4", "distill.lambda_layer: 0"),  # topk is 2 already
        grid=("student.lambda_bag: 0 1", "student.guide: mass max", "distill.lambda_attn: 0 1"),
        points=("both: student.topk=3 distill.lambda_layer=0", "named: student.topk=5"),
    )
    runs = {run.variant: run for run in plan.plan(config, plan.Path("x"))}
    assert list(runs) == ["base", "distill.lambda_layer=0", "distill.lambda_attn=0"]
    names = {variant: [point.name for point in run.points] for variant, run in runs.items()}
    assert names["base"] == [
        "student.topk=1", "student.topk=4",
        "student.lambda_bag=0 student.guide=mass distill.lambda_attn=1",
        "student.lambda_bag=0 student.guide=max distill.lambda_attn=1",
        "student.lambda_bag=1 student.guide=max distill.lambda_attn=1", "named",
    ]  # fmt: skip
    assert names["distill.lambda_layer=0"] == ["both"]
    assert len(names["distill.lambda_attn=0"]) == 3
    base = runs["base"].config
    assert base.sweep.points[2] == "student.lambda_bag=0: student.lambda_bag=0"
    assert base.sweep.each == base.sweep.grid == ()
    assert "sweep" in graph.stage_names(base)
    assert "sweep" not in graph.stage_names(study().copy_and_resolve_references())


def test_a_method_without_a_swept_stage_makes_runs_of_all_points():
    config = guided(study__seeds=(1,), study__variants=(), sweep__each=("mil.hidden: 8 32",))
    runs = plan.plan(config, plan.Path("x"))
    assert [run.variant for run in runs] == ["base", "mil.hidden=8", "mil.hidden=32"]
    assert not any(run.points for run in runs)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"each": ("student.topk 1 2",)}, "sweep.each cannot be read; write 'key: value value'"),
        ({"grid": ("student.topk:",)}, "sweep.grid cannot be read"),
        ({"each": ("student.topk: 1 1",)}, "one of its values twice"),
        ({"each": ("student.topk: 0",)}, "'student.topk=0' of the sweep: .*it must be"),
        ({"grid": ("student.topc: 1",)}, "of the sweep: .*did you mean student.topk"),
        ({"points": ("a: student.topk=1", "a: student.topk=2")}, "the name 'a' twice"),
        ({"points": ("base: student.topk=1",)}, "the name 'base' twice"),
        ({"points": ("a",)}, "the point 'a' of sweep.points cannot be read"),
        ({"each": (1,)}, "must be a tuple of texts"),
    ],
)
def test_a_sweep_that_cannot_be_is_named(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        plan.plan(swept(**changes), plan.Path("x"))
