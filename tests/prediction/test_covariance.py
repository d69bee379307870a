"""The factor of a covariance matrix, written out for lists of triangles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import DenseFlipout
from tfp_bprune.prediction import Predictor
from tfp_bprune.prediction.covariance import drawn, factor, followed, leading, width_of
from tfp_bprune.prediction.value import Value


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


def test_of_many_classes_the_mean_of_the_others_is_followed() -> None:
    logits = Value(tf.constant([np.arange(9.0)], tf.float32), tf.ones([1, 9]))
    [directions] = followed(logits).numpy()
    np.testing.assert_array_equal(directions[:3], np.eye(9)[[8, 7, 6]])
    np.testing.assert_allclose(directions[3], [1 / 6] * 6 + [0] * 3, rtol=1e-6)


def exact_points(width: int) -> np.ndarray:
    """Points of exactly no mean and the unit covariance, so that what is drawn has exactly the one asked for."""
    points = np.random.default_rng(0).normal(size=(20_000, width))
    points -= points.mean(0)
    return (points @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T))).T).astype(np.float32)


def triangle(matrix: np.ndarray) -> list[list[Any]]:
    return [[tf.constant(matrix[i : i + 1, j], tf.float32) for j in range(i + 1)] for i in range(len(matrix))]


def covariance_of(logits: Value, matrix: np.ndarray) -> np.ndarray:
    """Of drawn logits, whose followed directions have the covariance `matrix`."""
    points = exact_points(width_of(logits.mean.shape[1]))
    found = drawn(logits, followed(logits), triangle(matrix), points).numpy()[:, :, 0].T
    np.testing.assert_allclose(found.mean(0), logits.mean[0], atol=1e-3)
    return np.cov(found.T)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_few_logits_are_drawn_with_their_whole_covariance(classes: int) -> None:
    root = np.random.default_rng(classes).normal(size=(classes, classes + 2))
    logits = Value(tf.constant([np.arange(classes)], tf.float32), tf.fill([1, classes], 7.0))
    np.testing.assert_allclose(covariance_of(logits, root @ root.T), root @ root.T, atol=1e-2)


# By how much the variances carried forward are too large.
@pytest.mark.parametrize("excess", [1.0, 3.0])
def test_of_many_logits_the_others_keep_their_mean_in_common(excess: float) -> None:
    root = np.random.default_rng(0).normal(size=(4, 6))
    matrix = root @ root.T  # of the three that lead and of the mean of the other four
    common = matrix[3, 3]
    own = np.concatenate([np.diag(matrix)[:3], common + np.array([1.0, 2.0, 3.0, 0.5])])
    means = tf.constant([[90.0, 80, 70, 4, 3, 2, 1]])
    found = covariance_of(Value(means, tf.constant([own * excess], tf.float32)), matrix)
    mean = np.zeros((4, 7))
    mean[[0, 1, 2], [0, 1, 2]], mean[3, 3:] = 1, 0.25
    np.testing.assert_allclose(mean @ found @ mean.T, matrix, atol=1e-2)
    # What moves each of the four on its own sums to 0, and has the size that is left of its variance.
    apart = found[3:, 3:] - common
    centre = np.eye(4) - 0.25
    np.testing.assert_allclose(apart, centre @ np.diag([1, 2, 3, 0.5]) @ centre * 4 / 3, atol=1e-2)


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_noise_that_a_skip_connection_reads_too_is_not_lost(activation: str) -> None:
    """h + f(h) of one uncertain number h = m + s e: with f the identity, its deviation is 2 s exactly."""
    inputs = keras.Input((1,))
    h = DenseFlipout(1, use_bias=False, rho_init=-3.0)(inputs)
    model = keras.Model(inputs, keras.layers.Add()([h, keras.layers.Activation(activation)(h)]))
    layer = model.layers[1]
    layer.kernel_posterior.loc_variable.assign([[3.0]])  # far from the kink, where relu is the identity
    found = Predictor(model, "moments", task="regression").predict(tf.constant([[1.0], [2.0]]))["weights_std"]
    expected = 2 * layer.kernel_posterior.scale.numpy()[0, 0]
    np.testing.assert_allclose(found, [expected, 2 * expected], rtol=1e-4)
