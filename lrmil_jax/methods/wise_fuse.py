"""wise_fuse: descriptions of the classes, compared with LR patches, choose the regions whose HR
patches are read; those are fused with the text (`method.md` part 3)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import config as configuration
from lrmil_jax.data.features import FeatureStore
from lrmil_jax.data.labels import Cohort
from lrmil_jax.errors import ConfigError
from lrmil_jax.methods.lrmil import STUDENT, Lrmil
from lrmil_jax.methods.method import ComparedModel, Method
from lrmil_jax.methods.mil import HighMil
from lrmil_jax.models import loading, trained
from lrmil_jax.report.table import EXHAUSTIVE
from lrmil_jax.selection import score, windows
from lrmil_jax.workspace import cohorts, feature_sets, lesions, stage_files


def _features(
    config: ConfigDict, workdir: Path, fold: int, slide_ids: Sequence[str]
) -> FeatureStore:
    return feature_sets.fused_store(config, workdir, fold, slide_ids)


GUIDED = ComparedModel(
    name="wise_fuse", title="WISE-FUSE", stage="mil", high=True, features=_features
)
# Lines of the curve over budgets, each with the keys that make it, and what stands beside them.
UNPROMPTED, RANDOM = "without CS-VPT", "random"
_LINES: Mapping[str, Mapping[str, str]] = {
    GUIDED.title: {},
    UNPROMPTED: {"align.how": "none", "select.score": "patch"},
    RANDOM: {"align.how": "none", "select.score": "patch", "select.rule": "random"},
}
_BESIDE = {EXHAUSTIVE: {"method": HighMil.name}, STUDENT.title: {"method": Lrmil.name}}
# What prediction asks of the run's config.
_GUIDING = ("select.", "fuse.", "features.dtype", "seed")


class WiseFuse(Method):
    """All LR patches are looked at, and the HR patches of the regions that they choose are read."""

    name = "wise_fuse"
    stages = (
        *("pretrain", "prepare", "text", "align", "select", "encode_selected", "fuse", "mil"),
        *("evaluate", "report"),
    )
    main = GUIDED
    has_budgets = True

    def model_files(
        self, config: ConfigDict, workdir: Path, fold: int
    ) -> tuple[Mapping[str, Path], Mapping[str, Path]]:
        tower = trained.hr_weights(config, workdir)
        shared = {
            f"encoder{tower.suffix}": tower,
            "text.safetensors": stage_files.texts_path(workdir),
        }
        return trained.lr_encoder_files(config, workdir, fold), shared

    def model_facts(self, config: ConfigDict) -> dict[str, Any]:
        flat = configuration.flatten(config)
        return {"guided": {key: flat[key] for key in flat if key.startswith(_GUIDING)}}

    def check(self, config: ConfigDict) -> None:
        budgets = tuple(config.study.budgets)
        if budgets and config.select.count:
            raise ConfigError(
                f"study.budgets are shares, but select.count is {config.select.count}; set it to 0"
            )
        if any(not 0 < budget <= 1 for budget in budgets) or len(set(budgets)) < len(budgets):
            raise ConfigError(
                f"study.budgets is {budgets}; give different shares, above 0 and up to 1"
            )
        if config.data.patient == "bag":
            raise ConfigError(
                "data.patient is bag, but method wise_fuse chooses, fuses and predicts slide by "
                "slide; use probability or logit"
            )
        super().check(config)

    def layers(self, config: ConfigDict, module) -> tuple[int, ...]:
        """Blocks at which windows of LR tokens learn from the children; () without L_layer."""
        if config.align.how in ("distilled", "none") or not config.align.lambda_layer:
            return ()
        return trained.layers(config, module, block="align")

    def preflight(self, config: ConfigDict, module) -> None:
        loading.lr_side(cohorts.geometry(config), module, config.encoder.lr_px)
        self.layers(config, module)
        if config.select.score == "window":
            windows.check(module)

    def check_cohort(self, config: ConfigDict, workdir: Path, cohort: Cohort) -> None:
        if config.align.how == "distilled":  # trained elsewhere
            trained.lr_encoder(config, workdir, 1)

    def measure(
        self,
        config: ConfigDict,
        workdir: Path,
        fold: int,
        test: pd.DataFrame,
        lesions_of: Mapping[int, lesions.Lesion],
    ) -> dict[str, Any]:
        """LR patches looked at and chosen, and the share of lesion area that the choice holds."""
        choices = {
            place: stage_files.read_chosen(workdir, fold, slide_id)
            for place, slide_id in test.slide_id.items()
        }
        recalls = [
            score.lesion_recall(lesions_of[place].share, chosen)
            for place, (_, chosen) in choices.items()
            if place in lesions_of
        ]
        selection = {
            "lr_patches": float(np.median([len(scores) for scores, _ in choices.values()])),
            "chosen": float(np.median([len(chosen) for _, chosen in choices.values()])),
            "lesion_slides": len(recalls),
            "lesion_recall": float(np.mean(recalls)) if recalls else None,
        }
        return {"selection": selection}

    def chosen(self, workdir: Path, fold: int, slide_id: str) -> np.ndarray | None:
        return stage_files.read_chosen(workdir, fold, slide_id)[1]

    def pictures(
        self, config: ConfigDict, workdir: Path, folder: Path, drawn: pd.DataFrame
    ) -> list[tuple[str, str]]:
        from lrmil_jax.models import drawings  # late: whoever draws nothing waits for no matplotlib

        return drawings.save_regions(config, workdir, folder, drawn)

    def stored_rows(self, config: ConfigDict, *, hr: int, lr: int, layers: int, models: int) -> int:
        # The chosen ones as they are and, about as wide again, fused.
        return hr * (1 + layers) + models * (lr + 3 * round(_share(config) * hr))

    def encoding_time(
        self, config: ConfigDict, *, hr: int, lr: int, duration: Callable[[float], str]
    ) -> str:
        chosen = duration(_share(config) * hr)
        return (
            f"align reads HR patches of training and validation slides, up to {duration(hr)}; "
            f"select {duration(lr)} and encode_selected {chosen} a fold"
        )

    def budget_variants(self, config: ConfigDict) -> dict[str, dict[str, str]]:
        """The method at every budget, its two controls, and two methods that choose nothing."""
        budgets, base = tuple(config.study.budgets), config.select.rho
        variants = {
            f"{name} {budget:g}": {"select.rho": f"{budget:g}", **changes}
            for budget in budgets
            for name, changes in _LINES.items()
            if (name, budget) != (GUIDED.title, base)  # the config itself
        }
        return variants | _BESIDE if budgets else {}

    def budget(self, config: ConfigDict) -> float | int | None:
        return config.select.count or config.select.rho


def _share(config: ConfigDict) -> float:
    """Of HR patches that are encoded; a fixed count a slide is no share."""
    return 0.0 if config.select.count else config.select.rho
