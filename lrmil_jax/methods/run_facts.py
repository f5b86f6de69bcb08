"""What a run says of itself: in its report, and in the card of its model."""

import datetime
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import lrmil_jax
from lrmil_jax import files, methods
from lrmil_jax.encoders import registry
from lrmil_jax.errors import ConfigError
from lrmil_jax.models import cost, model_folder
from lrmil_jax.report import costs, model_card, overview
from lrmil_jax.workspace import cohorts, foreign, provenance, statuses


def cautions(config: ConfigDict, workdir: Path) -> list[str]:
    """`overview.cautions` of the run."""
    cohort = cohorts.prepared(config, workdir)
    lost = len(cohorts.read(config, workdir).table) - len(cohort.table)
    return overview.cautions(cohort, config.folds, slides_left_out=lost)


def about(config: ConfigDict, workdir: Path) -> str:
    """What the run is, and what was left out, as a section of the page."""
    cohort = cohorts.prepared(config, workdir)
    read = [statuses.read(workdir, name) for name in cohort.table.slide_id]
    model = workdir / "model"
    rows = overview.facts(
        config,
        cohort,
        method=methods.of(config).main.title,
        version=lrmil_jax.__version__,
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        model_hash=model_folder.identity(model) if model.is_dir() else None,
        encoder=provenance.read(workdir).get("encoder", {}),
    )
    return overview.section(
        rows=rows,
        changed=overview.changed_keys(config),
        splits=overview.split_cells(cohort, config.folds),
        slides=overview.slides_left_out(
            workdir, cohorts.read(config, workdir).table.slide_id.tolist()
        ),
        others=overview.files_left_out(workdir / "left_out.csv"),
        damaged=sum(bool(status.get("unreadable")) for status in read),
    )


def encoding_flops(config: ConfigDict, workdir: Path, rows: list[dict]) -> dict[str, float]:
    """`costs.encoding_flops`; {} where another tool encoded, or the encoder cannot be counted."""
    facts = provenance.read(workdir).get("encoder", {})
    if not foreign.reads_slides(config) or foreign.given(config) or "name" not in facts:
        return {}
    try:
        of_patch = cost.flops_per_patch(
            facts["name"], facts.get("options", {}), cohorts.geometry(config), config.encoder.lr_px
        )
    except ConfigError:  # such as a file of the user's that has moved since
        return {}
    read = [
        statuses.read(workdir, name) for name in cohorts.prepared(config, workdir).table.slide_id
    ]
    if of_patch is None:
        return {}
    high = {model.name: model.reads_hr for model in methods.of(config).models(config)}
    patches = float(np.median([status["hr_patches"] for status in read]))
    return costs.encoding_flops(rows, high, of_patch, hr_patches=patches)


def save_card(config: ConfigDict, workdir: Path, rows: list[dict], cautions: list[str]) -> None:
    """Writes `model/README.md`."""
    model, cohort = workdir / "model", cohorts.prepared(config, workdir)
    main, facts = methods.of(config).main, model_folder.read_facts(model)
    row = next(row for row in rows if row["model"] == main.name)
    name = facts["encoder"]["name"]
    card = model_card.ModelCard(
        title=main.title,
        method=config.method,
        task=cohort.task.name,
        classes=cohort.task.classes,
        encoder=Path(name).name,
        licence="" if name.endswith(".py") else registry.spec(name).licence,
        dataset=Path(cohorts.source(config)).name,
        slides=len(cohort.table),
        patients=cohort.table.patient_id.nunique(),
        row=row | {"reads_hr": main.reads_hr},
        metric_titles={one: cohort.task.titles.get(one, one.replace("_", " "))
                       for one in cohort.task.metrics},
        geometry=facts["geometry"],
        thresholds=facts.get("thresholds") or {},
        cautions=cautions,
        folds=config.folds,
        hashes=facts["sha256"],
        identity=model_folder.identity(model),
        version=lrmil_jax.__version__,
    )  # fmt: skip
    files.write_text(model / "README.md", model_card.text(card))
