"""Kernels multiply alike in every form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import tf
from tfp_bprune.prediction import kernels
from tfp_bprune.prediction.cost import BATCHES, FORMS, SPARSE, Choice
from tfp_bprune.prediction.kernels import FOR_CONVERTERS, DenseKernel, Lowering, held, read
from tfp_bprune.prediction.stored import Decoded
from tfp_bprune.prediction.value import Value
from tfp_bprune.types import Product

SHAPE = (40, 30)


def pruned(sparsity: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Means and scales of which the same entries are left."""
    rng = np.random.default_rng(seed)
    left = rng.random(SHAPE) >= sparsity
    loc, scale = rng.normal(size=SHAPE) * left, rng.uniform(0.1, 1, SHAPE) * left
    return loc.astype(np.float32), scale.astype(np.float32)


def products(kernel: DenseKernel, x: np.ndarray) -> list[np.ndarray]:
    """By mean, variance and, but for compressed rows, square, on rows."""
    value = kernel.laid(Value(tf.constant(x)))
    made = [
        by(value, value.mean) for by in (kernel.by_mean, kernel.by_variance, kernel.by_square)[: 2 + (not kernel._csr)]
    ]
    return [Value(product, columns=value.columns).as_rows().mean.numpy() for product in made]


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95, 0.999, 1.0])
@pytest.mark.parametrize(
    "lowering", [Lowering("dense"), Lowering("sparse"), Lowering("csr"), Lowering("auto"), FOR_CONVERTERS]
)
def test_every_form_gives_the_product(sparsity: float, lowering: Lowering) -> None:
    loc, scale = pruned(sparsity)
    kernel = DenseKernel(loc, scale, lowering)
    assert kernel.stored == np.count_nonzero(loc)
    for batch in (0, 1, 5, 70):
        x = np.random.default_rng(1).normal(size=(batch, SHAPE[0])).astype(np.float32)
        made = products(kernel, x)
        assert len(made) == 2 + (kernel.choice.forms != ("csr",))  # of compressed rows no squares are asked
        for found, weights in zip(made, (loc, scale**2, loc**2), strict=False):
            np.testing.assert_allclose(found, x @ weights, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("form", SPARSE)
def test_both_forms_take_turns_by_batch(below: bool, form: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    loc, scale = pruned(0.9)
    limit = BATCHES[3]
    forms: tuple[Product, ...] = (form, "dense") if below else ("dense", form)
    monkeypatch.setattr(kernels, "choose", lambda *_: Choice(forms, (limit,)))
    kernel = DenseKernel(loc, scale, Lowering())
    for batch in (1, limit - 1, limit, limit + 1):
        x = np.random.default_rng(1).normal(size=(batch, SHAPE[0])).astype(np.float32)
        np.testing.assert_allclose(products(kernel, x)[0], x @ loc, rtol=1e-4, atol=1e-4)
    sparse_of = {batch: uses_sparse(kernel, batch) for batch in (1, limit - 1, limit, limit + 1)}
    assert sparse_of == {1: below, limit - 1: below, limit: not below, limit + 1: not below}


def test_three_forms_take_turns_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    loc, scale = pruned(0.9)
    monkeypatch.setattr(kernels, "choose", lambda *_: Choice(("sparse", "dense", "csr"), (2, 8)))
    kernel = DenseKernel(loc, scale, Lowering())
    kernel._dense = [tf.constant(2 * loc), tf.zeros(SHAPE)]
    monkeypatch.setattr(kernel._csr[0], "times", lambda columns: tf.matmul(3 * loc, columns, transpose_a=True))
    traced = tf.function(lambda x: kernel.by_mean(kernel.laid(Value(x)), tf.transpose(x)), reduce_retracing=True)
    for batch, times in {0: 1, 1: 1, 2: 2, 7: 2, 8: 3, 100: 3}.items():
        x = np.random.default_rng(1).normal(size=(batch, SHAPE[0])).astype(np.float32)
        np.testing.assert_allclose(tf.transpose(traced(tf.constant(x))), x @ (times * loc), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sparsity", [0.9, 1.0])
def test_no_examples_at_all_have_no_products(sparsity: float) -> None:
    """TensorFlow's product with compressed rows ends the process."""
    kernel = DenseKernel(pruned(sparsity)[0], None, Lowering("csr"))
    traced = tf.function(kernel._csr[0].times, input_signature=[tf.TensorSpec([SHAPE[0], None])])
    assert traced(tf.zeros([SHAPE[0], 0])).shape == (SHAPE[1], 0)


def uses_sparse(kernel: DenseKernel, batch: int) -> bool:
    """Whether a product of this batch changes when the dense form does."""
    dense = kernel._dense
    kernel._dense = [tf.zeros(SHAPE) for _ in dense]
    try:
        return bool(products(kernel, np.ones((batch, SHAPE[0]), np.float32))[0].any())
    finally:
        kernel._dense = dense


@pytest.mark.parametrize("form", FORMS)
def test_weights_in_half_the_bytes_are_rounded_once(form: Any) -> None:
    loc, scale = pruned(0.8)
    loc[0, 0] = 1e6  # beyond float16's range: its largest stands for it
    kernel = DenseKernel(loc, scale, Lowering(form, "float16"))
    expected = np.clip(loc, -65504, 65504).astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(products(kernel, np.eye(SHAPE[0], dtype=np.float32))[0], expected, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sparsity", [0.0, 0.95])
def test_small_scales_survive_half_the_bytes(form: Any, sparsity: float) -> None:
    """Their squares would be 0 in float16, which ends at 6e-8."""
    loc, scale = pruned(sparsity)
    scale *= 1e-4
    kernel = DenseKernel(loc, scale, Lowering(form, "float16"))
    found = products(kernel, np.eye(SHAPE[0], dtype=np.float32))[1]
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
