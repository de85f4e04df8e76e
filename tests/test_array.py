"""Arrays on either side: parts that lie side by side are not copied to be put there."""

import numpy as np

from minisft.backend import array


def test_parts_of_one_array_are_put_together_without_a_copy(rng):
    whole = rng.standard_normal((5, 3, 2, 4))
    assert array.side_by_side(*whole.swapaxes(0, 1)) is whole
    assert array.side_by_side(whole) is not whole


def test_other_parts_are_copied(rng):
    whole = rng.standard_normal((5, 3, 2, 4))
    a, b, c = whole.swapaxes(0, 1)
    others = [(a, b), (a, c, b), (a, b, c.copy()), (a[:4], b[:4], c[:4]), (a, b, b),
              (c.copy(), a.copy(), b.copy())]
    for parts in others:
        put = array.side_by_side(*parts)
        assert np.array_equal(put, np.stack(parts, axis=1)) and not np.shares_memory(put, whole)
