"""Objects of a bucket, by fsspec: listed, and read whole or not at all."""

import base64
import dataclasses
import functools
import hashlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from lrmil_jax.errors import ConfigError, DataError, SlideError
from lrmil_jax.storage.attempts import repeated, sentence

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_PART = 16 << 20  # bytes asked for at a time


@dataclasses.dataclass(frozen=True)
class StoredObject:
    """One object as it was when it was listed.

    Attributes:
      url: `s3://bucket/key`.
      size: bytes.
      version: the storage's own mark of the content (S3's ETag, GCS's MD5), or when it was
        written; another content has another.
      md5: of the content in hexadecimal, where the storage tells it; else "".
    """

    url: str
    size: int
    version: str
    md5: str = ""


class ChangedError(SlideError):
    """An object is another than the one that was listed."""


def is_url(name: str | None) -> bool:
    """Whether this names something in object storage rather than on a disk."""
    return name is not None and _URL.match(name) is not None


def parted(url: str) -> tuple[str, str]:
    """Scheme, and bucket with path, of `s3://bucket/path`.

    Raises:
      ConfigError: another scheme, or no bucket.
    """
    match = _URL.match(url)
    scheme, rest = match.groups() if match else ("", "")
    place = rest.strip("/")
    if scheme not in _PACKAGES or not place or ".." in place.split("/"):
        raise ConfigError(f"{url} cannot be read; give a folder, s3://bucket/path or "
                          "gs://bucket/path")  # fmt: skip
    return scheme, place


@functools.cache
def filesystem(scheme: str) -> Any:
    """fsspec's file system of a scheme.

    Raises:
      ConfigError: its package is not installed.
    """
    # Attempts are counted here alone: those of several libraries would multiply.
    options = {"s3": {"config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 20}}}
    try:
        import fsspec

        opened = fsspec.filesystem(scheme, **options.get(scheme, {}))
    except ImportError as error:
        raise ConfigError(
            f"reading {scheme}:// needs {_PACKAGES[scheme]}; pip install 'lrmil_jax[storage]'"
        ) from error
    except Exception as error:  # of any library, on credentials above all
        raise DataError(sentence(error, f"{scheme}://")) from error
    if scheme == "s3":
        opened.retries = 1
        for name in ("aiobotocore", "botocore"):  # which tell where they found keys and servers
            logging.getLogger(name).setLevel(logging.WARNING)
    return opened


def listed(url: str) -> list[StoredObject]:
    """All objects below a URL, or the one object that it names, in the order of their names.

    Raises:
      ConfigError: see `parted` and `filesystem`.
      DataError: there is none, or the bucket cannot be read.
    """
    scheme, place = parted(url)
    system = filesystem(scheme)

    def look() -> dict[str, dict]:
        system.invalidate_cache()
        return system.find(place, detail=True)

    entries = repeated(look, url, DataError)
    found = [
        described(scheme, name, entry)
        for name, entry in sorted(entries.items())
        if entry["type"] == "file" and not name.endswith("/")
    ]
    if not found:
        raise DataError(f"{url} holds no object; check bucket and path")
    return found


def fetch(
    wanted: StoredObject, path: Path, *, interrupted: Callable[[], bool] = lambda: False
) -> bool:
    """Copies an object to a file, part by part; a part that breaks off is asked for again.

    Args:
      wanted: as it was listed.
      path: a file that is there, of the object's size, to be written over.
      interrupted: asked between parts.

    Returns:
      False where it was interrupted.

    Raises:
      ChangedError: the object is another by now.
      SlideError: it cannot be read, or what came is not what the storage has.
      ConfigError: see `filesystem`.
    """
    scheme, place = parted(wanted.url)
    system = filesystem(scheme)
    _require_unchanged(system, wanted)
    with open(path, "r+b") as file:
        md5 = copy(wanted.url, wanted.size, file, interrupted=interrupted)
    if md5 is None:
        return False
    _require_unchanged(system, wanted)
    if wanted.md5 and md5 != wanted.md5 and not is_encrypted(system, place):
        raise SlideError(f"{wanted.url}: what was read has another checksum than the object; run "
                         "the same command again")  # fmt: skip
    return True


def copy(
    url: str,
    size: int,
    file: BinaryIO,
    *,
    interrupted: Callable[[], bool] = lambda: False,
    kind: type[Exception] = SlideError,
) -> str | None:
    """Writes the content of an object to an open file, part by part; a part that breaks off is
    asked for again.

    Args:
      url: of the object.
      size: bytes that it has.
      file: written from where it stands.
      interrupted: asked between parts.
      kind: of the error that is raised.

    Returns:
      MD5 of what came, in hexadecimal; None where it was interrupted.

    Raises:
      kind: the object cannot be read.
    """
    scheme, place = parted(url)
    system = filesystem(scheme)
    digest = hashlib.md5(usedforsecurity=False)

    def read(start: int, end: int) -> bytes:
        part = system.cat_file(place, start=start, end=end)
        if len(part) != end - start:
            raise OSError(f"{len(part)} of {end - start} bytes came")
        return part

    for start in range(0, size, _PART):
        if interrupted():
            return None
        end = min(start + _PART, size)
        part = repeated(functools.partial(read, start, end), url, kind)
        digest.update(part)
        file.write(part)
    return digest.hexdigest()


def _require_unchanged(system: Any, wanted: StoredObject) -> None:
    scheme, place = parted(wanted.url)

    def look() -> dict:
        system.invalidate_cache()
        return system.info(place)

    now = described(scheme, place, repeated(look, wanted.url, SlideError))
    if (now.size, now.version) != (wanted.size, wanted.version):
        raise ChangedError(
            f"{wanted.url} was changed after this run had listed it (then {wanted.size:,} bytes, "
            f"now {now.size:,}); run the same command again"
        )


def is_encrypted(system: Any, place: str) -> bool:
    """Whether S3 keeps an object under a key of the user's, where its ETag is no checksum."""
    if not hasattr(system, "call_s3"):
        return False
    bucket, _, key = place.partition("/")
    head = system.call_s3("head_object", Bucket=bucket, Key=key)
    return "SSECustomerAlgorithm" in head or "kms" in head.get("ServerSideEncryption", "")


def described(scheme: str, name: str, entry: dict[str, Any]) -> StoredObject:
    """An object from an entry of fsspec's, whose keys are the storage's own."""
    md5, version = "", str(entry.get("ETag") or entry.get("etag") or "").strip('"')
    if entry.get("md5Hash"):
        md5 = version = base64.b64decode(entry["md5Hash"]).hex()
    elif scheme == "s3" and re.fullmatch(r"[0-9a-f]{32}", version):
        md5 = version
    written = entry.get("LastModified") or entry.get("updated") or entry.get("mtime")
    return StoredObject(f"{scheme}://{name}", int(entry["size"]), version or str(written), md5)
