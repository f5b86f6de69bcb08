"""Compiled programs, kept on disk for the next start."""

import functools
import hashlib
import logging
import os
import stat
import tempfile
from pathlib import Path

import jax

from lrmil_jax import processor

log = logging.getLogger(__name__)

_LARGEST = 4 * 2**30  # bytes of a folder; what was not used for longest goes first
_SHORTEST = 0.2  # seconds of compilation that are worth a file


@functools.cache
def keep() -> None:
    """Lets JAX keep compiled programs in a folder that is this user's alone.

    Whoever writes there could run anything in our name, so a folder of others is not used. Where
    `JAX_COMPILATION_CACHE_DIR` names a folder, that one is taken. A folder that cannot be used is
    told, and everything is compiled anew.
    """
    given = jax.config.jax_compilation_cache_dir
    if given is not None and "://" in given:
        return
    folder, reason = location()
    if reason is not None:
        jax.config.update("jax_enable_compilation_cache", False)
        log.warning("compiled programs are not kept, so every start compiles anew: %s; set "
                    "JAX_COMPILATION_CACHE_DIR to a folder of your own", reason)  # fmt: skip
        return
    log.info("compiled programs are kept in %s", folder)
    if given is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", _LARGEST)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST)


def location() -> tuple[Path, str | None]:
    """Where compiled programs are kept, and why they cannot be (None if they can)."""
    given = jax.config.jax_compilation_cache_dir
    if given is not None and "://" in given:  # of a bucket nothing is known before it is used
        return Path(given), None
    folder = _own_folder() if given is None else Path(given)
    return folder, _refusal(folder, private=given is None)


def _own_folder() -> Path:
    """By processor too: programs for one may not run on another that shares the home folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    by_processor = hashlib.sha256(processor.described().encode()).hexdigest()[:12]
    return base / "lrmil_jax" / "programs" / by_processor


def _refusal(folder: Path, *, private: bool) -> str | None:
    """Why programs cannot be kept in a folder, which is made if need be; None if they can."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if private:
            found = folder.stat()
            if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return f"{folder} belongs to others, or others may write to it"
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror})"
