"""Several processes as one run: who does what, and waiting for each other.

A run on several machines is the same command on each of them, with one working directory that all
of them see. Slides are parted over the processes, trainings are computed by the devices of all of
them together, and what is of all slides is written by the first. A run of one process is the same
code: it is the first, its part is everything, and it waits for nobody.
"""

from lrmil_jax.cluster.membership import (
    Alone,
    apart,
    code,
    devices,
    exchange,
    fail,
    finish,
    first_only,
    first_says,
    first_then_rest,
    index,
    is_apart,
    is_first,
    is_shard,
    join,
    leave,
    meet,
    mine,
    same,
    sees,
    several,
    shard,
)

__all__ = [
    "Alone",
    "apart",
    "code",
    "devices",
    "exchange",
    "fail",
    "finish",
    "first_only",
    "first_says",
    "first_then_rest",
    "index",
    "is_apart",
    "is_first",
    "is_shard",
    "join",
    "leave",
    "meet",
    "mine",
    "same",
    "sees",
    "several",
    "shard",
]
