"""`lrmil doctor`: one screen, and an exit status that tells whether a run would work."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
import tifffile

from lrmil_jax import doctor, processes, programs
from lrmil_jax.slides import Slide, readers


def found(look):
    return {finding.name: finding for finding in doctor._attempt("it", look)}


def test_it_is_one_screen_of_80_columns_and_all_works_here(capsys):
    assert doctor.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 30
    assert lines[-1].startswith("All that is needed works")
    names = [line.split()[0] for line in lines]
    for name in ("Python", "JAX", "devices", "computing", "decoding", "tifffile", "disk", "memory",
                 "extras", "threads", "open", "cache"):  # fmt: skip
        assert name in names


def test_what_raises_is_broken_and_named(capsys, monkeypatch):
    def no_driver():
        raise RuntimeError("the driver\nis too old")

    monkeypatch.setattr(doctor, "_LOOKS", {"JAX": no_driver})
    assert doctor.main() == 1
    text = capsys.readouterr().out
    assert "BROKEN" in text
    assert "the driver is too old" in text
    assert text.endswith("Broken: JAX.\n")


def test_a_reader_that_is_missing_is_a_note_with_its_formats(monkeypatch):
    monkeypatch.setattr(readers, "installed", lambda name: name == "tifffile")
    lines = found(doctor._readers)
    assert lines["tifffile"].state == doctor.OK
    assert lines["openslide"].state == doctor.NOTE
    assert "Hamamatsu NDPI" in lines["openslide"].text
    assert "pip install 'lrmil_jax[openslide]'" in lines["openslide"].text


def test_extras_are_there_or_named_with_their_command(monkeypatch):
    there = {"fastapi", "uvicorn", "prometheus_client", "python_multipart", "openpyxl", "jax2onnx"}
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: name in there or None)
    present, missing = doctor._attempt("extras", doctor._extras)
    assert (present.state, present.text) == (doctor.OK, "serve, xlsx")
    assert missing.state == doctor.NOTE
    assert "onnx (models as ONNX)" in missing.text  # a half of what it needs is not enough
    assert missing.text.endswith("pip install 'lrmil_jax[NAME]'")
    assert "serve" not in missing.text


def test_every_extra_that_users_choose_is_looked_at():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"]) - set(readers.READERS)
    assert set(doctor.EXTRAS) == extras - {"cuda", "tpu", "docs", "parity", "test"}


def test_pixels_that_are_decoded_wrongly_are_seen(monkeypatch):
    monkeypatch.setattr(Slide, "read", lambda *_: np.zeros((2048, 2048, 3), np.uint8))
    (line,) = found(doctor._decoding).values()
    assert line.state == doctor.BROKEN
    assert "imagecodecs" in line.text


def test_a_codec_that_is_missing_is_seen(monkeypatch):
    def without_codec(*_, **__):
        raise ValueError("COMPRESSION.JPEG requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile, "imwrite", without_codec)
    assert found(doctor._decoding)["it"].state == doctor.BROKEN


@pytest.mark.parametrize(
    ("free", "state"), [(0.5, doctor.BROKEN), (50.0, doctor.OK)], ids=["full", "room"]
)
def test_a_full_disk_is_broken(free, state, monkeypatch):
    usage = type("Usage", (), {"free": free * 2**30})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert found(doctor._machine)["disk"].state == state


def test_a_cache_that_cannot_be_written_is_a_note(monkeypatch, tmp_path):
    monkeypatch.setattr(programs, "location", lambda: (tmp_path, f"{tmp_path} cannot be written"))
    line = found(doctor._cache)["cache"]
    assert line.state == doctor.NOTE
    assert "JAX_COMPILATION_CACHE_DIR" in line.text


@pytest.mark.parametrize(("free", "state"), [(1, doctor.NOTE), (3, doctor.OK)])
def test_memory_is_what_a_run_may_use(free, state, monkeypatch):
    monkeypatch.setattr(processes, "usable_memory", lambda: (8 * 2**30, free * 2**30))
    line = found(doctor._machine)["memory"]
    assert line.state == state
    assert line.text.startswith(f"8.0 GiB, {free}.0 GiB of it free")
