"""The server itself under load: 100 requests, 8 at once, killed and started again in the middle.
Then SIGTERM, and mistakes of whoever starts it."""

import collections
import concurrent.futures
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import lrmil_jax
from lrmil_jax.slides import synthetic
from tests.integration import random_model
from tests.integration.runs import ROOT, environment
from tests.serve.serving import ENDED, wait_for

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx2")

pytestmark = pytest.mark.slow

REQUESTS, AT_ONCE = 100, 8


class Server:
    """`lrmil serve` in a process of its own."""

    def __init__(self, cache, home, *options, port=0):
        self.lines = []
        places = ("--model", home / "model", "--jobs", home / "jobs", "--slides", home / "slides")
        command = [sys.executable, "-m", "lrmil_jax.command", "serve", *places, "--port", port]
        self.process = subprocess.Popen(
            [*map(str, (*command, *options))],
            cwd=ROOT,
            env=environment(cache),
            text=True,
            stderr=subprocess.PIPE,
        )
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()

    def _listen(self):
        with self.process.stderr as lines:
            for line in lines:
                self.lines.append(line)

    @property
    def text(self):
        return "".join(self.lines)

    def port(self):
        found = wait_for(lambda: re.search(r"serving on http://127.0.0.1:(\d+)", self.text), 120)
        return int(found[1])

    def end(self, name=None):
        """Its exit status, after a signal."""
        if name is not None:
            self.process.send_signal(name)
        status = self.process.wait(60)
        self._listening.join(60)
        return status


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model with random weights and eight small slides."""
    home = tmp_path_factory.mktemp("serve")
    weights = random_model.write_weights(home / "weights.safetensors")
    random_model.write_model(home / "model", weights)
    (home / "slides").mkdir()
    for number in range(8):
        image, _ = synthetic.tissue_image(
            np.random.default_rng(number), size_px=512 + 128 * number, positive=bool(number % 2)
        )
        synthetic.write_slide(home / "slides" / f"s{number}.tif", image, mpp=0.5)
    (home / "slides" / "torn.tif").write_bytes(b"no slide")
    return home


class Client:
    """Sends slides as a careful client does: again under the same key where no answer came, and
    later where there is no room."""

    def __init__(self, port, home):
        self.home, self.counts = home, collections.Counter()
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        self.close = self._http.close

    def ask(self, method, path, **options):
        end = time.monotonic() + 200
        while time.monotonic() < end:
            try:
                answer = self._http.request(method, path, **options)
            except httpx.TransportError:
                self.counts["no answer"] += 1
                time.sleep(0.1)
                continue
            if answer.status_code not in (429, 503):
                return answer
            self.counts[answer.status_code] += 1
            time.sleep(0.2)
        raise AssertionError("the server does not come back")

    def submit(self, number):
        """The name of the request's slide, and its job: every other one is uploaded."""
        name = "torn" if number % 25 == 24 else f"s{number % 8}"
        path, key = self.home / "slides" / f"{name}.tif", {"Idempotency-Key": f"request {number}"}
        if number % 2:
            answer = self.ask("POST", "/jobs", json={"path": path.name}, headers=key)
        else:
            slide = {"slide": (path.name, path.read_bytes())}
            answer = self.ask("POST", "/jobs", files=slide, headers=key)
        assert answer.status_code in (200, 202), answer.text
        return name, answer.json()["id"]

    def predicted(self, number):
        """Request, slide, job at its end, and seconds to it."""
        start = time.monotonic()
        name, job_id = self.submit(number)
        while True:
            job = self.ask("GET", f"/jobs/{job_id}").json()
            if job["state"] in ENDED:
                return number, name, job, time.monotonic() - start
            time.sleep(0.05)


def jobs_of(home):
    base = sqlite3.connect(f"file:{home / 'jobs/jobs.sqlite'}?mode=ro", uri=True)
    try:
        return base.execute("SELECT id, key, state, starts, finished FROM jobs").fetchall()
    finally:
        base.close()


def test_100_requests_8_at_once_with_a_kill_in_the_middle(home, cache, record_property):
    options = ("--queue", 6)  # fewer than come at once, so that some are sent away
    server = Server(cache, home, *options)
    port = server.port()
    client, start = Client(port, home), time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        answers = [pool.submit(client.predicted, number) for number in range(REQUESTS)]
        wait_for(lambda: sum(map(concurrent.futures.Future.done, answers)) >= REQUESTS // 2, 200)
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        before = {row[0]: row for row in jobs_of(home) if row[2] in ENDED}
        server = Server(cache, home, *options, port=port)
        found = [answer.result() for answer in answers]
    seconds = time.monotonic() - start
    assert client.counts["no answer"] > 0
    rows = {row[0]: row for row in jobs_of(home)}
    # None lost, none made of one request twice, none that had ended was begun again.
    assert sorted(row[1] for row in rows.values()) == sorted(
        f"request {number}" for number in range(REQUESTS)
    )
    assert len({job["id"] for _, _, job, _ in found}) == REQUESTS
    assert len(before) >= REQUESTS // 2
    assert {job_id: rows[job_id] for job_id in before} == before
    assert sum(row[3] for row in rows.values()) <= REQUESTS + 1  # the one in hand
    _check_results(client, home, found)
    again = client.submit(1)[1]
    assert again == next(job["id"] for number, _, job, _ in found if number == 1)
    assert len(jobs_of(home)) == REQUESTS
    client.close()
    assert server.end(signal.SIGTERM) == 0
    latencies = np.quantile([one[3] for one in found], [0.5, 0.95])
    text = (
        f"{REQUESTS} requests in {seconds:.1f} s, {AT_ONCE} at once; latency p50 "
        f"{latencies[0]:.2f} s, p95 {latencies[1]:.2f} s; {client.counts[429]} times no room, "
        f"{client.counts['no answer']} times no answer; {len(before)} had ended before the kill"
    )
    record_property("load", text)
    print(text)


def _check_results(client, home, found):
    """Each is what the model says of its slide."""
    model = lrmil_jax.load_model(home / "model")
    said = {f"s{number}": model.predict(home / f"slides/s{number}.tif").probabilities
            for number in range(8)}  # fmt: skip
    for _, name, job, _ in found:
        if name == "torn":
            assert job["state"] == "failed"
            assert "torn.tif" in job["reason"]
            continue
        assert (job["state"], job["slide"]) == ("done", name)
        assert job["progress"]["done"] == job["progress"]["total"] > 0
        result = client.ask("GET", f"/jobs/{job['id']}/result").json()
        assert result["slide_id"] == name
        for value, probability in said[name].items():
            assert result["probabilities"][value] == pytest.approx(probability, abs=1e-5)
        drawn = client.ask("GET", f"/jobs/{job['id']}/geojson").json()
        assert len(drawn["features"]) == result["lr_patches"]


def test_mistakes_of_whoever_starts_it(home, cache, tmp_path):
    def refused(*options):
        server = Server(cache, home, *options)
        assert server.end() == 1
        assert "Traceback" not in server.text
        return server.lines[-1]

    assert "no model.json; give the folder" in refused(
        "--model", tmp_path, "--jobs", tmp_path / "a"
    )
    assert "lets other machines in; give a token" in refused("--host", "0.0.0.0")
    first = Server(cache, home, "--jobs", tmp_path / "b")
    port = first.port()
    assert "another server is at work in" in refused("--jobs", tmp_path / "b")
    taken = refused("--jobs", tmp_path / "c", "--port", port)
    assert f"--port {port} cannot be listened at (Address already in use)" in taken
    assert first.end(signal.SIGTERM) == 0
    assert "stopped; jobs that wait are kept in" in first.text
