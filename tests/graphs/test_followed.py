"""Channels followed through models within models, and through layers that are called several times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.branching import randomized
from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs.compact import compact
from tfp_bprune.graphs.graph import UnfollowedError, followed
from tfp_bprune.graphs.inline import inline
from tfp_bprune.graphs.inputs import read_inputs
from tfp_bprune.graphs.products import multiplications
from tfp_bprune.pruning.dead import remove_dead
from tfp_bprune.pruning.groups import units_of
from tfp_bprune.pruning.select import prunable_weights
from tfp_bprune.types import BpruneError, PruneError

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 6)).astype(np.float32)


def without(layer: Any, *units: int, bias: float = 0.0) -> None:
    """Takes all that units of a dense layer read, and gives them a bias."""
    kernel, biases = layer.get_weights()
    kernel[:, list(units)], biases[list(units)] = 0, bias
    layer.set_weights([kernel, biases])


def prunable_arrays(model: Any) -> dict[str, np.ndarray]:
    return {name: weights.loc for name, weights in prunable_weights(model, "magnitude").items()}


def twin(first: tuple[int, float], second: tuple[int, float]) -> Any:
    """Two layers that one reads, of each of which one unit has the same value for every input."""
    x = keras.Input((6,))
    one, other, shared = L.Dense(5, name="one"), L.Dense(5, name="other"), L.Dense(4, name="shared")
    model = keras.Model(x, L.Dense(3, name="top")(L.Concatenate()([shared(one(x)), shared(other(x))])))
    randomized(model, np.random.default_rng(1))
    for layer, (unit, bias) in ((one, first), (other, second)):
        without(layer, unit, bias=bias)
    return model


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        ((2, 0.0), (2, 0.0), 4),  # nothing in either call
        ((2, 0.0), (3, 0.0), 5),  # nothing in one call, and something in the other
        ((2, 0.5), (2, -0.7), 5),  # two constants, which one bias cannot be
        ((2, 0.5), (2, 0.5), 5),
        ((2, 0.0), (2, 0.4), 5),
    ],
)
def test_an_input_of_a_shared_layer_goes_if_it_is_0_in_every_call(first: Any, second: Any, left: int) -> None:
    model = twin(first, second)
    small = compact(model)
    np.testing.assert_allclose(small(X), model(X), rtol=1e-4, atol=1e-5)
    assert [small.get_layer(name).units for name in ("one", "other")] == [left, left]
    assert small.get_layer("shared").kernel.shape == (left, 4)


@pytest.mark.parametrize("order", [1, -1])
def test_weights_of_a_shared_layer_are_dead_if_no_call_needs_them(order: int) -> None:
    model = twin(*[(2, 0.0), (3, 0.0)][::order])
    expected = model(X).numpy()
    assert remove_dead(model) == 0  # each of its weights is read in one of the calls
    np.testing.assert_array_equal(model(X), expected)
    both = twin((2, 0.0), (2, 0.0))
    expected = both(X).numpy()
    assert remove_dead(both) == 4
    np.testing.assert_allclose(both(X), expected, rtol=1e-5, atol=1e-6)
    assert not both.get_layer("shared").kernel[2].numpy().any()


def test_units_of_a_shared_layer_leave_in_all_calls_together() -> None:
    model = twin((2, 0.0), (2, 0.0))
    top = model.get_layer("top")
    kernel, bias = top.get_weights()
    kernel[1] = 0  # what the first call makes of unit 1 is not read, what the second makes of it is
    top.set_weights([kernel, bias])
    assert compact(model).get_layer("shared").units == 4
    kernel[5] = 0  # nor that
    top.set_weights([kernel, bias])
    small = compact(model)
    assert small.get_layer("shared").units == 3
    assert small.get_layer("top").kernel.shape == (6, 3)
    np.testing.assert_allclose(small(X), model(X), rtol=1e-4, atol=1e-5)


def test_weights_of_a_shared_layer_belong_to_its_units_once() -> None:
    model = twin((2, 0.0), (2, 0.0))
    units = units_of(model, prunable_arrays(model))
    for sides in (units.made, units.read):
        assert sorted(side.tensor for side in sides) == [f"{name}/kernel" for name in ("one", "other", "shared", "top")]


def test_multiplications_of_a_shared_layer_count_in_every_call() -> None:
    assert multiplications(twin((2, 0.0), (2, 0.0))) == 6 * 5 * 2 + 5 * 4 * 2 + 8 * 3


def backbone(name: str = "backbone") -> Any:
    return keras.Sequential(
        [keras.Input((8, 8, 3)), L.Conv2D(8, 3, use_bias=False), L.BatchNormalization(), L.ReLU(), L.Conv2D(6, 3)], name
    )


def transfer(inner: Any, **told: Any) -> Any:
    """A network trained for something else with a head of one's own, as it is taken over everywhere."""
    x = keras.Input((8, 8, 3), name="image")
    return keras.Model(x, L.Dense(3, name="head")(L.GlobalAveragePooling2D()(inner(x, **told))))


