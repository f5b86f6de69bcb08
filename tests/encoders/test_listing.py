"""`lrmil encoders`: a list of 80 columns, and all that is recorded of one."""

import pytest

from lrmil_jax import encoders
from lrmil_jax.encoders import __main__ as listing


def test_the_list_has_every_encoder_in_80_columns(capsys):
    assert listing.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split(" ")[0] for line in lines if line]
    assert set(encoders.ENCODERS) <= set(names)
    # A licence that is cut inside a word could not be read.
    assert any(line.rstrip().endswith("Kaiko Non-Commercial Public") for line in lines)


@pytest.mark.parametrize("name", ["clip-vit-b-32", "vit-tiny"])
def test_facts_say_something_of_every_title(name):
    facts = listing.facts(name)
    assert all(facts.values())
    entry = encoders.ENCODERS[name]
    assert facts["um/px"] == (", ".join(f"{mpp:g}" for mpp in entry.mpp)
                              or "not stated by its publisher")  # fmt: skip
