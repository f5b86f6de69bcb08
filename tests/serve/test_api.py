"""The HTTP interface, with a stand-in for the model."""

import json
import shutil
import sqlite3

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx2")
pytest.importorskip("python_multipart")

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from lrmil_jax.serve import api, intake
from lrmil_jax.serve.submission import Settings
from tests.serve.serving import ENDED, Serving, wait_for


@pytest.fixture
def slides(tmp_path):
    folder = tmp_path / "slides"
    (folder / "deep").mkdir(parents=True)
    for name in ("a", "b", "deep/c"):
        (folder / f"{name}.tif").write_bytes(name.encode())
    (tmp_path / "secret.tif").write_bytes(b"secret")
    (folder / "link.tif").symlink_to(tmp_path / "secret.tif")
    (folder / "inner.tif").symlink_to(folder / "deep/c.tif")
    return folder


@pytest.fixture
def serving(tmp_path):
    serving = Serving(tmp_path / "jobs")
    yield serving
    serving.close()


def client_of(serving, slides=(), **options):
    options = {"max_upload": 1000} | options
    settings = Settings(slides=tuple(slides), **options)
    return TestClient(api.create(settings, serving.store, serving.worker, serving.metrics))


@pytest.fixture
def client(serving, slides):
    return client_of(serving, [slides])


def upload(client, content=b"good", name="u.tif", data=None, **headers):
    return client.post("/jobs", files={"slide": (name, content)}, data=data or {}, headers=headers)


def ended(client, job_id):
    def answer():
        found = client.get(f"/jobs/{job_id}").json()
        return found if found["state"] in ENDED else None

    return wait_for(answer)


def test_an_uploaded_slide_from_waiting_to_its_result(client, serving):
    answer = upload(client, name="../x/my slide?.svs", data={"mpp": "0.25"})
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/jobs/{job['id']}"
    assert (job["slide"], job["state"], job["ahead"]) == ("my slide_", "queued", 0)
    assert job["progress"] == {"done": 0, "total": 0}
    (file,) = (serving.store.home(job["id"]) / "slide").iterdir()
    assert (file.name, file.read_bytes()) == ("my slide_.svs", b"good")
    early = client.get(f"/jobs/{job['id']}/result")
    assert (early.status_code, early.json()) == (409, {"detail": "the job is queued"})
    serving.worker.start()
    wait_for(lambda: serving.model.seen)
    running = client.get(f"/jobs/{job['id']}").json()
    assert (running["state"], running["progress"]) == ("running", {"done": 1, "total": 4})
    assert client.delete(f"/jobs/{job['id']}").status_code == 409
    serving.model.go.set()
    done = ended(client, job["id"])
    assert (done["state"], done["progress"]) == ("done", {"done": 4, "total": 4})
    assert done["created"] <= done["started"] <= done["finished"]
    result = client.get(f"/jobs/{job['id']}/result")
    assert result.headers["content-type"] == "application/json"
    assert result.json()["said"] == "good"
    assert result.json()["mpp"] == 0.25
    drawn = client.get(f"/jobs/{job['id']}/geojson")
    assert drawn.headers["content-type"] == "application/geo+json"
    assert drawn.json() == {"features": []}
    wait_for(lambda: not file.exists())  # the upload is not kept
    assert client.delete(f"/jobs/{job['id']}").status_code == 200
    assert client.get(f"/jobs/{job['id']}").status_code == 404
    assert not serving.store.home(job["id"]).exists()


def test_a_slide_that_cannot_be_predicted_has_failed_with_its_sentence(client, serving):
    serving.model.go.set()
    serving.worker.start()
    bad, odd = (upload(client, content).json()["id"] for content in (b"bad", b"odd"))
    assert (ended(client, bad)["state"], ended(client, bad)["reason"]) == (
        "failed",
        "u.tif: no slide",
    )
    assert ended(client, odd)["reason"] == "u: ZeroDivisionError: odd"
    answer = client.get(f"/jobs/{bad}/result")
    assert (answer.status_code, answer.json()["detail"]) == (
        409,
        "the job is failed: u.tif: no slide",
    )
    assert ended(client, upload(client).json()["id"])["state"] == "done"


