"""wise_fuse: descriptions of the classes, compared with LR patches, choose the regions whose HR
patches are read; those are fused with the text (`method.md` part 3)."""

import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import config as configuration
from lrmil_jax.data.features import FeatureStore
from lrmil_jax.data.labels import Cohort
from lrmil_jax.methods import choosing
from lrmil_jax.methods.hdmil import Hdmil
from lrmil_jax.methods.lrmil import STUDENT, Lrmil
from lrmil_jax.methods.method import ComparedModel, Method
from lrmil_jax.methods.mil import HighMil
from lrmil_jax.methods.zoom_mil import ZoomMil
from lrmil_jax.models import loading, trained
from lrmil_jax.report.table import EXHAUSTIVE
from lrmil_jax.selection import windows
from lrmil_jax.workspace import cohorts, feature_sets, stage_files


def _features(
    config: ConfigDict, workdir: Path, fold: int, slide_ids: Sequence[str]
) -> FeatureStore:
    return feature_sets.fused_store(config, workdir, fold, slide_ids)


GUIDED = ComparedModel(
    name="wise_fuse", title="WISE-FUSE", stage="mil", high=True, features=_features
)
# Lines of the curve over budgets, each with the keys that make it, and what stands beside them.
UNPROMPTED, RANDOM = "without CS-VPT", "random"
_LINES: dict[str, Mapping[str, str]] = {
    GUIDED.title: {},
    UNPROMPTED: {"align.how": "none", "select.score": "patch"},
    RANDOM: {"align.how": "none", "select.score": "patch", "select.rule": "random"},
}
_BESIDE = {EXHAUSTIVE: {"method": HighMil.name}, STUDENT.title: {"method": Lrmil.name}}
# What prediction asks of the run's config.
_GUIDING = ("select.", "fuse.", "features.dtype", "seed")


class WiseFuse(choosing.Choosing):
    """All LR patches are looked at, and the HR patches of the regions that they choose are read."""

    name = "wise_fuse"
    stages = (
        *("pretrain", "prepare", "text", "align", "select", "encode_selected", "fuse", "mil"),
        *("evaluate", "report"),
    )
    main = GUIDED
    others: Mapping[str, Method] = types.MappingProxyType(
        {one.name: one for one in (ZoomMil(), Hdmil())}
    )
    choosing_stage = "select"

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

    def pictures(
        self, config: ConfigDict, workdir: Path, folder: Path, drawn: pd.DataFrame
    ) -> list[tuple[str, str]]:
        from lrmil_jax.models import drawings  # late: whoever draws nothing waits for no matplotlib

        return drawings.save_regions(config, workdir, folder, drawn)

    def stored_rows(self, config: ConfigDict, *, hr: int, lr: int, layers: int, models: int) -> int:
        # The chosen ones as they are and, about as wide again, fused.
        return hr * (1 + layers) + models * (lr + 3 * round(choosing.share(config) * hr))

    def encoding_time(
        self, config: ConfigDict, *, hr: int, lr: int, duration: Callable[[float], str]
    ) -> str:
        chosen = duration(choosing.share(config) * hr)
        return (
            f"align reads HR patches of training and validation slides, up to {duration(hr)}; "
            f"select {duration(lr)} and encode_selected {chosen} a fold"
        )

    def lines(self, config: ConfigDict) -> Mapping[str, Mapping[str, str]]:
        """The method, its two controls, and `study.other_methods`."""
        named = (self.others[name] for name in config.study.other_methods)
        return _LINES | {one.main.title: {"method": one.name} for one in named}

    def beside(self, config: ConfigDict) -> Mapping[str, Mapping[str, str]]:
        """Two methods that choose nothing."""
        return _BESIDE
