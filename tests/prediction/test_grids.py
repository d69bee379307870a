"""Weights in few bits: rounded within half a step, packed and read back to the bit, and what it costs as theory has it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfp_bprune._keras import tf
from tfp_bprune.prediction.block import Block
from tfp_bprune.prediction.coded import Coded
from tfp_bprune.prediction.grids import (
    WITHIN,
    Levels,
    Steps,
    as_bfloat16,
    elbo_loss,
    entropy_of,
    levels,
    multiples,
    steps,
    widest,
)
from tfp_bprune.prediction.kernels import DenseKernel, Lowering, held, held_bias, read, rounded
from tfp_bprune.prediction.stored import Decoded, Packed
from tfp_bprune.prediction.value import Value

BITS = range(2, 9)


@pytest.mark.parametrize("bits", [*BITS])
@pytest.mark.parametrize("count", [0, 1, 7, 3000])
def test_codes_come_back_whatever_form_is_smallest(bits: int, count: int) -> None:
    rng = np.random.default_rng(count + bits)
    spread = rng.integers(0, 2**bits, count).astype(np.uint8)
    for numbers in (spread, np.minimum(spread, 1), np.zeros(count, np.uint8)):
        coded = Coded(numbers, bits)
        np.testing.assert_array_equal(coded.read(), numbers)
        assert coded.nbytes <= -(-count * bits // 8)


def test_numbers_that_repeat_take_less_than_their_bits() -> None:
    rare = (np.random.default_rng(0).random(20_000) > 0.99).astype(np.uint8)
    assert Coded(rare, 4).nbytes < 20_000 * 0.15 / 8  # 0.08 bits a number is their entropy


@pytest.mark.parametrize("bits", [*BITS])
def test_means_are_within_half_a_step_unless_they_are_beyond_the_grid(bits: int) -> None:
    array = np.random.default_rng(bits).normal(size=(300, 7)) * np.logspace(-6, 3, 7)
    array[::3] = 0
    grid = steps(array.astype(np.float32), bits)
    top = (2 ** (bits - 1) - 1) * grid.scale
    inside = np.clip(array, -top, top)
    assert (np.abs(grid.values - inside) <= 0.5001 * grid.scale).all()
    assert (grid.values[::3] == 0).all()
    assert grid.codes.max() < 2**bits


@pytest.mark.parametrize("unit", [1e-30, 1e-20, 1e20, 1e38])
def test_weights_of_any_size_have_the_same_codes(unit: float) -> None:
    """Their squares are beyond what float32 holds."""
    array = np.random.default_rng(0).uniform(-1, 1, (40, 3)).astype(np.float32)
    power = np.float32(2.0 ** round(np.log2(unit)))  # exact, as scales are
    np.testing.assert_array_equal(steps(array * power, 8).codes, steps(array, 8).codes)
    np.testing.assert_array_equal(steps(array * power, 8).values, steps(array, 8).values * power)


def test_the_grid_is_the_best_of_those_tried() -> None:
    """One weight far from all others: a grid that reaches it would round those to 0."""
    array = np.random.default_rng(0).normal(size=(2000, 1)).astype(np.float32)
    array[0] = 12
    error = np.square(steps(array, 3).values - array).mean()
    whole = 12 / 3 * np.rint(array / (12 / 3))
    assert error < 0.5 * np.square(whole - array).mean()


@pytest.mark.parametrize("bits", [*BITS])
def test_scales_keep_the_variance_that_they_bring(bits: int) -> None:
    scale = np.exp(np.random.default_rng(0).normal(-5, 1, (200, 30))).astype(np.float32)
    scale[:, 3] = 0
    grid = levels(scale, bits)
    assert (grid.values[:, 3] == 0).all()
    assert (grid.values[scale > 0] > 0).all()
    np.testing.assert_allclose(np.square(grid.values).sum(), np.square(scale.astype(float)).sum(), rtol=2**-7)
    assert elbo_loss(scale, scale, scale, grid.values) / np.count_nonzero(scale) < 1 / 24


@given(st.lists(st.floats(-20, 3), min_size=1, max_size=13))
def test_the_table_of_scales_is_the_best_there_is(logs: list[float]) -> None:
    """Held to all ways of cutting numbers in their order into at most as many ranges; bins are 1/512 of what they span."""
    ordered = np.sort(np.float32(np.exp(logs))).astype(float)
    count, number = -(-len(logs) // 4), len(logs)
    found = levels(ordered[:, None].astype(np.float32), 4).codes[:, 0]
    assert (np.diff(found.astype(int)) >= 0).all()
    assert found.max() <= count

    def error(cuts: tuple[int, ...]) -> tuple[float, float]:
        parts = np.split(np.log(ordered), cuts)
        entropy = sum(len(part) * np.log(number / len(part)) for part in parts)
        return sum(np.square(part - part.mean()).sum() for part in parts), 2e-4 * entropy

    ways = (cuts for size in range(count) for cuts in itertools.combinations(range(1, number), size))
    distance, price = min(map(error, ways), key=sum)
    slack = np.ptp(np.log(ordered)) / 512
    mine = sum(error(tuple(np.flatnonzero(np.diff(found)) + 1)))
    assert mine <= (distance**0.5 + slack * number**0.5) ** 2 + price + 1e-9


@pytest.mark.parametrize("bits", [4, 5, 6])
@pytest.mark.parametrize("narrow", [0.0, 0.5, 0.9])
def test_few_wide_posteriors_among_many_narrow_ones_get_their_levels(bits: int, narrow: float) -> None:
    """A level for the narrow ones and equal ranges of the logarithms for the others is a table too: its squared error is width^2 /
    12 for each of the others, which is what they lose, in nats, to second order. Levels keep the variance of a linear network's
    output at an input of ones; at x = 1 / s, which reads most what is known best, it is (sinh(width) / width)^2 times its own."""
    rng, count = np.random.default_rng(bits), 20_000
    wide = np.exp(rng.uniform(np.log(0.01), np.log(0.3), count))
    is_narrow = rng.random(count) < narrow
    scale = np.where(is_narrow, 0.0025 * np.exp(rng.normal(0, 0.01, count)), wide)[:, None].astype(np.float32)
    found, others = levels(scale, bits).values, ~is_narrow
    width = np.log(30) / (2**bits - 2)
    loss = elbo_loss(scale[others], scale[others], scale[others], found[others]) / others.sum()
    assert loss < 1.25 * width**2 / 12 + 2.0**-16
    variance = np.square(found[others] / scale[others]).mean(dtype=float)
    assert abs(variance - 1) < 1.25 * ((np.sinh(width) / width) ** 2 - 1) + 2.0**-9


@pytest.mark.parametrize("bits", [4, 5, 6])
def test_posteriors_that_are_all_but_equal_share_a_level(bits: int) -> None:
    """Two for normal logarithms of deviation .01 gain 2 / pi of .01^2, 6.4e-5 nats a weight, and cost log 2 of code at 2e-4."""
    scale = (0.0025 * np.exp(np.random.default_rng(0).normal(0, 0.01, (5000, 2)))).astype(np.float32)
    assert len(levels(scale, bits).levels) == 2


def test_nothing_left_is_rounded_to_nothing() -> None:
    empty = np.zeros((4, 3), np.float32)
    assert not steps(empty, 2).values.any()
    assert not levels(empty, 2).values.any()
    assert steps(np.zeros((0, 3), np.float32), 4).values.shape == (0, 3)


def test_a_step_as_wide_as_the_posterior_costs_a_24th_of_a_nat() -> None:
    """Uniform rounding: step^2 / 12 of variance over 2 s^2. Of n weights the mean has a standard error of 1/24 (4/5)^.5 / n^.5."""
    rng, count, scale = np.random.default_rng(0), 200_000, 0.3
    loc = rng.uniform(-50, 50, count)
    loss = elbo_loss(loc, np.full(count, scale), scale * np.rint(loc / scale)) / count
    assert abs(loss - 1 / 24) < 5.5 * np.sqrt(4 / 5) / 24 / np.sqrt(count)


def test_the_loss_is_the_divergence_of_the_moved_posterior() -> None:
    from scipy.integrate import quad
    from scipy.stats import norm

    loc, scale, new_loc, new_scale = 0.3, 0.2, 0.45, 0.26
    moved, own = norm(new_loc, new_scale), norm(loc, scale)
    expected, _ = quad(lambda w: moved.pdf(w) * (moved.logpdf(w) - own.logpdf(w)), -3, 4)
    arrays = [np.array([[x]]) for x in (loc, scale, new_loc, new_scale)]
    assert elbo_loss(*arrays) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("by_row", [False, True])
def test_packed_grids_come_back(bits: int, by_row: bool) -> None:
    rng = np.random.default_rng(bits)
    loc = (rng.normal(size=(40, 30)) * (rng.random((40, 30)) > 0.6)).astype(np.float32)
    means, scales = steps(loc, bits), levels(np.abs(loc), bits)
    pattern = (means.values != 0) | (scales.values != 0)
    turn = np.transpose if by_row else np.asarray
    grids = [grid.with_codes(turn(grid.codes)) for grid in (means, scales)]
    packed = Packed(turn(pattern), grids, "int8", by_row=by_row)
    for which, grid in enumerate((means, scales)):
        np.testing.assert_array_equal(turn(packed.matrix(which)), grid.values)
        np.testing.assert_array_equal(packed.matrix(which, squared=True), tf.square(packed.matrix(which)))


@pytest.mark.parametrize(
    ("shape", "channels"), [((3, 3, 5, 8), (3,)), ((3, 3, 8, 5), (2,)), ((2, 6, 3), (1, 2)), ((6, 8), (-1,))]
)
def test_arrays_are_held_with_a_scale_for_each_output(shape: tuple[int, ...], channels: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    sizes = [size if axis in [c % len(shape) for c in channels] else 1 for axis, size in enumerate(shape)]
    array = (rng.normal(size=shape) * np.exp(rng.normal(0, 3, sizes))).astype(np.float32)
    lowering = Lowering(storage="int8")
    kept = held(array, lowering, channels=channels)
    assert isinstance(kept, Decoded)
    np.testing.assert_array_equal(read(kept), rounded(array, "int8", channels))
    others = tuple(axis for axis, size in enumerate(sizes) if size == 1)
    error, peak = np.abs(read(kept) - array).max(others), np.abs(array).max(others)
    assert (error <= peak / 127).all()
    assert np.abs(rounded(array, "int8") - array).max(others).max() > (peak / 127).min() or channels == (-1,)


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("at_load", [True, False])
@pytest.mark.parametrize("take", [True, False])
def test_products_are_those_of_the_rounded_weights(form: str, at_load: bool, take: bool) -> None:
    rng = np.random.default_rng(0)
    left = rng.random((40, 30)) > 0.5
    left[::2] &= not take  # half of the inputs are read by nothing
    loc, scale = (
        (rng.normal(size=left.shape) * left).astype(np.float32),
        (rng.random(left.shape) * left).astype(np.float32),
    )
    kernel = DenseKernel(loc, scale, Lowering(form, "int4", at_load=at_load))  # type: ignore[arg-type]
    value = kernel.laid(Value(tf.eye(40)))
    for by, storage, array, power in ((kernel.by_mean, "int4", loc, 1), (kernel.by_variance, "int4", scale, 2)):
        expected = rounded(array, storage, positive=power == 2) ** power  # type: ignore[arg-type]
        found = Value(by(value, value.mean), columns=value.columns).as_rows().mean
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@settings(deadline=None, max_examples=80)
@given(
    numbers=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    step=st.floats(0.01, 4),
)
def test_multiples_of_one_step_are_within_half_of_it(numbers: list[float], step: float) -> None:
    array = np.array(numbers, np.float32).reshape(1, -1)
    grid = multiples(array, step)
    assert len(grid.scale) == 1
    assert (np.abs(grid.values - array) <= 0.5001 * grid.scale[0]).all()
    assert grid.codes.max() < 2**grid.bits <= 2**8
    assert grid.scale[0] == as_bfloat16(step) or np.abs(array).max() > 63.4 * grid.scale[0]
    whole = np.abs(grid.codes.astype(int) - grid.zero).max()
    assert grid.bits == 2 or whole >= 2 ** (grid.bits - 2)  # no bit is wasted


def test_the_widest_step_costs_what_it_may_and_the_next_one_more() -> None:
    rng = np.random.default_rng(0)
    scale = np.exp(rng.normal(-4, 0.3, 4000)).astype(np.float32)
    loc = (rng.choice([-1, 1], 4000) * rng.uniform(3, 20, 4000) * scale).astype(np.float32)
    scale[::3], loc[::3] = 0, 0
    step = widest(loc, scale)
    assert step is not None
    costs = [
        elbo_loss(loc, scale, multiples(loc, step * factor).values) / np.count_nonzero(scale)
        for factor in (1, 2**0.125)
    ]
    assert 0.8 * WITHIN < costs[0] <= WITHIN < costs[1]
    # Of uniform rounding: step^2 / 24 times the mean of 1 / s^2 is 1/24.
    assert step == pytest.approx(np.mean(1 / scale[scale > 0].astype(float) ** 2) ** -0.5, rel=0.15)


def test_there_is_no_step_where_8_bits_are_too_few_or_nothing_is_left() -> None:
    assert widest(np.zeros(5), np.zeros(5)) is None
    assert widest(np.linspace(0.5, 1, 50), np.full(50, 1e-4)) is None


def test_the_entropy_is_shannons() -> None:
    assert entropy_of(np.arange(256, dtype=np.uint8)) == pytest.approx(256)
    assert entropy_of(np.array([1, 1, 1, 2], np.uint8)) == pytest.approx(4 * 0.8112781 / 8)
    assert entropy_of(np.zeros(0, np.uint8)) == 0


def test_arrays_and_biases_of_one_step_are_held_as_they_are_rounded() -> None:
    rng = np.random.default_rng(0)
    array, bias = rng.normal(size=(3, 3, 4, 6)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    block = Block()
    lowering = Lowering(storage="int6", step=0.125, block=block)
    kept, (values, held_one) = held(array, lowering), held_bias(bias, lowering)
    assert held_one is not None
    for closed in (False, True):
        np.testing.assert_array_equal(kept._decode(), rounded(array, "int6", step=0.125))
        np.testing.assert_array_equal(held_one._decode(), values)
        if not closed:
            block.close()
    assert np.abs(read(kept) - array).max() <= 0.0625
    assert np.abs(values - bias).max() <= 0.0625
    assert block.nbytes < array.size
    for plain in (Lowering(storage="int6"), Lowering(storage="int6", step=0.125, at_load=False)):
        assert held_bias(bias, plain) == (bias, None)


def test_classes_of_grids_are_what_they_say() -> None:
    assert isinstance(steps(np.eye(3, dtype=np.float32), 4), Steps)
    assert isinstance(levels(np.eye(3, dtype=np.float32), 4), Levels)
