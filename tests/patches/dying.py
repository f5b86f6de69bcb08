"""A reader for worker processes that does not survive one slide."""

import os

from lrmil_jax.patches import beside


class DyingFiles(beside.SlideFiles):
    """Reads slides, but the decoder of one takes its process with it."""

    def read(self, job, wanted, high):
        if job.slide_id == "deadly":
            os._exit(1)
        return super().read(job, wanted, high)
