"""What clients send: slide files, written to disk as they come, and paths, which must lie below the
folders that the server was given."""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import python_multipart
from fastapi import HTTPException
from fastapi.concurrency import run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from lrmil_jax.data.tables import one_form
from lrmil_jax.errors import one_line

_FIELDS = 4096  # bytes of all fields of a form but the slide
_PARTS = 16
_AROUND = 1 << 20  # bytes that a form may have beside its slide
_SILENCE = 60.0  # seconds without a byte, after which an upload is given up
_SPARE = 256 << 20  # bytes of the disk that are left for results
_LONGEST_NAME = 120  # bytes
_FORM = "multipart/form-data with the file `slide`"


def safe_name(text: str) -> str:
    """A client's name of a file as a name in a folder: without folders, and with odd signs
    replaced."""
    name = PurePosixPath(one_form(text).replace("\\", "/")).name
    name = re.sub(r"[^\w.\- ()+#&',]", "_", name).strip(" .")
    stem, dot, suffix = name.rpartition(".")
    if not dot:
        stem, suffix = name, ""
    room = _LONGEST_NAME - len(suffix.encode()) - 1
    stem = stem.encode()[: max(room, 1)].decode(errors="ignore").strip(" .")
    return f"{stem or 'slide'}{dot}{suffix[:20]}"


def allowed_path(text: str, folders: Sequence[Path]) -> Path:
    """The slide that a client names, links followed.

    Args:
      text: absolute, or counted from one of the folders.
      folders: below which slides may lie, resolved.

    Raises:
      HTTPException: 403 for what does not lie below them, 422 for what is not there.
    """
    if not folders:
        raise HTTPException(403, "this server takes uploads alone: it was started without --slides")
    try:
        found = [(folder / text).resolve() for folder in folders]
    except (OSError, ValueError, RuntimeError) as error:
        raise HTTPException(422, f"path is none that can be followed: {one_line(error)}") from error
    inside = [path for path in found if any(path.is_relative_to(folder) for folder in folders)]
    if not inside:
        raise HTTPException(403, "path lies outside of the folders given by --slides")
    there = [path for path in inside if path.exists()]
    if not there:
        raise HTTPException(422, f"there is no slide {text}; give its path below --slides")
    return there[0]


def check_disk(folder: Path, size: int) -> None:
    """Raises HTTPException 507 where so many bytes and some results have no room."""
    free = shutil.disk_usage(folder).free
    if free < size + _SPARE:
        raise HTTPException(507, f"the server's disk has {free / 2**30:.1f} GiB left, too little "
                            "for this slide; ask whoever runs it")  # fmt: skip


