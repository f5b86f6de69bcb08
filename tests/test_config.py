"""Defaults, ranges, `:tiny` of every shipped config, and one sentence for every mistake."""

import importlib.util
from pathlib import Path

import pytest

from lrmil_jax import checks, graph, tasks
from lrmil_jax import config as configuration
from lrmil_jax.errors import ConfigError

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.py"))
PROCEDURAL = {
    "quickstart",
    "miniature",
    "distillation_weights",
    "towers",
    "wise_fuse_miniature",
}  # bring their slides along


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def valid(**changes):
    config = configuration.default()
    config.synthetic.slides = 20
    config.update_from_flattened_dict(changes)
    return config


def test_defaults_need_labels_and_nothing_else():
    with pytest.raises(ConfigError, match=r"data\.labels is not set.*:tiny"):
        checks.validate(configuration.default())
    checks.validate(valid())
    config = configuration.default()
    config.data.labels = "labels.csv"
    checks.validate(config)


def test_there_is_a_config_for_every_task_of_the_paper():
    assert {path.stem for path in FILES} >= {
        *("quickstart", "tcga_nsclc", "tcga_brca", "tcga_rcc", "bracs", "camelyon16")
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_configs_build_and_shrink(path):
    module = load(path)
    full = module.get_config()
    if full.data.labels is None and full.synthetic.slides == 0:
        full.data.labels = "labels.csv"
    checks.validate(full)
    tiny = module.get_config("tiny")
    checks.validate(tiny)
    assert tiny.synthetic.slides > 0
    assert tiny.folds == 1
    assert tiny.encoder.name == "vit-tiny"
    assert tiny.geometry.patch_px <= 64
    # Whatever the task, the smoke test has nothing that would take long.
    assert tiny.distill.steps <= 10
    assert tiny.student.epochs <= 5
    assert (
        configuration.flatten(tiny).keys() == configuration.flatten(configuration.default()).keys()
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_configs_state_classes_csv_and_command(path):
    module = load(path)
    text = module.__doc__
    assert f"python -m lrmil_jax.main --config {path.relative_to(ROOT)}" in text
    if path.stem not in PROCEDURAL:
        classes = tasks.kind(module.get_config().task).has_classes
        words = (
            "CSV:",
            "Geometry:",
            "Run:",
            "Smoke:",
            *(("Classes:",) if classes else ("Model:",)),
        )
        for word in words:
            assert word in text


def test_another_word_after_the_colon_is_refused():
    with pytest.raises(ConfigError, match=r"':tiny'.*not ':small'"):
        configuration.finish(configuration.default(), "small")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", "lrmli"),
        ("folds", 0),
        ("seed", -1),
        ("geometry.hr_mpp", 0.0),
        ("geometry.lr_mpp", 20.0),
        ("geometry.patch_px", 8),
        ("prepare.reader", "bioformats"),
        ("prepare.min_tissue", 1.5),
        ("prepare.hr", "keep"),
        ("prepare.jpeg_quality", 0),
        ("encoder.dtype", "float16"),
        ("encoder.batch", 0),
        ("features.dtype", "float32"),
        ("features.rows", 16),
        ("teacher.epochs", 0),
        ("teacher.hidden", 0),
        ("teacher.dropout", 1.0),
        ("teacher.balance", "weight"),
        ("teacher.select", "c_index"),
        ("data.bins", 1),
        ("data.staging_gib", 0.0),
        ("data.features", "s3://bucket/features"),
        ("student.learning_rate", float("nan")),
        ("student.lambda_bag", -0.5),
        ("student.temperature_attn", 0.0),
        ("student.topk", 0),
        ("student.guide", "sum"),
        ("student.hard", "soft"),
        ("student.resident_gib", -1.0),
        ("distill.lambda_attn", -1.0),
        ("distill.warmup_steps", -1),
        ("distill.val_patches", 0),
        ("pretrain.val_share", 0.9),
        ("evaluate.timed_slides", -1),
        ("synthetic.size_px", 100),
        ("data.classes", (1, 0)),
        ("data.classes", ("LUAD", 1.0)),
        ("data.split_columns", (1,)),
        ("evaluate.subgroups", (1,)),
    ],
)
def test_values_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")) as caught:
        checks.validate(valid(**{key: value}))
    assert repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "survivel"}, "did you mean 'survival'"),
        ({"task": "ordinal", "teacher.head": "clam_mb"}, "clam_mb has an output a class"),
        ({"task": "survival", "student.head": "clam_sb"}, "clam_sb has an output a class"),
        ({"task": "cox", "student.head": "dsmil"}, "dsmil has a loss of its own"),
        ({"task": "survival", "teacher.select": "auc"}, "loss, headline, c_index, td_auc"),
        ({"task": "regression", "evaluate.colour_baseline": True}, "tells classes apart"),
        ({"task": "survival", "teacher.mixup": 0.2}, "teacher.mixup .* the task survival knows no"),
        ({"task": "ordinal", "student.mixup": 0.2}, "student.mixup .* the task ordinal knows no"),
        ({"task": "cox", "mil.mixup": 0.2}, "mil.mixup .* the task cox knows no mean"),
        ({"teacher.mixup": 0.2, "teacher.head": "transformer"}, "transformer asks where in one"),
    ],
)
def test_what_a_task_cannot_do_is_refused_before_anything_runs(changes, said):
    with pytest.raises(ConfigError, match=said):
        checks.validate(valid(**changes))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("bag_wieght=0.5",), "config.teacher: .* did you mean 'bag_weight'"),
        (("k=many",), "config.teacher: option k .* a whole number"),
        ("k=3", r"config.teacher.options is 'k=3', but .* like \('k=3',\)"),
        ((3,), "config.teacher.options is"),
    ],
)
def test_options_of_a_head_are_checked(options, sentence):
    checks.validate(valid(**{"teacher.head": "clam_sb", "teacher.options": ("bag_weight=0.5",)}))
    changed = valid(**{"teacher.head": "clam_sb"})
    with changed.unlocked(), changed.ignore_type():
        changed.teacher.options = options
    with pytest.raises(ConfigError, match=sentence):
        checks.validate(changed)


