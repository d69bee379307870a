"""Unit pruning: whole channels go, along the graph, and the smaller network computes the same function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfp_bprune import GradualPruning, Shrink, prune, strip
from tfp_bprune._keras import keras
from tfp_bprune.data.splits import Info
from tfp_bprune.graphs import compact
from tfp_bprune.networks import build
from tfp_bprune.pruning.groups import Side, Units, ranks_by_layer, unit_scores, units_of
from tfp_bprune.pruning.select import prunable_weights
from tfp_bprune.types import PruneError

CASES: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("mlp", (8, 8, 1), {"hidden": (32, 32)}),
    ("lenet5", (28, 28, 1), {"width": 0.4}),
    ("vgg16", (32, 32, 3), {"width": 0.0625}),
    ("resnet18", (32, 32, 3), {"width": 0.0625}),
]


def network(name: str, shape: tuple[int, ...], options: dict[str, Any], layers: Any = "flipout") -> Any:
    """The network with batch-normalization parameters as training leaves them: none of them 0 or 1."""
    model = build(name, Info(name, "classification", shape, 10), layers=layers, options=options)
    random = np.random.default_rng(0)
    for layer in model.layers:
        if hasattr(layer, "moving_mean"):
            shape_of = layer.gamma.shape
            layer.set_weights(
                [random.uniform(0.5, 1.5, shape_of), *random.normal(0, 0.3, (2, *shape_of)), np.ones(shape_of)]
            )
    return model


@pytest.mark.parametrize(("name", "shape", "options"), CASES)
@pytest.mark.parametrize("layers", ["flipout", "deterministic"])
def test_units_go_whole_and_the_smaller_network_is_equal(name: str, shape: Any, options: Any, layers: Any) -> None:
    model = network(name, shape, options, layers)
    criterion = "snr" if layers == "flipout" else "magnitude"
    pruned, report = prune(model, sparsity=0.6, criterion=criterion, granularity="unit")
    masked = strip(pruned)
    smaller = compact(masked)
    x = np.random.default_rng(1).normal(size=(4, *shape)).astype(np.float32)
    expected = masked(x, training=False).numpy()
    np.testing.assert_allclose(
        smaller(x, training=False).numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )
    assert report.sparsity >= 0.6
    # Nothing is left that single pruned weights would leave behind: the kernels shrink by what was removed.
    assert smaller.count_params() <= 0.45 * masked.count_params()


def reads(model: Any, layer: str) -> np.ndarray:
    """Which of its inputs a layer still reads."""
    mask = model.get_layer(layer).kernel_posterior.mask.numpy()
    return np.asarray(mask.any(tuple(a for a in range(mask.ndim) if a != mask.ndim - 2)))


def test_features_of_the_input_go_where_inputs_are_asked_for() -> None:
    model = network("mlp", (8, 8, 1), {"hidden": (6, 5)})
    q = model.get_layer("dense_1").kernel_posterior
    loc = np.ones(q.shape)
    loc[[3, 40]] = 1e-3  # whose readers are all that is weak
    q.assign(loc, np.full(q.shape, 0.1))
    for name in ("dense_2", "logits"):
        other = model.get_layer(name).kernel_posterior
        other.assign(np.ones(other.shape), np.full(other.shape, 0.1))
    whole, _ = prune(model, threshold=1.0, granularity="unit")
    assert reads(whole, "dense_1").all()
    pruned, report = prune(model, threshold=1.0, granularity="unit", inputs=True)
    np.testing.assert_array_equal(np.flatnonzero(~reads(pruned, "dense_1")), [3, 40])
    assert report.pruned == 2 * 6
    assert report.threshold == pytest.approx(10, rel=1e-5)
    with pytest.raises(PruneError, match="single weights do not remove a whole input"):
        prune(model, threshold=1.0, inputs=True)


def test_positions_of_a_filter_go_before_the_filter_and_the_filter_with_the_last_of_them() -> None:
    model = network("lenet5", (28, 28, 1), {"width": 0.1})
    dense = next(layer.name for layer in model.layers if layer.name.startswith("dense"))
    q = model.get_layer(dense).kernel_posterior
    filters = model.get_layer("conv_2").filters
    loc = np.ones(q.shape)
    of_filter = np.arange(len(loc)) % filters  # channels are last where an image is flattened
    loc[(of_filter == 0) & (np.arange(len(loc)) < len(loc) // 2)] = 1e-3
    q.assign(loc, np.full(q.shape, 0.1))
    pruned, _ = prune(model, threshold=1.0, granularity="unit", inputs=True, scope="global")
    gone = ~reads(pruned, dense)
    assert gone[loc[:, 0] < 0.5].all()
    loc[of_filter == 0] = 1e-3
    q.assign(loc, np.full(q.shape, 0.1))
    pruned, _ = prune(model, threshold=1.0, granularity="unit", inputs=True)
    assert not pruned.get_layer("conv_2").kernel_posterior.mask.numpy()[..., 0].any()


def test_unknown_aggregate_and_scope_are_refused() -> None:
    model = network(*CASES[0])
    with pytest.raises(PruneError, match="aggregate"):
        prune(model, sparsity=0.5, granularity="unit", aggregate="median")  # type: ignore[arg-type]
    with pytest.raises(PruneError, match="scope"):
        prune(model, sparsity=0.5, granularity="unit", scope="column")  # type: ignore[arg-type]
    with pytest.raises(PruneError, match="sparsity"):
        prune(model, sparsity=1.0, granularity="unit")


@pytest.mark.parametrize(("name", "shape", "options"), CASES)
def test_by_layer_all_layers_lose_the_same_part_of_their_units(name: str, shape: Any, options: Any) -> None:
    pruned, _ = prune(network(name, shape, options), sparsity=0.6, granularity="unit", scope="layer")
    parts = []
    for layer in pruned.layers[:-1]:  # the outputs stay
        if hasattr(layer, "kernel_posterior"):
            left = layer.kernel_posterior.mask.numpy().reshape(-1, layer.kernel_posterior.mask.shape[-1]).any(0)
            parts.append((1 - left.mean(), 1 / len(left)))
    gone, one_unit = np.transpose(parts)
    assert gone.min() > 0.2
    # One part t for all: layer l has lost between t and t + 1 / units of l.
    assert (gone - one_unit).max() <= gone.min() + 1e-9


def test_by_layer_the_weakest_units_of_each_go_first() -> None:
    made = [Side("a", -1, np.arange(4)), Side("b", -1, np.arange(4, 10))]
    units = Units(made, [], [], 10, np.arange(10) != 9)
    scores = np.array([4, 3, 2, 1, 50, 10, 40, 20, 30, 0.0])
    np.testing.assert_allclose(ranks_by_layer(units, scores), [0.75, 0.5, 0.25, 0, 0.8, 0, 0.6, 0.2, 0.4, np.inf])


@pytest.mark.parametrize("aggregate", ["norm", "mean", "max"])
def test_each_aggregate_removes_the_weakest_unit_first(aggregate: Any) -> None:
    model = network(*CASES[0])
    kernel = model.get_layer("dense_1").kernel_posterior.loc_variable
    weak = kernel.numpy()
    weak[:, 7] *= 1e-3
    kernel.assign(weak)
    pruned, _ = prune(model, sparsity=0.01, granularity="unit", aggregate=aggregate)
    left = pruned.get_layer("dense_1").kernel_posterior.mask.numpy().any(0)
    assert not left[7]


def scores_by_hand(model: Any, aggregate: str) -> np.ndarray:
    """Scores of the units of an mlp's first hidden layer, one unit at a time."""
    first, second = (model.get_layer(f"dense_{i}").kernel_posterior for i in (1, 2))
    scores = []
    for unit in range(first.shape[1]):
        sides = []
        for part, q in ((np.s_[:, unit], first), (np.s_[unit, :], second)):
            mu, sigma = q.loc.numpy()[part].astype(np.float64), q.scale.numpy()[part].astype(np.float64)
            ratio = np.abs(mu) / sigma
            norm = np.linalg.norm(mu) / np.linalg.norm(sigma)
            sides.append({"max": ratio.max(), "mean": ratio.mean(), "norm": norm}[aggregate])
        scores.append(min(sides))
    return np.array(scores)


