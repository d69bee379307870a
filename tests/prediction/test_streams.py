"""Numbers of draws: a function of the draw alone, none used twice; and what is made of their sums."""

from __future__ import annotations

import numpy as np
import pytest

from tfp_bprune._keras import tf
from tfp_bprune.graphs.heads import Head
from tfp_bprune.prediction import streams
from tfp_bprune.prediction.answers import Targets


@pytest.mark.parametrize("width", [1, 4, 10])
@pytest.mark.parametrize("kind", [streams.normal, streams.uniform])
def test_a_draw_has_numbers_of_its_own_however_many_are_made_at_once(kind: object, width: int) -> None:
    made = kind(0, 6, width, 3, "layer").numpy()  # type: ignore[operator]
    apart = [kind(index, count, width, 3, "layer").numpy() for index, count in ((0, 2), (2, 1), (3, 3))]  # type: ignore[operator]
    np.testing.assert_array_equal(made, np.concatenate(apart))
    assert len(np.unique(made)) == made.size
    assert not np.isin(made, kind(0, 6, width, 3, "other").numpy()).any()  # type: ignore[operator]


def test_the_spread_of_draws_is_without_bias() -> None:
    draws = np.random.default_rng(0).normal(5.0, 2.0, size=(4, 7, 1)).astype(np.float32)  # [draws, batch, 1]
    answer, centre = Targets(Head("regression")), draws[0, :, 0]
    sums = [tf.reduce_sum(part, 0) for part in answer.parts(tf.constant(draws), centre)]
    found = answer.of_sums(sums, 4.0, centre)
    np.testing.assert_allclose(found["mean"], draws.mean(0)[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found["weights_std"], draws.std(0, ddof=1)[:, 0], rtol=1e-4)
