"""Single test slides of a run, drawn and as pages: first those where the model errs or doubts."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import methods
from lrmil_jax.data.features import FeatureStore
from lrmil_jax.models import drawings, slide_views
from lrmil_jax.progress import progress
from lrmil_jax.report import doubt, html, slide_page
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.workspace import cohorts, foreign

# A fold's number, the rows of its slides, its head, and the features of these slides and of those
# that are in a bag with them, whose cases are named.
_Fold = tuple[int, pd.DataFrame, BagModel, FeatureStore, list[str]]


def order(config: ConfigDict, tested: pd.DataFrame) -> pd.DataFrame:
    """`doubt.ordered` of the method's model; empty where no slides are read."""
    main = methods.of(config).main
    if not foreign.reads_slides(config):
        return pd.DataFrame(columns=["fold", "slide_id", "loss", "is_wrong"])
    return doubt.ordered(tested[tested.model == main.name])


def save_pictures(
    config: ConfigDict, workdir: Path, folder: Path, ordered: pd.DataFrame
) -> list[tuple[str, str]]:
    """The first `report.heatmaps` slides of every fold with the attention of the method's model,
    and what else the method has to show of them; names and titles."""
    model = methods.of(config).main
    first = ordered.groupby("fold").head(config.report.heatmaps)
    pictures = methods.of(config).pictures(config, workdir, folder, first)
    for fold, rows, head, store, cases in _folds(config, workdir, first):
        pictures += drawings.save_attention(
            config, workdir, folder, rows, head, store, cases, fold=fold, high=model.high
        )
    return pictures


def save_pages(config: ConfigDict, workdir: Path, folder: Path, ordered: pd.DataFrame) -> list[str]:
    """Writes a page for each of the first `report.slides` slides, and removes older ones.

    Returns:
      Their cards, in this order.
    """
    method, first = methods.of(config), ordered.head(config.report.slides)
    cards, names = {}, first.slide_id.tolist()
    after = dict(itertools.pairwise(names))
    before = {name: earlier for earlier, name in after.items()}
    with progress("slide pages", len(first)) as bar:
        for fold, rows, head, store, cases in _folds(config, workdir, first):
            made = slide_views.pages(
                config, workdir, rows, head, store, cases, fold=fold, high=method.main.high,
                chosen=lambda slide_id, fold=fold: method.chosen(workdir, fold, slide_id),
            )  # fmt: skip
            for page in made:
                text = slide_page.render(
                    page, before=before.get(page.name), after=after.get(page.name)
                )
                html.save(folder / slide_page.file_name(page.name), text)
                cards[page.name] = slide_page.card(page)
                bar.advance()
    for path in folder.glob("slides/*.html"):
        if path.name.removesuffix(".html") not in cards:
            path.unlink()
    return [cards[name] for name in names]


def _folds(config: ConfigDict, workdir: Path, chosen: pd.DataFrame) -> Iterator[_Fold]:
    cohort, model = cohorts.prepared(config, workdir), methods.of(config).main
    for fold, asked in chosen.groupby("fold"):
        table = cohort.slides(int(fold), "test").merge(asked[["slide_id", "is_wrong"]])
        rows = table.set_index("slide_id").loc[asked.slide_id].reset_index()
        read = cohort.in_one_bag(rows.slide_id)
        store = model.features(config, workdir, int(fold), read.slide_id.tolist())
        yield int(fold), rows, model.head(workdir, int(fold)), store, read.case_id.tolist()
