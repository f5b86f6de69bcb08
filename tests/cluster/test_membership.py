"""One process is the first of one, and waits for nobody."""

import concurrent.futures
import contextlib
import os
import signal
import socket
import sys
import time

import pytest

from lrmil_jax import cluster, files, main
from lrmil_jax.cluster import keeper, rendezvous
from lrmil_jax.cluster.membership import same, sees
from lrmil_jax.cluster.stopping import STATUS, StoppedError, Stopping, stopping
from lrmil_jax.errors import ConfigError, WorkdirError


def test_alone():
    assert (cluster.index(), cluster.is_first(), cluster.several()) == (0, True, False)
    assert cluster.mine(["a", "b", "c"]) == ["a", "b", "c"]
    assert cluster.exchange("here", 3) == [3]
    assert cluster.first_says("here", lambda: "yes") == "yes"
    assert cluster.first_then_rest("here", lambda: 5) == 5
    with cluster.apart():
        assert not cluster.is_apart()


class Second:
    """The second of three processes, whose neighbours say what is given here."""

    index, count = 1, 3

    def __init__(self, *answers):
        self.answers = list(answers)

    def exchange(self, name, value):
        return self.answers.pop(0)


@pytest.fixture
def second(monkeypatch):
    def be(*answers):
        monkeypatch.setattr("lrmil_jax.cluster.membership._members", [Second(*answers)])

    return be


def test_the_second_of_three(second):
    second(["from the first", None, None], [None] * 3)
    assert cluster.several()
    assert not cluster.is_first()
    assert cluster.mine(list("abcdefgh")) == ["b", "e", "h"]
    ran = []
    assert cluster.first_says("here", lambda: ran.append(1)) == "from the first"
    cluster.first_only("here", ran.append, 2)
    assert not ran
    with cluster.apart():
        assert cluster.is_apart()
        assert cluster.is_first()
        assert not cluster.several()
        assert cluster.mine([1, 2]) == [1, 2]
    assert not cluster.is_apart()


def test_parts_are_disjoint_and_whole(monkeypatch):
    found = []
    for index in range(3):
        member = Second()
        member.index = index
        monkeypatch.setattr("lrmil_jax.cluster.membership._members", [member])
        found += cluster.mine(list(range(10)))
    assert sorted(found) == list(range(10))


def test_other_facts_are_refused(second):
    ours = {"--stages": "", "seed": "1"}
    second([ours, ours, {**ours, "seed": "2"}])
    with pytest.raises(ConfigError, match="process 2 has seed '2', process 0 has '1'"):
        same(ours)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("host", 2, 0), "--coordinator is 'host'"),
        (("host:x", 2, 0), "--coordinator is 'host:x'"),
        (("host:1", None, 0), "needs --processes and --process"),
        (("host:1", 2, 2), "--process is 2 of 2"),
        (("auto", 2, None), "leave --processes"),
    ],
)
def test_what_cannot_be(arguments, match):
    with pytest.raises(ConfigError, match=match):
        rendezvous.place(*arguments)


def test_no_cluster(monkeypatch):
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="--coordinator auto found neither Slurm"):
        rendezvous.place("auto", None, None)


def test_slurm(monkeypatch):
    told = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[3-4],other", "SLURM_NTASKS": "8",
            "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "2"}  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    here = rendezvous.place("auto", None, None)
    assert (here.host, here.count, here.index, here.devices) == ("node3", 8, 5, [1])


def test_an_address_of_the_sixth_version():
    assert rendezvous.place("[::1]:70", 2, 1) == rendezvous.Place("::1", 70, 2, 1)


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def in_thread(function):
    """Begins with a function; what it gives, or raises, later."""
    pool = concurrent.futures.ThreadPoolExecutor(1)
    future = pool.submit(function)
    pool.shutdown(wait=False)
    return future


def test_a_port_that_is_not_free():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of --coordinator cannot be used"):
            rendezvous.links(rendezvous.Place("127.0.0.1", port, 2, 0), seconds=1)


def test_all_meet_in_any_order_and_a_stranger_is_none_of_ours(port):
    places = [rendezvous.Place("127.0.0.1", port, 3, index) for index in range(3)]
    early = in_thread(lambda: rendezvous.links(places[2], seconds=20))
    first = in_thread(lambda: rendezvous.links(places[0], seconds=20))
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as other:
            other.sendall(b"GET / HTTP/1.1\r\n\r\n")
            break
        time.sleep(0.02)
    found = [first.result(20) if n == 0 else link for n, link in enumerate(
        [None, in_thread(lambda: rendezvous.links(places[1], seconds=20)).result(20),
         early.result(20)])]  # fmt: skip
    assert sorted(found[0]) == [1, 2]
    found[1][0].sendall(b"line\n")
    assert found[0][1].recv(100) == b"line\n"  # nothing of what follows the greeting is lost
    for links in found:
        for link in links.values():
            link.close()


def test_one_that_does_not_come(port):
    first = rendezvous.Place("127.0.0.1", port, 3, 0)
    waiting = in_thread(lambda: rendezvous.links(first, seconds=1))
    other = rendezvous.Place("127.0.0.1", port, 3, 2)
    with pytest.raises(ConfigError, match="process 2 of 3 did not reach process 0"):
        rendezvous.links(other, seconds=2)
    with pytest.raises(ConfigError, match="process 1 of 3 did not come within 1 s"):
        waiting.result(20)


