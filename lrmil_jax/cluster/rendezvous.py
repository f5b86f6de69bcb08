"""How the processes of a run find each other: JAX's own way for devices, and then one connection
of each to the first."""

import json
import socket
import time
import uuid

from lrmil_jax.errors import ConfigError, one_line

_HOW = (
    "give all processes the same --coordinator HOST:PORT (a free port of the first one's machine) "
    "and --processes, and each its own --process from 0"
)


def initialise(
    coordinator: str, processes: int | None, process: int | None, *, seconds: int
) -> None:
    """Joins JAX's processes; before any device is touched.

    Raises:
      ConfigError: what is given cannot be, or not all processes came.
    """
    import jax

    options = {}
    if coordinator != "auto":
        _check(coordinator, processes, process)
        options = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
            "cluster_detection_method": "deactivate",
        }
    elif processes is not None or process is not None:
        raise ConfigError(
            "--coordinator auto asks the cluster how many processes there are; leave --processes "
            "and --process away"
        )
    # SIGTERM is ours (`stopping`): all processes then save after the same update.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**options, initialization_timeout=seconds)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(_refused(coordinator, processes, process, seconds, error)) from error


def _check(coordinator: str, processes: int | None, process: int | None) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--coordinator is {coordinator!r}; {_HOW}, or auto on a cluster")
    if processes is None or process is None:
        raise ConfigError(f"--coordinator needs --processes and --process; {_HOW}")
    if not 0 <= process < processes:
        raise ConfigError(f"--process is {process} of {processes} processes; {_HOW}")
    if process == 0:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", int(port)))
            except OSError as error:
                raise ConfigError(
                    f"port {port} of --coordinator is not free ({error.strerror}); choose another"
                ) from error


def _refused(coordinator, processes, process, seconds: int, error: Exception) -> str:
    if coordinator == "auto":
        return (
            "--coordinator auto found no cluster that tells this process of the others "
            f"({one_line(error)}); {_HOW}"
        )
    what = (
        f"not all {processes} processes came within {seconds} s"
        if process == 0
        else f"process 0 was not found at {coordinator} within {seconds} s, or others did not come"
    )
    return f"{what} ({one_line(error)}); {_HOW}, and look whether all of them were started"


def links(*, seconds: int) -> tuple[int, int, dict[int, socket.socket]]:
    """This process's index, their number, and its connections: of the first one to all others, of
    each of these to the first."""
    import jax
    import numpy as np
    from jax._src import distributed  # the only place that knows the address under Slurm or MPI
    from jax.experimental import multihost_utils

    index, count = jax.process_index(), jax.process_count()
    if count == 1:
        return index, count, {}
    token = uuid.uuid4().int % 2**31
    server = socket.create_server(("", 0)) if index == 0 else None
    port = 0 if server is None else server.getsockname()[1]
    told = multihost_utils.broadcast_one_to_all(np.array([port, token], np.int32))
    port, token = (int(value) for value in told)
    if server is not None:
        with server:
            return index, count, _accepted(server, count - 1, token, seconds)
    host = distributed.global_state.coordinator_address.rpartition(":")[0].strip("[]")
    return index, count, {0: _connected(host, port, index, token, seconds)}


def _accepted(
    server: socket.socket, wanted: int, token: int, seconds: int
) -> dict[int, socket.socket]:
    """Connections by process; what does not know the token is none of ours."""
    found: dict[int, socket.socket] = {}
    end = time.monotonic() + seconds
    while len(found) < wanted:
        server.settimeout(max(end - time.monotonic(), 0.01))
        try:
            link, _ = server.accept()
        except TimeoutError as error:
            raise ConfigError(
                f"{wanted - len(found)} of the other processes could not connect to process 0 "
                f"within {seconds} s (a firewall between the machines?); {_HOW}"
            ) from error
        process = _greeted(link, token)
        if process is None:
            link.close()
        else:
            found[process] = _kept(link)
    return found


def _greeted(link: socket.socket, token: int) -> int | None:
    """Which process is at the other end; None if it is none of ours."""
    link.settimeout(10)
    try:
        greeting = json.loads(_first_line(link))
        return int(greeting["process"]) if greeting["token"] == token else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _first_line(link: socket.socket) -> bytes:
    """Byte for byte: what comes after it belongs to whoever reads next."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 200:
        byte = link.recv(1)
        if not byte:
            break
        line += byte
    return line


def _connected(host: str, port: int, index: int, token: int, seconds: int) -> socket.socket:
    try:
        link = socket.create_connection((host, port), timeout=seconds)
    except OSError as error:
        raise ConfigError(
            f"process {index} cannot connect to process 0 at {host}, port {port} "
            f"({one_line(error)}): the machines of a run must reach each other on all ports"
        ) from error
    link.sendall(json.dumps({"process": index, "token": token}).encode() + b"\n")
    return _kept(link)


def _kept(link: socket.socket) -> socket.socket:
    """Waits without end, and notices within minutes that the other machine is gone."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link
