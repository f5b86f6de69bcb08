"""What `lrmil serve` refuses before it begins."""

import importlib.util

import pytest

from lrmil_jax.errors import ConfigError, UserError
from lrmil_jax.serve import command

PLACES = ["--model", "model", "--jobs", "jobs"]


@pytest.fixture(autouse=True)
def _installed(monkeypatch, tmp_path):
    """All packages are there, and no token."""
    monkeypatch.setattr(command, "_PACKAGES", ())
    monkeypatch.delenv(command.TOKEN, raising=False)
    monkeypatch.chdir(tmp_path)


def test_packages_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr(command, "_PACKAGES", ("json", "fastapi", "uvicorn"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "json" or None)
    with pytest.raises(ConfigError, match=r"^lrmil serve needs fastapi, uvicorn: pip install '"):
        command.main(PLACES)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--port", "70000"], "--port is 70000, but must be from 0 to 65535"),
        (["--queue", "0"], "--queue is 0, but must be from 1"),
        (["--keep_hours", "nan"], "--keep_hours is nan"),
        (["--slides", "nowhere"], "--slides nowhere is no folder"),
        (["--host", "0.0.0.0"], "lets other machines in; give a token by --token_file"),
        (["--token_file", "nowhere"], "--token_file nowhere cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        command.main([*PLACES, *options])


def test_a_token_is_a_long_word_of_a_file_or_the_environment(monkeypatch, tmp_path):
    path = tmp_path / "token"
    path.write_text(" 0123456789abcdef\n")
    assert command._token(None) is None
    assert command._token(path) == "0123456789abcdef"
    monkeypatch.setenv(command.TOKEN, "fedcba9876543210")
    assert command._token(None) == "fedcba9876543210"
    for text in ("", "short", "0123456789 abcdef", "0123456789abcdéf"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="holds no token of at least 16 letters"):
            command._token(path)
