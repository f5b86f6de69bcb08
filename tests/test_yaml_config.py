"""A config as YAML over one that comes along."""

import pytest

from lrmil_jax import checks, config_files, yaml_config
from lrmil_jax import config as configuration
from lrmil_jax.errors import ConfigError


def load(folder, text, after=""):
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return yaml_config.get_config(f"{folder / 'mine.yaml'}{after}")


def changes(config, base):
    before, after = (configuration.flatten(one) for one in (base, config))
    return {key: value for key, value in after.items() if value != before[key]}


def test_keys_lie_over_those_of_the_base(tmp_path):
    text = """
config: tcga_nsclc
folds: 3
student: {learning_rate: 1e-3, topk: 4}
distill.layers: [0, 1]
data:
  labels: labels.csv
"""
    assert changes(load(tmp_path, text), config_files.load("tcga_nsclc")) == {
        "folds": 3,
        "student.learning_rate": 1e-3,
        "student.topk": 4,
        "distill.layers": (0, 1),
        "data.labels": "labels.csv",
    }


def test_without_a_base_keys_lie_over_the_defaults(tmp_path):
    assert changes(load(tmp_path, "seed: 7"), configuration.default()) == {"seed": 7}
    for text in ("", "student:\n  # topk: 4\n", "student: {}"):
        assert changes(load(tmp_path, text), configuration.default()) == {}


def test_parts_may_be_named_and_merged(tmp_path):
    """Keys beside `<<` win, in a part that is merged again too."""
    text = """
student: &slow {learning_rate: 1e-5, epochs: 9}
teacher: &slower {<<: *slow, learning_rate: 1e-6, epochs: 9}
mil:
  <<: [*slower, *slow]
  hidden: 64
"""
    assert changes(load(tmp_path, text), configuration.default()) == {
        **{f"{block}.epochs": 9 for block in ("student", "teacher", "mil")},
        "student.learning_rate": 1e-5,
        "teacher.learning_rate": 1e-6,
        "mil.learning_rate": 1e-6,
        "mil.hidden": 64,
    }


def test_tiny_and_further_changes_of_keys(tmp_path):
    tiny = load(tmp_path, "config: quickstart\nseed: 7", ":tiny")
    assert (tiny.seed, tiny.student.epochs, tiny.is_locked) == (7, 3, True)
    # As the command line does it: the type of an unset key is still there.
    assert tiny.encoder.get_type("weights") is str


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lambda_bag: 0", "no key 'lambda_bag'; did you mean student.lambda_bag?"),
        ("student: {tpk: 4}", "no key 'student.tpk'; did you mean student.topk?"),
        ("student: {topk: 4.5}", "config.student.topk cannot be 4.5; it is a whole number"),
        ("student: {topk: true}", "config.student.topk cannot be True"),
        ("folds:", "config.folds cannot be None"),
        ("data.labels: 3", "config.data.labels cannot be 3; it is text"),
        ("data.classes: LUAD", "config.data.classes cannot be 'LUAD'; it is a list"),
        ("student.lambda_ce: much", "config.student.lambda_ce cannot be 'much'; it is a number"),
        ("seed: 1\nfolds: 2\nseed: 2", "has 'seed' twice"),
        ("student: {topk: 1}\nstudent.topk: 2", "has 'student.topk' twice"),
        ("- seed", "must be keys and values"),
        ("seed: [", "cannot be read as YAML"),
        ("1: 2", "has the key 1, which is no text"),
        ("config: nsclc", "did you mean tcga_nsclc or wise_fuse_tcga_nsclc?"),
        ("studnet: {}", "no key 'studnet'; did you mean"),
        ("student: {topk: {}}", "config.student.topk cannot be {}"),
        ("student: &a\n  topk: *a", "has *a in line 2 inside the part of that name"),
        ("distill.layers: &a [*a]", "has *a in line 1 inside"),
        ("config: base.yaml", "the config 'base.yaml', but keys lie over a config that comes"),
        ("config: {}", "has the config {}, but"),
        ("config: ../base.py", "the config ../base.py does not exist"),
    ],
)
def test_mistakes_name_the_file_and_the_key(text, sentence, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'mine.yaml'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", ["[1, 0]", "[yes, no]", "[2020-01-01, '0']"])
def test_classes_without_quotes_are_refused(names, tmp_path):
    """YAML takes them for numbers, truths and dates, which no cell of a table is."""
    config = load(tmp_path, f"data: {{classes: {names}, labels: labels.csv}}")
    with pytest.raises(ConfigError, match=r"data\.classes .*each in quotes, like \('0', '1'\)"):
        checks.validate(config)
    quoted = load(tmp_path, "data: {classes: ['1', 'no'], labels: labels.csv}")
    checks.validate(quoted)
    assert quoted.data.classes == ("1", "no")


def test_another_word_than_tiny_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="':tiny'"):
        load(tmp_path, "seed: 1", ":small")