def test_the_same_key_is_the_same_job(client, serving):
    first = upload(client, **{"Idempotency-Key": "k"})
    again = upload(client, b"something else", **{"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    assert serving.store.counts()["queued"] == 1
    assert len(list((serving.store.folder / "files").iterdir())) == 1


def test_paths_lie_below_the_folders_that_were_given(client, slides, serving):
    def post(path):
        return client.post("/jobs", json={"path": str(path), "mpp": 0.5, "trust_mpp": True})

    for path in ("deep/c.tif", slides / "a.tif", "inner.tif"):
        answer = post(path)
        assert answer.status_code == 202
        job = serving.store.get(answer.json()["id"])
        assert job.path == str((slides / path).resolve())
        assert (job.uploaded, job.mpp, job.trust_mpp) == (False, 0.5, True)
        serving.store.cancel(job.id)
    for path in ("../secret.tif", "link.tif", "/etc/passwd", "deep/../../secret.tif", "../no.tif"):
        assert (post(path).status_code, post(path).json()["detail"]) == (
            403, "path lies outside of the folders given by --slides")  # fmt: skip
    assert post("no.tif").status_code == 422
    assert (
        post("no.tif").json()["detail"] == "there is no slide no.tif; give its path below --slides"
    )
    assert post("a\0.tif").status_code == 422
    assert client_of(serving).post("/jobs", json={"path": "a.tif"}).status_code == 403


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        ({"json": {"path": "a.tif", "mmp": 1}}, 422, "mmp: Extra inputs are not permitted"),
        ({"json": {"path": "a.tif", "mpp": "no"}}, 422, "mpp: Input should be a valid number"),
        ({"json": {"mpp": 1}}, 422, "path: Field required"),
        ({"json": {"path": "a" * 70_000}}, 413, "the JSON has more than 65536 bytes"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "Invalid JSON"),
        ({"content": b"slide"}, 415, "send multipart/form-data with the file `slide`"),
        ({"files": {"mpp": (None, b"1")}}, 422, "the form has no slide; send multipart"),
        ({"files": {"other": ("a", b"1" * 5000)}}, 422, "the form has no slide: its file is the"),
        ({"files": {"slide": ("a", b"1")}, "data": {"mp": "1"}}, 422, "the form's part 'mp' is"),
        ({"files": {"slide": ("a", b"1")}, "data": {"mpp": "-1"}}, 422, "mpp: Input should be gr"),
        ({"files": {"slide": ("a", b"1")}, "data": {"mpp": "1" * 5000}}, 413, "the form's fields"),
        ({"files": [("slide", ("a", b"1")), ("slide", ("b", b"1"))]}, 422, "is to be one file"),
        ({"files": {"slide": ("a", b"1" * 1001)}}, 413, "the most that this server takes"),
        ({"files": {"slide": ("a", b"1" * 2_000_000)}}, 413, "the most that this server takes"),
        ({"files": [(str(n), (None, b"1")) for n in range(20)]}, 400, "more than 16 parts"),
    ],
)  # fmt: skip
def test_what_is_not_right_is_told_and_nothing_stays(options, status, sentence, client, serving):
    answer = client.post("/jobs", **options)
    assert answer.status_code == status
    assert sentence in answer.json()["detail"]
    assert sum(serving.store.counts().values()) == 0
    assert list((serving.store.folder / "files").glob("*")) == []
    with serving.store.place(), serving.store.place(), serving.store.place():
        pass  # and no place is lost


def test_a_form_that_ends_in_the_middle(client, serving):
    start = b'--x\r\nContent-Disposition: form-data; name="slide"; filename="a.tif"\r\n\r\nhalf'
    kind = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/jobs", content=start, headers=kind)
    assert (answer.status_code, answer.json()["detail"]) == (
        400, "the form ends in the middle; send it again")  # fmt: skip
    answer = client.post("/jobs", content=b"--y\r\n", headers=kind)
    assert answer.status_code == 400
    assert "the form is broken" in answer.json()["detail"]
    assert list((serving.store.folder / "files").glob("*")) == []