class SlideForm:
    """A multipart form with one slide, which goes to disk as it comes.

    Args:
      content_type: header of the request.
      folder: where the slide goes; made if need be.
      limit: most bytes of the slide.

    Attributes:
      path: of the slide, once it is there.
      fields: the other parts, as text.

    Raises:
      HTTPException: 415, it is no such form.
    """

    def __init__(self, content_type: str, folder: Path, limit: int):
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise HTTPException(415, f"send {_FORM}, or JSON with `path`")
        self._folder, self._limit = folder, limit
        self.path: Path | None = None
        self.fields: dict[str, str] = {}
        self._file: BinaryIO | None = None
        self._raw: dict[str, bytearray] = {}
        self._name, self._header, self._headers = "", [bytearray(), bytearray()], {}
        self._size = self._kept = self._parts = self._received = 0
        self._whole = False
        try:
            self._parser = python_multipart.MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": lambda data, start, end: self._add(0, data[start:end]),
                    "on_header_value": lambda data, start, end: self._add(1, data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._begin_data,
                    "on_part_data": self._take,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise HTTPException(400, f"the form is broken: {one_line(error)}") from error

    async def receive(self, chunks: AsyncIterator[bytes]) -> None:
        """Takes the body; the slide is whole and on disk at the end.

        Raises:
          HTTPException: 400 a broken form, 408 nothing comes any more, 413 too large, 422 no
            slide in it, 507 the disk is full.
        """
        try:
            while True:
                async with asyncio.timeout(_SILENCE):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                await run_in_threadpool(self._write, chunk)
            if not self._whole:
                raise HTTPException(400, "the form ends in the middle; send it again")
            if self.path is None:
                raise HTTPException(422, f"the form has no slide; send {_FORM}")
            await run_in_threadpool(_sync, self._folder)
        except TimeoutError as error:
            raise HTTPException(408, f"nothing came for {_SILENCE:g} s; send it again") from error
        except FormParserError as error:
            raise HTTPException(400, f"the form is broken: {one_line(error)}") from error
        except OSError as error:
            raise HTTPException(507, "the server's disk does not take the slide "
                                f"({error.strerror}); ask whoever runs it") from error  # fmt: skip
        finally:
            if self._file is not None:
                self._file.close()

    def _write(self, chunk: bytes) -> None:
        self._received += len(chunk)
        if self._received > self._limit + _AROUND:
            raise too_large(self._limit)
        self._parser.write(chunk)

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > _PARTS:
            raise HTTPException(400, f"the form has more than {_PARTS} parts")
        self._headers = {}

    def _add(self, place: int, data: bytes) -> None:
        self._header[place] += data

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        self._header = [bytearray(), bytearray()]

    def _begin_data(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode(errors="replace")
        if self._name != "slide":
            if b"filename" in options:
                raise HTTPException(
                    422, f"the form has no slide: its file is the part {self._name!r}, not `slide`"
                )
            self._raw[self._name] = bytearray()
            self._kept += len(self._name)
            return
        if self.path is not None or b"filename" not in options:
            raise HTTPException(422, "the form's part `slide` is to be one file; send one a job")
        self._folder.mkdir(parents=True, exist_ok=True)
        self.path = self._folder / safe_name(options[b"filename"].decode(errors="replace"))
        self._file = self.path.open("xb")

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._name == "slide":
            self._size += end - start
            if self._size > self._limit:
                raise too_large(self._limit)
            self._file.write(memoryview(data)[start:end])
            return
        self._kept += end - start
        if self._kept > _FIELDS:
            raise HTTPException(413, f"the form's fields have more than {_FIELDS} bytes")
        self._raw[self._name] += data[start:end]

    def _end_part(self) -> None:
        if self._name == "slide":
            self._file.flush()
            os.fsync(self._file.fileno())
        else:
            self.fields[self._name] = self._raw.pop(self._name).decode(errors="replace")

    def _end(self) -> None:
        self._whole = True


def too_large(limit: int) -> HTTPException:
    """The answer to a slide of more bytes than that; the connection ends with it."""
    return HTTPException(
        413,
        f"the slide is larger than {limit / 2**30:g} GiB, the most that this server takes "
        "(--max_upload_gib); name its path below --slides instead",
        headers={"Connection": "close"},
    )


async def small_body(chunks: AsyncIterator[bytes], limit: int = 1 << 16) -> bytes:
    """A body of few bytes.

    Raises:
      HTTPException: 413, there are more.
    """
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limit:
            raise HTTPException(413, f"the JSON has more than {limit} bytes",
                                headers={"Connection": "close"})  # fmt: skip
    return bytes(body)


def fields_of(form: SlideForm, names: Sequence[str]) -> dict[str, Any]:
    """The form's fields but the slide.

    Raises:
      HTTPException: 422, there is another one.
    """
    unknown = sorted(form.fields.keys() - set(names))
    if unknown:
        raise HTTPException(
            422, f"the form's part {unknown[0]!r} is unknown; there are slide, {', '.join(names)}"
        )
    return dict(form.fields)


def _sync(folder: Path) -> None:
    """The names of the folder and of those above it that are new are on disk."""
    for place in (folder, folder.parent, folder.parent.parent):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
