"""Asking a storage again where that may help, and what is said of it where it does not."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from lrmil_jax.errors import one_line

log = logging.getLogger(__name__)

_ATTEMPTS = 4
_PAUSE = 0.5  # seconds before the second attempt, three times longer before each that follows
_LOG_IN = {
    "s3": "give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "log in with `gcloud auth application-default login`, or give "
          "GOOGLE_APPLICATION_CREDENTIALS",
}  # fmt: skip
_Value = TypeVar("_Value")


def repeated(
    function: Callable[[], _Value], url: str, kind: type[Exception], verb: str = "read"
) -> _Value:
    """What `function` gives, tried again after a pause where trying again may help.

    Args:
      function: asks the storage once.
      url: of what it is about.
      kind: of the error that is raised in the end.
      verb: what is done to it: read or written.

    Raises:
      kind: with one sentence.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return function()
        except Exception as error:  # each storage has errors of its own
            told, final = sentence(error, url, verb), _is_final(error)
            log.info("%s: attempt %d of %d: %s", url, attempt, _ATTEMPTS, one_line(error))
        if final:
            break
        if attempt < _ATTEMPTS:
            time.sleep(_PAUSE * 3 ** (attempt - 1))
    # Not from the storage's error, in which `files.disk_errors` would see one of the local disk.
    raise kind(told)


def sentence(error: Exception, url: str, verb: str = "read") -> str:
    """What went wrong in the end, and what to do."""
    if _lacks_credentials(error):
        scheme = url.partition("://")[0]
        return f"{url} needs credentials, and none were found; {_LOG_IN[scheme]}"
    if _is_forbidden(error):
        return f"{url} may not be {verb} with these credentials; ask the bucket's owner for access"
    if isinstance(error, FileNotFoundError) and verb == "written":
        return f"{url} cannot be written, as there is no such bucket; make it, or check its name"
    if isinstance(error, FileNotFoundError):
        return f"{url} is not there; check bucket and path"
    return (
        f"{url} could not be {verb} in {_ATTEMPTS} attempts ({one_line(error)}); check the network"
    )


def _is_final(error: Exception) -> bool:
    missing = isinstance(error, FileNotFoundError)
    return missing or _is_forbidden(error) or _lacks_credentials(error)


def _is_forbidden(error: Exception) -> bool:
    told = isinstance(error, OSError) and str(error).startswith("Forbidden")  # by gcsfs
    return told or isinstance(error, PermissionError) or _status(error) == 403


def _lacks_credentials(error: Exception) -> bool:
    name = type(error).__name__
    return "Credential" in name or name == "RefreshError" or _status(error) == 401


def _status(error: Exception) -> int | None:
    """Of HTTP, which gcsfs keeps in the error."""
    code = str(getattr(error, "code", None))
    return int(code) if code.isdigit() else None