def siamese() -> Any:
    inner, a, b = backbone(), keras.Input((8, 8, 3), name="a"), keras.Input((8, 8, 3), name="b")
    return keras.Model([a, b], L.Dense(1, name="distance")(L.Flatten()(L.Subtract()([inner(a), inner(b)]))))


def deeper() -> Any:
    x = keras.Input((8, 8, 3))
    return transfer(keras.Model(x, L.Conv2D(5, 1, activation="relu")(backbone("within")(x)), name="around"))


@pytest.mark.parametrize(
    "build", [lambda: transfer(backbone()), lambda: transfer(backbone(), training=False), siamese, deeper]
)
def test_units_within_nested_models_are_pruned_and_leave(build: Any) -> None:
    model = bp.bayesianize(randomized(build(), np.random.default_rng(0)), rho_init=-6.0)
    pruned, report = bp.prune(model, sparsity=0.5, granularity="unit", scope="layer")
    assert report.reached
    x = [RNG.normal(size=(4, 8, 8, 3)).astype(np.float32) for _ in model.inputs]
    masked, small = bp.strip(pruned), bp.strip(pruned, compact=True)
    assert small.count_params() < 0.6 * masked.count_params()
    np.testing.assert_allclose(
        small(x if len(x) > 1 else x[0]), masked(x if len(x) > 1 else x[0]), rtol=1e-3, atol=1e-4
    )
    assert small.input_names == model.input_names
    assert small.output_names == model.output_names


def test_what_a_nested_model_is_told_its_layers_are_told() -> None:
    x = RNG.normal(size=(16, 8, 8, 3)).astype(np.float32)
    for told in ({}, {"training": False}, {"training": True}):
        model = transfer(backbone(), **told)
        flat = inline(randomized(model, np.random.default_rng(0)))
        assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
        for training in (False, True):
            before = [w.copy() for w in model.get_weights()]
            np.testing.assert_allclose(flat(x, training=training), model(x, training=training), rtol=1e-4, atol=1e-4)
            model.set_weights(before)
            flat.set_weights(before)


def test_monte_carlo_dropout_of_a_nested_model_is_noise() -> None:
    inner = keras.Sequential([keras.Input((6,)), L.Dense(4), L.Dropout(0.5), L.Dense(3)])
    for value, noisy in (
        (None, []),
        (False, []),
        (0, []),
        (True, ["Dropout"]),
        (1, ["Dropout"]),
        (np.True_, ["Dropout"]),
    ):
        told = {} if value is None else {"training": value}
        x = keras.Input((6,))
        steps = followed(keras.Model(x, L.Dense(2)(inner(x, **told)))).steps
        assert [type(step.layer).__name__ for step in steps if step.is_noisy] == noisy


