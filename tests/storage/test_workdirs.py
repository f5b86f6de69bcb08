"""A working directory in a bucket has exactly one of the states that were saved, whatever is killed
when; fsspec's file system in memory stands for the bucket."""

import contextlib
import json
import os
import shutil

import pytest

from lrmil_jax import files
from lrmil_jax.errors import ConfigError, WorkdirError
from lrmil_jax.storage import attempts, leases, objects, scratch, workdirs
from lrmil_jax.storage.workdirs import Work

memory = pytest.importorskip("fsspec.implementations.memory")
URL = "s3://bucket/runs/a"
FIRST = {"config.json": "1", "regions/a": "a", "regions/b": "b", "teacher/stage.json": "begun",
         "view/a": ("../regions/a",)}  # fmt: skip
SECOND = {"config.json": "2", "regions/a": "a", "regions/c": "c", "teacher/stage.json": "done",
          "teacher/head": "x", "view/a": "a link once", "view/b": ("../regions/a",)}  # fmt: skip


class KilledError(BaseException):
    """As if the process had been killed."""


class Bucket:
    """fsspec's file system in memory, which can end the process that writes.

    Attributes:
      writes: how many there were.
      kill: before which write it ends; None: never.
    """

    def __init__(self):
        self._system = memory.MemoryFileSystem()
        self._system.store.clear()
        self.writes, self.kill = 0, None

    def __getattr__(self, name):
        function = getattr(self._system, name)
        if name not in ("pipe_file", "put_file", "cp_file", "rm_file"):
            return function

        def write(*arguments, **options):
            self.writes += 1
            if self.kill is not None and self.writes >= self.kill:
                raise KilledError
            function(*arguments, **options)

        return write

    def content(self):
        return {name: file.getvalue() for name, file in self._system.store.items()}

    def restart(self, content):
        """From a content, as `content` gave it."""
        self.writes, self.kill = 0, None
        self._system.store.clear()
        for name, value in content.items():
            self._system.pipe_file(name, value)


@pytest.fixture
def bucket(monkeypatch):
    """What s3:// leads to. Leases of killed runs are stale at once."""
    made = Bucket()
    monkeypatch.setattr(objects, "filesystem", lambda scheme: made)
    monkeypatch.setattr(attempts, "_PAUSE", 0)
    monkeypatch.setattr(leases, "_SETTLED", 0)
    monkeypatch.setattr(leases, "_STALE", -1)
    monkeypatch.setattr(files, "_sync", lambda path: None)
    # One after another, so that a number says which write it is.
    monkeypatch.setattr("lrmil_jax.storage.transactions._THREADS", 1)
    return made


def put(folder, files):
    """Makes a folder hold just these files; a tuple stands for a link."""
    for path in folder.iterdir():
        if path.name != ".lrmil_jax":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    add(folder, files)