@pytest.mark.parametrize("aggregate", ["norm", "mean", "max"])
def test_a_unit_is_worth_the_weaker_of_its_sides(aggregate: Any) -> None:
    model = network(*CASES[0])
    weights = prunable_weights(model)
    units = units_of(model, {name: w.loc for name, w in weights.items()})
    locs, masks = ({name: getattr(w, part) for name, w in weights.items()} for part in ("loc", "mask"))
    scales = {name: w.scale for name, w in weights.items() if w.scale is not None}
    scores = unit_scores(units, locs, scales, masks, aggregate)
    expected = scores_by_hand(model, aggregate)
    made = {side.tensor: side.labels for side in units.made}
    np.testing.assert_allclose(scores[made["dense_1/kernel"]], expected, rtol=1e-5)


def test_of_few_weights_a_sparsity_that_whole_units_do_not_reach_is_not_called_reached() -> None:
    layers = [keras.layers.Dense(2), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((2,)), *layers])
    with pytest.warns(UserWarning, match=r"reached a sparsity of 0.5000, asked for 0.7"):
        report = prune(model, sparsity=0.7, granularity="unit")[1]
    assert (report.pruned, report.prunable, report.reached) == (3, 6, False)


NO_NUMBERS: list[tuple[dict[str, Any], str]] = [
    ({"sparsity": "0.5"}, "sparsity must be a number, got '0.5'"),
    ({"sparsity": np.array([0.5, 0.6])}, "sparsity must be a number"),
    ({"sparsity": True}, "sparsity must be a number, got True"),
    ({"threshold": "high"}, "threshold must be a number"),
    ({"sparsity": 0.5, "criterion": ["snr"]}, r"unknown criterion \['snr'\]"),
]
NO_CALLBACKS: list[tuple[Any, str]] = [
    (lambda: GradualPruning(0.5, every=1.5), "every must be a whole number"),  # type: ignore[arg-type]
    (lambda: GradualPruning(0.5, over=0.5), "over must be two parts"),  # type: ignore[arg-type]
    (lambda: Shrink(criterion="evidence", threshold=np.nan), "threshold must be a number, got nan"),
    (lambda: Shrink(after=1.5), "after must be a whole number"),  # type: ignore[arg-type]
    (lambda: Shrink(least="a"), "least must be a number"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("options", "message"), NO_NUMBERS)
@pytest.mark.parametrize("granularity", ["weight", "unit"])
def test_what_is_no_number_is_refused(options: dict[str, Any], message: str, granularity: Any) -> None:
    with pytest.raises(PruneError, match=message):
        prune(network(*CASES[0]), granularity=granularity, **options)


@pytest.mark.parametrize(("make", "message"), NO_CALLBACKS)
def test_callbacks_refuse_what_is_no_number(make: Any, message: str) -> None:
    with pytest.raises(PruneError, match=message):
        make()
