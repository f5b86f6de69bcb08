"""Eight fake CPU devices, strict ranks, parsed flags: set before any test touches JAX."""

import jax
from absl import flags


def pytest_configure(config):
    del config  # only the hook's moment matters
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain 0.2.18 reads a flag of its own
