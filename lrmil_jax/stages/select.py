"""select: every slide's LR patches against the class descriptions; the few worth encoding at HR."""

import functools
import time
from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import cluster, files
from lrmil_jax.data import param_files
from lrmil_jax.models import encoding, text_guidance, trained
from lrmil_jax.progress import progress
from lrmil_jax.selection import shared_space
from lrmil_jax.train.encode import Encoder
from lrmil_jax.workspace import cohorts, feature_sets, layout, provenance, stage_files


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/select/<slide>.safetensors` (scores, chosen) and `selection.csv`."""
    provenance.record(workdir, "encoder", trained.encoder_facts(config, workdir))
    encoding.encode_lr(
        config,
        workdir,
        functools.partial(_encoder, config, workdir, fold),
        stage_files.selecting_folder(config, workdir, fold),
        width=feature_sets.selecting_width(config, workdir),
    )
    cluster.first_only("the choice", _choose, config, workdir, fold)


def _encoder(config: ConfigDict, workdir: Path, fold: int) -> Encoder:
    space = shared_space.SharedSpace(stage_files.texts_path(workdir))
    ratio = cohorts.geometry(config).ratio
    encoder = trained.lr_encoder(config, workdir, fold)
    return text_guidance.scoring_encoder(config, space, encoder, ratio=ratio)


def _choose(config: ConfigDict, workdir: Path, fold: int) -> None:
    table = cohorts.prepared(config, workdir).table
    space = shared_space.SharedSpace(stage_files.texts_path(workdir))
    store = feature_sets.selecting_store(config, workdir, fold, table.slide_id.tolist())
    facts = []
    with progress("select", len(store.slide_ids)) as bar:
        for place, slide_id in enumerate(store.slide_ids):
            rows = store.rows(place)
            start = time.perf_counter()
            scores, chosen = text_guidance.choose(
                config, space, rows.embedding, rows.child_mask, slide_id
            )
            seconds = time.perf_counter() - start
            path = stage_files.chosen_path(workdir, fold, slide_id)
            param_files.save_params(path, {"scores": scores, "chosen": chosen})
            facts.append((slide_id, len(scores), len(chosen), round(seconds, 5)))
            bar.advance()
    frame = pd.DataFrame(facts, columns=["slide_id", "lr_patches", "chosen", "seconds"])
    folder = layout.stage_folder(workdir, "select", fold)
    files.write_table(folder / "selection.csv", frame)
