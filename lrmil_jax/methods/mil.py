"""mil, mil_lr: plain MIL on the patches of one magnification, with the encoder as it came. They
stand alone, and as what others are held against."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax.data.features import FeatureStore
from lrmil_jax.methods.method import ComparedModel, Method
from lrmil_jax.models import trained
from lrmil_jax.train.encode import Encoder
from lrmil_jax.workspace import feature_sets


def _hr_features(
    config: ConfigDict, workdir: Path, fold: int, slide_ids: Sequence[str]
) -> FeatureStore:
    return feature_sets.hr_store(config, workdir, slide_ids)


def _lr_features(
    config: ConfigDict, workdir: Path, fold: int, slide_ids: Sequence[str]
) -> FeatureStore:
    return feature_sets.undistilled_store(config, workdir, slide_ids)


def _lr_encoder(config: ConfigDict, workdir: Path) -> Encoder:
    return trained.low_resolution(config, trained.hr_encoder(config, workdir))


TEACHER = ComparedModel(
    name="teacher",
    title="HR teacher",
    stage="teacher",
    high=True,
    features=_hr_features,
    encoder=trained.hr_encoder,
)
UNDISTILLED = ComparedModel(
    name="no_distillation",
    title="LR without distillation",
    stage="baseline",
    high=False,
    features=_lr_features,
    encoder=_lr_encoder,
)


class _Mil(Method):
    def model_files(
        self, config: ConfigDict, workdir: Path, fold: int
    ) -> tuple[Mapping[str, Path], Mapping[str, Path]]:
        tower = trained.hr_weights(config, workdir)
        return {}, {f"encoder{tower.suffix}": tower}


class HighMil(_Mil):
    """Every HR patch is read."""

    name = "mil"
    bags = ("hr",)
    stages = ("pretrain", "prepare", "encode_hr", "teacher", "evaluate", "report")
    main = TEACHER


class LowMil(_Mil):
    """LR patches alone are read."""

    name = "mil_lr"
    bags = ("lr",)
    stages = ("pretrain", "prepare", "baseline", "evaluate", "report")
    main = UNDISTILLED