def test_outputs_are_named_after_nested_models_as_before() -> None:
    x = keras.Input((6,), name="x")
    heads = [keras.Sequential([keras.Input((6,)), L.Dense(8, name=f"hidden_{n}"), L.Dense(2)], name=n) for n in "ab"]
    model = randomized(keras.Model(x, [head(x) for head in heads]), np.random.default_rng(0))
    without(heads[0].get_layer("hidden_a"), 1, 2)
    small = compact(model)
    assert small.output_names == model.output_names == ["a", "b"]
    assert small.get_layer("hidden_a").units == 6
    for one, other in zip(small(X), model(X), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_inputs_that_a_nested_model_does_not_read_are_known() -> None:
    inner = keras.Sequential([keras.Input((6,)), L.Dense(4, name="first")])
    x = keras.Input((6,), name="x")
    model = keras.Model(x, L.Dense(2)(inner(x)))
    kernel = RNG.normal(size=(6, 4))
    kernel[[1, 4]] = 0
    inner.get_layer("first").kernel.assign(kernel)
    [use] = read_inputs(model).values()
    assert use.which == (0, 2, 3, 5)


def test_dictionaries_of_inputs_and_outputs_of_nested_models() -> None:
    one, other = keras.Input((6,), name="p"), keras.Input((6,), name="q")
    made = {"sum": L.Dense(5, name="d1")(one), "rest": L.Dense(5, name="d2")(other)}
    inner = keras.Model({"q": other, "p": one}, made, name="inner")
    x, y = keras.Input((6,), name="x"), keras.Input((6,), name="y")
    between = inner({"p": L.Dense(6, name="before_p")(y), "q": L.Dense(6, name="before_q")(x)})
    model = randomized(
        keras.Model([x, y], L.Dense(2)(L.Add()([between["sum"], between["rest"]]))), np.random.default_rng(0)
    )
    given = [X, 2 * X + 1]
    for layer in ("d1", "d2"):
        without(inner.get_layer(layer), 3)
    without(model.get_layer("before_p"), 1, 2)  # what the other input is made of is all there
    small = compact(model)
    assert {name: small.get_layer(name).units for name in ("d1", "before_p", "before_q")} == {
        "d1": 4, "before_p": 4, "before_q": 6,
    }  # fmt: skip
    np.testing.assert_allclose(small(given), model(given), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(inline(model)(given), model(given), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_followed_is_named_and_stays_as_it_is() -> None:
    def tower(name: str) -> Any:
        return keras.Sequential([keras.Input((6,)), L.Dense(6, name=f"dense_{name}"), L.ReLU(name="twice")], name)

    x = keras.Input((6,))
    model = keras.Model(x, L.Dense(2)(tower("a")(tower("b")(x))))
    with pytest.raises(UnfollowedError, match="several layers named 'twice', in models nested in it"):
        followed(model)
    assert compact(model) is model
    with pytest.raises(PruneError, match=r"'twice'.* expected a name of its own for each, or to prune by weight"):
        bp.prune(model, sparsity=0.5, granularity="unit", criterion="magnitude")


def test_a_nested_model_with_a_mask_of_its_own_is_not_followed() -> None:
    inner = keras.Sequential([keras.Input((5, 6)), L.GRU(4), L.Dense(3)], name="inner")
    x, mask = keras.Input((5, 6)), keras.Input((5,), dtype="bool")
    model = keras.Model([x, mask], L.Dense(2)(inner(x, mask=mask)))
    with pytest.raises(UnfollowedError, match="nested model 'inner' is called with tensors other than its inputs"):
        followed(model)
    assert compact(model) is model


@pytest.mark.parametrize(
    ("shape", "given", "last"),
    [
        ((6,), lambda h: L.Reshape((6, 1))(h), lambda x: L.Dense(4)(x)),  # of which Keras takes an axis away
        ((6, 1), lambda h: h, lambda x: L.Conv1D(4, 2)(x)),  # and one to which it adds one
        ((None,), lambda h: h, lambda x: L.Softmax()(x)),  # and one that has as many channels as it is given
    ],
)
def test_a_nested_model_called_with_other_shapes_than_its_own_is_not_followed(
    shape: Any, given: Any, last: Any
) -> None:
    start, x = keras.Input(shape), keras.Input((6,))
    inner = keras.Model(start, last(start), name="inner")
    hidden = L.Dense(6, name="hidden")
    model = keras.Model(x, L.Dense(2)(L.Flatten()(inner(given(hidden(x))))))
    without(hidden, 1)
    with pytest.raises(UnfollowedError, match="nested model 'inner' is called with tensors of other shapes"):
        followed(model)
    assert compact(model) is model
    with pytest.raises(BpruneError, match="other shapes"):
        inline(model)


class Doubled(keras.Model):
    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        return super().call(inputs, training=training, mask=mask) * 2.0 + 1.0


@pytest.mark.parametrize("nested", [False, True])
def test_a_model_with_a_call_of_its_own_is_not_followed(nested: bool) -> None:
    start, x = keras.Input((6,)), keras.Input((6,))
    inner = Doubled(start, L.Dense(2)(L.Dense(4, name="hidden")(start)), name="inner")
    without(inner.get_layer("hidden"), 1)
    model = keras.Model(x, L.Dense(2)(inner(x))) if nested else inner
    with pytest.raises(UnfollowedError, match="Doubled 'inner' overrides `call`"):
        followed(model)
    assert compact(model) is model
    if nested:
        with pytest.raises(BpruneError, match="overrides `call`"):
            inline(model)


def test_a_nested_model_that_takes_images_of_any_size_is_followed() -> None:
    start, x = keras.Input((None, None, 3)), keras.Input((6, 6, 3))
    inner = keras.Model(start, L.Conv2D(4, 2, name="inside")(start))
    model = randomized(keras.Model(x, L.Dense(2)(L.GlobalAveragePooling2D()(inner(x)))), np.random.default_rng(0))
    smaller, _ = bp.prune(model, sparsity=0.5, granularity="unit", criterion="magnitude")
    small, given = compact(smaller), RNG.normal(size=(3, 6, 6, 3)).astype(np.float32)
    assert small.get_layer("inside").filters < 4
    np.testing.assert_allclose(small(given), smaller(given), rtol=1e-4, atol=1e-5)
    # Its own graph does not tell how often it applies its filters; one that is inlined does.
    assert multiplications(model) == 0
    with pytest.raises(PruneError, match=r"takes inputs of any size.* `tfp_bprune.inline\(model\)`"):
        bp.prune(model, sparsity=0.5, granularity="unit", criterion="magnitude", counts="multiplications")
    assert multiplications(inline(model)) == 5 * 5 * 2 * 2 * 3 * 4 + 4 * 2
    bp.prune(inline(model), sparsity=0.5, granularity="unit", criterion="magnitude", counts="multiplications")


def test_a_layer_called_by_itself_and_within_another_is_not_followed() -> None:
    shared, x, rows = L.Dense(4, name="shared"), keras.Input((6,)), keras.Input((3, 6))
    joined = L.Concatenate()([shared(x), L.Flatten()(L.TimeDistributed(shared, name="by_step")(rows))])
    model = randomized(keras.Model([x, rows], L.Dense(2, name="top")(joined)), np.random.default_rng(0))
    kernel, bias = model.get_layer("top").get_weights()
    kernel[1] = 0  # what the first call makes of unit 1 is read by nothing
    model.get_layer("top").set_weights([kernel, bias])
    given = [X, RNG.normal(size=(7, 3, 6)).astype(np.float32)]
    expected = model(given).numpy()
    with pytest.raises(UnfollowedError, match="layer 'shared' is called by itself and within layer 'by_step'"):
        followed(model)
    assert compact(model) is model
    assert remove_dead(model) == 0
    np.testing.assert_array_equal(model(given), expected)


def test_a_layer_of_several_outputs_needs_all_that_it_reads() -> None:
    x = keras.Input((6,))
    one, other = tf.split(L.Dense(4, name="read")(x), 2, -1)
    model = randomized(keras.Model(x, L.Dense(2)(L.Dense(5, name="hidden")(L.Add()([one, other])))), RNG)
    without(model.get_layer("read"), 0)
    without(model.get_layer("hidden"), 1)
    small = compact(model)
    assert (small.get_layer("read").units, small.get_layer("hidden").units) == (4, 4)
    np.testing.assert_allclose(small(X), model(X), rtol=1e-4, atol=1e-5)


def residual(join: Any, activate: Any) -> Any:
    x = keras.Input((6,))
    h = L.Dense(8, name="a")(x)
    h = activate(join(h, L.Dense(8, name="b")(activate(h))))
    return randomized(keras.Model(x, L.Dense(2)(h)), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("join", "activate"),
    [
        (lambda a, b: a + b, tf.nn.relu),
        (lambda a, b: 0.5 * a - b / 3, lambda x: tf.nn.leaky_relu(x, 0.1)),
        (lambda a, b: tf.maximum(a, b), lambda x: x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0)),
        (lambda a, b: tf.math.add_n([a, b]), lambda x: tf.clip_by_value(x, -1.0, 1.0)),
        (lambda a, b: a * b, lambda x: tf.cast(tf.math.softplus(x), tf.float32)),
        (lambda a, b: tf.concat([a, b], -1), tf.nn.relu),
        (lambda a, b: tf.concat([a, b, a], axis=1), lambda x: tf.pad(x, [[0, 0], [0, 0]])),
    ],
)
def test_units_leave_through_operations_of_tensorflow(join: Any, activate: Any) -> None:
    model = residual(join, activate)
    smaller, report = bp.prune(model, sparsity=0.4, granularity="unit", criterion="magnitude")
    assert report.reached
    small = compact(smaller)
    assert small.get_layer("a").units < 8
    np.testing.assert_allclose(small(X), smaller(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "activate",
    [
        lambda x: x + np.arange(8.0, dtype=np.float32),
        lambda x: x * [1.0, -1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
        lambda x: x * tf.constant(np.arange(8.0), tf.float32),
        tf.nn.softmax,
        lambda x: tf.cumsum(x, -1),
        lambda x: tf.reverse(x, [-1]),
        lambda x: x - tf.reduce_mean(x),
        lambda x: tf.pad(x, [[0, 0], [1, 0]]),
        lambda x: tf.concat([x, x], 0)[: tf.shape(x)[0]],
        lambda x: x + tf.reduce_sum(x, -1, keepdims=True),
        lambda x: tf.transpose(tf.reshape(x, (-1, 2, 4)), (0, 2, 1))[:, :, 0] * 1.0,
    ],
)
def test_channels_stay_where_an_operation_may_mix_them_or_has_numbers_of_its_own_for_each(activate: Any) -> None:
    x = keras.Input((6,))
    model = keras.Model(x, L.Dense(2, name="top")(activate(L.Dense(8, name="a")(x))))
    top = randomized(model, np.random.default_rng(0)).get_layer("top")
    top.kernel.assign(
        top.kernel * (np.arange(top.kernel.shape[0]) % 8 // 2 != 1)[:, None]
    )  # reads no number at these places
    without(model.get_layer("a"), 3, 4)
    small = compact(model)
    assert small.get_layer("a").units == 8
    np.testing.assert_allclose(small(X), model(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        lambda x: tf.reduce_mean(x, [1, 2]),
        lambda x: tf.reduce_max(tf.image.resize(x, (8, 8)), axis=(1, -2)),
        lambda x: tf.reduce_sum(tf.reduce_mean(x, 1), 1),
        lambda x: tf.reduce_mean(x * tf.nn.sigmoid(tf.reduce_mean(x, [1, 2], keepdims=True)), [1, 2]),
        lambda x: L.Flatten()(tf.pad(x, [[0, 0], [1, 1], [0, 2], [0, 0]])),
    ],
)
def test_filters_leave_through_operations_over_positions(body: Any) -> None:
    x = keras.Input((4, 4, 2))
    h = L.Conv2D(8, 2, activation="relu", name="c")(x)
    model = randomized(keras.Model(x, L.Dense(2)(body(h))), np.random.default_rng(0))
    smaller, report = bp.prune(model, sparsity=0.4, granularity="unit", criterion="magnitude")
    small, given = compact(smaller), RNG.normal(size=(3, 4, 4, 2)).astype(np.float32)
    assert report.reached
    assert small.get_layer("c").filters < 8
    np.testing.assert_allclose(small(given), smaller(given), rtol=1e-4, atol=1e-5)


def test_positions_that_are_reduced_are_no_channels() -> None:
    """As many positions as channels, of which the last axis of the result is one or the other."""
    x = keras.Input((4, 4, 2))
    h = L.Conv2D(3, 2, activation="relu", name="c")(x)
    model = keras.Model(x, L.Dense(2, name="top")(L.Flatten()(tf.reduce_mean(h, -1))))
    top = randomized(model, np.random.default_rng(0)).get_layer("top")
    top.kernel.assign(top.kernel * (np.arange(9) % 3 != 1)[:, None])  # reads no column 1
    assert compact(model).get_layer("c").filters == 3
