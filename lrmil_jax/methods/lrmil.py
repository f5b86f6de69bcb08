"""lrmil: a teacher on HR patches is distilled into a student on LR patches, patch by patch, then
slide by slide (`method.md` parts 1 and 2)."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lrmil_jax import config as configuration
from lrmil_jax import heads, points
from lrmil_jax.data.features import FeatureStore
from lrmil_jax.errors import ConfigError
from lrmil_jax.methods.method import ComparedModel, Method
from lrmil_jax.methods.mil import TEACHER, UNDISTILLED
from lrmil_jax.models import trained
from lrmil_jax.workspace import feature_sets, foreign, layout

log = logging.getLogger(__name__)


def _features(
    config: ConfigDict, workdir: Path, fold: int, slide_ids: Sequence[str]
) -> FeatureStore:
    return feature_sets.student_store(config, workdir, fold, slide_ids)


STUDENT = ComparedModel(
    name="lrmil", title="LRMIL", stage="student", high=False, features=_features
)
# Its encoder has the shape of the distilled one.
_BASELINE = dataclasses.replace(UNDISTILLED, timed_as=STUDENT.name)


class Lrmil(Method):
    """Training reads HR and LR patches, prediction LR patches alone."""

    name = "lrmil"
    bags = ("hr", "lr")
    stages = (
        *("pretrain", "prepare", "encode_hr", "teacher", "distill", "encode_lr", "student"),
        *("sweep", "baseline", "evaluate", "report"),
    )
    main = STUDENT
    swept = "student"
    gap = (_BASELINE, TEACHER)

    def stage_names(self, config: ConfigDict) -> tuple[str, ...]:
        left_out = () if config.student.no_distillation else ("baseline",)
        left_out += () if config.sweep.points else ("sweep",)
        return tuple(name for name in self.stages if name not in left_out)

    def models(self, config: ConfigDict) -> tuple[ComparedModel, ...]:
        # A smaller student's cost says nothing of the baseline's.
        undistilled = UNDISTILLED if trained.has_student(config) else _BASELINE
        baseline = (undistilled,) if config.student.no_distillation else ()
        return (TEACHER, *baseline, STUDENT)

    def model_files(
        self, config: ConfigDict, workdir: Path, fold: int
    ) -> tuple[Mapping[str, Path], Mapping[str, Path]]:
        stage_one = layout.stage_folder(workdir, "distill", fold) / "encoder.safetensors"
        return {"encoder.safetensors": stage_one}, {}

    def model_facts(self, config: ConfigDict) -> dict[str, Any]:
        facts = super().model_facts(config)
        if not trained.has_student(config):
            return facts
        reading = trained.reading_facts(config) | {"name": config.distill.student}
        reading.pop("px", None)  # of the HR encoder
        return facts | {"encoder": reading}

    def layers(self, config: ConfigDict, module) -> tuple[int, ...]:
        return trained.layers(config, module)

    def check(self, config: ConfigDict) -> None:
        super().check(config)
        stage_one = foreign.given(config) and foreign.reads_slides(config)
        if stage_one and config.distill.lambda_layer:
            raise ConfigError(
                "distill.lambda_layer is of CLS at the encoder's blocks, which other tools do not "
                "keep: set distill.lambda_layer=0, or leave data.features away"
            )

    def preflight(self, config: ConfigDict, module) -> None:
        if foreign.reads_slides(config):
            self.layers(config, module)
            if trained.has_student(config):
                trained.student(config)
        _check_guidance(config.student)
        for changes in points.parse(config.sweep.points, key="sweep.points").values():
            _check_guidance(configuration.replaced(config, changes).student)
        if not heads.find(config.teacher.head).has_attention:
            log.warning(
                "teacher.head=%s looks at all patches alike, so it guides nobody's attention",
                config.teacher.head,
            )


def _check_guidance(student: ConfigDict) -> None:
    """Refuses to guide a head that cannot be guided."""
    head, name = heads.find(student.head), student.head
    if not head.has_attention and (student.lambda_soft or student.lambda_hard):
        raise ConfigError(
            f"student.head={name} has no attention to guide; set student.lambda_soft and "
            "student.lambda_hard to 0, or choose another head"
        )
    by_instance = student.lambda_hard and student.hard == "instance"
    if by_instance and "instance_classes" not in heads.defaults(head):
        raise ConfigError(
            f"student.head={name} has no classifier of instances for student.hard=instance; "
            "set student.hard=rank, or choose abmil or gated_abmil"
        )
