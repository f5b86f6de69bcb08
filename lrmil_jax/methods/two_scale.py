"""What methods have in common whose head reads LR patches, chooses some of them, and reads the HR
patches of those: other groups' methods, as what WISE-FUSE is held against at the same budget."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import config as configuration
from lrmil_jax import heads, tasks
from lrmil_jax.data.cells import CellBags
from lrmil_jax.errors import ConfigError
from lrmil_jax.methods import choosing
from lrmil_jax.methods.method import ComparedModel
from lrmil_jax.models import loading, trained
from lrmil_jax.workspace import cohorts, feature_sets, lesions

STAGE = "two_scale"


def compared(name: str, title: str) -> ComparedModel:
    """The model of such a method."""
    return ComparedModel(
        name=name, title=title, stage=STAGE, high=False, reads_chosen=True, features=_features
    )


def _features(config: ConfigDict, workdir: Path, fold: int, slide_ids: Sequence[str]) -> CellBags:
    return feature_sets.cell_store(config, workdir, slide_ids)


def _own_options(config: ConfigDict) -> dict[str, float | int]:
    """Options of such a head that other keys say."""
    children = cohorts.geometry(config).ratio ** 2
    return {"children": children, "rho": config.select.rho, "count": config.select.count}


class TwoScale(choosing.Choosing):
    """One head for both magnifications; the encoder as it came reads them.

    Attributes:
      head: its registered name.
    """

    head: str | None = None
    stages = ("pretrain", "prepare", "encode_hr", STAGE, "evaluate", "report")
    choosing_stage = STAGE

    def block(self, config: ConfigDict) -> ConfigDict:
        """`mil`, with this head, and with the geometry and budget as its options."""
        block = config.mil.copy_and_resolve_references()
        options = (f"{name}={value}" for name, value in _own_options(config).items())
        block.update(head=self.head, options=(*block.options, *options))
        return block

    def check(self, config: ConfigDict) -> None:
        default = configuration.default().mil.head
        if config.mil.head not in (default, self.head):
            raise ConfigError(
                f"mil.head is {config.mil.head}, but method {self.name} has a head of its own; "
                f"leave it at {default}, or name {self.head} to give it mil.options"
            )
        given = heads.parse_options(self.head, config.mil.options)
        for name in given.keys() & _own_options(config).keys():
            raise ConfigError(
                f"mil.options gives {name}, which follows from geometry, select.rho and "
                "select.count; leave it away"
            )
        if tasks.kind(config.task).joint and heads.find(self.head).has_own_loss():
            raise ConfigError(
                f"method {self.name} has a loss of its own, slide by slide, but the task "
                f"{config.task} looks at all slides of an update; use method zoom_mil"
            )
        super().check(config)

    def preflight(self, config: ConfigDict, module) -> None:
        loading.lr_side(cohorts.geometry(config), module, config.encoder.lr_px)

    def model_files(
        self, config: ConfigDict, workdir: Path, fold: int
    ) -> tuple[Mapping[str, Path], Mapping[str, Path]]:
        tower = trained.hr_weights(config, workdir)
        return {}, {f"encoder{tower.suffix}": tower}

    def model_facts(self, config: ConfigDict) -> dict[str, Any]:
        return {"high": False, "head_chooses": True}

    def measure(
        self,
        config: ConfigDict,
        workdir: Path,
        fold: int,
        test: pd.DataFrame,
        lesions_of: Mapping[int, lesions.Lesion],
    ) -> dict[str, Any]:
        """Also the median of the HR patches that are read, as the bags are of LR patches."""
        names = test.slide_id.tolist()
        store = feature_sets.cell_store(config, workdir, names)
        read = [
            store.children(place, self.chosen(workdir, fold, name))
            for place, name in enumerate(names)
        ]
        of_choice = super().measure(config, workdir, fold, test, lesions_of)
        return of_choice | {"patches": float(np.median(read))}

    def pictures(
        self, config: ConfigDict, workdir: Path, folder: Path, drawn: pd.DataFrame
    ) -> list[tuple[str, str]]:
        from lrmil_jax.models import drawings  # late: whoever draws nothing waits for no matplotlib

        def bags(fold: int, names: Sequence[str]):
            return feature_sets.undistilled_store(config, workdir, names)

        return drawings.save_choices(config, workdir, folder, drawn, bags, stage=STAGE)

    def stored_rows(self, config: ConfigDict, *, hr: int, lr: int, layers: int, models: int) -> int:
        return hr + lr

    def encoding_time(
        self, config: ConfigDict, *, hr: int, lr: int, duration: Callable[[float], str]
    ) -> str:
        return f"encode_hr about {duration(hr)}, two_scale {duration(lr)}, both once for all folds"
