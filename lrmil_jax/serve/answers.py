"""What the server takes and answers as JSON."""

import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lrmil_jax.serve.jobs import Job


class Options(BaseModel):
    """What may be said of a slide beside its file."""

    model_config = ConfigDict(extra="forbid")
    mpp: float | None = Field(
        None, gt=0.01, lt=100, description="um/px of level 0, if the file's is missing or wrong"
    )
    trust_mpp: bool = Field(False, description="mpp wins even against file and objective")


class SlidePath(Options):
    """A slide that the server can read itself."""

    path: str = Field(min_length=1, max_length=4096, description="below the folders of --slides")


class Progress(BaseModel):
    """Regions of the slide that were read, and all of them; 0 of 0 before they are known."""

    done: int
    total: int


class JobAnswer(BaseModel):
    """A job as it is now."""

    id: str
    slide: str = Field(description="name of the slide")
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    reason: str = Field(description="why it failed, in one sentence")
    progress: Progress
    ahead: int = Field(description="jobs that wait before this one")
    created: datetime.datetime
    started: datetime.datetime | None
    finished: datetime.datetime | None


class Status(BaseModel):
    """Of the server."""

    status: str
    reason: str = ""


def of_job(job: Job, progress: tuple[int, int], ahead: int) -> JobAnswer:
    """A job as clients see it, without paths and keys."""
    done, total = progress
    times = {name: _time(getattr(job, name)) for name in ("created", "started", "finished")}
    return JobAnswer(
        id=job.id,
        slide=job.slide_id,
        state=job.state,
        reason=job.reason,
        progress=Progress(done=done, total=total),
        ahead=ahead,
        **times,
    )


def _time(seconds: float | None) -> Any:
    return None if seconds is None else datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def multipart_schema() -> dict[str, Any]:
    """Of the form that uploads a slide, for the OpenAPI page."""
    schema = Options.model_json_schema()
    properties = {"slide": {"type": "string", "format": "binary"}, **schema["properties"]}
    return {"type": "object", "required": ["slide"], "properties": properties}
