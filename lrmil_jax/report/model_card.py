"""The card of a delivered model: what it is, how good, for what and for what not, in the layout
that `huggingface_hub` pushes (`README.md` with YAML front matter).

Source of the fields: Hugging Face's model card specification (model-index).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lrmil_jax.report import table

# Licences of encoders by the names that the hub has for them; of others the card says "other".
_HUB_LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0",
                 "cc-by-nc-sa-4.0", "gpl-3.0")  # fmt: skip
_PIPELINES = {
    **dict.fromkeys(("classification", "ordinal", "multi_label"), "image-classification"),
    "regression": "tabular-regression",
}
_TAGS = ("computational-pathology", "whole-slide-imaging", "multiple-instance-learning", "jax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a card says.

    Attributes:
      title: of the model; method: `config.method`.
      task: name of the task; classes: its classes, if it has some.
      encoder: name; licence: of its weights, "" where that is not on record.
      dataset: name of the label table; slides, patients: counts of it.
      row: the model's of the result table (`results.result_rows`); metric_titles: metrics shown.
      geometry: hr_mpp, lr_mpp (um/px), patch_px.
      thresholds: by name.
      cautions: sentences; folds: of the run.
      hashes: SHA-256 by file; identity: of all.
      version: of this package.
    """

    title: str
    method: str
    task: str
    classes: Sequence[str]
    encoder: str
    licence: str
    dataset: str
    slides: int
    patients: int
    row: Mapping[str, Any]
    metric_titles: Mapping[str, str]
    geometry: Mapping[str, float]
    thresholds: Mapping[str, float]
    cautions: Sequence[str]
    folds: int
    hashes: Mapping[str, str]
    identity: str
    version: str


def text(card: ModelCard) -> str:
    """The whole file."""
    head = yaml.safe_dump(front_matter(card), sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{head}---\n\n" + "\n".join(_body(card)) + "\n"


def front_matter(card: ModelCard) -> dict[str, Any]:
    """What the hub reads."""
    licence = card.licence.lower()
    is_known = licence in _HUB_LICENCES
    head: dict[str, Any] = {"license": licence if is_known else "other"}
    if not is_known:
        head["license_name"] = card.licence or "not-stated"
    head |= {
        "library_name": "lrmil_jax",
        "pipeline_tag": _PIPELINES.get(card.task, "other"),
        "tags": [*_TAGS, card.method, f"encoder:{card.encoder}"],
    }
    metrics = [_metric(card, name, title) for name, title in card.metric_titles.items()
               if card.row.get(name) is not None]  # fmt: skip
    if metrics:
        result = {
            "task": {"type": head["pipeline_tag"], "name": card.task},
            "dataset": {"name": card.dataset, "type": "private"},
            "metrics": metrics,
        }
        head["model-index"] = [{"name": card.title, "results": [result]}]
    return head


def _metric(card: ModelCard, name: str, title: str) -> dict[str, Any]:
    metric = {"type": name, "name": f"{title}, per patient", "value": round(card.row[name], 4)}
    bounds = card.row.get(f"{name}_interval")
    if bounds is not None:
        metric["args"] = {"interval_95": [round(bound, 4) for bound in bounds]}
    return metric


def _body(card: ModelCard) -> list[str]:
    geometry = card.geometry
    classes = f" Classes: {', '.join(card.classes)}." if card.classes else ""
    rows = [
        [title, table.interval(card.row[name], card.row.get(f"{name}_interval"))]
        for name, title in card.metric_titles.items()
    ]
    over = (
        f"mean of {card.folds} folds, each model on its own test patients; the delivered model "
        "itself was tested on nobody"
        if card.folds > 1
        else "test patients of the only fold"
    )
    warnings = [f"- {sentence}" for sentence in card.cautions]
    licence = card.licence or "not on record: ask whoever gave you the encoder's weights"
    return [
        f"# {card.title}: {card.task.replace('_', ' ')} of whole slides",
        "",
        f"Made by lrmil_jax {card.version} (method `{card.method}`) with the encoder "
        f"`{card.encoder}`.{classes}",
        "",
        "## Use",
        "```python",
        "import lrmil_jax",
        'result = lrmil_jax.load_model("THIS_FOLDER").predict("SLIDE.svs")',
        "```",
        f"It reads patches of {geometry['patch_px']:g} px at {geometry['lr_mpp']:g} um/px"
        + (f" and at {geometry['hr_mpp']:g} um/px" if card.row.get("reads_hr") else "")
        + "; a slide must say its um/px, or be given it.",
        *_threshold_lines(card.thresholds),
        "",
        "## Intended use and limits",
        "- Research on slides like those it was trained on. It is no medical device, and no "
        "diagnosis may rest on it.",
        f"- Trained on slides of one cohort ({card.dataset}: {card.slides} slides, {card.patients} "
        "patients): other scanners, stains, laboratories and patients can make it wrong without a "
        "sign. Test it on your own first: `--stages evaluate --model THIS_FOLDER --cohort CSV`.",
        "- Attention says what the model weighed, not where a lesion is.",
        *warnings,
        "",
        "## How good",
        f"Per patient with 95 % intervals; {over}.",
        "",
        *table.markdown([["metric", "value [95 %]"], *rows]),
        "",
        "## Licence",
        f"The model holds weights of `{card.encoder}`, or is made with them; their licence: "
        f"{licence}.",
        "",
        "## Hashes",
        f"All files together: `{card.identity}` (predictions name it).",
        "",
        *table.markdown([["file", "SHA-256"], *map(list, sorted(card.hashes.items()))]),
    ]


def _threshold_lines(thresholds: Mapping[str, float]) -> list[str]:
    if not thresholds:
        return []
    shown = ", ".join(f"{name} {value:.3g}" for name, value in thresholds.items())
    return ["", f"Thresholds that validation patients chose: {shown}."]
