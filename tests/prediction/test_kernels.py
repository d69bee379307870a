"""Kernels multiply alike in every form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import tf
from tfp_bprune.prediction import kernels
from tfp_bprune.prediction.cost import BATCHES, Choice
from tfp_bprune.prediction.kernels import FOR_CONVERTERS, DenseKernel, Lowering, held, read
from tfp_bprune.prediction.stored import Decoded
from tfp_bprune.prediction.value import Value

SHAPE = (40, 30)


def pruned(sparsity: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Means and scales of which the same entries are left."""
    rng = np.random.default_rng(seed)
    left = rng.random(SHAPE) >= sparsity
    loc, scale = rng.normal(size=SHAPE) * left, rng.uniform(0.1, 1, SHAPE) * left
    return loc.astype(np.float32), scale.astype(np.float32)


def products(kernel: DenseKernel, x: np.ndarray) -> list[np.ndarray]:
    """By mean, square and variance, on rows."""
    value = kernel.laid(Value(tf.constant(x)))
    made = [by(value, value.mean) for by in (kernel.by_mean, kernel.by_square, kernel.by_variance)]
    return [Value(product, columns=value.columns).as_rows().mean.numpy() for product in made]


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("lowering", [Lowering("dense"), Lowering("sparse"), Lowering("auto"), FOR_CONVERTERS])
def test_every_form_gives_the_product(sparsity: float, lowering: Lowering) -> None:
    loc, scale = pruned(sparsity)
    kernel = DenseKernel(loc, scale, lowering)
    assert kernel.stored == np.count_nonzero(loc)
    for batch in (0, 1, 5, 70):
        x = np.random.default_rng(1).normal(size=(batch, SHAPE[0])).astype(np.float32)
        for found, weights in zip(products(kernel, x), (loc, loc**2, scale**2), strict=True):
            np.testing.assert_allclose(found, x @ weights, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("below", [False, True])
def test_both_forms_take_turns_by_batch(below: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    loc, scale = pruned(0.9)
    limit = BATCHES[3]
    monkeypatch.setattr(kernels, "choose", lambda *_: Choice(below, limit))
    kernel = DenseKernel(loc, scale, Lowering())
    for batch in (1, limit - 1, limit, limit + 1):
        x = np.random.default_rng(1).normal(size=(batch, SHAPE[0])).astype(np.float32)
        np.testing.assert_allclose(products(kernel, x)[0], x @ loc, rtol=1e-4, atol=1e-4)
    sparse_of = {batch: uses_sparse(kernel, batch) for batch in (1, limit - 1, limit, limit + 1)}
    assert sparse_of == {1: below, limit - 1: below, limit: not below, limit + 1: not below}


def uses_sparse(kernel: DenseKernel, batch: int) -> bool:
    """Whether a product of this batch changes when the dense form does."""
    dense = kernel._dense
    kernel._dense = [tf.zeros(SHAPE) for _ in dense]
    try:
        return bool(products(kernel, np.ones((batch, SHAPE[0]), np.float32))[0].any())
    finally:
        kernel._dense = dense


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_weights_in_half_the_bytes_are_rounded_once(form: Any) -> None:
    loc, scale = pruned(0.8)
    loc[0, 0] = 1e6  # beyond float16's range: its largest stands for it
    kernel = DenseKernel(loc, scale, Lowering(form, "float16"))
    expected = np.clip(loc, -65504, 65504).astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(products(kernel, np.eye(SHAPE[0], dtype=np.float32))[0], expected, rtol=1e-6)


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("sparsity", [0.0, 0.95])
def test_small_scales_survive_half_the_bytes(form: Any, sparsity: float) -> None:
    """Their squares would be 0 in float16, which ends at 6e-8."""
    loc, scale = pruned(sparsity)
    scale *= 1e-4
    kernel = DenseKernel(loc, scale, Lowering(form, "float16"))
    found = products(kernel, np.eye(SHAPE[0], dtype=np.float32))[2]
    np.testing.assert_allclose(found, scale.astype(np.float64) ** 2, rtol=2 * 2.0**-8, atol=1e-14)


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("sparsity", [0.0, 0.9])
@pytest.mark.parametrize("shape", [(3, 3, 64, 60), (600, 60)])
def test_what_is_held_is_read_back(storage: Any, sparsity: float, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    array = (rng.normal(size=shape) * (rng.random(shape) >= sparsity)).astype(np.float32)
    kept = held(array, Lowering(storage=storage))
    np.testing.assert_array_equal(read(kept), array.astype(storage).astype(np.float32))
    assert isinstance(kept, Decoded) == (sparsity > 0 or storage == "float16")
    np.testing.assert_array_equal(read(held(array, FOR_CONVERTERS)), array)
    squares = read(held(array, Lowering(storage=storage), squared=True))
    np.testing.assert_array_equal(squares, np.square(array.astype(storage).astype(np.float32)))
