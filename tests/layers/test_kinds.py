"""Kinds of layers beside Dense and plain convolutions: the contract of layers, and the function of the plain layer kept."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from scipy import stats

import tfp_bprune as bp
from tests.bounds import FALSE_ALARM
from tests.checks import check_layer
from tests.layers.kinds import CASES, L, class_of, inputs, plain_model, randomize
from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import LAYERS, variational_layers, weights_of
from tfp_bprune.types import BpruneError

ESTIMATORS: tuple[Any, ...] = ("flipout", "reparameterization", "local")
CERTAIN = -30.0  # rho, at which sigma is 1e-13


@pytest.mark.parametrize("estimator", ESTIMATORS[:2])
@pytest.mark.parametrize("case", CASES)
def test_layer_meets_the_contract(case: str, estimator: Any) -> None:
    name, arguments, shape = CASES[case]
    check_layer(LAYERS[name, estimator], arguments | {"bayesian_bias": estimator == "flipout"}, shape)


def assert_kept(model: Any, x: np.ndarray, tolerance: float = 1e-5, **options: Any) -> Any:
    """`bayesianize` at no noise gives the model's outputs, and `strip` its weights, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # as bayesianize warns
        bayesian = bp.bayesianize(model, **({"train_size": 10, "strict": True, "rho_init": CERTAIN} | options))
    expected = np.asarray(model(x), np.float64)
    np.testing.assert_allclose(np.asarray(bayesian(x), np.float64), expected, rtol=tolerance, atol=tolerance)
    stripped = bp.strip(bayesian)
    assert [type(layer) for layer in stripped.layers] == [type(layer) for layer in model.layers]
    for ours, theirs in zip(stripped.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert list(variational_layers(bayesian))
    return bayesian


@pytest.mark.parametrize("case", ["separable 1D", "separable 2D", "einsum, heads"])
def test_the_function_of_the_plain_layer_is_kept(case: str) -> None:
    model, x = plain_model(*CASES[case]), inputs(case)
    for estimator in ESTIMATORS:
        assert_kept(model, x, layers=estimator, bayesian_bias=estimator != "local")
    assert_kept(model, x, rho_init=None, moped=1e-9)


@pytest.mark.parametrize(("policy", "tolerance"), [("float64", 1e-10), ("mixed_float16", 1e-2)])
@pytest.mark.parametrize("case", CASES)
def test_policies_of_numbers_are_kept(case: str, policy: str, tolerance: float) -> None:
    model, x = plain_model(*CASES[case], dtype=policy), inputs(case)
    bayesian = assert_kept(model, x, tolerance)
    assert bayesian.layers[-1].dtype_policy.name == policy
    assert bayesian(x).dtype == model(x).dtype


@pytest.mark.parametrize("case", CASES)
def test_what_keras_takes_for_each_weight_comes_back(case: str) -> None:
    name, arguments, shape = CASES[case]
    stems = [
        key.removesuffix("_initializer")
        for key in class_of(name)(**arguments).get_config()
        if key.endswith("_initializer")
    ]
    given: dict[str, Any] = {}
    # A separable convolution of Keras has a kernel's arguments from its base, which it has no kernel for.
    for stem in [stem for stem in stems if stem != "kernel" or "depthwise" not in stems]:
        given |= {f"{stem}_initializer": "ones", f"{stem}_regularizer": "l2", f"{stem}_constraint": "non_neg"}
    model, x = plain_model(name, arguments, shape, activity_regularizer="l2", **given), inputs(case)
    model.layers[-1].trainable = False
    bayesian = assert_kept(model, x)
    assert not bayesian.layers[-1].trainable_weights
    config, again = model.layers[-1].get_config(), bp.strip(bayesian).layers[-1].get_config()
    assert again == config
    plain_loss = float(tf.add_n(model.losses))
    bayesian(x)
    kl = float(bayesian.layers[-1].last_kl) / 10
    np.testing.assert_allclose(float(tf.add_n(bayesian.losses)) - kl, plain_loss, rtol=1e-3, atol=1e-5 * kl)


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "sizes"),
    [
        ("DepthwiseConv2D", {"kernel_size": 2}, (None, None, 3), (4, 5)),
        ("SeparableConv1D", {"filters": 2, "kernel_size": 2}, (None, 3), (5,)),
        ("Conv2DTranspose", {"filters": 2, "kernel_size": 2, "strides": 2}, (None, None, 3), (2, 3)),
        ("EinsumDense", {"equation": "abc,cd->abd", "output_shape": (None, 2)}, (None, 3), (4,)),
        ("Conv1D", {"filters": 4, "kernel_size": 2, "padding": "causal", "groups": 2}, (None, 4), (5,)),
    ],
)
def test_inputs_of_unknown_size(name: str, arguments: dict[str, Any], shape: Any, sizes: tuple[int, ...]) -> None:
    model = plain_model(name, arguments, shape)
    assert_kept(model, np.random.default_rng(0).normal(size=(2, *sizes, shape[-1])).astype(np.float32))


def test_channels_first_where_a_cpu_can() -> None:
    """TensorFlow's kernels for it are on GPUs alone, but for the transposed convolution, which Keras turns."""
    model = plain_model("Conv2DTranspose", {"filters": 3, "kernel_size": 2, "data_format": "channels_first"}, (2, 3, 4))
    assert_kept(model, np.ones((2, 2, 3, 4), np.float32), bayesian_bias=True)


