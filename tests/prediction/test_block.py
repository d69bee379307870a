"""Small arrays of a network in one stream: back to the byte, near Shannon's bound, in codes of their own where that is less."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfp_bprune._keras import tf
from tfp_bprune.prediction.block import Block, Kind, deflated
from tfp_bprune.prediction.coded import Coded
from tfp_bprune.prediction.grids import entropy_of
from tfp_bprune.prediction.stored import Halves, Places

KINDS = get_args(Kind)
# What a block with a Huffman code of its own takes at most besides its numbers: the lengths of all 256 codes and their code.
_TABLE = 160


def drawn(seed: int, count: int, mean: float) -> np.ndarray:
    """Bytes that are distributed geometrically."""
    return np.minimum(np.random.default_rng(seed).geometric(1 / mean, count) - 1, 255).astype(np.uint8)


@settings(deadline=None, max_examples=60)
@given(parts=st.lists(st.tuples(st.binary(max_size=300), st.sampled_from(KINDS)), min_size=1, max_size=8))
def test_what_is_added_is_read_before_and_after_the_block_is_closed(parts: list[tuple[bytes, str]]) -> None:
    block = Block()
    numbers = [block.add(np.frombuffer(content, np.uint8), kind) for content, kind in parts]  # type: ignore[arg-type]
    for closed in (False, True):
        for number, (content, _) in zip(numbers, parts, strict=True):
            assert block.read(number).numpy().tobytes() == content
        if not closed:
            block.close()
    assert block.nbytes == len(block.variables[0].numpy())


@settings(deadline=None, max_examples=60)
@given(parts=st.lists(st.binary(max_size=400), min_size=1, max_size=12))
def test_streams_are_those_of_zlib(parts: list[bytes]) -> None:
    stream = zlib.decompressobj()
    assert stream.decompress(deflated(parts)) == b"".join(parts)
    assert stream.eof
    assert not stream.unused_data


@pytest.mark.parametrize("mean", [1.5, 4.0, 20.0])
def test_the_stream_is_near_shannons_bound(mean: float) -> None:
    """A Huffman code takes at most p + .086 bits a number more than the entropy, where p is the largest frequency, and with
    p above a half 2 - h(p) - p more, h(p) being the entropy of p and 1 - p (Gallager 1978)."""
    numbers, p = drawn(0, 20_000, mean), 1 / mean
    entropy = 8 * entropy_of(numbers) / len(numbers)
    redundancy = p + 0.086 if p < 0.5 else 2 + p * np.log2(p) + (1 - p) * np.log2(1 - p) - p
    assert len(deflated([numbers.tobytes()])) <= (entropy + redundancy) * len(numbers) / 8 + _TABLE


def test_parts_that_are_distributed_alike_share_a_code_and_others_have_their_own() -> None:
    alike = [drawn(seed, 60, 6.0).tobytes() for seed in range(12)]
    other = bytes(255 - byte for byte in drawn(12, 2000, 6.0).tobytes())
    together = len(deflated(alike))
    assert together < 0.75 * sum(len(zlib.compress(part, 9)) for part in alike)
    joined = b"".join(alike)
    assert together <= len(deflated([joined]))
    # One code for both would spend most of a bit a byte on telling them apart.
    assert len(deflated([*alike, other])) < 0.93 * len(zlib.compress(joined + other, 9))


def test_numbers_beyond_the_room_of_a_block_stand_alone() -> None:
    block, few = Block(), drawn(0, 1000, 8.0)
    many = drawn(1, 2**16, 8.0)
    coded = [Coded(few, 8, block), Coded(many, 8, block), Coded(few, 8, block)]
    block.close()
    assert [one.nbytes > 0 for one in coded] == [False, True, False]
    assert block.nbytes < 2 * len(few)
    for one, numbers in zip(coded, (few, many, few), strict=True):
        np.testing.assert_array_equal(one.read(), numbers)


def test_an_empty_block_holds_nothing() -> None:
    block = Block()
    block.close()
    assert not block.variables
    assert block.nbytes == 0


@settings(deadline=None, max_examples=40)
@given(upper=st.lists(st.integers(0, 2**16 - 1), max_size=40), blocked=st.booleans())
def test_halves_come_back_to_the_bit(upper: list[int], blocked: bool) -> None:
    numbers = (np.array(upper, np.uint32) << 16).view(np.float32)
    numbers = numbers[np.isfinite(numbers) & ((numbers == 0) | (np.abs(numbers) > 1e-37))]
    block = Block() if blocked else None
    halves = Halves(numbers, block)
    if block is not None:
        block.close()
    assert halves.nbytes == (0 if blocked else 2 * len(numbers))
    np.testing.assert_array_equal(halves.read(), numbers)


@settings(deadline=None, max_examples=40)
@given(places=st.sets(st.integers(0, 3999), max_size=60), blocked=st.booleans())
def test_places_come_back(places: set[int], blocked: bool) -> None:
    pattern = np.zeros(4000, bool)
    pattern[sorted(places)] = True
    block = Block() if blocked else None
    held = Places(pattern, block)
    if block is not None:
        block.close()
    np.testing.assert_array_equal(held.read(), sorted(places))


@pytest.mark.parametrize("places", [np.arange(3, 500, 7), np.array([0, 5, 17, 300, 499])], ids=["gaps", "rice"])
def test_a_saved_block_is_unpacked_where_it_is_loaded(places: np.ndarray, tmp_path: Path) -> None:
    block = Block()
    held = Places(np.isin(np.arange(500), places), block)
    block.close()
    module = tf.Module()
    module.held = held
    module.read = tf.function(held.read, input_signature=[])
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_array_equal(loaded.read(), places)
