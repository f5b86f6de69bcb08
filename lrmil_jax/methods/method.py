"""What a method is: its stages, the models that it holds against each other, what it delivers."""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax.data.features import FeatureStore
from lrmil_jax.data.labels import Cohort
from lrmil_jax.errors import ConfigError
from lrmil_jax.models import trained
from lrmil_jax.models.slide_model import SlideModel
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.train.encode import Encoder
from lrmil_jax.workspace import cohorts, lesions, stage_files


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """A model that a run trains, and that its tables hold against others.

    Attributes:
      name: in `predictions.csv` and `metrics.json`.
      title: in tables and pictures.
      stage: that trains its head.
      high: its bags are of HR patches.
      reads_chosen: its bags are of LR patches, and of the HR patches of those that it chooses.
      features: (config, workdir, fold, slide names) -> the bags that it reads.
      encoder: (config, workdir) -> what reads its patches, where it is the same in all folds.
      timed_as: the model of the same shape that is timed in its place.
    """

    name: str
    title: str
    stage: str
    high: bool
    features: Callable[[ConfigDict, Path, int, Sequence[str]], FeatureStore]
    encoder: Callable[[ConfigDict, Path], Encoder] | None = None
    timed_as: str | None = None
    reads_chosen: bool = False

    @property
    def reads_hr(self) -> bool:
        """Whether a prediction needs HR patches, all or some."""
        return self.high or self.reads_chosen

    def head(self, workdir: Path, fold: int) -> BagModel:
        """The fold's trained head."""
        return BagModel.load(stage_files.head(workdir, self.stage, fold))

    def slide_model(self, config: ConfigDict, workdir: Path, fold: int) -> SlideModel:
        """The fold's model from a slide file to a prediction; of models with an `encoder`."""
        reader = trained.batch_encoder(config, self.encoder(config, workdir))
        return SlideModel(
            members=[(reader, self.head(workdir, fold))],
            settings=cohorts.tiling_settings(config),
            dtype=config.features.dtype,
            high=self.high,
        )


class Method:
    """One way to classify slides. What differs between methods is asked of this, by everyone.

    Attributes:
      name: of `config.method`.
      stages: every stage that it may have, in order.
      main: the model that it is about and delivers; None if it trains none.
      gap: models, low and high, between which the main one stands, or None.
      swept: the config block whose settings the stage `sweep` tries together; None without it.
      has_budgets: `study.budgets` can ask for it at several.
      bags: resolutions, "hr" and "lr", of which it can take the features of another tool.
      head: registered name of a head that is its own; None where `mil.head` and such say it.
      others: methods that `study.other_methods` may hold it against, by name.
    """

    name: str
    stages: tuple[str, ...]
    main: ComparedModel | None = None
    gap: tuple[ComparedModel, ComparedModel] | None = None
    swept: str | None = None
    has_budgets: bool = False
    bags: tuple[str, ...] = ()
    head: str | None = None
    others: Mapping[str, "Method"] = types.MappingProxyType({})

    def stage_names(self, config: ConfigDict) -> tuple[str, ...]:
        """The stages of this config, in order."""
        return self.stages

    def models(self, config: ConfigDict) -> tuple[ComparedModel, ...]:
        """What a fold compares, in the order of the tables."""
        return () if self.main is None else (self.main,)

    def model_files(
        self, config: ConfigDict, workdir: Path, fold: int
    ) -> tuple[Mapping[str, Path], Mapping[str, Path]]:
        """The files that a fold's delivered model is made of: name in the model folder -> file; its
        own, and what all folds have in common. The head is added to its own."""
        raise NotImplementedError

    def model_facts(self, config: ConfigDict) -> dict[str, Any]:
        """What `model.json` says beside what it says of every method's model."""
        return {"high": self.main.high}

    def layers(self, config: ConfigDict, module) -> tuple[int, ...]:
        """Blocks of the encoder module whose CLS of HR patches is a target of training.

        Raises:
          ConfigError: a block that is not there.
        """
        return ()

    def check(self, config: ConfigDict) -> None:
        """Refuses what cannot be right, from the config alone.

        Raises:
          ConfigError: naming the key, and what it may be.
        """
        if config.study.budgets and not self.has_budgets:
            raise ConfigError(
                f"study.budgets has no meaning for method {self.name}, which chooses nothing; "
                "leave it at ()"
            )
        wrong = [name for name in config.study.other_methods if name not in self.others]
        if wrong:
            known = f"one of {', '.join(self.others)}" if self.others else "left at ()"
            raise ConfigError(
                f"study.other_methods has {wrong[0]!r}, but with method {self.name} it must be "
                f"{known}"
            )
        if config.distill.teachers and "student" not in self.stages:
            raise ConfigError(
                f"distill.teachers teach a student, which method {self.name} does not train; leave "
                "it at ()"
            )
        if config.data.labels is None and config.synthetic.slides == 0:
            raise ConfigError(
                "data.labels is not set; give --config.data.labels=LABELS.csv and "
                "--config.data.slides=FOLDER, or try the config on synthetic slides with ':tiny'"
            )

    def preflight(self, config: ConfigDict, module) -> None:
        """Refuses what does not go together with the encoder's module, or with the heads.

        Raises:
          ConfigError: naming the key, and what it may be.
        """

    def check_cohort(self, config: ConfigDict, workdir: Path, cohort: Cohort) -> None:
        """Refuses files that a later stage would refuse, once labels are read.

        Raises:
          UserError: naming the file.
        """

    def measure(
        self,
        config: ConfigDict,
        workdir: Path,
        fold: int,
        test: pd.DataFrame,
        lesions_of: Mapping[int, lesions.Lesion],
    ) -> dict[str, Any]:
        """What `metrics.json` says of the main model beside its figures.

        Args:
          config, workdir, fold: of the run.
          test: the fold's test slides; its index is what `lesions_of` names slides by.
          lesions_of: the slides with a known lesion.
        """
        return {}

    def pictures(
        self, config: ConfigDict, workdir: Path, folder: Path, drawn: pd.DataFrame
    ) -> list[tuple[str, str]]:
        """Draws what only this method has to show of test slides into the report's folder; names
        and titles. `drawn` has the slides' `fold` and `slide_id`."""
        return []

    def chosen(self, workdir: Path, fold: int, slide_id: str) -> np.ndarray | None:
        """The LR patches of a slide whose HR patches were read, of a method that chooses them."""
        return None

    def stored_rows(self, config: ConfigDict, *, hr: int, lr: int, layers: int, models: int) -> int:
        """Rows of features on disk, each as wide as an embedding.

        Args:
          config: of the run.
          hr, lr: patches of the cohort.
          layers: how many `layers` there are.
          models: trainings, those of all folds and perhaps of the final model.
        """
        copies = 2 + layers if layers else 1
        return copies * hr + (models + 1) * lr

    def encoding_time(
        self, config: ConfigDict, *, hr: int, lr: int, duration: Callable[[float], str]
    ) -> str:
        """How long the encoding stages take; `duration` says how long so many patches take."""
        return f"encode_hr about {duration(hr)}, encode_lr {duration(lr)} a fold"

    def budget_variants(self, config: ConfigDict) -> dict[str, dict[str, str]]:
        """{name: {key: value}} of the runs that `study.budgets` asks for."""
        return {}

    def budget(self, config: ConfigDict) -> float | int | None:
        """Share or number of LR patches whose children are read; None where all or none are."""
        return None
