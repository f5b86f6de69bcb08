"""select: every slide's LR patches against the class descriptions; the few worth encoding at HR."""

import functools
import time
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int
from ml_collections import ConfigDict

from lrmil_jax.data import writer
from lrmil_jax.selection import score
from lrmil_jax.stages import align, layout, models, text
from lrmil_jax.stages.encode_lr import encode_cohort, undistilled_folder
from lrmil_jax.stages.teacher import open_store
from lrmil_jax.train.checkpoint import load_params, save_params


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/select/<slide>.safetensors` (scores, chosen) and `selection.csv`."""
    layout.claim(workdir, "encoder", models.encoder_facts(config, workdir))
    load_encoder = functools.partial(align.lr_encoder, config, workdir, fold)
    encode_cohort(config, workdir, load_encoder, lr_folder(config, workdir, fold))
    table = layout.prepared_cohort(config, workdir).table
    space = text.SharedSpace(text.path(workdir))
    store = open_store(config, workdir, lr_folder(config, workdir, fold), table.slide_id.tolist())
    rows = []
    for place, slide_id in enumerate(store.slide_ids):
        start = time.perf_counter()
        scores, chosen = choose(config, space, store.embedding(place), slide_id)
        seconds = time.perf_counter() - start
        save_params(chosen_path(workdir, fold, slide_id), {"scores": scores, "chosen": chosen})
        rows.append((slide_id, len(scores), len(chosen), round(seconds, 5)))
    frame = pd.DataFrame(rows, columns=["slide_id", "lr_patches", "chosen", "seconds"])
    folder = layout.stage_folder(workdir, "select", fold)
    writer.write_table(folder / "selection.csv", frame)


def choose(
    config: ConfigDict, space: text.SharedSpace, embedding: np.ndarray, slide_id: str
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N, C] of a slide's LR patches, and the places of those chosen."""
    settings = config.select
    scores = score.class_scores(np.asarray(space.project(embedding)), space.texts.embedding)
    count = settings.count or None
    size = score.budget(len(scores), rho=None if count else settings.rho, count=count)
    if settings.rule == "random":
        return scores, score.select_random(len(scores), size, seed=config.seed, slide_id=slide_id)
    return scores, score.select(scores[:, guides(config, space)], size, rule=settings.rule)


def guides(config: ConfigDict, space: text.SharedSpace) -> Int[np.ndarray, " c"]:
    """The classes, as columns of scores, whose descriptions choose.

    Raises:
      ConfigError: `select.classes` has a name that is no class.
    """
    return score.guiding(space.texts.classes, config.select.classes)


def lr_folder(config: ConfigDict, workdir: Path, fold: int) -> Path:
    """LR features by which patches are chosen; the plain tower's are the same for all folds."""
    if config.align.how == "none":
        return undistilled_folder(workdir)
    return layout.stage_folder(workdir, "select", fold) / "features"


def chosen_path(workdir: Path, fold: int, slide_id: str) -> Path:
    """The file with one slide's scores and choice."""
    return layout.stage_folder(workdir, "select", fold) / "slides" / f"{slide_id}.safetensors"


def read_chosen(workdir: Path, fold: int, slide_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N, C] and the chosen places [n], ascending."""
    tree, _ = load_params(chosen_path(workdir, fold, slide_id))
    return tree["scores"], tree["chosen"]
