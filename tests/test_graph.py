"""Why a stage is made anew: what it was made of beside what it would be made of."""

import pytest

from lrmil_jax import config as configuration
from lrmil_jax import graph, marks, pipeline
from lrmil_jax.errors import ConfigError

BEFORE = {"keys": {"student.topk": 8, "seed": 0}, "inputs": {"table": "a", "sources": "b"}}


def changed(keys=(), inputs=()):
    return {"keys": BEFORE["keys"] | dict(keys), "inputs": BEFORE["inputs"] | dict(inputs)}


@pytest.mark.parametrize(
    ("now", "sentence"),
    [
        (changed(), ""),
        (changed({"student.topk": 4}), "student.topk was 8 and is 4"),
        (changed({"folds": 3}), "folds was None and is 3"),
        ({"keys": {"seed": 0}, "inputs": BEFORE["inputs"]}, "student.topk was 8 and is None"),
        (changed(inputs={"table": "c"}), "other slides, labels or folds"),
        (changed(inputs={"table": "c", "sources": "c"}), "other slides, labels or folds"),
        (changed(inputs={"sources": "c"}), "other slide files"),
        (changed(inputs={"encoder": "c"}), "another encoder"),
        (changed(inputs={"pooling": "c"}), "another data.patient"),
        (changed(inputs={"text": "c"}), "other inputs of text"),
        (changed({"a": 1, "b": 2, "c": 3, "d": 4}),
         "a was None and is 1, b was None and is 2, c was None and is 3 and 1 more"),
    ],
)  # fmt: skip
def test_differences_are_named(now, sentence):
    assert marks.differences(BEFORE, now) == sentence


def test_marks_of_an_earlier_version_say_nothing_of_it():
    assert marks._why(None, BEFORE) == "for a reason that was not recorded"
    assert marks._why({"complete": True}, BEFORE) == "for a reason that was not recorded"
    assert marks._why({"made_of": BEFORE}, BEFORE) == "for a reason that was not recorded"
    assert marks._why({"made_of": BEFORE}, changed({"seed": 1})) == "seed was 0 and is 1"


def test_import_without_features_says_what_to_name():
    config = configuration.default()
    with pytest.raises(ConfigError, match=r"--config\.data\.features=FOLDER"):
        pipeline.choose_stages(config, ["prepare", "import_features"])


def test_keys_that_came_later_make_nothing_anew_at_their_defaults():
    """The value of each that is what runs before it did is its default: else those runs would be
    taken for what they are not."""
    flat = configuration.flatten(configuration.default())
    for key, value in graph._LATER.items():
        assert flat[key] == value, key