@pytest.mark.parametrize("ratio", [1, 3, 16, 2.5])
def test_the_resolutions_must_fit_together(ratio):
    with pytest.raises(ConfigError, match=r"lr_mpp / geometry\.hr_mpp is .*2, 4 or 8"):
        checks.validate(valid(**{"geometry.lr_mpp": 0.5 * ratio}))


@pytest.mark.parametrize(
    ("block", "names"),
    [
        ("student", ("lambda_ce", "lambda_bag", "lambda_soft", "lambda_hard")),
        ("distill", ("lambda_layer", "lambda_attn")),
    ],
)
def test_a_loss_without_any_term_is_refused(block, names):
    zeros = {f"{block}.{name}": 0.0 for name in names}
    with pytest.raises(ConfigError, match=rf"{block}\.lambda.* above 0"):
        checks.validate(valid(**zeros))
    for name in names:  # any single one will do
        checks.validate(valid(**{**zeros, f"{block}.{name}": 0.1}))


def test_mistyped_keys_and_wrong_types_are_refused_in_config_files():
    config = configuration.default()
    with pytest.raises(AttributeError, match="lambda_bag"):
        config.student.lamda_bag = 1.0
    with pytest.raises(TypeError):
        config.student.topk = "many"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("lamda_bag", "lambda_bag"), ("temprature_attn", "temperature_attn"), ("foldz", "folds")],
)
def test_explain_names_the_nearest_key(wrong, right):
    error = AttributeError(f"'{wrong}'")
    assert configuration.explain(error) == (
        f"the config has no key '{wrong}'; did you mean {right}? (`lrmil keys` lists all)"
    )
    nested = KeyError(f"'Key \"{wrong}\" does not exist and cannot be added'")
    assert f"no key '{wrong}'; did you mean {right}?" in configuration.explain(nested)


def test_explain_is_one_line_whatever_the_error():
    error = ValueError("first\n  second\\nthird")
    assert configuration.explain(error) == "first second third"
    assert configuration.explain(OSError()) == ""
    assert "did you mean" not in configuration.explain(AttributeError("'qqqqqqqq'"))


def test_flatten_names_every_leaf_once():
    flat = configuration.flatten(configuration.default())
    assert flat["student.lambda_hard"] == 0.1
    assert flat["data.labels"] is None
    assert flat["distill.layers"] == ()
    assert list(flat) == sorted(flat, key=lambda key: key.split("."))


def test_every_config_key_reaches_some_stage():
    """A key that no stage's fingerprint knows could be changed without any effect."""
    prefixes = {key for stage in graph.STAGES.values() for key in stage.keys}
    # What changes speed or what is kept, but no result; which stages run at all; and files, whose
    # content is an input of every stage.
    free = ("method", "folds", "data.labels", "data.slides", "data.features", "data.splits",
            "encoder.batch", "encoder.threads",
            "encoder.fsdp", "encoder.workers", "features.rows", "prepare.workers",
            "prepare.keep_hr", "prepare.seconds_per_slide", "prepare.upsample", "study.", "sweep.",
            # These act on the cohort's table, which is an input of every stage after `prepare`.
            "data.slide_table", "data.split", "data.site", "data.val_share", "data.leaks",
            "data.patient", "data.trust_mpp",
            "data.annotation", "data.staging", "tracking.")  # fmt: skip
    for key in configuration.flatten(configuration.default()):
        assert key.startswith((*prefixes, *free)), key


def test_the_page_of_keys_is_of_this_config():
    """docs/configuration.md is what `python scripts/config_page.py` makes, and has every key."""
    config_page = load(ROOT / "scripts/config_page.py")
    page = config_page.PAGE.read_text(encoding="utf-8")
    assert page == config_page.page()
    shared = (*configuration.training(), *configuration.bag_training())
    for key in configuration.flatten(configuration.default()):
        assert f"| `{key}` |" in page or key.rpartition(".")[2] in shared, key
