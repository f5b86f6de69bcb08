"""fuse: HR features of the chosen regions together with the classes' descriptions."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import cluster
from lrmil_jax.data import features
from lrmil_jax.models import text_guidance
from lrmil_jax.progress import progress
from lrmil_jax.selection import shared_space
from lrmil_jax.workspace import cohorts, feature_sets, layout, stage_files


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/fuse/features`."""
    slide_ids = cohorts.prepared(config, workdir).table.slide_id.tolist()
    store = feature_sets.open_store(
        config, workdir, stage_files.selected_folder(workdir, fold), slide_ids
    )
    space = shared_space.SharedSpace(stage_files.texts_path(workdir))
    folder = stage_files.fused_folder(workdir, fold)
    folder.mkdir(parents=True, exist_ok=True)
    own = cluster.mine(list(enumerate(slide_ids)))
    with progress("fuse", len(own)) as bar:
        for place, slide_id in own:
            path = layout.shard(folder, slide_id)
            if not path.is_file():
                fused = text_guidance.fused_features(config, space, store.embedding(place))
                rows = dataclasses.replace(store.rows(place), embedding=fused)
                block = config.features.rows
                features.write(path, slide_id, rows, dtype=config.features.dtype, block=block)
            bar.advance()