def test_a_full_queue_and_a_full_disk(client, serving, monkeypatch):
    for _ in range(3):
        assert upload(client).status_code == 202
    answer = upload(client)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "10")
    assert answer.json()["detail"] == "3 jobs wait already; come again later"
    first = client.get("/jobs/" + serving.store.begin_next().id).json()
    assert upload(client).json()["ahead"] == 2
    assert client.delete(f"/jobs/{first['id']}").status_code == 409
    usage = shutil._ntuple_diskusage(10**12, 10**12, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    serving.store.begin_next()
    answer = upload(client)
    assert (answer.status_code, answer.json()["detail"][:41]) == (
        507, "the server's disk has 0.0 GiB left, too l")  # fmt: skip


def test_a_job_that_cannot_be_kept_is_not_told_of(client, serving, monkeypatch):
    def full(_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(serving.store, "add", full)
    answer = upload(client)
    assert (answer.status_code, answer.json()["detail"]) == (
        507, "the server cannot keep jobs (is its disk full?); ask whoever runs it")  # fmt: skip


def test_a_job_that_waits_can_be_cancelled(client, serving):
    job_id = upload(client).json()["id"]
    assert client.delete(f"/jobs/{job_id}").json()["state"] == "cancelled"
    assert client.get(f"/jobs/{job_id}/result").status_code == 409
    assert not serving.store.home(job_id).exists()
    assert client.delete("/jobs/none").status_code == 404


def test_probes_and_the_model(client, serving):
    assert client.get("/ready").json()["reason"] == "the model is being loaded"
    assert client.get("/model").status_code == 503
    serving.worker.start()
    wait_for(lambda: client.get("/ready").status_code == 200)
    assert client.get("/health").json() == {"status": "ok", "reason": ""}
    assert client.get("/model").json() == {"method": "lrmil"}
    serving.worker.stop(20)
    assert client.get("/ready").status_code == 503
    assert upload(client).status_code == 503


def test_a_server_whose_model_broke_is_not_healthy(client, serving):
    serving.worker._load = lambda: 1 / 0
    serving.worker.start()
    wait_for(lambda: not serving.worker.is_alive)
    answer = client.get("/health")
    assert answer.status_code == 503
    assert answer.json()["reason"] == "ZeroDivisionError: division by zero"


def test_a_token_guards_all_but_probes_and_pages(serving):
    client = client_of(serving, token="0123456789abcdef")
    assert upload(client).status_code == 401
    for path in ("/model", "/metrics", "/jobs/x", "/jobs/x/result"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert (
        client.get("/metrics", headers={"Authorization": "Bearer wröng".encode()}).status_code
        == 401
    )
    right = {"Authorization": "Bearer 0123456789abcdef"}
    assert upload(client, **right).status_code == 202
    for path in ("/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
    assert client.get("/health").json()["reason"] == "nothing predicts"


def test_other_names_of_the_machine_are_refused(serving):
    client = client_of(serving, hosts=("localhost",))
    assert client.get("/model").status_code == 400  # called by the name testserver
    assert client.get("/ready", headers={"Host": "localhost:8000"}).status_code == 503


def test_what_prometheus_reads(client, serving):
    upload(client)
    serving.model.go.set()
    serving.worker.start()
    ended(client, upload(client, b"bad").json()["id"])
    wait_for(lambda: serving.store.counts()["failed"])
    client.get("/jobs/none")
    text = client.get("/metrics").text
    families = text_string_to_metric_families(text)
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, *sample.labels.values()): sample.value for sample in samples}
    assert found["lrmil_jobs", "done"] == found["lrmil_jobs", "failed"] == 1
    assert found["lrmil_jobs_finished_total", "done"] == 1
    assert found["lrmil_job_seconds_count",] == found["lrmil_job_wait_seconds_count",] == 2
    assert found["lrmil_predict_seconds_total", "read"] == 0.5
    assert found["lrmil_patches_encoded_total",] == 4
    assert found["lrmil_http_requests_total", "POST", "/jobs", "202"] == 2
    assert found["lrmil_http_requests_total", "GET", "/jobs/{job_id}", "404"] == 1


def test_the_interface_says_what_it_takes(client):
    page = client.get("/openapi.json").json()
    kinds = page["paths"]["/jobs"]["post"]["requestBody"]["content"]
    form = kinds["multipart/form-data"]["schema"]["properties"]
    assert set(form) == {"slide", "mpp", "trust_mpp"}
    assert "path" in kinds["application/json"]["schema"]["properties"]
    assert {"/jobs/{job_id}/result", "/jobs/{job_id}/geojson", "/health"} <= set(page["paths"])
    assert json.dumps(page).count("functools") == 0


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a.svs", "a.svs"), ("/etc/passwd", "passwd"), ("C:\\x\\b c.ndpi", "b c.ndpi"),
        ("..", "slide"), ("", "slide"), (".hidden.tif", "hidden.tif"), ("a\nb*.tif", "a_b_.tif"),
        ("é.tif", "\u00e9.tif"), ("x" * 300 + ".tif", "x" * 116 + ".tif"),
        ("ä" * 300 + ".tif", "ä" * 58 + ".tif"),
    ],
)  # fmt: skip
def test_names_of_uploads(text, name):
    assert intake.safe_name(text) == name
