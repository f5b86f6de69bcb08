"""Which heads may guide and be guided: by what they are, not by their names."""

import logging

import pytest

from lrmil_jax import config as configuration
from lrmil_jax.errors import ConfigError
from lrmil_jax.models import trained


def lrmil(**student):
    config = configuration.default()
    config.student.update(student)
    return config


@pytest.mark.parametrize("head", ["mean", "max"])
def test_a_student_without_attention_cannot_be_guided(head):
    with pytest.raises(ConfigError, match=f"student.head={head} has no attention to guide"):
        trained.check_guidance(lrmil(head=head))
    trained.check_guidance(lrmil(head=head, lambda_soft=0.0, lambda_hard=0.0))


def test_the_instance_loss_needs_a_classifier_of_instances():
    with pytest.raises(ConfigError, match=r"student\.head=clam_sb has no classifier of instances"):
        trained.check_guidance(lrmil(head="clam_sb", hard="instance"))
    trained.check_guidance(lrmil(head="clam_sb"))
    trained.check_guidance(lrmil(head="abmil", hard="instance"))


def test_a_teacher_without_attention_is_told_of(caplog):
    config = lrmil()
    config.teacher.head = "max"
    with caplog.at_level(logging.WARNING):
        trained.check_guidance(config)
    assert "teacher.head=max looks at all patches alike" in caplog.text
