"""A slide's status is read once a run, and what a stage notes of it is on disk and in mind."""

import json
from pathlib import Path

from lrmil_jax import files
from lrmil_jax.data import schema, slide_jobs
from lrmil_jax.workspace import layout, statuses

GEOMETRY = schema.Geometry(hr_mpp=0.5, lr_mpp=2.0, patch_px=64)


def job(workdir):
    return slide_jobs.SlideJob(
        slide_id="s.1", path=workdir / "s.1.tif", mpp=None, folder=layout.regions_folder(workdir),
        settings=slide_jobs.TilingSettings(geometry=GEOMETRY),
    )  # fmt: skip


def test_read_once_until_forgotten(tmp_path, monkeypatch):
    path, reads = job(tmp_path).status_path, []
    assert statuses.read(tmp_path, "s.1") is None
    files.write_json(path, {"status": "ok", "hr": True})
    read_text = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, **how: reads.append(self) or read_text(self, **how)
    )
    for _ in range(90):
        assert statuses.read(tmp_path, "s.1")["hr"]
    assert reads == [path]
    files.write_json(path, {"status": "failed"})
    statuses.forget()
    assert statuses.read(tmp_path, "s.1") == {"status": "failed"}


def test_a_note_is_kept_on_disk_and_here(tmp_path):
    files.write_json(job(tmp_path).status_path, {"status": "ok", "hr": True})
    statuses.mark(tmp_path, job(tmp_path), hr=False)
    assert statuses.read(tmp_path, "s.1") == {"status": "ok", "hr": False}
    assert json.loads(job(tmp_path).status_path.read_text()) == {"status": "ok", "hr": False}