def test_masks_go_from_an_embedding_to_what_heeds_them() -> None:
    ids = keras.Input((4,), dtype="int32")
    embedded = L.Embedding(6, 3, mask_zero=True)(ids)
    model = keras.Model(ids, L.Dense(2)(L.GlobalAveragePooling1D()(embedded)))
    x = np.array([[1, 2, 0, 0], [3, 4, 5, 0], [1, 0, 0, 2]])
    bayesian = assert_kept(model, x)
    np.testing.assert_array_equal(bayesian.layers[1].compute_mask(tf.constant(x)), x != 0)
    assert not np.allclose(bayesian(x), bayesian(np.where(x == 0, 5, x)))


def test_a_layer_called_twice_one_within_a_model_and_one_at_each_step() -> None:
    inner = keras.Sequential([keras.Input((5, 5, 2)), L.SeparableConv2D(2, 2, padding="same"), L.ReLU()], name="inner")
    shared = L.DepthwiseConv2D(2, padding="same", name="shared")
    first, second = keras.Input((5, 5, 2)), keras.Input((3, 5, 5, 2))
    steps = L.TimeDistributed(L.Conv2DTranspose(2, 2), name="steps")(second)
    h = L.Add()([shared(inner(first)), shared(first)])
    model = keras.Model([first, second], [L.Flatten()(h), L.Flatten()(steps)])
    randomize(model)
    random = np.random.default_rng(0)
    x = [random.normal(size=(2, *shape)).astype(np.float32) for shape in ((5, 5, 2), (3, 5, 5, 2))]
    bayesian = bp.bayesianize(model, train_size=10, rho_init=CERTAIN, strict=True)
    for ours, theirs in zip(bayesian(x), model(x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert len(list(variational_layers(bayesian))) == 3


def test_an_equation_whose_outputs_do_not_begin_with_the_examples_is_refused() -> None:
    inputs = keras.Input((2, 4), batch_size=2)
    layer = L.EinsumDense("abc,cd->bad", output_shape=(2, 5), name="turned")
    model = keras.Model(inputs, layer(inputs))
    with pytest.raises(BpruneError, match="no layer to make Bayesian"):
        bp.bayesianize(model, train_size=10, strict=True)


# Draws. A layer at one input, read as a random vector: along a random direction u over all outputs of an example, the
# outputs are u.y, with a mean and variance that thousands of direct draws of the weights in the plain layer have too.

DRAWS, BATCH = 400, 16


def directions(size: int) -> np.ndarray:
    """Three directions over all outputs [size, 3]: they see how outputs vary together, beside how each does."""
    return np.random.default_rng(5).normal(size=(size, 3)) / np.sqrt(size)


def noisy(case: str, estimator: Any) -> tuple[Any, Any]:
    """A Bayesian layer with different scales, linear, and its plain layer."""
    name, arguments, shape = CASES[case]
    plain = plain_model(name, arguments | ({"activation": None} if "activation" in arguments else {}), shape)
    bayesian = bp.bayesianize(plain, layers=estimator, train_size=10, bayesian_bias=True)
    random = np.random.default_rng(7)
    for posterior in bayesian.layers[-1].posteriors.values():
        posterior.rho_variable.assign(random.uniform(-1.5, 0.5, posterior.shape))
    return bayesian, plain


def direct(bayesian: Any, plain: Any, x: np.ndarray, count: int) -> np.ndarray:
    """Outputs [count, size] of the plain layer at one example x [1, ...] under draws of all weights."""
    random, found = np.random.default_rng(11), weights_of(bayesian.layers[-1])
    call = tf.function(lambda x: plain(x))
    outputs = []
    for _ in range(count):
        for name, weights in found.items():
            getattr(plain.layers[-1], name).assign(random.normal(weights.loc, weights.scale))
        outputs.append(call(x).numpy().ravel())
    return np.array(outputs)


def assert_same_law(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Means and variances [n, k] of two independent samples, by the central limit theorem with fourth moments.

    2 k statements at a false-alarm rate of 1e-6 in all; 20 % on top for the tails of averages of a few hundred products.
    """
    z = 1.2 * stats.norm.isf(FALSE_ALARM / (4 * ours.shape[1]))
    for squared in (False, True):
        a, b = (np.square(s - theirs.mean(0)) if squared else s for s in (ours, theirs))
        error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
        assert (np.abs(a.mean(0) - b.mean(0)) < z * error).all(), (a.mean(0), b.mean(0), z * error)


@pytest.mark.parametrize("case", ["depthwise 2D", "separable 2D", "transposed 2D", "einsum, steps", "einsum, heads"])
@pytest.mark.parametrize("estimator", ["flipout", "reparameterization"])
def test_outputs_have_the_law_of_a_direct_draw_of_the_weights(case: str, estimator: Any) -> None:
    bayesian, plain = noisy(case, estimator)
    one = inputs(case, 1)
    call = tf.function(lambda x: bayesian(x))
    drawn = np.array([call(np.repeat(one, BATCH, 0)).numpy().reshape(BATCH, -1) for _ in range(DRAWS)])
    if estimator == "reparameterization":  # one draw for the batch
        np.testing.assert_allclose(drawn[:, 1:], np.repeat(drawn[:, :1], BATCH - 1, 1), rtol=1e-4, atol=1e-4)
    else:
        assert (np.ptp(drawn, axis=1) > 1e-3).any(-1).all()
    along = directions(drawn.shape[-1])
    ours = drawn[:, 0] @ along  # examples of a batch share a draw, flipped: the first of each is independent of others
    assert_same_law(ours, direct(bayesian, plain, one, 1200) @ along)
