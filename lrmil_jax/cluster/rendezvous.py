"""How the processes of a run find each other: first one connection of each to the first, so that
one that does not come is told in a sentence, and then JAX's own way for devices."""

import contextlib
import dataclasses
import json
import socket
import time
from collections.abc import Iterator, Sequence

from lrmil_jax.errors import ConfigError, one_line

_HOW = (
    "give all processes the same --coordinator HOST:PORT (a free port of the first one's machine) "
    "and --processes, and each its own --process from 0"
)
_GREETING = "lrmil_jax"
_AGAIN = 0.2  # seconds between two attempts to reach the first process


@dataclasses.dataclass(frozen=True)
class Place:
    """Which process of a run this one is.

    Attributes:
      host, port: of the first process, where JAX's coordinator will be.
      count: of all processes.
      index: of this one, from 0.
      devices: of this machine that are this process's; None: all.
    """

    host: str
    port: int
    count: int
    index: int
    devices: Sequence[int] | None = None


def place(coordinator: str, processes: int | None, process: int | None) -> Place:
    """The place that flags give, or, for "auto", the cluster's own environment.

    Raises:
      ConfigError: what is given cannot be, or there is no such environment.
    """
    if coordinator == "auto":
        if processes is not None or process is not None:
            raise ConfigError(
                "--coordinator auto asks the cluster how many processes there are; leave "
                "--processes and --process away"
            )
        return _detected()
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--coordinator is {coordinator!r}; {_HOW}, or auto on a cluster")
    if processes is None or process is None:
        raise ConfigError(f"--coordinator needs --processes and --process; {_HOW}")
    if not 0 <= process < processes:
        raise ConfigError(f"--process is {process} of {processes} processes; {_HOW}")
    return Place(host.strip("[]"), int(port), processes, process)


def _detected() -> Place:
    # JAX asks its environments only on the way to its own rendezvous, which ends the process when
    # somebody does not come.
    try:
        from jax._src.clusters import ClusterEnv

        address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, 300
        )
    except (KeyError, ValueError, RuntimeError, OSError, ImportError, TypeError,
            AttributeError) as error:  # fmt: skip
        raise ConfigError(f"--coordinator auto: {one_line(error)}; {_HOW}") from error
    if address is None or count is None or index is None:
        raise ConfigError(
            "--coordinator auto found neither Slurm (start the command by srun), Open MPI nor a "
            f"TPU slice; {_HOW}"
        )
    host, _, port = address.rpartition(":")
    return Place(host.strip("[]"), int(port), count, index, devices)


def links(here: Place, *, seconds: int) -> dict[int, socket.socket]:
    """Connections of the first process to all others, of each of these to the first.

    Raises:
      ConfigError: not all came in time, or two say that they are the same.
    """
    end = time.monotonic() + seconds
    if here.count == 1:
        return {}
    if here.index:
        return {0: _connected(here, end, seconds)}
    try:
        both = socket.has_dualstack_ipv6()
        server = socket.create_server(
            ("", here.port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            backlog=here.count,
            dualstack_ipv6=both,
        )
    except OSError as error:
        raise ConfigError(
            f"port {here.port} of --coordinator cannot be used here ({error.strerror}); choose "
            "another"
        ) from error
    found: dict[int, socket.socket] = {}
    with server, contextlib.ExitStack() as stack:
        for index, link in _accepted(server, here, end, seconds):
            found[index] = stack.enter_context(link)
        stack.pop_all()
    for link in found.values():
        link.sendall(b"all are here\n")
    return found


def _accepted(
    server: socket.socket, here: Place, end: float, seconds: int
) -> Iterator[tuple[int, socket.socket]]:
    """Every other process, as it comes."""
    missing = set(range(1, here.count))
    while missing:
        server.settimeout(max(end - time.monotonic(), 0.01))
        try:
            link, _ = server.accept()
        except TimeoutError as error:
            names = ", ".join(str(one) for one in sorted(missing)[:8])
            raise ConfigError(
                f"process {names} of {here.count} did not come within {seconds} s "
                f"(--join_seconds): look whether all were started, and reach port {here.port} of "
                f"{here.host}"
            ) from error
        greeting = _greeted(link)
        if greeting is None:
            link.close()
            continue
        index, count = greeting
        if count != here.count or index not in missing:
            link.close()
            twice = ", and so did another" if count == here.count and index else ""
            raise ConfigError(
                f"a process came that says that it is process {index} of {count}, beside process 0 "
                f"of {here.count}{twice}; {_HOW}"
            )
        missing.discard(index)
        yield index, _kept(link)


def _greeted(link: socket.socket) -> tuple[int, int] | None:
    """Which process, of how many, is at the other end; None if it is none of ours."""
    link.settimeout(10)
    try:
        greeting = json.loads(_line(link))
        if greeting["from"] != _GREETING:
            return None
        return int(greeting["process"]), int(greeting["processes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _line(link: socket.socket) -> bytes:
    """Byte for byte: what comes after it belongs to whoever reads next."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 200:
        byte = link.recv(1)
        if not byte:
            break
        line += byte
    return line


def _connected(here: Place, end: float, seconds: int) -> socket.socket:
    """The link to the first process, once all have come."""
    greeting = {"from": _GREETING, "process": here.index, "processes": here.count}
    why: Exception | None = None
    while time.monotonic() < end:
        try:
            with contextlib.ExitStack() as stack:
                link = socket.create_connection((here.host, here.port), timeout=10)
                stack.enter_context(link)
                link.sendall(json.dumps(greeting).encode() + b"\n")
                link.settimeout(max(end - time.monotonic(), 1))
                if _line(link):
                    stack.pop_all()
                    return _kept(link)
            why = ConnectionError("process 0 has closed the connection: its log says why")
            break
        except OSError as error:  # it may only not have begun to listen
            why = error
            time.sleep(_AGAIN)
    raise ConfigError(
        f"process {here.index} of {here.count} did not reach process 0 at {here.host}, port "
        f"{here.port}, or not all came, within {seconds} s (--join_seconds; "
        f"{one_line(why) if why else 'no time'}); {_HOW}"
    )


def _kept(link: socket.socket) -> socket.socket:
    """Waits without end, and notices within minutes that the other machine is gone."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def initialise(here: Place, *, seconds: int) -> None:
    """Makes one set of the devices of all processes, which are all there; before any device is
    touched.

    Raises:
      ConfigError: JAX cannot.
    """
    import jax

    # SIGTERM is ours (`stopping`): all processes then save after the same update.
    jax.config.update("jax_enable_preemption_service", False)
    host = f"[{here.host}]" if ":" in here.host else here.host
    try:
        jax.distributed.initialize(
            coordinator_address=f"{host}:{here.port}",
            num_processes=here.count,
            process_id=here.index,
            local_device_ids=here.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=seconds,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"JAX cannot join its processes at {host}:{here.port} ({one_line(error)}); the "
            "machines of a run must reach each other on all ports"
        ) from error
