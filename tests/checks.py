"""The contract that every Bayesian layer must meet, checked by one call of `check_layer`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs import strip
from tfp_bprune.layers import Kind, weights_of

BATCH = 4
Arguments = dict[str, Any]


def check_layer(
    layer_class: type, arguments: Arguments, input_shape: tuple[int, ...], saved_model: bool = False
) -> None:
    """Checks config, shapes, draws, parameters, files, masks and training of a Bayesian layer.

    Args:
      arguments: of the layer; its name and seed are added.
      input_shape: of one example, without the batch.
      saved_model: whether Keras's SavedModel is among the files: it is as slow as all else together, and traces what layers of
        one family, or of one estimator, share.
    """
    arguments = {"name": "layer", "seed": 3, "train_size": 50} | arguments
    x = inputs_of(layer_class.kind, input_shape)  # type: ignore[attr-defined]
    check_config(layer_class, arguments)
    model = model_of(layer_class, arguments, input_shape)
    check_shape(model, x)
    check_draws(layer_class, arguments, x)
    check_parameters(model.layers[-1])
    model = check_training(model, x)
    check_masks(model, x)
    check_files(model, x, saved_model)  # last: it then holds for trained weights, masks and advanced noise counters


def inputs_of(kind: Kind, input_shape: tuple[int, ...], batch: int = BATCH) -> np.ndarray:
    """Random inputs [batch, *input_shape]: whole numbers below 5 where the layer looks rows up, normal ones elsewhere."""
    random = np.random.default_rng(0)
    if kind.reads_indices:
        return random.integers(0, 5, (batch, *input_shape)).astype(np.float32)
    return random.normal(size=(batch, *input_shape)).astype(np.float32)


def model_of(layer_class: type, arguments: Arguments, input_shape: tuple[int, ...]) -> Any:
    """A functional model that is the layer alone."""
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, layer_class(**arguments)(inputs))


def check_config(layer_class: type, arguments: Arguments) -> None:
    """The config is JSON throughout and makes an equal layer."""
    config = layer_class(**arguments).get_config()
    assert_plain(config)
    stored = json.loads(json.dumps(config))
    assert json.loads(json.dumps(layer_class.from_config(stored).get_config())) == stored
    for name in ("name", "seed", "train_size"):
        assert config[name] == arguments[name]


def assert_plain(value: Any) -> None:
    """Nothing but JSON scalars, lists and objects: above all no marshalled function."""
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            assert_plain(item)
        return
    assert value is None or isinstance(value, bool | int | float | str), f"{value!r} is not JSON"
    assert not (isinstance(value, str) and len(value) > 60), f"{value!r} looks like code"


def check_shape(model: Any, x: np.ndarray) -> None:
    """Outputs have the shape that `compute_output_shape` promises, of a known and of an unknown batch."""
    layer = model.layers[-1]
    assert tuple(layer.compute_output_shape(x.shape)) == tuple(model(x).shape)
    assert tuple(layer.compute_output_shape((None, *x.shape[1:]))) == tuple(model.output_shape)


def check_draws(layer_class: type, arguments: Arguments, x: np.ndarray) -> None:
    """Every call draws anew; (seed, step, name) decides the draw, and each of the three matters."""

    def outputs(**changed: Any) -> tuple[np.ndarray, np.ndarray]:
        layer = layer_class(**arguments | {"rho_init": 0.0} | changed)
        layer.build(x.shape)
        for q in layer.posteriors.values():
            q.loc_variable.assign(tf.ones(q.shape))  # so that only the noise can differ
            q.rho_variable.assign(tf.zeros(q.shape))
        first = layer(x).numpy()
        assert int(layer.noise_step) == 1
        return first, layer(x).numpy()

    first, second = outputs()
    assert not np.allclose(first, second)
    again = outputs()
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])
    assert not np.allclose(first, outputs(seed=4)[0])
    assert not np.allclose(first, outputs(name="other")[0])


def check_parameters(layer: Any) -> None:
    """A Bayesian weight has a scale beside its mean; an ordinary bias has none."""
    bayesian = sum(int(np.prod(q.shape)) for q in layer.posteriors.values())
    ordinary = 0 if layer.bias is None else int(np.prod(layer.bias.shape))
    assert sum(int(np.prod(w.shape)) for w in layer.trainable_weights) == 2 * bayesian + ordinary
    has_bias = "bias" in layer.posteriors or ordinary > 0
    assert has_bias == layer.kind.has_bias(layer)
    assert ("bias" in layer.posteriors) == (has_bias and layer.bayesian_bias)


def check_training(model: Any, x: np.ndarray) -> Any:
    """`model.fit` has a finite loss and moves every trainable weight tensor."""
    model.compile(keras.optimizers.legacy.Adam(1e-2), "mse")
    before = [w.numpy() for w in model.trainable_weights]
    y = np.ones((BATCH, *model.output_shape[1:]), np.float32)
    history = model.fit(x, y, epochs=2, batch_size=BATCH, shuffle=False, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.isfinite(weight.numpy()).all()
        assert not np.array_equal(weight.numpy(), old), f"{weight.name} did not move"
    return model


def check_masks(model: Any, x: np.ndarray) -> None:
    """Pruned weights are 0 in every draw and in the mean, have no gradient, and stay so while the others train."""
    layer = model.layers[-1]
    kept = {name: np.random.default_rng(1).random(q.shape) < 0.5 for name, q in layer.posteriors.items()}
    for name, q in layer.posteriors.items():
        kept[name].flat[0], kept[name].flat[-1] = False, True  # both kinds in every tensor
        q.mask.assign(kept[name])
    _check_pruned_are_zero(model, kept)
    _check_pruned_have_no_effect(model, x, kept)
    _check_pruned_have_no_gradient(model, x, kept)
    before = {name: (q.loc_variable.numpy(), q.rho_variable.numpy()) for name, q in layer.posteriors.items()}
    optimizer = keras.optimizers.legacy.Adam(1e-2)  # new: moments from before the pruning would move raw variables on
    for _ in range(2):
        optimizer.minimize(lambda: _loss(model, x), model.trainable_variables)
    for name, q in layer.posteriors.items():
        for variable, old in zip((q.loc_variable, q.rho_variable), before[name], strict=True):
            moved = variable.numpy() != old
            assert moved[kept[name]].any()
            assert not moved[~kept[name]].any()
        np.testing.assert_array_equal(q.mask.numpy(), kept[name])
    _check_pruned_are_zero(model, kept)


def _check_pruned_are_zero(model: Any, kept: dict[str, np.ndarray]) -> None:
    layer = model.layers[-1]
    mean = {name: weights.loc for name, weights in weights_of(strip(model).layers[-1]).items()}
    for name, q in layer.posteriors.items():
        draw = q.sample([5, 6]).numpy()
        for values in (draw, q.loc.numpy(), q.scale.numpy(), mean[name]):
            assert (values[~kept[name]] == 0).all()
            assert (values[kept[name]] != 0).any()


def _check_pruned_have_no_effect(model: Any, x: np.ndarray, kept: dict[str, np.ndarray]) -> None:
    """Whatever the raw variables of pruned weights hold, sampled and mean pass and KL are the same to the bit."""
    layer = model.layers[-1]
    results = []
    for value in (0.0, 7.0):
        for name, q in layer.posteriors.items():
            q.loc_variable.assign(np.where(kept[name], q.loc_variable, value))
            q.rho_variable.assign(np.where(kept[name], q.rho_variable, value))
        layer.noise_step.assign(40)
        results.append((model(x).numpy(), strip(model)(x).numpy(), layer.last_kl.numpy()))
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)


def _check_pruned_have_no_gradient(model: Any, x: np.ndarray, kept: dict[str, np.ndarray]) -> None:
    layer = model.layers[-1]
    with tf.GradientTape() as tape:
        loss = _loss(model, x)
    sources = {
        (name, v): getattr(q, v) for name, q in layer.posteriors.items() for v in ("loc_variable", "rho_variable")
    }
    for (name, _), gradient in tape.gradient(loss, sources).items():
        assert (gradient.numpy()[~kept[name]] == 0).all()
        assert (gradient.numpy()[kept[name]] != 0).any()


def _loss(model: Any, x: np.ndarray) -> Any:
    return tf.reduce_sum(tf.square(model(x) - 1)) + tf.add_n(model.losses)


def check_files(model: Any, x: np.ndarray, saved_model: bool) -> None:
    """Every Keras format, and `clone_model`, gives back all weights, and the same outputs from there on."""
    weights, copies = model.get_weights(), {}
    with tempfile.TemporaryDirectory() as folder:
        for file in ("model.keras", "model.h5", *(["model"] if saved_model else [])):  # the last is a SavedModel folder
            model.save(Path(folder) / file)
            copies[file] = keras.models.load_model(Path(folder) / file)
    copies["clone_model"] = keras.models.clone_model(model)
    copies["clone_model"].set_weights(weights)
    expected = [model(x).numpy() for _ in range(2)]
    for name, copy in copies.items():
        for ours, theirs in zip(weights, copy.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
        assert type(copy.layers[-1]) is type(model.layers[-1]), name
        for outputs in expected:
            np.testing.assert_array_equal(copy(x).numpy(), outputs, err_msg=name)
