"""Readers for worker processes that do not survive one slide, or never come back from it."""

import os
import time

from lrmil_jax.patches.open_slides import SlideFiles


class DyingFiles(SlideFiles):
    """Reads slides, but the decoder of one takes its process with it."""

    def read(self, job, indices, places, high):
        if job.slide_id == "deadly":
            os._exit(1)
        return super().read(job, indices, places, high)


class HangingFiles(DyingFiles):
    """The decoder of another never ends."""

    def read(self, job, indices, places, high):
        while job.slide_id == "endless":
            time.sleep(0.01)
        return super().read(job, indices, places, high)
