"""Jobs for worker processes, which import this file and nothing slow."""

import ctypes
import faulthandler
import os
import time


def double(number):
    return 2 * number


def die_at_three(number):
    if number == 3:
        os._exit(1)
    time.sleep(0.05)
    return number


def add(held, number):
    return held + number


def die_when_crowded(folder, number):
    """Ends its process the first time that 3 comes, and never again."""
    mark = folder / "died"
    if number == 3 and not mark.exists():
        mark.touch()
        os._exit(1)
    return number


def hang_at_three(number):
    """Never returns for 3, as a decoder in a loop."""
    while number == 3:
        time.sleep(0.01)
    return number


def crash_at_three(number):
    """A segmentation fault for 3, as a broken decoder's."""
    if number == 3:
        faulthandler.disable()
        ctypes.string_at(0)
    return number, os.getpid()
