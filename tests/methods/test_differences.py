"""What differs from the authors' code is said where a user reads it."""

import inspect

import pytest

import jaxsparse
from jaxsparse import methods

# What a user who compares runs would meet first, by method.
SAID = {
    "rigl": ["ties are cut by a hash", "a skipped step advances the step count", "`start_step`"],
    "rigl_itop": [
        "draws each initial weight by chance",
        "exchanges at the last step of training",
        "fewer gradients differ from 0",
        "the layer loses as many",
    ],
    "set_itop": ["walks at random", "keeps the most negative weights"],
    "gmp": ["the cubic's last event is run", "starts dense"],
    "granet": ["the cubic's last event is run", "at the very last step of training nothing"],
    "east": ["steps 36,000 and 35,300", "adds floors", "as `with_cycles` and `rigl_itop`"],
}


@pytest.mark.parametrize("name", sorted(set(methods.__all__) - {"dense"}))
def test_differences_are_said(name):
    words = " ".join((inspect.getdoc(getattr(jaxsparse, name)) or "").split())
    assert "Differs from the official code" in words
    said = words.partition("Differs from the official code")[2]
    assert all(phrase in said for phrase in SAID.get(name, ()))


def test_the_steps_of_east_that_its_docstring_names():
    """Where the authors' code has one exchange more, at 35,300."""
    method = jaxsparse.east(sparsity=0.999, total_steps=88_000)
    steps = [event.step for event in method.timetable.events if event.step > 35_200]
    assert steps[:2] == [36_000, 40_000] and not method.is_due(35_300)
    assert not method.is_due(88_000)