def test_two_that_say_they_are_the_same(port):
    first = in_thread(lambda: rendezvous.links(rendezvous.Place("::1", port, 3, 0), seconds=20))
    others = [in_thread(lambda: rendezvous.links(rendezvous.Place("localhost", port, 3, 1),
                                                 seconds=3)) for _ in range(2)]  # fmt: skip
    with pytest.raises(ConfigError, match="process 1 of 3, beside process 0 of 3, and so did"):
        first.result(20)
    for other in others:
        with pytest.raises(ConfigError, match="process 1 of 3 did not reach process 0"):
            other.result(20)


def test_sigterm_ends_what_is_no_training():
    one = Stopping()
    one.listen()
    try:
        with pytest.raises(StoppedError):
            signal.raise_signal(signal.SIGTERM)
    finally:
        one.ignore()


def test_sigterm_waits_for_the_end_of_an_update():
    one = Stopping()
    one.listen()
    try:
        assert one.before(1)
        signal.raise_signal(signal.SIGTERM)
        assert not one.before(2)
        with pytest.raises(StoppedError):
            one.training_is_over()
    finally:
        one.ignore()


def test_the_exit_status_of_a_run_that_was_stopped(monkeypatch, caplog):
    def stopped():
        raise StoppedError

    monkeypatch.setattr(main, "dispatch", stopped)
    monkeypatch.setattr(main, "_COORDINATOR", type("Flag", (), {"value": None}))
    monkeypatch.setattr(main, "_join", lambda: None)
    monkeypatch.setattr(main, "setup_logging", lambda *_: None)
    assert main.main(["main"]) == STATUS
    assert "the same command goes on" in caplog.text
    assert not stopping._asked.is_set()


@pytest.mark.parametrize(
    ("code", "status", "sentence"),
    [
        ("raise SystemExit(7)", 7, ""),
        ("import os; os.kill(os.getpid(), 9)", 1, "was killed from outside"),
        ("import os; os.abort()", 1, "another process of it is gone"),
        ("import os; os.kill(os.getpid(), 11)", 1, "was ended by signal 11"),
    ],
)
def test_the_keeper_says_how_a_process_ended(monkeypatch, capfd, code, status, sentence):
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setenv("PYTHONFAULTHANDLER", "")
    try:
        assert keeper.run([sys.executable, "-c", code]) == status
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    assert sentence in capfd.readouterr().err
    assert os.environ.get("LRMIL_JAX_KEPT_BY") is None


def given(monkeypatch, **values):
    """Flags of the command line."""
    for name, value in values.items():
        monkeypatch.setattr(main, f"_{name}", type("Flag", (), {"value": value}))


@pytest.mark.parametrize(("allowed", "status"), [(False, 1), (True, 0)])
def test_slides_that_were_left_out_may_be_no_mistake(monkeypatch, caplog, allowed, status):
    monkeypatch.setattr(main, "_dispatch", lambda: 2)
    monkeypatch.setattr(main, "setup_logging", lambda *_: None)
    given(monkeypatch, LEFT_OUT_OK=allowed, STAGES=["prepare"])
    assert main.main(["main"]) == status
    assert ("2 slides were left out" in caplog.text) == allowed


def test_a_mistake_stays_one_where_slides_may_be_left_out(monkeypatch):
    def refuse():
        raise ConfigError("no such folder")

    monkeypatch.setattr(main, "_dispatch", refuse)
    monkeypatch.setattr(main, "setup_logging", lambda *_: None)
    given(monkeypatch, LEFT_OUT_OK=True)
    assert main.main(["main"]) == 1
    given(monkeypatch, STAGES=["check"])
    with pytest.raises(ConfigError, match="--left_out_ok has no meaning for check"):
        main.dispatch()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"STAGES": ["predict"]}, "--stages predict is none; leave --shard away"),
        ({"STAGES": ["check"]}, "--stages check is none; leave --shard away"),
        ({"COHORT": "new.csv", "STAGES": ["evaluate"]}, "--cohort is none; leave --shard away"),
        ({"COORDINATOR": "auto", "STAGES": ["prepare"]}, "leave --coordinator away"),
    ],
)
def test_where_a_shard_has_no_meaning(monkeypatch, flags, sentence):
    given(monkeypatch, SHARD="1/2", **flags)
    with pytest.raises(ConfigError, match=sentence):
        main._join()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"COORDINATOR": "auto"}, r"^--coordinator is for processes that .* s3://b/runs is no fol"),
        ({"BEAM": ["runner=X"], "STAGES": ["prepare"]}, "^--beam_pipeline_options is for process"),
        ({"WORKDIR": "runs", "SCRATCH": "/scratch"}, "^--scratch is for a --workdir in a bucket"),
    ],
)
def test_where_a_bucket_has_no_meaning(monkeypatch, flags, sentence):
    given(monkeypatch, **{"WORKDIR": "s3://b/runs", **flags})
    with pytest.raises(ConfigError, match=sentence):
        main._join()


def test_the_file_that_all_must_see_is_cleared_like_any_leftover(second, tmp_path):
    second([".seen.0123abcd.tmp"] * 3, [True, False, True])
    with pytest.raises(WorkdirError, match="process 1 does not see"):
        sees(tmp_path)
    names = []

    class First(Second):
        index = 0

        def exchange(self, name, value):
            names.extend(path.name for path in tmp_path.iterdir())
            return [value] * 3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lrmil_jax.cluster.membership._members", [First()])
        sees(tmp_path)
    assert len(names) == 2
    (tmp_path / names[0]).touch()
    files.remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())
