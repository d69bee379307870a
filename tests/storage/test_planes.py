"""Entropy-coded arrays: the same bits come back in about the bits of their entropy, and no stream makes more than it says."""

from __future__ import annotations

import contextlib
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tfp_bprune.files import reading
from tfp_bprune.files.runs import tensors_from, tensors_to_bytes
from tfp_bprune.storage import compress, planes
from tfp_bprune.storage.compress import declared, decode, encode, name_of
from tfp_bprune.storage.planes import Arrays, Coded, coded, opened
from tfp_bprune.types import RunError

KEY = "0000/dense/kernel"
TYPES = ["<f2", "<f4", "<f8", "u1", "i1", "<i4", "<i8"]
STREAM, LIKE = f"coded:{KEY}", f"type:{KEY}"


def read(stored: Arrays) -> Any:
    """The one array of `stored`."""
    [(key, found)] = opened(stored).items()
    assert key == KEY
    assert isinstance(found, Coded)
    return found.read()


@given(data=st.data(), dtype=st.sampled_from(TYPES), shape=arrays.array_shapes(min_dims=0, max_dims=4, min_side=0))
def test_any_array_comes_back_to_the_bit(data: st.DataObject, dtype: str, shape: tuple[int, ...]) -> None:
    bits = data.draw(arrays.arrays(f"u{np.dtype(dtype).itemsize}", shape))
    array = np.asarray(bits).view(dtype)
    stored = tensors_from(tensors_to_bytes(coded(KEY, array)), "here")
    found = read(stored)
    assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
    [(_, like)] = opened(stored).items()
    assert (like.dtype, like.shape, like.nbytes) == (array.dtype, array.shape, array.nbytes)


def test_an_array_that_is_not_contiguous_comes_back() -> None:
    array = np.arange(60, dtype=np.float32).reshape(6, 10)[::2, ::3].T
    np.testing.assert_array_equal(read(coded(KEY, array)), array)


def bounds(plane: np.ndarray) -> tuple[float, float]:
    """Bytes that a code of single bytes takes at least (Shannon 1948, theorem 9), and Huffman's at most.

    That is no more than the largest probability + 0.086 bits a symbol beyond the entropy (Gallager 1978, theorem 2).
    """
    part = np.bincount(plane.ravel(), minlength=256) / plane.size
    bits = float(-(part[part > 0] * np.log2(part[part > 0])).sum())
    return bits * plane.size / 8, (bits + part.max() + 0.086) * plane.size / 8


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_trained_like_weights_take_the_entropy_of_their_bytes(dtype: Any, scale: float) -> None:
    weights = (-5 + scale * np.random.default_rng(0).normal(size=200_000)).astype(dtype)
    each = weights.view(np.uint8).reshape(-1, weights.itemsize).T
    least, most = map(sum, zip(*map(bounds, each), strict=True))
    taken = len(coded(KEY, weights)[STREAM])
    # Where frequencies change from block to block, here from plane to plane, a code for each may be better by a little.
    assert 0.99 * least < taken < most
    assert taken < 0.95 * weights.nbytes


def test_runs_of_one_number_take_almost_nothing() -> None:
    array = np.full(10**6, -5.25, np.float32)
    assert len(coded(KEY, array)[STREAM]) < array.nbytes / 500
    assert read(coded(KEY, array)).tobytes() == array.tobytes()  # within what a reader believes of a stream


def test_what_is_random_stays_as_it_is() -> None:
    array = np.random.default_rng(0).integers(0, 2**32, 5000, np.uint32).view(np.float32)
    assert set(encode({KEY: array})) == {KEY}


def test_a_checkpoint_of_trained_like_arrays_is_smaller_and_comes_back() -> None:
    random = np.random.default_rng(0)
    arrays_ = {
        "0000/dense/kernel_loc": random.normal(size=(300, 200)).astype(np.float32),
        "0001/dense/kernel_rho": random.normal(-5, 0.05, (300, 200)).astype(np.float32),
        "0002/dense/kernel_mask": random.random((300, 200)) < 0.3,
        "optimizer/0000": np.array(77, np.int64),
        "optimizer/0001": (random.normal(size=(300, 200)) ** 2 * 1e-5).astype(np.float32),
        "training/learning_rate": np.ones(3),
    }
    stored = encode(arrays_)
    assert {"coded:0000/dense/kernel_loc", "coded:bits:0002/dense/kernel_mask", "coded:optimizer/0001"} < set(stored)
    assert len(tensors_to_bytes(stored)) < 0.82 * len(tensors_to_bytes(arrays_))
    found = decode(tensors_from(tensors_to_bytes(stored), "here"))
    assert found.keys() == arrays_.keys()
    for name, array in arrays_.items():
        assert (found[name].dtype, found[name].shape, found[name].tobytes()) == (
            array.dtype,
            array.shape,
            array.tobytes(),
        )
    assert {name: (d.dtype, d.shape, d.nbytes) for name, d in declared(stored).items()} == {
        name: (a.dtype, a.shape, a.nbytes) for name, a in arrays_.items()
    }
    assert {name_of(key) for key in stored} == set(arrays_)