def add(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(*content) if isinstance(content, tuple) else path.write_text(content)


def held(folder):
    """What a folder holds, in the form of `put`."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = (os.readlink(path),)
        elif path.is_file() and not name.startswith(".lrmil_jax/"):
            found[name] = path.read_text()
    return found


def run(scratch_folder, files, work=None, *, url=URL):
    """A run that finds something, and leaves these files, of which it saves once."""
    with workdirs.opened(url, work or Work(), str(scratch_folder)) as workdir:
        before = held(workdir.folder)
        if files is not None:
            put(workdir.folder, files)
            workdir.save()
    return before


def restored(folder, work=None, *, url=URL):
    """What another host finds."""
    shutil.rmtree(folder, ignore_errors=True)
    return run(folder, None, work, url=url)


def names(bucket):
    """Of the objects in the bucket."""
    return {name.removeprefix("/bucket/runs/a/") for name in bucket.content()}


def kills(bucket, content, function):
    """Runs a function killed before each write, so after the one before; yields after each."""
    bucket.restart(content)
    function()
    count = bucket.writes
    for number in range(1, count + 2):  # the last one is not killed
        bucket.restart(content)
        bucket.kill = number
        with contextlib.suppress(KilledError):
            function()
        bucket.kill = None
        yield number


def test_another_host_finds_what_was_saved(bucket, tmp_path):
    assert run(tmp_path / "one", FIRST) == {}
    assert names(bucket) == {path for path in FIRST if path != "view/a"} | {
        ".lrmil_jax/manifest.json"
    }
    assert run(tmp_path / "two", SECOND) == FIRST
    assert bucket.content()["/bucket/runs/a/config.json"] == b"2"  # under its plain name
    assert names(bucket) == {path for path in SECOND if path != "view/b"} | {
        ".lrmil_jax/manifest.json"
    }
    assert run(tmp_path / "one", None) == SECOND  # whose local files were of the first
    bucket.writes = 0
    run(tmp_path / "one", SECOND)
    assert bucket.writes == 2  # the lease, put and removed: nothing else has changed


def test_a_save_that_is_killed_anywhere_leaves_one_of_the_two_states(bucket, tmp_path):
    run(tmp_path / "first", FIRST)
    content = bucket.content()
    found = []

    def save():
        shutil.rmtree(tmp_path / "second", ignore_errors=True)
        run(tmp_path / "second", SECOND)

    for when in kills(bucket, content, save):
        found.append(restored(tmp_path / "other"))
        assert found[-1] in (FIRST, SECOND), when
        run(tmp_path / "other", FIRST)  # and what was left over is removed by the next save
        assert names(bucket) == {path for path in FIRST if path != "view/a"} | {
            ".lrmil_jax/manifest.json"
        }, when
    assert FIRST in found
    assert SECOND in found


@pytest.mark.slow
def test_a_restore_after_a_killed_save_may_be_killed_too(bucket, tmp_path):
    run(tmp_path / "first", FIRST)
    content = bucket.content()

    def save():
        shutil.rmtree(tmp_path / "second", ignore_errors=True)
        run(tmp_path / "second", SECOND)

    for when in list(kills(bucket, content, save)):
        bucket.restart(content)
        bucket.kill = when
        with contextlib.suppress(KilledError):
            save()
        bucket.kill = None
        half = bucket.content()
        wanted = restored(tmp_path / "other")
        for _ in kills(bucket, half, lambda: restored(tmp_path / "killed")):
            assert restored(tmp_path / "other") == wanted


def test_work_that_was_not_saved_stays_on_its_host(bucket, tmp_path, caplog):
    run(tmp_path / "one", FIRST)
    content = bucket.content()
    with (
        contextlib.suppress(KilledError),
        workdirs.opened(URL, Work(), str(tmp_path / "one")) as workdir,
    ):
        put(workdir.folder, SECOND)
        bucket.kill = 0
        raise KilledError
    bucket.restart(content)
    assert run(tmp_path / "one", None) == SECOND
    assert restored(tmp_path / "two") == SECOND
    assert "given up" not in caplog.text


def test_work_that_was_not_saved_is_given_up_where_another_host_has_saved(bucket, tmp_path, caplog):
    run(tmp_path / "one", FIRST)
    content = bucket.content()
    with (
        contextlib.suppress(KilledError),
        workdirs.opened(URL, Work(), str(tmp_path / "one")) as workdir,
    ):
        add(workdir.folder, {"teacher/stage.json": "done", "teacher/head": "mine"})
        bucket.kill = 0
        raise KilledError
    bucket.restart(content)
    run(tmp_path / "two", SECOND)
    assert run(tmp_path / "one", None) == SECOND
    assert "1 files that a run on this host had not saved are given up" in caplog.text


def test_what_is_passing_and_what_is_of_others_is_let_be(bucket, tmp_path):
    bucket.pipe_file("bucket/runs/a/slides/s.svs", b"of the user")
    run(tmp_path / "one", {**FIRST, ".lock": "", "regions/.a.lock": "", "x/.b.0a1b2c3d.tmp": "half",
                           ".teacher.stale/head": "old"})  # fmt: skip
    assert restored(tmp_path / "two") == FIRST
    assert "slides/s.svs" in names(bucket)


def test_links_that_lead_out_are_saved_as_what_they_lead_to(bucket, tmp_path):
    add(tmp_path / "outside", {"features/a": "1", "file": "2"})
    run(tmp_path / "one", {"features": (str(tmp_path / "outside/features"),),
                           "file": (str(tmp_path / "outside/file"),)})  # fmt: skip
    assert restored(tmp_path / "two") == {"features/a": "1", "file": "2"}


def end(scratch_folder, files, error):
    """A run that ends so."""
    with workdirs.opened(URL, Work(), str(scratch_folder)) as workdir:
        put(workdir.folder, files)
        raise error


def test_a_mistake_keeps_what_was_done_and_a_stop_by_hand_does_not_wait(bucket, tmp_path):
    for kind in (WorkdirError, SystemExit):
        with pytest.raises(kind):
            end(tmp_path / "one", {"done": kind.__name__}, kind("of a stage"))
        assert restored(tmp_path / "two") == {"done": kind.__name__}
    with pytest.raises(KeyboardInterrupt):
        end(tmp_path / "one", {"done": "by hand"}, KeyboardInterrupt())
    assert restored(tmp_path / "two") == {"done": "SystemExit"}


def test_only_what_was_written_of_a_part(bucket, tmp_path):
    run(tmp_path / "one", FIRST)
    part = Work(below=("predictions",))
    assert run(tmp_path / "part", {"predictions/a.csv": "p", "config.json": "not mine"}, part) == {}
    assert restored(tmp_path / "two") == {**FIRST, "predictions/a.csv": "p"}
    assert restored(tmp_path / "part", part) == {"predictions/a.csv": "p"}


SHARD_1, SHARD_2 = Work("1-of-2"), Work("2-of-2")


def test_shards_are_joined(bucket, tmp_path):
    run(tmp_path / "whole", FIRST)
    with (
        workdirs.opened(URL, SHARD_1, str(tmp_path / "s1")) as one,
        workdirs.opened(URL, SHARD_2, str(tmp_path / "s2")) as two,  # at the same time
    ):
        assert held(one.folder) == held(two.folder) == FIRST
        add(one.folder, {"regions/c": "1", "shards.json": "same"})
        (one.folder / "regions/b").unlink()
        one.save()
        add(two.folder, {"regions/d": "2", "regions/a": "changed", "shards.json": "same"})
    wanted = {**FIRST, "regions/a": "changed", "regions/c": "1", "regions/d": "2",
              "shards.json": "same"}  # fmt: skip
    del wanted["regions/b"]
    assert restored(tmp_path / "s3", Work("1-of-3")) == wanted
    assert run(tmp_path / "s1", {**wanted, "regions/a": "anew"}, SHARD_1) == wanted
    wanted["regions/a"] = "anew"  # over what the other one had made
    content = bucket.content()
    assert restored(tmp_path / "two") == wanted
    assert names(bucket) == {path for path in wanted if path != "view/a"} | {
        ".lrmil_jax/manifest.json"
    }
    for when in kills(bucket, content, lambda: run(tmp_path / "two", SECOND)):
        assert restored(tmp_path / "other") in (wanted, SECOND), when


def test_a_shard_that_is_killed_anywhere(bucket, tmp_path):
    run(tmp_path / "whole", FIRST)
    run(tmp_path / "s1", {**FIRST, "regions/c": "1"}, SHARD_1)
    content, before = bucket.content(), {**FIRST, "regions/c": "1"}

    def save():
        shutil.rmtree(tmp_path / "s2", ignore_errors=True)
        run(tmp_path / "s2", SECOND, SHARD_2)

    found = []
    for when in kills(bucket, content, save):
        half = bucket.content()
        found.append(restored(tmp_path / "s1", SHARD_1))  # which runs beside it
        assert found[-1] in (before, SECOND), when
        bucket.restart(half)
        assert restored(tmp_path / "other") == found[-1], when
        assert not [name for name in names(bucket) if "incoming" in name or "uploads" in name]
    assert before in found
    assert SECOND in found


def test_shards_that_disagree(bucket, tmp_path):
    sentence = r"^shards.json of shard 2/2 and of shard 1/2 differ: all shards need the same config"
    with workdirs.opened(URL, SHARD_1, str(tmp_path / "s1")) as one:
        add(one.folder, {"shards.json": "one config"})
        with contextlib.ExitStack() as stack:
            two = stack.enter_context(workdirs.opened(URL, SHARD_2, str(tmp_path / "s2")))
            add(two.folder, {"shards.json": "another"})
            one.save()
            with pytest.raises(WorkdirError, match=sentence):
                two.save()
            (two.folder / "shards.json").unlink()
    assert restored(tmp_path / "whole") == {"shards.json": "one config"}


def test_one_run_at_a_time(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "_STALE", 300)
    for holder, other in ((Work(), Work()), (Work(), SHARD_1), (SHARD_1, Work()),
                          (SHARD_1, SHARD_1), (SHARD_1, Work("1-of-3"))):  # fmt: skip
        with workdirs.opened(URL, holder, str(tmp_path / "one")):
            with pytest.raises(WorkdirError, match=r"^(a run|shard 1/2) on .* UTC\) is at work in"):
                run(tmp_path / "two", FIRST, other)
            with pytest.raises(WorkdirError, match=r"^another run is at work in .*--scratch$"):
                run(tmp_path / "one", FIRST, other)
    assert names(bucket) == set()


def test_a_run_that_was_killed_is_known_on_its_own_host_at_once(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "_STALE", 300)
    with contextlib.suppress(KilledError), workdirs.opened(URL, Work(), str(tmp_path / "one")):
        bucket.kill = 0
        raise KilledError
    bucket.kill = None
    with pytest.raises(WorkdirError, match="is at work in s3://bucket/runs/a; wait for it"):
        run(tmp_path / "two", FIRST)
    run(tmp_path / "one", FIRST)
    assert run(tmp_path / "two", None) == FIRST


def test_who_was_taken_for_dead_saves_nothing(bucket, tmp_path):
    sentence = r"^this run was taken for ended.* a run on .* has taken"
    run(tmp_path / "other", SECOND)
    stack = contextlib.ExitStack()
    one = stack.enter_context(workdirs.opened(URL, Work(), str(tmp_path / "one")))
    put(one.folder, FIRST)
    with workdirs.opened(URL, Work(), str(tmp_path / "two")):
        with pytest.raises(WorkdirError, match=sentence):
            one.save()
        with pytest.raises(WorkdirError, match=sentence):
            stack.close()
    assert restored(tmp_path / "other") == SECOND


def test_folders_that_hold_other_things_are_let_be(bucket, tmp_path):
    add(tmp_path / "home", {"thesis.tex": "years"})
    with pytest.raises(ConfigError, match="home holds other files, which would be removed"):
        run(tmp_path / "home", FIRST)
    run(tmp_path / "one", FIRST)
    with pytest.raises(
        ConfigError, match=r"one stands for s3://bucket/runs/a; give s3://bucket/runs/b"
    ):
        run(tmp_path / "one", FIRST, url="s3://bucket/runs/b")
    assert (tmp_path / "home/thesis.tex").read_text() == "years"
    assert scratch.folder(URL, "", None) != scratch.folder(URL, "1-of-2", None)
    assert (
        scratch.folder(URL, "", None).parent == scratch.folder("s3://bucket/runs", "", None).parent
    )


@pytest.mark.parametrize(
    ("path", "entry"),
    [
        ("../x", {"md5": "0"}),
        ("/etc/x", {"md5": "0"}),
        ("a/../../x", {"md5": "0"}),
        ("a", {"link": "../x"}),
        ("a", {"link": "/etc"}),
        ("link/x", {"md5": "0"}),
        (".lrmil_jax/state.json", {"md5": "0"}),
        ("a", {"size": "many", "other": 1}),
    ],
)
def test_a_manifest_that_leads_out_of_the_folder_is_refused(bucket, tmp_path, path, entry):
    files = {path: entry, "link": {"link": "regions"}}
    value = {"schema": 1, "save": "0", "files": files, "changing": [], "removing": []}
    bucket.pipe_file("bucket/runs/a/.lrmil_jax/manifest.json", json.dumps(value).encode())
    with pytest.raises(WorkdirError, match=r"manifest.json is not what this version of lrmil_jax"):
        run(tmp_path / "one", None)


def test_what_came_is_compared_with_what_was_saved(bucket, tmp_path):
    run(tmp_path / "one", FIRST)
    bucket.pipe_file("bucket/runs/a/regions/a", b"b")
    with pytest.raises(
        WorkdirError, match=r"regions/a could not be read in 4 attempts .*another co"
    ):
        restored(tmp_path / "two")
