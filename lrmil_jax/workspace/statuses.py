"""What is known of each slide beside its regions."""

import json
from pathlib import Path

from lrmil_jax import files
from lrmil_jax.data import regions
from lrmil_jax.workspace import layout


def read(workdir: Path, slide_id: str) -> dict | None:
    """What `prepare` noted of a slide, or None."""
    path = layout.regions_folder(workdir) / f"{slide_id}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def mark(workdir: Path, job: regions.SlideJob, **changes) -> None:
    """Notes in a slide's status what only encoding found out."""
    status = read(workdir, job.slide_id)
    files.write_json(job.status_path, status | changes)