def test_names_with_colons_are_of_the_tensor_not_of_its_form() -> None:
    name = "0000/coded:a/type:b"
    tensors = {name: np.zeros(9000, np.int32), "0001/shape:x/y": np.ones(2)}
    stored = encode(tensors)
    assert {name_of(key) for key in stored} == set(tensors) == set(decode(stored))
    assert f"coded:{name}" in stored


GOOD = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
WHOLE = coded(KEY, GOOD)[STREAM]


def stream(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


def packed(size: int) -> np.ndarray:
    return stream(zlib.compress(bytes(size), 9))


def dictionary() -> bytes:
    packer = zlib.compressobj(zdict=b"abc" * 9)
    return packer.compress(GOOD.tobytes()) + packer.flush()


EMPTY = np.empty((0, 40, 50), np.float32)
HOSTILE: dict[str, tuple[Arrays, str]] = {
    "cut": ({STREAM: WHOLE[:-1]}, "its stream has no end"),
    "cut by half": ({STREAM: WHOLE[: len(WHOLE) // 2]}, r"its stream holds \d+ bytes, expected 8000"),
    "cut to nothing": ({STREAM: WHOLE[:0]}, "its stream of 0 bytes holds 0 at most, expected 8000"),
    "bytes behind": ({STREAM: np.append(WHOLE, WHOLE[:3])}, "3 bytes follow the end of its stream"),
    "another stream behind": ({STREAM: np.append(WHOLE, WHOLE)}, rf"{len(WHOLE)} bytes follow the end"),
    "a bomb": ({STREAM: packed(2**30)}, "its stream holds more than its 8000 bytes"),
    "one byte more": ({STREAM: packed(8001)}, "its stream holds more than its 8000 bytes"),
    "one byte less": ({STREAM: packed(7999)}, "its stream holds 7999 bytes, expected 8000"),
    "a changed sum": ({STREAM: np.append(WHOLE[:-1], WHOLE[-1] ^ np.uint8(1))}, "its stream is none of zlib"),
    "no stream": ({STREAM: stream(b"\xff" * 99)}, "its stream is none of zlib"),
    "bare deflate": ({STREAM: stream(zlib.compress(bytes(8000))[2:-4])}, "its stream is none of zlib"),
    "gzip": ({STREAM: stream(zlib.compress(bytes(8000), wbits=31))}, "its stream is none of zlib"),
    "a dictionary": ({STREAM: stream(dictionary())}, "its stream is none of zlib"),
    "more than it can hold": ({LIKE: np.empty((0, 2**30), np.float32)}, rf"at most, expected {2**32}"),
    "sides beyond integers": ({LIKE: np.empty((0, 2**31, 2**31), np.uint8)}, rf"at most, expected {2**62}"),
    "another shape": ({LIKE: np.empty((0, 40, 51), np.float32)}, "its stream holds 8000 bytes, expected 8160"),
    "another type": ({LIKE: np.empty((0, 40, 50), np.float16)}, "its stream holds more than its 4000 bytes"),
    "numbers for a type": ({LIKE: GOOD}, r"must be an empty array of numbers, found float32 \[40, 50\]"),
    "no side": ({LIKE: np.float32(0).reshape(())}, r"must be an empty array of numbers, found float32 \[\]"),
    "booleans": ({LIKE: np.empty((0, 8000), bool)}, r"must be an empty array of numbers, found bool \[0, 8000\]"),
    "a stream of words": ({STREAM: WHOLE[:8].view(np.int64)}, "its stream must be a vector of uint8, found int64"),
    "a stream of rows": ({STREAM: WHOLE[:8].reshape(2, 4)}, r"must be a vector of uint8, found uint8 \[2, 4\]"),
    "as it is too": ({KEY: GOOD}, "it is stored both as it is and coded"),
}


@pytest.mark.parametrize(("changed", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_stream_is_one_clear_error(changed: Arrays, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RunError, match=message) as caught:
            decode({STREAM: WHOLE, LIKE: EMPTY} | changed)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"stored weight {KEY} cannot be decoded: ")
    assert "\n" not in str(caught.value)
    assert most < 3 * 2**20  # a copy of the longest stream, of 1 MB, and no part of what it would hold


@pytest.mark.parametrize("gone", [STREAM, LIKE])
def test_half_of_a_coded_array_is_refused(gone: str) -> None:
    stored = {STREAM: WHOLE, LIKE: EMPTY}
    del stored[gone]
    with pytest.raises(RunError, match="of its coded and its type only one is there"):
        decode(stored)


def test_a_coded_array_is_not_coded_again() -> None:
    with pytest.raises(RunError, match="of its coded and its type only one is there"):
        decode(coded(STREAM, WHOLE) | {LIKE: EMPTY})


PATTERN = {"shape:m": np.array([80, 80]), "gaps:m": compress.gaps_of(np.ones(6400, bool))}
KEPT = {**PATTERN, "kept:m": np.zeros(6401, np.float32)}
LONG: dict[str, tuple[Arrays, str, Arrays]] = {
    "shape": (PATTERN, "its shape must be stored as it is", coded("shape:m", np.array([80, 80]))),
    "few gaps": (PATTERN, "its gaps end at 510 at most, expected", coded("gaps:m", np.full(2, 1, np.uint8))),
    "gaps": (PATTERN, "holds 6427 numbers, expected 6426 at most", coded("gaps:m", np.full(6427, 1, np.uint8))),
    "gaps of words": (PATTERN, "its gaps must be a vector of uint8", coded("gaps:m", np.full(6400, 1, np.int32))),
    "gaps of rows": (PATTERN, "its gaps must be a vector of uint8", coded("gaps:m", np.ones((64, 100), np.uint8))),
    "kept": (KEPT, "holds 9999 numbers, expected 6401 at most", coded("kept:m", np.zeros(9999, np.float32))),
    "kept of whole numbers": (KEPT, "must be a vector of floats", coded("kept:m", np.zeros(6401, np.int32))),
}


@pytest.mark.parametrize(("stored", "message", "part"), LONG.values(), ids=LONG)
def test_a_part_longer_than_its_tensor_is_not_unpacked(
    stored: Arrays, message: str, part: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode(stored)  # which is well as it was
    key = next(iter(part)).partition(":")[2]
    if "floats" not in message:
        monkeypatch.setattr(Coded, "read", lambda self: pytest.fail("it was unpacked"))
    with pytest.raises(RunError, match=message):
        decode({name: array for name, array in stored.items() if name != key} | part)


def test_weights_beyond_memory_are_refused_before_they_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "free_memory", lambda: 2.0**33)
    monkeypatch.setattr(Coded, "read", lambda self: pytest.fail("it was unpacked"))
    # Each within what its bytes may hold: 1,032 coded for each byte of a stream, and 255 entries for each of the gaps.
    gaps = 2**23
    stored: Arrays = {
        "shape:0001/d/kernel": np.array([gaps * 255]),
        "coded:gaps:0001/d/kernel": np.zeros(2**14, np.uint8),
        "type:gaps:0001/d/kernel": np.empty((0, gaps), np.uint8),
        "coded:kept:0001/d/kernel": np.zeros(2**10, np.uint8),
        "type:kept:0001/d/kernel": np.empty((0, 10), np.float64),
    }
    assert sum(array.nbytes for array in stored.values()) < 20_000
    with pytest.raises(RunError, match=rf"the stored weights take {gaps * 255 * 8} bytes, which do not fit into mem"):
        decode(stored)
    monkeypatch.setattr(reading, "free_memory", lambda: 2.0**35)
    with pytest.raises(pytest.fail.Exception):
        decode(stored)


@given(data=st.data())
def test_no_change_of_a_stream_crashes_or_makes_more_than_it_says(data: st.DataObject) -> None:
    changed = WHOLE.copy()
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(WHOLE) - 1))] ^= np.uint8(data.draw(st.integers(1, 255)))
    with contextlib.suppress(RunError):
        found = decode({STREAM: changed, LIKE: EMPTY})
        assert found[KEY].nbytes == GOOD.nbytes


def test_a_stream_that_is_made_long_by_the_limit_is_read() -> None:
    # The bound on what a stream holds must not refuse any that zlib writes.
    for size in (1, 258, 10**4, 10**7):
        array = np.zeros(size, np.uint8)
        best = {STREAM: packed(size), LIKE: np.empty((0, size), np.uint8)}
        assert read(best).tobytes() == array.tobytes()
        assert planes._MOST * len(best[STREAM]) >= size
    assert planes._MOST * len(packed(10**8)) < 1.01 * 10**8 * 1.01


def test_a_file_of_streams_is_plain_safetensors(tmp_path: Path) -> None:
    stored = encode({KEY: GOOD})
    (tmp_path / "x.safetensors").write_bytes(tensors_to_bytes(stored))
    found = tensors_from((tmp_path / "x.safetensors").read_bytes(), "x")
    assert found[LIKE].shape == (0, 40, 50)
    by_hand = np.frombuffer(zlib.decompress(found[STREAM].tobytes()), np.uint8).reshape(4, -1).T.copy()
    np.testing.assert_array_equal(by_hand.view(np.float32).reshape(40, 50), GOOD)
