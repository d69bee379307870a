"""What a weight is worth."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tfp_bprune.pruning.scores import decibel, magnitude, snr

weights = arrays.arrays(np.float32, 8, elements=st.floats(-1e3, 1e3, width=32))
scales = arrays.arrays(np.float32, 8, elements=st.floats(2.0**-20, 1e3, width=32))


@given(weights, scales)
def test_snr_divides_by_sigma(loc: np.ndarray, scale: np.ndarray) -> None:
    np.testing.assert_allclose(snr(loc, scale), np.abs(loc).astype(float) / scale.astype(float))


@given(weights, scales)
def test_scores_look_at_the_sign_of_nothing_and_are_never_negative(loc: np.ndarray, scale: np.ndarray) -> None:
    for score in (snr, magnitude):
        np.testing.assert_array_equal(score(loc, scale), score(-loc, scale))
        assert (score(loc, scale) >= 0).all()


@given(weights, scales, st.sampled_from([0.25, 2.0, 1024.0]))
def test_snr_has_no_unit(loc: np.ndarray, scale: np.ndarray, unit: float) -> None:
    # Powers of two scale without rounding.
    np.testing.assert_array_equal(snr(unit * loc.astype(float), unit * scale.astype(float)), snr(loc, scale))


def test_a_certain_weight_is_worth_everything_and_no_weight_nothing() -> None:
    assert snr(np.array([2.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])).tolist() == [np.inf, 0.0, 0.0]


def test_nan_stays_nan() -> None:
    # Were it 0 or infinite, a broken weight would be pruned or kept in silence.
    assert np.isnan(snr(np.array([np.nan, 1.0]), np.array([1.0, np.nan]))).all()
    assert np.isnan(magnitude(np.array([np.nan]))).all()


def test_magnitude_needs_no_scale() -> None:
    assert magnitude(np.array([[-3.0], [2.0]], np.float32)).tolist() == [[3.0], [2.0]]


def test_decibel_is_ten_times_the_decimal_logarithm() -> None:
    assert decibel(np.array([0.0, 0.1, 1.0, 100.0])).tolist() == [-np.inf, -10.0, 0.0, 20.0]
