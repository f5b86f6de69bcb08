"""What is known of each slide beside its regions, read once a run."""

import json
from pathlib import Path

from lrmil_jax import cluster, files
from lrmil_jax.data import slide_jobs
from lrmil_jax.workspace import layout

# Every stage of every fold asks for every slide's status, and slide folders can be slow.
_known: dict[Path, dict] = {}


def read(workdir: Path, slide_id: str) -> dict | None:
    """What `prepare` noted of a slide, or None. The dict is shared: `mark` changes it."""
    path = layout.regions_folder(workdir).absolute() / f"{slide_id}.json"
    if path not in _known:
        if not path.is_file():
            return None
        _known[path] = json.loads(path.read_text(encoding="utf-8"))
    return _known[path]


def mark(workdir: Path, job: slide_jobs.SlideJob, **changes) -> None:
    """Notes in a slide's status what only encoding found out."""
    status = read(workdir, job.slide_id) | changes
    files.write_json(job.status_path, status)
    _known[layout.regions_folder(workdir).absolute() / f"{job.slide_id}.json"] = status


def meet(name: str) -> None:
    """Waits until all processes of the run are here, and then sees what each of them noted."""
    cluster.meet(name)
    if cluster.several():
        forget()


def forget() -> None:
    """The next `read` reads the files again: other processes may have written them."""
    _known.clear()
