"""Jobs on disk: in one state each, in the order in which they came, whoever is killed."""

import sqlite3

import pytest

pytest.importorskip("prometheus_client")

from lrmil_jax.errors import WorkdirError
from lrmil_jax.serve.jobs import FullError, Job, JobStore, new_id
from tests.serve.serving import Serving, wait_for


def job(name="a", **options):
    return Job(id=new_id(), slide_id=name, path=f"/{name}.tif", uploaded=False, **options)


@pytest.fixture
def store(tmp_path):
    store = JobStore(tmp_path, limit=2)
    yield store
    store.close()


def test_a_job_goes_through_its_states_once(store):
    first, is_new = store.add(job("a", mpp=0.25, key="k"))
    assert is_new
    assert (first.number, first.state, first.mpp, first.trust_mpp) == (1, "queued", 0.25, False)
    assert store.add(job("b", key="k")) == (first, False)
    assert store.by_key("k") == store.get(first.id) == first
    second, _ = store.add(job("b"))
    assert (store.ahead(first), store.ahead(second)) == (0, 1)
    running = store.begin_next()
    assert (running.id, running.state, running.starts) == (first.id, "running", 1)
    assert not store.cancel(first.id)
    assert not store.forget(first.id)
    assert store.finish(first.id, "done", regions=7)
    assert not store.finish(first.id, "failed", reason="again")
    done = store.get(first.id)
    assert (done.state, done.reason, done.regions) == ("done", "", 7)
    assert done.created <= done.started <= done.finished
    assert store.cancel(second.id)
    assert store.begin_next() is None
    assert store.counts() == {"queued": 0, "running": 0, "done": 1, "failed": 0, "cancelled": 1}
    assert store.forget(first.id)
    assert store.get(first.id) is None


def test_places_of_the_queue(store):
    with store.place():
        store.add(job())
    with store.place(), pytest.raises(FullError, match="2 jobs wait already"), store.place():
        pass
    store.begin_next()
    with store.place(), store.place():
        pass


def test_a_killed_server_goes_on_with_what_it_had_begun(tmp_path):
    store = JobStore(tmp_path, limit=9)
    ids = [store.add(job(name))[0].id for name in "abc"]
    store.begin_next()
    store.home(ids[0]).mkdir(parents=True)
    (store.home("stray") / "slide").mkdir(parents=True)
    store.close()  # every change was on disk before, as the next test shows
    again = JobStore(tmp_path, limit=9)
    assert again.recover() == 1
    assert [path.name for path in (tmp_path / "files").iterdir()] == [ids[0]]
    assert again.begin_next().id == ids[0]
    assert again.put_back(ids[0])
    assert not again.put_back(ids[0])
    assert again.begin_next().starts == 2
    assert again.recover() == 1
    assert again.begin_next().starts == 3
    assert again.recover() == 0
    lost = again.get(ids[0])
    assert (lost.state, again.begin_next().id) == ("failed", ids[1])
    assert lost.reason.startswith("the server was ended 3 times while it predicted this slide")
    again.close()


def test_what_was_told_is_on_disk(store, tmp_path):
    added, _ = store.add(job())
    other = sqlite3.connect(f"file:{tmp_path / 'jobs.sqlite'}?mode=ro", uri=True)
    assert other.execute("SELECT id, state FROM jobs").fetchall() == [(added.id, "queued")]
    assert store._base.execute("PRAGMA synchronous").fetchone() == (2,)  # full
    assert store._base.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()


def test_old_jobs_are_forgotten_with_their_files(store, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    old, _ = store.add(job("old"))
    store.begin_next()
    (store.home(old.id) / "result").mkdir(parents=True)
    store.finish(old.id, "done")
    now[0] += 50
    waits, _ = store.add(job("waits"))
    now[0] += 51
    assert store.forget_older(200) == 0
    assert store.forget_older(100) == 1
    assert store.get(old.id) is None
    assert not store.home(old.id).exists()
    assert store.get(waits.id).state == "queued"


@pytest.mark.parametrize("what", ["text", "other", "file"])
def test_a_folder_that_cannot_be_used_is_told(tmp_path, what):
    folder = tmp_path / "jobs"
    if what == "file":
        folder.write_text("")
    else:
        folder.mkdir()
    if what == "text":
        (folder / "jobs.sqlite").write_text("this is no database" * 99)
    if what == "other":
        base = sqlite3.connect(folder / "jobs.sqlite")
        base.execute("PRAGMA user_version = 9")
        base.close()
    with pytest.raises(WorkdirError, match="schema 9" if what == "other" else "cannot be used"):
        JobStore(folder, limit=1)


def test_a_worker_that_is_to_stop_finishes_or_puts_back(tmp_path):
    serving = Serving(tmp_path, limit=9)
    slide = tmp_path / "a.tif"
    slide.write_bytes(b"good")
    ids = [serving.store.add(Job(id=new_id(), slide_id=name, path=str(slide), uploaded=False))[0].id
           for name in "ab"]  # fmt: skip
    serving.worker.start()
    wait_for(lambda: serving.model.seen)
    assert not serving.worker.stop(0.01)
    first = serving.store.get(ids[0])
    assert (first.state, first.starts) == ("queued", 0)
    serving.model.go.set()
    assert serving.worker.stop(20)  # the process would have ended; what it wrote stays unanswered
    assert serving.store.get(ids[0]).state == "queued"
    assert serving.model.seen == ["a"]
    assert serving.store.get(ids[1]).state == "queued"
    serving.close()


def test_a_model_that_cannot_be_loaded_ends_the_worker(tmp_path):
    serving, ended = Serving(tmp_path), []

    def load():
        raise WorkdirError("no model")

    serving.worker._load = load
    serving.worker.start(ended=lambda: ended.append(True))
    wait_for(lambda: not serving.worker.is_alive)
    assert (serving.worker.failure, ended) == ("no model", [True])
    serving.close()
