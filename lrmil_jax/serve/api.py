"""The server's HTTP interface."""

import hmac
import logging
import shutil
import sqlite3
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from lrmil_jax import __version__
from lrmil_jax.serve import answers, jobs, submission
from lrmil_jax.serve.jobs import Job, JobStore
from lrmil_jax.serve.metrics import CONTENT_TYPE, Metrics
from lrmil_jax.serve.submission import Settings
from lrmil_jax.serve.worker import Worker

log = logging.getLogger(__name__)

_ABOUT = (
    "Slides to predictions of one model. Upload a slide or name its path, then ask for its job."
)
_RESULTS = {
    "result": ("prediction.json", "application/json"),
    "geojson": ("attention.geojson", "application/geo+json"),
    "heatmap": ("heatmap.png", "image/png"),
}


def create(settings: Settings, store: JobStore, worker: Worker, metrics: Metrics) -> FastAPI:
    """The application; the worker is started by the caller."""
    app = FastAPI(title="lrmil_jax", version=__version__, description=_ABOUT)
    guarded = [Depends(_guard(settings.token))]
    app.include_router(_probes(worker))
    app.include_router(_facts(worker, metrics), dependencies=guarded)
    app.include_router(submission.router(settings, store, worker, metrics), dependencies=guarded)
    app.include_router(_jobs(store, worker), dependencies=guarded)
    app.include_router(_results(store), dependencies=guarded)
    app.add_exception_handler(sqlite3.Error, _unwritable)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts))
    app.add_middleware(_Counted, metrics=metrics)
    return app


def _unwritable(_: Any, error: Exception) -> JSONResponse:
    """The answer where jobs can be neither read nor written; none is told of that is not kept."""
    log.error("jobs cannot be kept: %s", error)
    reason = "the server cannot keep jobs (is its disk full?); ask whoever runs it"
    return JSONResponse({"detail": reason}, 507)


def _guard(token: str | None) -> Callable[..., None]:
    bearer = HTTPBearer(auto_error=False, description="the server's token, if it has one")

    def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if token is None:
            return
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(401, "give the server's token: Authorization: Bearer TOKEN",
                                headers={"WWW-Authenticate": "Bearer"})  # fmt: skip

    return check


def _probes(worker: Worker) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get("/health", response_model=answers.Status)
    def health() -> Any:
        """Whether the server is alive."""
        if worker.is_alive or worker.is_stopping:
            return answers.Status(status="ok")
        return _unavailable(worker.failure or "nothing predicts")

    @router.get("/ready", response_model=answers.Status)
    def ready() -> Any:
        """Whether the model is loaded and jobs are done."""
        if worker.is_stopping:
            return _unavailable("the server is about to stop")
        if worker.predictor is None or not worker.is_alive:
            return _unavailable(worker.failure or "the model is being loaded")
        return answers.Status(status="ok")

    return router


def _unavailable(reason: str) -> JSONResponse:
    return JSONResponse({"status": "unavailable", "reason": reason}, 503)


def _facts(worker: Worker, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get("/metrics")
    def read_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @router.get("/model")
    def model() -> dict[str, Any]:
        """What the model is, and its card."""
        if worker.predictor is None:
            raise HTTPException(503, "the model is being loaded", headers={"Retry-After": "5"})
        return worker.predictor.facts

    return router


def _found(store: JobStore) -> Callable[[str], Job]:
    def found(job_id: str) -> Job:
        job = store.get(job_id)
        if job is None:
            raise HTTPException(
                404,
                "there is no such job; those that have ended are forgotten after --keep_hours",
            )
        return job

    return found


def _jobs(store: JobStore, worker: Worker) -> APIRouter:
    router, found = APIRouter(tags=["jobs"]), _found(store)
    known = Annotated[Job, Depends(found)]

    @router.get("/jobs/{job_id}", response_model=answers.JobAnswer)
    def read(job: known) -> Any:
        """The job's state and progress."""
        return submission.answer(store, worker, job)

    @router.delete("/jobs/{job_id}", response_model=answers.JobAnswer)
    def delete(job: known) -> Any:
        """Cancels a job that waits; of one that has ended, removes all that is kept."""
        if store.cancel(job.id):
            shutil.rmtree(store.home(job.id), ignore_errors=True)
            return submission.answer(store, worker, found(job.id))
        if store.forget(job.id):
            return submission.answer(store, worker, job)
        raise HTTPException(409, "the job is running and cannot be stopped; wait until it is done")

    return router


def _results(store: JobStore) -> APIRouter:
    router = APIRouter(tags=["jobs"])
    known = Annotated[Job, Depends(_found(store))]

    def give(name: str) -> Callable[..., FileResponse]:
        file, kind = _RESULTS[name]

        def result(job: known) -> FileResponse:
            if job.state != jobs.DONE:
                why = f": {job.reason}" if job.reason else ""
                raise HTTPException(409, f"the job is {job.state}{why}")
            path = store.home(job.id) / "result" / job.slide_id / file
            return FileResponse(path, media_type=kind, filename=f"{job.slide_id}-{file}",
                                content_disposition_type="inline")  # fmt: skip

        result.__doc__ = f"`{file}` as `lrmil predict` writes it; 409 before the job is done."
        return result

    for name in _RESULTS:
        router.get(f"/jobs/{{job_id}}/{name}", response_class=FileResponse, name=name)(give(name))
    return router


class _Counted:
    """Counts the answers of an application."""

    def __init__(self, app: Any, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.count_request(scope["method"], route, message["status"])
            await send(message)

        await self._app(scope, receive, counted)
