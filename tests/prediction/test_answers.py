"""What exports say of outputs of every kind, held to closed forms and integrals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.bounds import FALSE_ALARM
from tfp_bprune._keras import keras, tf
from tfp_bprune.evaluation.fresh import check_export
from tfp_bprune.exports import export
from tfp_bprune.layers import DenseFlipout
from tfp_bprune.prediction import Predictor
from tfp_bprune.types import BpruneError, ExportError

L = keras.layers
PREDICTIVES: tuple[Any, ...] = ("mean", "sampled", "moments")
X = np.array([[1.0, -2.0], [0.5, 0.3]], np.float32)


def predicted(model: Any, predictive: Any, x: Any = X, samples: int = 4, **options: Any) -> dict[str, np.ndarray]:
    arrays = x if isinstance(x, list) else [x]
    outputs = Predictor(model, predictive, samples, **options).predict(*map(tf.constant, arrays))
    return {name: value.numpy() for name, value in outputs.items()}


def ending_in(*layers: Any) -> Any:
    return keras.Sequential([keras.Input((2,)), *layers])


def zeros(units: int, activation: Any = None, bias: Any = "zeros") -> Any:
    start = keras.initializers.Constant(bias) if isinstance(bias, list) else bias
    return L.Dense(units, activation, kernel_initializer="zeros", bias_initializer=start)


def regression() -> Any:
    model = ending_in(zeros(1, bias=[7.0]))
    model.compile("sgd", "mse")
    return model


def mean_and_deviation() -> Any:
    inputs = keras.Input((2,))
    return keras.Model(inputs, L.Concatenate()([zeros(1, bias=[3.0])(inputs), zeros(1, "softplus")(inputs)]))


QUARTER = [0.0, float(np.log(3))]
H4, LN2 = 0.25 * np.log(4) + 0.75 * np.log(4 / 3), np.log(2)
# What is said of a model, what each of two examples gets.
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "binary": (lambda: ending_in(zeros(1, "sigmoid")), {}, {"probabilities": [0.5], "entropy": LN2}),
    "binary logit": (lambda: ending_in(zeros(1)), {"task": "binary"}, {"probabilities": [0.5], "entropy": LN2}),
    "multilabel": (
        lambda: ending_in(zeros(3, "sigmoid", [0.0, float(np.log(3)), 0.0])), {},
        {"probabilities": [0.5, 0.75, 0.5], "entropy": [LN2, H4, LN2]},
    ),
    "regression": (regression, {}, {"mean": 7.0}),
    "two targets": (
        lambda: ending_in(zeros(2, bias=[1.0, 2.0])), {"task": "regression"}, {"mean": [1.0, 2.0]},
    ),
    "softmax, reshaped": (
        lambda: ending_in(zeros(2, "softmax", QUARTER), L.Reshape((2,))), {},
        {"probabilities": [0.25, 0.75], "entropy": H4},
    ),
    "softmax, linear": (
        lambda: ending_in(zeros(2, "softmax", QUARTER), L.Activation("linear")), {},
        {"probabilities": [0.25, 0.75], "entropy": H4},
    ),
    "softmax nested, dropped out": (
        lambda: ending_in(ending_in(zeros(2, "softmax", QUARTER), L.Dropout(0.5))), {},
        {"probabilities": [0.25, 0.75], "entropy": H4},
    ),
    "logits": (
        lambda: ending_in(zeros(2, bias=QUARTER)), {"task": "classification"},
        {"probabilities": [0.25, 0.75], "entropy": H4},
    ),
    "mean and deviation": (
        mean_and_deviation, {"task": "gaussian"}, {"mean": 3.0, "noise_std": LN2},
    ),
    "means and deviations": (
        lambda: ending_in(zeros(4, bias=[1.0, 2.0, 0.5, 0.25])), {"task": "gaussian"},
        {"mean": [1.0, 2.0], "noise_std": [0.5, 0.25]},
    ),
    "classes of positions": (
        lambda: ending_in(L.Reshape((2, 1)), zeros(2, "softmax", QUARTER)), {},
        {"probabilities": [[0.25, 0.75]] * 2, "entropy": [H4] * 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("predictive", PREDICTIVES)
@pytest.mark.parametrize("name", CASES)
def test_certain_networks_have_the_values_of_their_biases(name: str, predictive: Any) -> None:
    build, said, expected = CASES[name]
    expected = {key: np.array([value, value]) for key, value in expected.items()}
    if predictive != "mean":  # nothing of it is due to weights
        classes = "probabilities" in expected
        zero = np.zeros_like(expected["entropy" if classes else "mean"])
        expected |= {"aleatoric": expected["entropy"], "epistemic": zero} if classes else {"weights_std": zero}
    found = predicted(build(), predictive, **said)
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert found[key].shape == value.shape
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6, err_msg=key)


def uncertain(units: int, activation: Any = None) -> Any:
    """A Bayesian layer whose outputs are independent normals with the moments of `normals`."""
    layer = DenseFlipout(units, activation=activation, name="top")
    model = ending_in(layer)
    rng = np.random.default_rng(units)
    q = layer.kernel_posterior
    q.loc_variable.assign(rng.normal(size=q.shape))
    q.rho_variable.assign(rng.uniform(-1, 1, q.shape))
    layer.bias.assign(rng.normal(size=units))
    return model


def normals(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the outputs [examples, units] for X."""
    q = model.layers[-1].kernel_posterior
    return X @ q.loc.numpy() + model.layers[-1].bias.numpy(), np.sqrt(X**2 @ q.scale.numpy() ** 2)


NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
SAMPLES = 3000


def two_class_entropy(p: np.ndarray) -> np.ndarray:
    return -p * np.log(p) - (1 - p) * np.log1p(-p)


@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("predictive", ["sampled", "moments"])
def test_probabilities_of_labels_are_integrals(units: int, logits: bool, predictive: Any) -> None:
    model = uncertain(units, None if logits else "sigmoid")
    task: Any = "binary" if units == 1 else "multilabel"
    mean, deviation = normals(model)
    each = 1 / (1 + np.exp(-(mean[None] + NODES[:, None, None] * deviation)))
    p, h = (np.einsum("n,n...->...", WEIGHTS, value) for value in (each, two_class_entropy(each)))
    found = predicted(model, predictive, samples=SAMPLES, task=task if logits else None)
    assert found["probabilities"].shape == (2, units)
    assert found["epistemic"].shape == ((2,) if units == 1 else (2, units))
    # A probability has a standard deviation of at most 1/2, an entropy of at most (ln 2)/2; moments draw 64 even points.
    z = stats.norm.isf(FALSE_ALARM / (4 * units))
    bound = 0.5 * z / np.sqrt(SAMPLES) if predictive == "sampled" else 0.01
    np.testing.assert_allclose(found["probabilities"], p, atol=bound)
    np.testing.assert_allclose(found["aleatoric"].reshape(p.shape), h, atol=bound * np.log(2))
    total = two_class_entropy(found["probabilities"]).reshape(found["entropy"].shape)
    np.testing.assert_allclose(found["entropy"], total, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["epistemic"], total - found["aleatoric"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("units", [1, 2])
@pytest.mark.parametrize("predictive", ["sampled", "moments"])
def test_the_spread_of_a_regression_is_that_of_its_weights(units: int, predictive: Any) -> None:
    model = uncertain(units)
    mean, deviation = normals(model)
    if units == 1:
        mean, deviation = mean[:, 0], deviation[:, 0]
    found = predicted(model, predictive, samples=SAMPLES, task="regression")
    assert set(found) == {"mean", "weights_std"}
    if predictive == "moments":
        np.testing.assert_allclose(found["mean"], mean, rtol=1e-5)
        np.testing.assert_allclose(found["weights_std"], deviation, rtol=1e-5)
        return
    z = stats.norm.isf(FALSE_ALARM / (4 * mean.size))
    assert (np.abs(found["mean"] - mean) <= z * deviation / np.sqrt(SAMPLES)).all()
    low, high = stats.chi2.ppf([FALSE_ALARM / (4 * mean.size), 1 - FALSE_ALARM / (4 * mean.size)], SAMPLES - 1)
    ratio = np.square(found["weights_std"] / deviation) * (SAMPLES - 1)
    assert ((ratio >= low) & (ratio <= high)).all()


@pytest.mark.parametrize("predictive", ["sampled", "moments"])
def test_noise_that_differs_from_draw_to_draw_counts_by_its_mean_square(predictive: Any) -> None:
    model = uncertain(2)
    mean, deviation = normals(model)
    found = predicted(model, predictive, samples=SAMPLES, task="gaussian")
    expected = np.sqrt(mean[:, 1] ** 2 + deviation[:, 1] ** 2)
    # The square of N(m, s^2) has the variance 4 m^2 s^2 + 2 s^4.
    error = np.sqrt((4 * mean**2 * deviation**2 + 2 * deviation**4)[:, 1] / SAMPLES)
    bound = stats.norm.isf(FALSE_ALARM / 4) * error if predictive == "sampled" else 1e-5 * expected**2
    assert (np.abs(found["noise_std"] ** 2 - expected**2) <= bound).all()


@pytest.mark.parametrize("predictive", ["sampled", "moments"])
def test_positions_have_each_their_classes(predictive: Any) -> None:
    """A dense layer at two positions of one channel: each is a softmax of normals, one noise for both."""
    layer = DenseFlipout(2, name="top", rho_init=0.0)
    model = ending_in(L.Reshape((2, 1)), layer, L.Softmax())
    loc, scale = layer.kernel_posterior.loc.numpy()[0], layer.kernel_posterior.scale.numpy()[0]
    gap = X[..., None] * (loc[1] - loc[0]) + np.abs(X)[..., None] * np.hypot(*scale) * NODES
    p = 1 / (1 + np.exp(-gap))
    expected, aleatoric = p @ WEIGHTS, two_class_entropy(p) @ WEIGHTS
    found = predicted(model, predictive, samples=SAMPLES)
    z = stats.norm.isf(FALSE_ALARM / 8)
    bound = 0.5 * z / np.sqrt(SAMPLES) if predictive == "sampled" else 0.01
    np.testing.assert_allclose(found["probabilities"][..., 1], expected, atol=bound)
    np.testing.assert_allclose(found["aleatoric"], aleatoric, atol=bound * np.log(2))


def branched() -> Any:
    """A dictionary of two inputs to one of two outputs, a regression and a binary one."""
    t, u = keras.Input((2,), name="t_in"), keras.Input((3,), name="u_in")
    x = L.Concatenate()([t, u])
    value, sure = DenseFlipout(1, name="v", rho_init=-2.0)(x), L.Dense(1, "sigmoid", name="s")(x)
    return keras.Model({"t": t, "u": u}, {"value": value, "is it?": sure})


@pytest.mark.parametrize("predictive", PREDICTIVES)
def test_several_inputs_and_outputs_go_by_their_names(predictive: Any, tmp_path: Path) -> None:
    model = branched()
    t, u = X, np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    manifest = export(model, tmp_path / "out", predictive=predictive, samples=5, task={"value": "regression"})
    assert manifest["task"] == {"is it?": "binary", "value": "regression"}
    assert {n: i["shape"] for n, i in manifest["inputs"].items()} == {"t": [2], "u": [3]}
    assert manifest["outputs"]["is it?"] == {"task": "binary", "logits": False}
    assert "input_shape" not in check_export(tmp_path / "out")
    serve = tf.saved_model.load(str(tmp_path / "out" / "1")).signatures["serving_default"]
    served = {name: value.numpy() for name, value in serve(t=tf.constant(t), u=tf.constant(u)).items()}
    more = {"is_it__aleatoric", "is_it__epistemic", "value_weights_std"} if predictive != "mean" else set()
    assert set(served) == {"is_it__probabilities", "is_it__entropy", "value_mean"} | more
    s = model.get_layer("s")
    expected = 1 / (1 + np.exp(-(np.concatenate([t, u], 1) @ s.kernel.numpy())))
    np.testing.assert_allclose(served["is_it__probabilities"], expected, rtol=1e-5)
    if predictive == "moments":
        q = model.get_layer("v").kernel_posterior
        spread = np.sqrt(np.concatenate([t, u], 1) ** 2 @ q.scale.numpy() ** 2)[:, 0]
        np.testing.assert_allclose(served["value_weights_std"], spread, rtol=1e-4)


def test_of_binary_outputs_and_positions_draws_stop_when_all_are_settled() -> None:
    model = ending_in(L.Reshape((2, 1)), DenseFlipout(1, name="top", rho_init=-3.0, activation="sigmoid"))
    model.layers[-1].kernel_posterior.loc_variable.assign([[4.0]])
    x = np.array([[1.0, 1.0], [1.0, 0.0], [-1.0, 1.0]], np.float32)  # at 0 the classes are level in every draw
    found = predicted(model, "sampled", x, samples=60, error_rate=0.01)
    assert found["draws"][1] == 60
    assert found["draws"][[0, 2]].max() < 60
    np.testing.assert_allclose(found["probabilities"][1, 1], 0.5, rtol=1e-5)
    every = predicted(model, "sampled", x, samples=60)
    np.testing.assert_allclose(found["probabilities"][1], every["probabilities"][1], rtol=1e-4)
    np.testing.assert_allclose(found["probabilities"][0], every["probabilities"][0], atol=0.02)


def read_twice() -> Any:
    inputs = keras.Input((2,))
    p = L.Dense(2, "softmax")(inputs)
    return keras.Model(inputs, {"p": p, "q": L.Dense(1)(p)})


def two_names() -> Any:
    inputs = keras.Input((2,))
    return keras.Model(inputs, {"a b": zeros(1)(inputs), "a.b": zeros(1)(inputs)})


REFUSALS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (lambda: ending_in(L.Dense(3)), {}, BpruneError, "unclear"),
    (
        lambda: ending_in(L.Dense(3, "sigmoid")), {"predictive": "sampled", "error_rate": 0.1}, ExportError,
        "got it for sampled multilabel",
    ),
    (
        lambda: ending_in(L.Dense(3)), {"predictive": "sampled", "error_rate": 0.1, "task": "regression"}, ExportError,
        "got it for sampled regression",
    ),
    (
        read_twice, {"predictive": "moments", "task": {"q": "regression"}}, ExportError,
        r"probabilities of output 'p' are shared with layer 'dense\w*'",
    ),
    (
two_names, {"task": "regression"}, ExportError,
        "several outputs would be called 'a_b_'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("build", "options", "error", "words"), REFUSALS)
def test_what_cannot_be_said_is_refused_in_one_line(
    build: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        predicted(build(), **{"predictive": "mean", **options})
    assert "\n" not in str(caught.value)
