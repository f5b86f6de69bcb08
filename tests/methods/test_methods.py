"""What a method is: its stages and models are there, what it refuses, and that nobody else asks for
a method by its name."""

import ast
import logging
from pathlib import Path

import pytest

import lrmil_jax
from lrmil_jax import config as configuration
from lrmil_jax import encoders, graph
from lrmil_jax.errors import ConfigError
from lrmil_jax.methods import METHODS

LRMIL, MODULE = METHODS["lrmil"], encoders.create("vit-tiny")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_stages_and_models_are_there(method):
    config = configuration.default()
    config.method = method.name
    assert set(method.stage_names(config)) <= set(method.stages) <= set(graph.STAGES)
    models = method.models(config)
    assert len({model.name for model in models}) == len({model.title for model in models})
    assert all(model.stage in method.stages for model in models)
    assert (method.main in models) if method.main else not models
    for model in models:  # what is not delivered is timed by itself, or as another one is
        if model != method.main and model.timed_as is None:
            assert model.encoder is not None


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_final_model_is_trained_by_the_stages_that_lead_to_it_alone(method):
    config = configuration.default()
    config.method = method.name
    final = [
        name
        for name in method.stage_names(config)
        if graph.STAGES[name].per_fold and len(graph.folds(config, graph.STAGES[name])) == 6
    ]
    wanted = {
        "lrmil": ["teacher", "distill", "encode_lr", "student"],
        "wise_fuse": ["align", "select", "encode_selected", "fuse", "mil"],
        "zoom_mil": ["two_scale"],
        "hdmil": ["two_scale"],
        "mil": ["teacher"],
        "mil_lr": ["baseline"],
        "zero_shot": [],
    }
    assert final == wanted[method.name]


def test_no_method_is_asked_for_by_name_elsewhere():
    """`mil` and `zero_shot` are stages too, so those names are not looked for."""
    root = Path(lrmil_jax.__file__).parent
    named = ("config.py", "command.py")  # the default; the command that is called `lrmil` too
    outside = [
        path for path in root.rglob("*.py")
        if path.parent.name != "methods" and path.name not in named
    ]  # fmt: skip
    for path in outside:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        words = {node.value for node in nodes if isinstance(node, ast.Constant)}
        asked = words & {"lrmil", "wise_fuse", "mil_lr"}
        assert not asked, f"{path} knows of {asked}"


def lrmil(**student):
    config = configuration.default()
    config.student.update(student)
    return config


@pytest.mark.parametrize("head", ["mean", "max"])
def test_a_student_without_attention_cannot_be_guided(head):
    with pytest.raises(ConfigError, match=f"student.head={head} has no attention to guide"):
        LRMIL.preflight(lrmil(head=head), MODULE)
    LRMIL.preflight(lrmil(head=head, lambda_soft=0.0, lambda_hard=0.0), MODULE)


def test_the_instance_loss_needs_a_classifier_of_instances():
    with pytest.raises(ConfigError, match=r"student\.head=clam_sb has no classifier of instances"):
        LRMIL.preflight(lrmil(head="clam_sb", hard="instance"), MODULE)
    LRMIL.preflight(lrmil(head="clam_sb"), MODULE)
    LRMIL.preflight(lrmil(head="abmil", hard="instance"), MODULE)


def test_a_teacher_without_attention_is_told_of(caplog):
    config = lrmil()
    config.teacher.head = "max"
    with caplog.at_level(logging.WARNING):
        LRMIL.preflight(config, MODULE)
    assert "teacher.head=max looks at all patches alike" in caplog.text
