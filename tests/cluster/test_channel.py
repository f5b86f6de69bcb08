"""What processes tell each other, over real sockets within this process."""

import queue
import socket
import struct
import threading
import time

import pytest

from lrmil_jax.cluster.channel import Channel


class Group:
    """As many channels as processes; what ends or stops each is noted, not done."""

    def __init__(self, count):
        pairs = [socket.socketpair() for _ in range(count - 1)]
        links = [{n + 1: pair[0] for n, pair in enumerate(pairs)}]
        links += [{0: pair[1]} for pair in pairs]
        self.ended = [[] for _ in range(count)]
        self.stopped = [threading.Event() for _ in range(count)]
        self.links = links
        self.channels = [
            Channel(n, count, links[n], ended=self.ended[n].append, stop=self.stopped[n].set)
            for n in range(count)
        ]

    def all(self, function):
        """Of every channel at once, in their order."""
        results = [None] * len(self.channels)

        def work(n):
            results[n] = function(self.channels[n])

        threads = [
            threading.Thread(target=work, args=(n,), daemon=True) for n in range(len(self.channels))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        return results

    def wait_ended(self, n):
        end = time.monotonic() + 20
        while not self.ended[n] and time.monotonic() < end:
            time.sleep(0.005)
        (sentence,) = self.ended[n]
        return sentence


@pytest.fixture
def group(monkeypatch):
    monkeypatch.setattr("lrmil_jax.cluster.channel._LAST_WORDS", 0.2)
    made = []

    def make(count):
        made.append(Group(count))
        return made[-1]

    yield make
    for one in made:
        one.all(lambda channel: channel.fail("the test is over"))
        for links in one.links:
            for link in links.values():
                link.close()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_all_hear_what_each_says_in_order(group, count):
    told = group(count).all(lambda one: [one.exchange("a", one.index), one.exchange("b", "x")])
    assert told == [[list(range(count)), ["x"] * count]] * count


def test_nobody_goes_on_before_the_last_has_come(group):
    processes, passed = group(3), []

    def work(channel):
        time.sleep(0.2 * channel.index)
        came = time.monotonic()
        channel.exchange("here", None)
        passed.append((came, time.monotonic()))

    processes.all(work)
    assert max(came for came, _ in passed) <= min(went for _, went in passed)


def test_another_place_ends_all(group):
    processes = group(2)
    for channel, name in zip(processes.channels, ("teacher", "student"), strict=True):
        threading.Thread(target=channel.exchange, args=(name, None), daemon=True).start()
    for n in range(2):
        assert "process 0 at 'teacher', process 1 at 'student'" in processes.wait_ended(n)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_lost_process_ends_all_others(group, victim):
    processes = group(3)
    processes.channels[victim]._leaving = True  # the dead say nothing
    for link in processes.links[victim].values():
        link.shutdown(socket.SHUT_RDWR)
    for n in {0, 1, 2} - {victim}:
        assert f"process {victim} of 3 has ended without a word" in processes.wait_ended(n)


@pytest.mark.parametrize("speaker", [0, 2])
@pytest.mark.parametrize("line", [b"no json\n", b"\xff\n", b'{"met": 0}\n'])
def test_what_cannot_be_understood_ends_all_with_its_cause(group, speaker, line):
    processes = group(3)
    hearer = 2 - speaker
    processes.links[speaker][hearer].sendall(line)
    sentence = f"what process {speaker} of 3 said cannot be understood ("
    for n in range(3):
        assert processes.wait_ended(n).startswith(sentence)


def test_half_a_line_is_an_end(group):
    processes = group(2)
    processes.channels[1]._leaving = True
    processes.links[1][0].sendall(b'{"at": 0, "na')
    processes.links[1][0].shutdown(socket.SHUT_RDWR)
    assert "process 1 of 2 has ended without a word (killed, or" in processes.wait_ended(0)


def test_why_a_connection_broke_is_told():
    with socket.create_server(("127.0.0.1", 0)) as server:
        mine = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    ended = queue.SimpleQueue()
    Channel(0, 2, {1: mine}, ended=ended.put, stop=pytest.fail)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    other.close()  # which resets the connection
    with mine:
        assert ended.get(timeout=20).endswith("its machine was lost: Connection reset by peer)")


@pytest.mark.parametrize("failing", [0, 1])
def test_a_mistake_is_told_to_all_others(group, failing):
    processes = group(3)
    thread = threading.Thread(target=processes.channels[failing].fail, args=("disk full",))
    thread.start()
    for n in {0, 1, 2} - {failing}:
        assert processes.wait_ended(n) == f"process {failing} of 3 stopped: disk full"
        for link in processes.links[n].values():
            link.shutdown(socket.SHUT_RDWR)
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("asking", [0, 1])
def test_trainings_stop_after_the_same_update(group, asking):
    """Whoever is asked, and however far ahead some are: each may begin one update more than the
    slowest has ended."""
    processes, barrier = group(3), [threading.Barrier(3) for _ in range(500)]

    def train(channel):
        for update in range(1, 500):
            if not channel.begin(update):
                return update - 1
            if channel.index == asking and update == 20:
                channel.ask_to_stop()
            barrier[update].wait(20)  # a collective: nobody ends an update alone
        return None

    ends = processes.all(train)
    assert ends == [ends[0]] * 3
    assert 20 <= ends[0] < 500
    assert not any(event.is_set() for event in processes.stopped)


def test_asked_in_the_last_update_they_stop_after_the_training(group):
    processes, barrier = group(2), threading.Barrier(2)

    def train(channel):
        channel.begin(1)
        barrier.wait(20)
        if channel.index:
            channel.ask_to_stop()
        while not channel._held:  # else some have ended their training before, and all stop at once
            time.sleep(0.005)
        return channel.begin(None)

    assert processes.all(train) == [False, False]
    assert not any(event.is_set() for event in processes.stopped)


def test_without_a_training_in_all_processes_they_stop_at_once(group):
    processes = group(2)
    processes.channels[0].begin(7)
    processes.channels[1].ask_to_stop()
    assert processes.stopped[1].wait(20)
    for link in processes.links[1].values():  # as its end does
        link.shutdown(socket.SHUT_RDWR)
    assert processes.stopped[0].wait(20)
    assert not any(processes.ended)  # nobody calls that a loss
