"""Places in a Rice code: back as they were, in the bits that the theory of geometric gaps says, and only where it is shorter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tfp_bprune.prediction.bits import from_bits, to_bits
from tfp_bprune.prediction.block import Block, deflated
from tfp_bprune.prediction.rice import Rice
from tfp_bprune.prediction.stored import Places
from tfp_bprune.storage.compress import gaps_of

FALSE_ALARM = 1e-6


@settings(deadline=None, max_examples=80)
@given(
    places=st.sets(st.integers(0, 5) | st.integers(0, 10**4) | st.integers(0, 2**40), max_size=60), closed=st.booleans()
)
def test_places_come_back(places: set[int], closed: bool) -> None:
    block = Block()
    held = Rice(np.array(sorted(places), np.int64), block)
    if closed:
        block.close()
    np.testing.assert_array_equal(held.read(), sorted(places))


@settings(deadline=None, max_examples=80)
@given(data=st.data(), bits=st.integers(0, 31))
def test_numbers_of_any_width_come_back(data: st.DataObject, bits: int) -> None:
    numbers = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    stored = to_bits(np.array(numbers, np.int64), bits)
    assert stored.nbytes == math.ceil(len(numbers) * bits / 8)
    np.testing.assert_array_equal(from_bits(stored, bits, len(numbers)), numbers)


def test_the_highest_bit_comes_first() -> None:
    np.testing.assert_array_equal(to_bits(np.array([5, 2]), 3), [0b10101000])


@pytest.mark.parametrize("chance", [0.5, 0.2, 0.05, 0.01, 0.001])
def test_random_patterns_take_what_geometric_gaps_cost(chance: float) -> None:
    """A gap g has the probability chance (1 - chance)^g; its code k + 1 + g >> k bits, of which the last is geometric too. The
    shortest of all k is no longer than that of the best for this distribution, whose mean over many gaps is bounded by the
    central limit theorem; Gallager & van Voorhis: within .04 bits of the entropy for any scale, here .1 for powers of two."""
    count, rng = 20_000, np.random.default_rng(0)
    gaps = rng.geometric(chance, count) - 1
    costs = []
    for k in range(16):
        ends = -math.expm1(2**k * math.log1p(-chance))  # the probability that a quotient ends at a step
        costs.append((k + 1 / ends, math.sqrt(1 - ends) / ends))
    mean, deviation = min(costs)
    entropy = -(math.log2(chance) + (1 - chance) / chance * math.log2(1 - chance))
    assert mean < entropy + 0.1
    size = 8 * Rice.size(np.cumsum(gaps + 1) - 1)
    bound = stats.norm.isf(FALSE_ALARM / 5) * deviation * math.sqrt(count)
    assert size <= count * mean + bound + 16
    assert size >= count * min(k for k, _ in costs) - bound


@pytest.mark.parametrize("where", ["anywhere", "after one of two gaps"])
def test_a_pattern_has_the_form_that_takes_fewer_bytes(where: str) -> None:
    rng, size = np.random.default_rng(1), 60_000
    gaps = rng.geometric(0.01, 550) if where == "anywhere" else rng.choice([4, 201], 550)
    pattern = np.isin(np.arange(size), np.cumsum(gaps))
    own, rice = len(deflated([gaps_of(pattern).tobytes()])), Rice.size(np.flatnonzero(pattern))
    block = Block()
    held = Places(pattern, block)
    block.close()
    np.testing.assert_array_equal(held.read(), np.flatnonzero(pattern))
    assert (rice < own) == (where == "anywhere")
    assert block.nbytes <= min(own, rice) + 16


def test_no_room_in_the_block_is_no_hindrance() -> None:
    block = Block()
    block.add(np.zeros(2**16 - 10, np.uint8), "codes")
    pattern = np.random.default_rng(2).random(5000) < 0.01
    held = Places(pattern, block)
    block.close()
    assert held.nbytes > 0
    np.testing.assert_array_equal(held.read(), np.flatnonzero(pattern))
