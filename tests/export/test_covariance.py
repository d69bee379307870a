"""The factor of a covariance matrix, written out for lists of triangles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import tf
from tfp_bprune.export.covariance import drawn, factor, leading
from tfp_bprune.export.value import Value


def factored(matrices: np.ndarray) -> np.ndarray:
    """`factor` of matrices [batch, n, n]."""
    n = matrices.shape[1]
    rows = factor([[tf.constant(matrices[:, i, j], tf.float32) for j in range(i + 1)] for i in range(n)])
    found = np.zeros(matrices.shape)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            found[:, i, j] = value
    return found


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_it_is_choleskys_factor(size: int, scale: float) -> None:
    roots = np.random.default_rng(size).normal(size=(50, size, size + 3)) * scale
    matrices = roots @ roots.transpose(0, 2, 1)
    np.testing.assert_allclose(factored(matrices), np.linalg.cholesky(matrices), rtol=1e-2, atol=3e-3 * scale)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0])
def test_outputs_that_one_noise_moves_together_keep_their_covariance(rank: int, scale: float) -> None:
    """Of matrices without an inverse, where what is left of a variance is what rounding made of it."""
    roots = (np.random.default_rng(rank).normal(size=(400, 4, rank)) * scale).astype(np.float32)
    matrices = np.einsum("bik,bjk->bij", roots, roots)
    found = factored(matrices)
    largest = np.max(np.abs(matrices), (1, 2), initial=1e-6, keepdims=True)
    assert (np.abs(found @ found.transpose(0, 2, 1) - matrices) <= 5e-3 * largest).all()


def test_the_classes_that_could_lead_are_chosen() -> None:
    logits = Value(tf.constant([[3.0, 2.0, 1.0, 0.0]]), tf.constant([[0.0, 0.0, 9.0, 1.0]]))
    np.testing.assert_array_equal(leading(logits, 2), [[[0, 0, 1, 0], [1, 0, 0, 0]]])


def test_drawn_logits_have_the_covariance_of_the_chosen_and_the_variance_of_the_others() -> None:
    matrix = np.array([[2.0, 1.2], [1.2, 1.0]])
    rows: list[list[Any]] = [[tf.constant([2.0])], [tf.constant([1.2]), tf.constant([1.0])]]
    chosen = tf.constant([[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]])
    logits = Value(tf.constant([[1.0, 2.0, 3.0]]), tf.constant([[7.0, 4.0, 7.0]]))
    points = np.random.default_rng(0).normal(size=(20_000, 5)).astype(np.float32)
    # Points of exactly no mean and the unit covariance, so that what is drawn has exactly the one asked for.
    points -= points.mean(0)
    points = (points @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T))).T).astype(np.float32)
    found = drawn(logits, chosen, factor(rows), points).numpy()[:, :, 0].T
    np.testing.assert_allclose(found.mean(0), [1, 2, 3], atol=1e-3)
    expected = [[matrix[1, 1], 0, matrix[0, 1]], [0, 4, 0], [matrix[0, 1], 0, matrix[0, 0]]]
    np.testing.assert_allclose(np.cov(found.T), expected, atol=5e-3)
