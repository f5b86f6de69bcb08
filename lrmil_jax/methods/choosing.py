"""What methods have in common whose LR patches choose the regions that are read at HR."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax.errors import ConfigError
from lrmil_jax.methods.method import Method
from lrmil_jax.selection import score
from lrmil_jax.workspace import lesions, stage_files


class Choosing(Method):
    """All LR patches are looked at, and the HR patches of the regions that they choose are read.

    Attributes:
      choosing_stage: that leaves each slide's choice (`stage_files.chosen_path`).
    """

    choosing_stage: str
    has_budgets = True

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
                f"data.patient is bag, but method {self.name} chooses and predicts slide by slide; "
                "use probability or logit"
            )
        super().check(config)

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
            place: stage_files.read_chosen(workdir, fold, slide_id, self.choosing_stage)
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
        return stage_files.read_chosen(workdir, fold, slide_id, self.choosing_stage)[1]

    def lines(self, config: ConfigDict) -> Mapping[str, Mapping[str, str]]:
        """Lines of the curve over budgets, each with the keys that make it; the method first."""
        return {self.main.title: {}}

    def beside(self, config: ConfigDict) -> Mapping[str, Mapping[str, str]]:
        """What stands beside the curve, and has no budget."""
        return {}

    def budget_variants(self, config: ConfigDict) -> dict[str, dict[str, str]]:
        """Every line at every budget, and what stands beside them."""
        budgets, base = tuple(config.study.budgets), config.select.rho
        variants = {
            f"{name} {budget:g}": {"select.rho": f"{budget:g}", **changes}
            for budget in budgets
            for name, changes in self.lines(config).items()
            if (name, budget) != (self.main.title, base)  # the config itself
        }
        beside = {name: dict(changes) for name, changes in self.beside(config).items()}
        return variants | beside if budgets else {}

    def budget(self, config: ConfigDict) -> float | int | None:
        return config.select.count or config.select.rho


def share(config: ConfigDict) -> float:
    """Of HR patches that are read; a fixed count a slide is no share."""
    return 0.0 if config.select.count else config.select.rho
