"""Objects of a bucket, by fsspec: listed, and read whole or not at all."""

import base64
import dataclasses
import functools
import hashlib
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from lrmil_jax.errors import ConfigError, DataError, SlideError, one_line

log = logging.getLogger(__name__)

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_ATTEMPTS = 4
_PAUSE = 0.5  # seconds before the second attempt, three times longer before each that follows
_PART = 16 << 20  # bytes asked for at a time
_LOG_IN = {
    "s3": "give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "log in with `gcloud auth application-default login`, or give "
          "GOOGLE_APPLICATION_CREDENTIALS",
}  # fmt: skip
_Value = TypeVar("_Value")


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
        raise DataError(_sentence(error, f"{scheme}://")) from error
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

    entries = _repeated(look, url, DataError)
    found = [
        _described(scheme, name, entry)
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
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "r+b") as file:
        for start in range(0, wanted.size, _PART):
            if interrupted():
                return False
            _copy_part(system, wanted, (start, min(start + _PART, wanted.size)), file, digest)
    _require_unchanged(system, wanted)
    if wanted.md5 and digest.hexdigest() != wanted.md5 and not _is_encrypted(system, place):
        raise SlideError(f"{wanted.url}: what was read has another checksum than the object; run "
                         "the same command again")  # fmt: skip
    return True


def _copy_part(
    system: Any, wanted: StoredObject, span: tuple[int, int], file: BinaryIO, digest: Any
) -> None:
    _, place = parted(wanted.url)

    def read() -> bytes:
        part = system.cat_file(place, start=span[0], end=span[1])
        if len(part) != span[1] - span[0]:
            raise OSError(f"{len(part)} of {span[1] - span[0]} bytes came")
        return part

    part = _repeated(read, wanted.url, SlideError)
    digest.update(part)
    file.write(part)


def _require_unchanged(system: Any, wanted: StoredObject) -> None:
    scheme, place = parted(wanted.url)

    def look() -> dict:
        system.invalidate_cache()
        return system.info(place)

    now = _described(scheme, place, _repeated(look, wanted.url, SlideError))
    if (now.size, now.version) != (wanted.size, wanted.version):
        raise ChangedError(
            f"{wanted.url} was changed after this run had listed it (then {wanted.size:,} bytes, "
            f"now {now.size:,}); run the same command again"
        )


def _is_encrypted(system: Any, place: str) -> bool:
    """Whether S3 keeps an object under a key of the user's, where its ETag is no checksum."""
    if not hasattr(system, "call_s3"):
        return False
    bucket, _, key = place.partition("/")
    head = system.call_s3("head_object", Bucket=bucket, Key=key)
    return "SSECustomerAlgorithm" in head or "kms" in head.get("ServerSideEncryption", "")


def _described(scheme: str, name: str, entry: dict[str, Any]) -> StoredObject:
    """An object from an entry of fsspec's, whose keys are the storage's own."""
    md5, version = "", str(entry.get("ETag") or entry.get("etag") or "").strip('"')
    if entry.get("md5Hash"):
        md5 = version = base64.b64decode(entry["md5Hash"]).hex()
    elif scheme == "s3" and re.fullmatch(r"[0-9a-f]{32}", version):
        md5 = version
    written = entry.get("LastModified") or entry.get("updated") or entry.get("mtime")
    return StoredObject(f"{scheme}://{name}", int(entry["size"]), version or str(written), md5)


def _repeated(read: Callable[[], _Value], url: str, kind: type[Exception]) -> _Value:
    """What `read` gives, tried again after a pause where trying again may help."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return read()
        except Exception as error:  # each storage has errors of its own
            sentence, final = _sentence(error, url), _is_final(error)
            log.info("%s: attempt %d of %d: %s", url, attempt, _ATTEMPTS, one_line(error))
        if final:
            break
        if attempt < _ATTEMPTS:
            time.sleep(_PAUSE * 3 ** (attempt - 1))
    # Not from the storage's error, in which `files.disk_errors` would see one of the local disk.
    raise kind(sentence)


def _is_final(error: Exception) -> bool:
    told = isinstance(error, FileNotFoundError | PermissionError)
    return told or _status(error) == 403 or _lacks_credentials(error)


def _status(error: Exception) -> int | None:
    """Of HTTP, which gcsfs keeps in the error."""
    status = str(getattr(error, "code", None))
    return int(status) if status.isdigit() else None


def _lacks_credentials(error: Exception) -> bool:
    name = type(error).__name__
    return "Credential" in name or name == "RefreshError" or _status(error) == 401


def _sentence(error: Exception, url: str) -> str:
    if _lacks_credentials(error):
        scheme = url.partition("://")[0]
        return f"{url} needs credentials, and none were found; {_LOG_IN[scheme]}"
    if isinstance(error, PermissionError) or _status(error) == 403:
        return f"{url} may not be read with these credentials; ask the bucket's owner for access"
    if isinstance(error, FileNotFoundError):
        return f"{url} is not there; check bucket and path"
    return f"{url} could not be read in {_ATTEMPTS} attempts ({one_line(error)}); check the network"
