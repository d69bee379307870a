"""`prune` on models: exact zeros in every draw, in memory and after every way of reloading, and its errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import keras, tf, tfp
from tfp_bprune.data.splits import Splits
from tfp_bprune.graphs import strip
from tfp_bprune.layers import Conv2DFlipout, DenseFlipout, DenseReparameterization, variational_layers
from tfp_bprune.pruning import Report, prune, scores_of
from tfp_bprune.storage import load_model, save_model
from tfp_bprune.training import Settings, fit
from tfp_bprune.types import BpruneError, PruneError

Build = Callable[..., Any]
DRAWS = 20


def posteriors(model: Any) -> dict[str, Any]:
    return {f"{layer.name}/{name}": q for layer in variational_layers(model) for name, q in layer.posteriors.items()}


def masks_of(model: Any) -> dict[str, np.ndarray]:
    return {name: q.mask.numpy() for name, q in posteriors(model).items()}


def assert_exactly_zero(model: Any, masks: dict[str, np.ndarray]) -> None:
    """Pruned weights are 0 in the mean and in each draw, the others are not 0 in any."""
    for name, q in posteriors(model).items():
        mask = masks[name]
        np.testing.assert_array_equal(q.mask.numpy(), mask)
        assert not q.loc.numpy()[~mask].any()
        assert not q.scale.numpy()[~mask].any()
        for step in range(DRAWS):
            draw = q.sample(tf.constant([step, 7], tf.int64)).numpy()
            assert not draw[~mask].any()
            assert draw[mask].all()


def weight_seen(layer: Any) -> np.ndarray:
    """The kernel [in, out] that a forward pass of a dense layer really uses: its answer to unit vectors, bias off."""
    assert layer.bias_posterior is None
    activation, layer.activation = layer.activation, None
    try:
        return layer(np.eye(layer.kernel_posterior.shape[0], dtype=np.float32)).numpy() - layer.bias.numpy()
    finally:
        layer.activation = activation


@pytest.mark.parametrize("layers", ["flipout", "reparameterization"])
def test_every_draw_of_the_forward_pass_has_the_zeros(mlp: Build, layers: str) -> None:
    pruned, _ = prune(mlp(layers), sparsity=0.6)
    for layer in variational_layers(pruned):
        mask = layer.kernel_posterior.mask.numpy()
        assert 0 < np.count_nonzero(mask) < mask.size
        seen = [weight_seen(layer) for _ in range(DRAWS)]
        assert not any(kernel[~mask].any() for kernel in seen)
        assert all(kernel[mask].all() for kernel in seen)
        assert not np.array_equal(seen[0], seen[1])


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("include_bias", [False, True])
def test_the_report_counts_what_is_in_the_model(mlp: Build, scope: Any, include_bias: bool) -> None:
    pruned, report = prune(mlp(bayesian_bias=True), sparsity=0.37, scope=scope, include_bias=include_bias)
    counted = {name: m for name, m in masks_of(pruned).items() if include_bias or name.endswith("kernel")}
    assert {entry.name: (entry.prunable, entry.pruned) for entry in report.layers} == {
        name: (mask.size, mask.size - np.count_nonzero(mask)) for name, mask in counted.items()
    }
    if scope == "global":
        assert report.pruned == round(0.37 * report.prunable)
    else:
        assert all(entry.pruned == round(0.37 * entry.prunable) for entry in report.layers)
    if not include_bias:
        assert all(mask.all() for name, mask in masks_of(pruned).items() if name.endswith("bias"))
    plain = report.to_json()
    assert plain["sparsity"] == report.sparsity
    assert plain["nonzeros"] == report.prunable - report.pruned
    assert plain["requested"] == {"sparsity": 0.37}


def test_weights_of_lowest_signal_to_noise_go(mlp: Build) -> None:
    model = mlp()
    for q in posteriors(model).values():
        q.rho_variable.assign(np.random.default_rng(1).uniform(-7, 1, q.shape))
    pruned, report = prune(model, sparsity=0.5)
    for name, q in posteriors(model).items():
        ratio = np.abs(q.loc.numpy().astype(float)) / np.log1p(np.exp(q.rho_variable.numpy().astype(float)))
        np.testing.assert_array_equal(masks_of(pruned)[name], ratio >= report.threshold * (1 - 1e-6))


def test_sparsity_and_the_threshold_that_it_reports_are_equivalent(mlp: Build) -> None:
    model = mlp()
    by_sparsity, report = prune(model, sparsity=0.7)
    by_threshold, again = prune(model, threshold=report.threshold)
    for name, mask in masks_of(by_sparsity).items():
        np.testing.assert_array_equal(masks_of(by_threshold)[name], mask)
    assert (again.pruned, again.threshold, report.ties) == (report.pruned, report.threshold, 0)


@pytest.mark.parametrize("criterion", ["snr", "magnitude"])
def test_scores_are_what_prune_ranks_by(mlp: Build, criterion: Any) -> None:
    model = mlp()
    scores = scores_of(model, criterion=criterion)
    pruned, report = prune(model, sparsity=0.7, criterion=criterion)
    masks = masks_of(pruned)
    assert scores.keys() == masks.keys()
    for name, mask in masks.items():
        np.testing.assert_array_equal(scores[name] >= report.threshold, mask)
        np.testing.assert_array_equal(scores_of(pruned, criterion=criterion)[name], np.where(mask, scores[name], 0))
    with pytest.raises(PruneError, match="unknown criterion 'noise': expected one of snr, magnitude"):
        scores_of(model, criterion="noise")  # type: ignore[arg-type]


def test_the_original_stays_as_it_is(mlp: Build, images: np.ndarray) -> None:
    model = mlp()
    before = [w.copy() for w in model.get_weights()]
    pruned, _ = prune(model, sparsity=0.9)
    assert pruned is not model
    pruned(images[:2])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_nothing_asked_nothing_removed(mlp: Build) -> None:
    model = mlp()
    pruned, report = prune(model, sparsity=0.0)
    assert report.pruned == 0
    for old, new in zip(model.get_weights(), pruned.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_what_was_pruned_stays_pruned_in_a_second_pruning(mlp: Build) -> None:
    first, _ = prune(mlp(), sparsity=0.6)
    for request in ({"sparsity": 0.2}, {"threshold": 0.0}, {"sparsity": 0.6, "scope": "layer"}, {"sparsity": 0.8}):
        second, report = prune(first, **request)
        for name, mask in masks_of(second).items():
            assert (mask <= masks_of(first)[name]).all()
        assert report.sparsity >= 0.6 - 1e-3
        assert_exactly_zero(second, masks_of(second))


def test_further_training_leaves_pruned_weights_at_zero_and_moves_the_others(digits: Splits, mlp: Build) -> None:
    pruned, _ = prune(mlp(), sparsity=0.8)
    masks, before = masks_of(pruned), {name: q.loc.numpy() for name, q in posteriors(pruned).items()}
    fit(pruned, digits, settings=Settings(epochs=2, learning_rate=0.01), progress=False)
    assert_exactly_zero(pruned, masks)
    for name, q in posteriors(pruned).items():
        assert (q.loc.numpy() != before[name])[masks[name]].mean() > 0.5  # dead pixels move nothing


@pytest.fixture(scope="module")
def pruned_mlp(mlp: Build) -> Any:
    """A pruned network, with pruned biases besides."""
    return prune(mlp(bayesian_bias=True, train_size=1000), sparsity=0.5, include_bias=True)[0]


def test_zeros_survive_a_run_directory(pruned_mlp: Any, tmp_path: Path) -> None:
    save_model(pruned_mlp, tmp_path / "run", config={})
    assert_exactly_zero(load_model(tmp_path / "run").model, masks_of(pruned_mlp))


@pytest.mark.parametrize("form", ["keras", "h5", "folder"])
def test_zeros_survive_every_format_of_keras(pruned_mlp: Any, form: str, tmp_path: Path, images: np.ndarray) -> None:
    place = tmp_path / f"model.{form}"
    pruned_mlp.save(place, **({"save_format": "tf"} if form == "folder" else {}))
    loaded = keras.models.load_model(place)
    assert_exactly_zero(loaded, masks_of(pruned_mlp))
    np.testing.assert_array_equal(strip(loaded)(images[:5]), strip(pruned_mlp)(images[:5]))


def test_convolutions_are_pruned_too() -> None:
    layers = [Conv2DFlipout(4, 3, activation="relu"), keras.layers.Flatten(), DenseReparameterization(3)]
    model = keras.Sequential([keras.Input((6, 6, 2)), *layers])
    pruned, report = prune(model, sparsity=0.5)
    assert report.prunable == 3 * 3 * 2 * 4 + 4 * 4 * 4 * 3
    assert_exactly_zero(pruned, masks_of(pruned))


RAW = {
    "DenseFlipout": lambda: [tfp.layers.DenseFlipout(7, activation="relu"), tfp.layers.DenseFlipout(3)],
    "DenseReparameterization": lambda: [tfp.layers.DenseReparameterization(3)],
    "Convolution2DFlipout": lambda: [
        keras.layers.Reshape((3, 4, 1)),
        tfp.layers.Convolution2DFlipout(2, 2, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ],
}


def at_raw_mean(model: Any, x: np.ndarray) -> Any:
    """The answer of a raw tfp.layers model whose weights are all at their posterior mean."""
    for layer in model.layers:
        if hasattr(layer, "kernel_posterior"):
            rho = next(v for v in layer.trainable_variables if "untransformed_scale" in v.name)
            rho.assign(tf.fill(rho.shape, -200.0))
    # TFP adds the machine epsilon to softplus(rho); what noise that leaves is lost in float32.
    return model(x).numpy()


@pytest.mark.parametrize("kind", RAW)
def test_models_of_raw_tfp_layers_are_taken_as_they_are(kind: str) -> None:
    x = np.random.default_rng(0).normal(size=(9, 12)).astype(np.float32)
    raw = keras.Sequential([keras.Input((12,)), *RAW[kind]()])
    before = [w.copy() for w in raw.get_weights()]
    untouched, _ = prune(raw, sparsity=0.0)
    pruned, report = prune(raw, sparsity=0.5)
    assert report.pruned == round(0.5 * report.prunable) > 0
    for old, new in zip(before, raw.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert_exactly_zero(pruned, masks_of(pruned))
    scales = [
        raw_layer.kernel_posterior.distribution.scale
        for raw_layer in raw.layers
        if hasattr(raw_layer, "kernel_posterior")
    ]
    for q, scale in zip((q for n, q in posteriors(untouched).items() if n.endswith("kernel")), scales, strict=True):
        np.testing.assert_allclose(q.scale, scale, rtol=1e-5)
    np.testing.assert_allclose(strip(untouched)(x), at_raw_mean(raw, x), rtol=1e-4, atol=1e-5)


def test_plain_keras_is_pruned_by_magnitude(mlp: Build) -> None:
    model = mlp("deterministic", hidden=(20,))
    pruned, report = prune(model, sparsity=0.9, criterion="magnitude")
    kernels = [
        (a.kernel.numpy(), b.kernel.numpy())
        for a, b in zip(model.layers, pruned.layers, strict=True)
        if hasattr(a, "kernel")
    ]
    assert report.pruned == round(0.9 * report.prunable) == sum(int((new == 0).sum()) for _, new in kernels)
    for old, new in kernels:
        np.testing.assert_array_equal(new, np.where(np.abs(old) >= report.threshold, old, 0))
    again, _ = prune(pruned, sparsity=0.1, criterion="magnitude")
    for a, b in zip(pruned.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_among_plain_layers_snr_ranks_the_bayesian_alone_and_magnitude_all() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, name="plain"), DenseFlipout(2, name="bayes")])
    names = {
        c: [entry.name for entry in prune(model, sparsity=0.5, criterion=c)[1].layers] for c in ("snr", "magnitude")
    }
    assert names == {"snr": ["bayes/kernel"], "magnitude": ["plain/kernel", "bayes/kernel"]}


def test_layers_of_nested_models_are_pruned(mlp: Build, digits: Splits) -> None:
    inner = mlp()
    outer = keras.Sequential([keras.Input(digits.info.input_shape), inner])
    pruned, report = prune(outer, sparsity=0.5)
    assert report.pruned == round(0.5 * report.prunable) > 0
    assert_exactly_zero(pruned, masks_of(pruned))


@pytest.mark.parametrize("sparsity", [-0.01, 1, 2.0, float("nan")])
def test_sparsity_out_of_range_is_refused(mlp: Build, sparsity: float) -> None:
    with pytest.raises(PruneError, match=r"sparsity must be in \[0, 1\)"):
        prune(mlp(), sparsity=sparsity)


def test_exactly_one_of_sparsity_and_threshold(mlp: Build) -> None:
    for request in ({"criterion": "snr"}, {"sparsity": 0.5, "threshold": 1.0}):
        with pytest.raises(PruneError, match="give either sparsity or threshold"):
            prune(mlp(), **request)
    with pytest.raises(PruneError, match="give either sparsity or threshold"):
        prune(mlp("deterministic"))


def test_a_threshold_above_all_leaves_nothing_and_says_so(mlp: Build) -> None:
    pruned, report = prune(mlp(), threshold=float("inf"))
    assert (report.sparsity, report.threshold) == (1.0, float("inf"))
    assert not any(mask.any() for mask in masks_of(pruned).values())


def test_models_without_anything_to_prune_are_refused(mlp: Build) -> None:
    with pytest.raises(PruneError, match="plain Keras layers have no sigma, use criterion='magnitude'"):
        prune(mlp("deterministic"), sparsity=0.5, criterion="snr")
    flat = keras.Sequential([keras.Input((3, 3)), keras.layers.Flatten()])
    with pytest.raises(PruneError, match="nothing to prune"):
        prune(flat, sparsity=0.5, criterion="magnitude")


@pytest.mark.parametrize(("part", "value"), [("loc", np.nan), ("loc", np.inf), ("rho", np.nan)])
def test_weights_that_are_no_numbers_are_refused_by_name(mlp: Build, part: str, value: float) -> None:
    model = mlp()
    variable = getattr(model.get_layer("dense_1").kernel_posterior, f"{part}_variable")
    broken = variable.numpy()
    broken[3, 1] = value
    variable.assign(broken)
    with pytest.raises(PruneError, match=f"dense_1/kernel has 1 weights of {broken.size} that are NaN or infinite"):
        prune(model, sparsity=0.5)


def test_an_unknown_criterion_is_refused(mlp: Build) -> None:
    with pytest.raises(PruneError, match="unknown criterion 'taste': expected one of snr, magnitude"):
        prune(mlp(), sparsity=0.5, criterion="taste")  # type: ignore[arg-type]


class Subclassed(keras.Model):
    """A model whose graph Keras does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = DenseFlipout(2)

    def call(self, inputs: Any) -> Any:
        """One layer."""
        return self.dense(inputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Subclassed, "is a subclassed model"),
        (lambda: keras.Sequential([DenseFlipout(2)]), "has no weights yet"),
        (lambda: "a path", "a path cannot be read as a file of Keras"),
    ],
    ids=["subclassed", "unbuilt", "no model"],
)
def test_what_has_no_known_graph_is_refused(make: Callable[[], Any], message: str) -> None:
    model = make()
    if isinstance(model, Subclassed):
        model(np.zeros((1, 3), np.float32))
    with pytest.raises(BpruneError, match=message):
        prune(model, sparsity=0.5)


