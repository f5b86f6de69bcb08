"""How a slide becomes a job: `POST /jobs`."""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError

from lrmil_jax.data import slide_files
from lrmil_jax.serve import answers, intake, jobs
from lrmil_jax.serve.jobs import FullError, Job, JobStore
from lrmil_jax.serve.metrics import Metrics
from lrmil_jax.serve.worker import Worker

_WRONG = {code: {"description": text} for code, text in {
    403: "the path lies outside of the server's folders", 413: "the slide is too large",
    415: "neither such a form nor JSON", 422: "what was sent is not right, and why",
    429: "too many jobs wait; Retry-After says when to come again",
    503: "the server is about to stop", 507: "the server's disk is full",
}.items()}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a server allows.

    Attributes:
      slides: folders below which paths may lie, resolved.
      max_upload: bytes of a slide.
      token: that every request but those of probes must bring; None: none.
      hosts: by which names it may be called; ("*",) any.
    """

    slides: tuple[Path, ...] = ()
    max_upload: int = 16 << 30
    token: str | None = None
    hosts: tuple[str, ...] = ("*",)


def router(settings: Settings, store: JobStore, worker: Worker, metrics: Metrics) -> APIRouter:
    """The route that takes slides."""
    routes = APIRouter(tags=["jobs"])
    body = {"content": {
        "multipart/form-data": {"schema": answers.multipart_schema()},
        "application/json": {"schema": answers.SlidePath.model_json_schema()},
    }}  # fmt: skip

    @routes.post("/jobs", status_code=202, response_model=answers.JobAnswer, responses=_WRONG,
                 openapi_extra={"requestBody": body})  # fmt: skip
    async def submit(
        request: Request,
        response: Response,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
    ) -> Any:
        """Takes a slide: uploaded as the form's file `slide`, or by its `path` in JSON. The same
        `Idempotency-Key` again gives the same job (status 200), so that a request whose answer was
        lost may be sent again."""
        if worker.is_stopping:
            raise HTTPException(503, "the server is about to stop", headers={"Retry-After": "10"})
        is_new, job = False, None
        if idempotency_key is not None:
            job = await run_in_threadpool(store.by_key, idempotency_key)
        if job is None:
            try:
                with store.place():
                    job, is_new = await _receive(request, settings, store, idempotency_key)
            except FullError as error:
                seconds = math.ceil(min(max(metrics.seconds_a_job, 1), 3600))
                raise HTTPException(
                    429, str(error), headers={"Retry-After": str(seconds)}
                ) from error
        worker.wake()
        response.status_code = 202 if is_new else 200
        response.headers["Location"] = f"/jobs/{job.id}"
        return await run_in_threadpool(answer, store, worker, job)

    return routes


async def _receive(
    request: Request, settings: Settings, store: JobStore, key: str | None
) -> tuple[Job, bool]:
    """Stores the job of a request, and says whether it is new."""
    kind = request.headers.get("content-type", "")
    job_id = jobs.new_id()
    home = store.home(job_id)
    size = int(request.headers.get("content-length") or 0)
    if kind.partition(";")[0].strip().lower() == "application/json":
        intake.check_disk(store.folder, 0)
        given = _checked(answers.SlidePath, await intake.small_body(request.stream()))
        path = await run_in_threadpool(intake.allowed_path, given.path, settings.slides)
        job = _job(job_id, path, given, key, uploaded=False)
        return await run_in_threadpool(store.add, job)
    form = intake.SlideForm(kind, home / "slide", settings.max_upload)
    if size > settings.max_upload + (1 << 20):
        raise intake.too_large(settings.max_upload)
    intake.check_disk(store.folder, size)
    try:
        await form.receive(aiter(request.stream()))
        given = _checked(
            answers.Options, intake.fields_of(form, list(answers.Options.model_fields))
        )
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    return await run_in_threadpool(_stored, store, _job(job_id, form.path, given, key))


def _stored(store: JobStore, job: Job) -> tuple[Job, bool]:
    """As `JobStore.add`; an upload that came twice at once is kept once."""
    found, is_new = store.add(job)
    if not is_new:
        shutil.rmtree(store.home(job.id), ignore_errors=True)
    return found, is_new


def _job(
    job_id: str, path: Path, given: answers.Options, key: str | None, *, uploaded: bool = True
) -> Job:
    (slide_id,) = slide_files.one_slide(path).slide_id
    return Job(
        id=job_id,
        slide_id=slide_id,
        path=str(path),
        uploaded=uploaded,
        mpp=given.mpp,
        trust_mpp=given.trust_mpp,
        key=key,
    )


def _checked(model: type[answers.Options], given: bytes | dict[str, Any]) -> Any:
    try:
        if isinstance(given, bytes):
            return model.model_validate_json(given)
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise HTTPException(422, f"{where}: {first['msg']}" if where else first["msg"]) from error


def answer(store: JobStore, worker: Worker, job: Job) -> answers.JobAnswer:
    """A job as clients see it."""
    ahead = store.ahead(job) if job.state == jobs.QUEUED else 0
    return answers.of_job(job, worker.progress(job), ahead)
