"""Where the stages leave what other stages read."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from lrmil_jax.data import param_files
from lrmil_jax.workspace import foreign, layout


def distilling_fold(config: ConfigDict, fold: int | None) -> int | None:
    """The fold whose stage 1 made a fold's LR encoder; None of one that all folds share."""
    return fold if config.distill.per_fold else None


def distilled_path(config: ConfigDict, workdir: Path, fold: int | None) -> Path:
    """The file of a fold's LR encoder."""
    folder = layout.stage_folder(workdir, "distill", distilling_fold(config, fold))
    return folder / "encoder.safetensors"


def distilled_folder(workdir: Path, fold: int | None) -> Path:
    """LR features of the fold's distilled encoder, or of the one of all folds."""
    return layout.stage_folder(workdir, "encode_lr", fold) / "features"


def undistilled_folder(workdir: Path) -> Path:
    """LR features of the HR encoder itself, the same for all folds."""
    return layout.features_folder(workdir, "lr_undistilled")


def plain_lr_folder(config: ConfigDict, workdir: Path) -> Path:
    """LR features of the encoder as it is; of another tool's single folder, whatever it holds."""
    if foreign.reads_slides(config) or len(foreign.named_folders(config)) == 2:
        return undistilled_folder(workdir)
    return layout.features_folder(workdir, "hr")


def student_folder(config: ConfigDict, workdir: Path, fold: int) -> Path:
    """LR features that the fold's student reads: those of the distilled encoder; where no encoder
    is distilled, as slides are not read, those that another tool extracted."""
    if foreign.reads_slides(config):
        return distilled_folder(workdir, distilling_fold(config, fold))
    return plain_lr_folder(config, workdir)


def hr_folders(workdir: Path, blocks: tuple[int, ...]) -> dict[str, Path]:
    """Where embeddings lie, and the targets of this set of blocks."""
    found = {"embedding": layout.features_folder(workdir, "hr")}
    if blocks:
        found["targets"] = targets_folder(workdir, blocks)
    return found


def targets_folder(workdir: Path, blocks: tuple[int, ...]) -> Path:
    """HR features with CLS at these blocks, one record an LR patch: the targets of stage 1."""
    name = "_".join(["hr_targets", *(str(block) for block in blocks)])
    return layout.features_folder(workdir, name)


def teacher_path(workdir: Path, fold: int, slide_id: str) -> Path:
    """The file with the teacher's word on one slide."""
    return layout.stage_folder(workdir, "teacher", fold) / "outputs" / f"{slide_id}.safetensors"


def read_teacher(workdir: Path, fold: int, slide_id: str) -> dict[str, np.ndarray]:
    """The teacher's `logits` [C] and `attention_logits` [K] over the slide's HR patches."""
    return param_files.load_params(teacher_path(workdir, fold, slide_id))[0]


def selecting_folder(config: ConfigDict, workdir: Path, fold: int) -> Path:
    """LR features by which patches are chosen; the plain tower's are the same for all folds, if
    they hold nothing of the texts."""
    if config.align.how == "none" and config.select.score == "patch":
        return undistilled_folder(workdir)
    return layout.stage_folder(workdir, "select", fold) / "features"


def chosen_path(workdir: Path, fold: int, slide_id: str, stage: str = "select") -> Path:
    """The file with one slide's scores and choice, of the stage that chose."""
    return layout.stage_folder(workdir, stage, fold) / "slides" / f"{slide_id}.safetensors"


def read_chosen(
    workdir: Path, fold: int, slide_id: str, stage: str = "select"
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N, C] and the chosen places [n], ascending."""
    tree, _ = param_files.load_params(chosen_path(workdir, fold, slide_id, stage))
    return tree["scores"], tree["chosen"]


def selected_folder(workdir: Path, fold: int) -> Path:
    """HR features of the fold's chosen regions."""
    return layout.stage_folder(workdir, "encode_selected", fold) / "features"


def fused_folder(workdir: Path, fold: int) -> Path:
    """The fold's fused features."""
    return layout.stage_folder(workdir, "fuse", fold) / "features"


def head(workdir: Path, stage: str, fold: int) -> Path:
    """The head that a stage trained in the fold."""
    return layout.stage_folder(workdir, stage, fold) / "model.safetensors"


def texts_path(workdir: Path) -> Path:
    """The file that this stage writes."""
    return layout.stage_folder(workdir, "text") / "classes.safetensors"


def children_folder(workdir: Path, share: float, blocks: tuple[int, ...]) -> Path:
    """HR features of this share of the LR patches of training and validation slides, with CLS at
    these blocks, one record an LR patch; for all folds."""
    name = "_".join([f"align_children_{share:.4f}", *map(str, blocks)])
    return layout.features_folder(workdir, name)