def test_the_report_of_layers_is_plain_data(mlp: Build) -> None:
    report: Report = prune(mlp(), threshold=2.0, scope="layer", criterion="magnitude")[1]
    plain = report.to_json()
    assert plain["requested"] == {"threshold": 2.0}
    assert (plain["criterion"], plain["scope"]) == ("magnitude", "layer")
    assert sum(entry["pruned"] for entry in plain["layers"]) == report.pruned


def test_regression_networks_are_pruned(regression_run: Path) -> None:
    pruned, _ = prune(load_model(regression_run).model, sparsity=0.5)
    assert_exactly_zero(pruned, masks_of(pruned))
    assert pruned(np.zeros((2, 10), np.float32)).shape == (2, 2)


def test_a_sparsity_out_of_reach_of_units_is_said() -> None:
    layers = [
        DenseFlipout(8, activation="softmax", name="held"),
        DenseFlipout(4, name="free"),
        DenseFlipout(3, name="end"),
    ]
    model = keras.Sequential([keras.Input((6,)), *layers])
    with pytest.warns(UserWarning, match="asked for 0.9"):
        _, report = prune(model, sparsity=0.9, granularity="unit")
    # Of 6 x 8 + 8 x 4 + 4 x 3 weights only those of 3 units of "free" can go.
    assert report.sparsity == 3 * (8 + 3) / 92
    assert not report.reached
    assert report.to_json()["reached"] is False
    assert report.pinned == ["held/kernel", "end/kernel"]
    with pytest.raises(
        PruneError, match=r"reached a sparsity of 0.3587, asked for 0.9: .* no unit of held, end can go"
    ) as error:
        prune(model, sparsity=0.9, granularity="unit", strict=True)
    assert "\n" not in str(error.value)
    _, report = prune(model, sparsity=0.9, strict=True)
    assert report.reached
    assert report.missed == ""
