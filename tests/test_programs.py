"""Where compiled programs are kept, and where they are not."""

import logging
import stat

import jax
import pytest

from lrmil_jax import processor, programs
from lrmil_jax.models import trained


@pytest.fixture
def settings(monkeypatch):
    """What would be told to JAX, of which this process has a cache already."""
    told = {}
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    return told


def test_programs_are_kept_in_a_folder_of_ones_own(monkeypatch, tmp_path, settings):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = programs._own_folder()
    assert folder.parts[-3:-1] == ("lrmil_jax", "programs")
    assert programs._refusal(folder, private=True) is None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    assert "others may write to it" in programs._refusal(folder, private=True)
    assert programs._refusal(folder, private=False) is None  # a folder that the user has named


def test_a_folder_that_cannot_be_used_is_told(monkeypatch, tmp_path, settings, caplog):
    """JAX_COMPILATION_CACHE_DIR, as tests have it, behind a file."""
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr(programs, "Path", lambda given: tmp_path / "file" / "programs")
        programs.keep.__wrapped__()
    (line,) = caplog.messages
    assert line.startswith("compiled programs are not kept, so every start compiles anew: ")
    assert "cannot be written (" in line
    assert settings == {"jax_enable_compilation_cache": False}


@pytest.mark.parametrize(
    ("flags", "dtype", "sentence"),
    [
        ("fpu avx2", "bfloat16", "no faster than --config.encoder.dtype=float32"),
        ("fpu avx2", "float32", None),
        ("fpu avx512_bf16 amx_bf16", "float32", "--config.encoder.dtype=bfloat16 encodes faster"),
        ("fpu avx512_bf16", "bfloat16", None),
        ("fpu avx2", "int8", "hardly faster than --config.encoder.dtype=float32"),
        ("fpu avx512_vnni", "int8", None),
    ],
)
def test_the_type_that_suits_the_processor_is_told(monkeypatch, caplog, flags, dtype, sentence):
    monkeypatch.setattr(processor, "described", lambda: f"x86_64\nflags : {flags}")
    with caplog.at_level(logging.INFO):
        trained._tell_type(dtype)
    assert len(caplog.messages) == (sentence is not None)
    assert sentence is None or sentence in caplog.text
