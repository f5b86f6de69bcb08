"""two_scale: a head on LR patches beside their HR patches, per fold, and what it chooses."""

from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import cluster, methods
from lrmil_jax.data import param_files
from lrmil_jax.methods import delivery
from lrmil_jax.models import cell_guide, encoding, trained
from lrmil_jax.progress import progress
from lrmil_jax.train import mil
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.workspace import cohorts, feature_sets, layout, provenance, stage_files


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/two_scale/model.safetensors`, `slides/<slide>.safetensors` (scores, chosen)
    and the model folder; and, once, `features/lr_undistilled`."""
    provenance.record(workdir, "encoder", trained.encoder_facts(config, workdir))

    def load_encoder():
        return trained.low_resolution(config, trained.hr_encoder(config, workdir))

    encoding.encode_lr(config, workdir, load_encoder, stage_files.undistilled_folder(workdir))
    path = stage_files.head(workdir, "two_scale", fold)
    if not cluster.first_says("is the head there", path.is_file):
        _train(config, workdir, fold, path)
    delivery.export(config, workdir, fold, stage="two_scale")
    cluster.first_only("the choice", _choose, config, workdir, fold)


def _train(config: ConfigDict, workdir: Path, fold: int, path: Path) -> None:
    cohort = cohorts.prepared(config, workdir)
    slide_ids = cohort.slides(fold, "train", "val").slide_id.tolist()
    head = mil.train_head(
        name=f"{methods.of(config).main.title}, {layout.fold_title(fold)}",
        directory=path.parent / "training",
        block=methods.of(config).block(config),
        loss=mil.SlideLoss(),
        data=feature_sets.fold_data(
            cohort, fold, feature_sets.cell_store(config, workdir, slide_ids)
        ),
        seed=config.seed,
    )
    cluster.first_only("the head", head.save, path)


def _choose(config: ConfigDict, workdir: Path, fold: int) -> None:
    table = cohorts.prepared(config, workdir).table
    store = feature_sets.cell_store(config, workdir, table.slide_id.tolist())
    head = BagModel.load(stage_files.head(workdir, "two_scale", fold))
    with progress("choice", len(store.slide_ids)) as bar:
        for place, slide_id in enumerate(store.slide_ids):
            path = stage_files.chosen_path(workdir, fold, slide_id, "two_scale")
            if not path.is_file():
                _, attention = head.predict_slide(store, place)
                scores, chosen = cell_guide.choose(head, attention)
                param_files.save_params(path, {"scores": scores, "chosen": chosen})
            bar.advance()
