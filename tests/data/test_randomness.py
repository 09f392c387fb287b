"""Numbers belong to their key, and to nothing else."""

from __future__ import annotations

import numpy as np

from petzval.data.randomness import raw_numbers, sample_generator, sample_uniforms


def test_the_streams_stay_what_they_are() -> None:
    """Recorded once: a change would give every running training other data."""
    assert raw_numbers(2, "bucket", 0, 0) == [6230085328212751231, 12802221409033247909]
    assert raw_numbers(1, "noise", 1, 2, 3) == [11094693081144836320]


def test_a_generator_is_that_of_its_sample_alone() -> None:
    first = sample_generator(1, 20, 0, "noise").standard_normal(8)
    sample_generator(1, 21, 0, "noise").standard_normal(100)
    again = sample_generator(1, 20, 0, "noise").standard_normal(8)
    assert np.array_equal(first, again)


def test_each_part_of_the_key_counts() -> None:
    keys = [(1, 2, 3), (2, 1, 3), (1, 3, 2), (12, 3, 0), (1, 23, 0), (1, 2 + 2**32, 3)]
    draws = [sample_generator(*key, "noise").integers(2**62) for key in keys]
    draws += [sample_generator(1, 2, 3, "noise level").integers(2**62)]
    draws += [sample_generator(1, 2, 3, "text dropout").integers(2**62)]
    assert len(set(draws)) == len(draws)


def test_uniform_numbers_do_not_depend_on_company() -> None:
    many = sample_uniforms(7, range(4000), [0] * 4000, "text dropout")
    few = sample_uniforms(7, [3999, 12], [0, 0], "text dropout")
    assert few.tolist() == [many[3999], many[12]]
    assert many.min() >= 0 and many.max() < 1
    assert abs(float((many < 0.1).mean()) - 0.1) < 0.02
    assert abs(float(many.std()) - 12**-0.5) < 0.01
