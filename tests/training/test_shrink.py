"""A network that shrinks while it trains: the same function, the same state of each weight, the same bits after a kill."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.training.test_resume import Interrupt, assert_bit_identical
from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Splits, from_arrays
from tfp_bprune.files.runs import Run
from tfp_bprune.graphs.compact import kept_of
from tfp_bprune.graphs.products import multiplications
from tfp_bprune.graphs.rebuild import rebuild
from tfp_bprune.graphs.shrink import shrink, units
from tfp_bprune.graphs.slots import optimizer_variables
from tfp_bprune.layers import set_train_size
from tfp_bprune.layers.distribution import Terms
from tfp_bprune.layers.posterior import MaskedNormal
from tfp_bprune.pruning import polynomial, prune
from tfp_bprune.storage import load_model, save_model
from tfp_bprune.training import Settings, fit
from tfp_bprune.types import BpruneError, RunError

L = keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 6)).astype(np.float32), RNG.integers(0, 3, 40)


def dense() -> Any:
    return keras.Sequential(
        [keras.Input((6,)), L.Dense(12, "relu", name="a"), L.Dense(8, "tanh", name="b"), L.Dense(3, name="logits")]
    )


def residual() -> Any:
    """Convolutions, batch normalization, an addition, a depthwise convolution, flatten, and two outputs by name."""
    x = keras.Input((6, 6, 2))
    h = L.ReLU()(L.BatchNormalization(momentum=1.0, name="bn")(L.Conv2D(6, 3, padding="same", name="c1")(x)))
    h = L.Add()([h, L.Conv2D(6, 3, padding="same", activation="relu", name="c2")(h)])
    h = L.Flatten()(L.DepthwiseConv2D(3, depth_multiplier=2, name="dw")(h))
    h = L.Dense(10, "relu", name="d")(h)
    return keras.Model(x, {"one": L.Dense(3, name="one")(h), "two": L.Dense(1, name="two")(h)})


def randomized(model: Any) -> Any:
    for weight in model.weights:
        if weight.dtype.is_floating and len(weight.shape) and "rho" not in weight.name:
            weight.assign(
                np.abs(RNG.normal(size=weight.shape)) if "variance" in weight.name else RNG.normal(size=weight.shape)
            )
    return model


def pruned(model: Any) -> Any:
    """Without some units, and without some weights of the others."""
    return prune(prune(randomized(model), sparsity=0.6, granularity="unit")[0], sparsity=0.7, criterion="magnitude")[0]


@pytest.fixture
def draws_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each weight's noise is a function of the weight itself: that of a slice is the slice of the noise."""

    def terms(q: Any, *_: Any, **__: Any) -> Terms:
        second = q.scale * tf.sin(1e3 * q.loc_variable)
        return Terms(q.loc, second, q.kl(q.loc + second))

    monkeypatch.setattr(MaskedNormal, "terms", terms)


def shared() -> Any:
    """A layer and a normalization that are called twice, and a call that makes two tensors."""
    x = keras.Input((6,))
    one, other = L.Dense(8, "relu", name="one")(x), L.Dense(8, "tanh", name="other")(x)
    twice, norm = L.Dense(10, "relu", name="a"), L.BatchNormalization(momentum=1.0)
    h = L.Concatenate()([norm(twice(one)), norm(twice(other))])
    left, right = tf.split(L.Dense(6, name="d")(h), 2, -1)
    return keras.Model(x, L.Dense(3, name="logits")(L.Multiply()([left, L.Dense(3, "sigmoid")(right)])))


@pytest.mark.parametrize("build", [dense, residual, shared])
def test_the_function_and_the_kl_stay_under_the_same_draws(build: Any, draws_of_weights: None) -> None:
    model = pruned(bp.bayesianize(build(), layers="reparameterization", prior=bp.NormalPrior(2.0)))
    set_train_size(model, 10)
    x = RNG.normal(size=(5, *model.input_shape[1:])).astype(np.float32)

    def seen() -> list[np.ndarray]:
        found = [np.asarray(one) for t in (False, True) for one in tf.nest.flatten(model(x, training=t))]
        return [*found, np.asarray(sum(model.losses))]

    before, sizes, work = seen(), units(model), multiplications(model)
    kept = kept_of(model)
    expected = multiplications(model, kept)
    shrink(model, kept)
    assert sum(units(model).values()) < sum(sizes.values())
    assert multiplications(model) == expected < work
    for one, other in zip(seen(), before, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6 * np.abs(other).max())
    assert not all(layer.posteriors["kernel"].mask.numpy().all() for layer in model.layers if layer.name in ("a", "d"))


def test_a_constant_goes_into_the_biases_of_its_readers() -> None:
    model = randomized(dense())
    kernel = model.get_layer("a").kernel
    kernel.assign(np.where(np.arange(12) < 5, kernel, 0))  # the others are relu(bias)
    before = model(X).numpy()
    shrink(model, kept_of(model))
    assert units(model) == {"a": 5, "b": 8, "logits": 3}
    np.testing.assert_allclose(model(X), before, rtol=2e-5, atol=1e-5)


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "legacy": lambda: keras.optimizers.legacy.Adam(0.01, amsgrad=True),
    "momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9, use_ema=True, clipnorm=1.0),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "scaled": lambda: keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
    "legacy scaled": lambda: keras.mixed_precision.LossScaleOptimizer(keras.optimizers.legacy.RMSprop(0.01)),
}


@pytest.fixture(scope="module")
def half() -> Any:
    """A network of which units are gone."""
    return pruned(bp.bayesianize(dense()))


def copied(model: Any) -> Any:
    return rebuild(model, lambda layer: None, lambda old, new: None)


def of_weights(model: Any, slot: Any) -> np.ndarray:
    """What the test puts into a slot: a function of the weight that it belongs to, another one for each slot of a weight."""
    owner = next(w for w in model.trainable_variables if w.name.removesuffix(":0") in slot.name)
    return owner.numpy() * np.float32(len(slot.name) - len(owner.name) + 2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_of_each_weight_that_stays_the_optimizers_state_stays_to_the_bit(half: Any, name: str) -> None:
    model, optimizer = copied(half), OPTIMIZERS[name]()
    model.get_layer("b").trainable = False
    model.compile(optimizer, "mse")
    before = optimizer_variables(model)
    for slot in (one for one in before if one.shape.rank):
        slot.assign(of_weights(model, slot))
    optimizer.iterations.assign(7)
    scalars = {one.name: one.numpy() for one in before if not one.shape.rank}
    shrink(model, kept_of(model))
    after = optimizer_variables(model)
    assert [one.name for one in after] == [one.name for one in before]
    assert any(one.shape.rank for one in after)
    for one in after:
        np.testing.assert_array_equal(one, of_weights(model, one) if one.shape.rank else scalars[one.name])
    assert (int(optimizer.iterations), float(optimizer.learning_rate)) == (7, pytest.approx(0.01))
    assert [layer.trainable for layer in model.layers] == [True, False, True]


class Mine(keras.Model):
    """A functional model with a step of its own, and a layer as an attribute."""

    def train_step(self, data: Any) -> Any:
        self.steps.assign_add(1)
        return super().train_step(data)


def compiled(build: Callable[[], Any] = dense, optimizer: Any = "adam", **options: Any) -> Any:
    model = build()
    set_train_size(model, 40)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"], **options)
    return model


def trained(model: Any, *callbacks: Any, epochs: int = 4, least: float = 0.0, **how: Any) -> dict[str, list[float]]:
    shrinking = [bp.GradualPruning(0.7, granularity="unit", every=1), *callbacks, bp.Shrink(least=least)]
    return model.fit(X, Y, batch_size=20, epochs=epochs, verbose=0, callbacks=shrinking, **how).history  # type: ignore[no-any-return]


class Outputs(keras.callbacks.Callback):
    """What the model says at the ends and at the beginnings of epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.ends, self.begins, self.layers = [], [], []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.ends.append(self.model(X).numpy())

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.begins.append(self.model(X).numpy())
        self.layers.append(self.model.get_layer("a"))


def test_fit_goes_on_with_the_same_model_made_smaller(tmp_path: Path) -> None:
    def build() -> Any:
        inner = dense()
        model = Mine(inner.inputs, inner.outputs)
        model.steps, model.first = tf.Variable(0.0, trainable=False), inner.get_layer("a")
        return model

    model, outputs = compiled(build, keras.optimizers.legacy.Adam(0.01)), Outputs()
    rate = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    stored = keras.callbacks.ModelCheckpoint(str(tmp_path / "of.weights.h5"), save_weights_only=True)
    history = trained(model, outputs, rate, stored, validation_data=(X, Y))
    for end, begin in zip(outputs.ends, outputs.begins[1:], strict=False):
        np.testing.assert_allclose(begin, end, rtol=2e-5, atol=1e-6)
    assert len(set(map(id, outputs.layers))) > 1  # it did shrink
    assert {*history} >= {"seconds", "multiplications", "units/a", "val_loss", "lr"}
    assert history["units/a"][0] == 12 > history["units/a"][-1] >= units(model)["a"]
    assert model.first is model.get_layer("a")
    assert (float(model.steps), int(model.optimizer.iterations)) == (8, 8)
    assert np.count_nonzero(model.get_layer("a").kernel) == units(model)["a"] * 6
    sparsity = 1 - sum(np.count_nonzero(w) for w in model.get_weights() if w.ndim == 2) / (6 * 12 + 12 * 8 + 8 * 3)
    assert 0.69 < sparsity < 0.9  # of the weights that there were
    more = trained(model, epochs=6, initial_epoch=4)
    assert more["units/a"][0] <= history["units/a"][-1]


@pytest.mark.parametrize("build", [shared, lambda: bp.inline(nested())])
def test_it_shrinks_where_layers_are_shared_and_what_was_nested(build: Any) -> None:
    model = compiled(lambda: bp.bayesianize(build(), layers="reparameterization"))
    before, means = sum(units(model).values()), list[np.ndarray]()

    def note(*_: Any) -> None:
        means.append(bp.strip(model)(X).numpy())

    trained(model, keras.callbacks.LambdaCallback(on_epoch_begin=note, on_epoch_end=note))
    for end, begin in zip(means[1::2], means[2::2], strict=False):
        np.testing.assert_allclose(begin, end, rtol=2e-4, atol=1e-5)
    assert sum(units(model).values()) < before


@pytest.mark.parametrize("options", [{"steps_per_execution": 2}, {"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_it_shrinks_however_keras_runs_its_steps(options: Any) -> None:
    history = trained(compiled(**options), epochs=3)
    assert history["units/a"][-1] < 12


@pytest.mark.parametrize("policy", ["mixed_float16", "float64"])
def test_it_shrinks_in_other_types(policy: str) -> None:
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = compiled()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    history = trained(model, epochs=3)
    assert history["units/a"][-1] < 12
    assert {w.dtype.name for w in model.trainable_variables} == {"float64" if policy == "float64" else "float32"}


def test_units_go_by_a_criterion_and_its_end_and_only_if_that_pays() -> None:
    network = bp.bayesianize(dense(), layers="local", prior=bp.NormalPrior(1.0), rho_init=-3.0)
    # Units from the fourth on are near 0 on both sides, as their evidence says; no step changes that.
    for layer, left in (("a", np.arange(12) < 4), ("b", (np.arange(12) < 4)[:, None])):
        q = network.get_layer(layer).kernel_posterior
        q.assign(np.where(left, 1.0, 0.001) + 0 * q.loc.numpy())
    model = compiled(lambda: network, keras.optimizers.SGD(0.0))
    shrinking = bp.Shrink(criterion="evidence", least=1.0, after=1)
    history = model.fit(X, Y, epochs=3, verbose=0, callbacks=[shrinking]).history
    assert history["units/a"] == [12, 12, 12]
    assert units(model)["a"] == 4  # at the end all that is gone leaves


def nested() -> Any:
    x = keras.Input((6,))
    return keras.Model(x, L.Dense(3)(keras.Sequential([keras.Input((6,)), L.Dense(8)], name="inner")(x)))


def test_that_functions_are_traced_for_new_sizes_is_no_warning() -> None:
    """Of which TensorFlow has one after five; others are given, and after the training this one too."""
    traced = "5 out of the last 8 calls to <function Model.make_test_function.<locals>.test_function at 0x7f> triggered tf.function retracing."
    logger, records = tf.get_logger(), []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]

    def warn(*_: Any) -> None:
        logger.warning("%s", traced)
        logger.warning("another")

    logger.addHandler(handler)
    try:
        compiled().fit(X, Y, callbacks=[bp.Shrink(), keras.callbacks.LambdaCallback(on_epoch_end=warn)], verbose=0)
        warn()
    finally:
        logger.removeHandler(handler)
    assert records == ["another", traced, "another"]


class Subclassed(keras.Model):
    """A model whose graph Keras does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = L.Dense(3)

    def call(self, x: Any) -> Any:
        return self.dense(x)


def with_list() -> Any:
    inner = dense()
    model = Mine(inner.inputs, inner.outputs)
    model.blocks = [inner.get_layer("a")]
    return model


def with_loss() -> Any:
    model = dense()
    model.get_layer("b").add_loss(lambda: tf.constant(1.0))
    return model


REFUSED: list[tuple[Callable[[], Any], Any, str]] = [
    (nested, "adam", r"layer 'inner' .* is a model nested in .* train what `tfp_bprune.inline\(model\)` gives"),
    (Subclassed, "adam", "Subclassed is a subclassed model"),
    (with_list, "adam", "attribute 'blocks' of model .* holds layers"),
    (with_loss, "adam", "layer 'b' has a loss added to it"),
    (dense, keras.optimizers.Adafactor(), "optimizer Adafactor keeps 'r' of shape"),
]


@pytest.mark.parametrize(("build", "optimizer", "message"), REFUSED, ids=[str(case[2]) for case in REFUSED])
def test_what_cannot_shrink_is_refused_by_name_before_training(build: Any, optimizer: Any, message: str) -> None:
    model = build()
    model.compile(optimizer, "mse")
    with pytest.raises(BpruneError, match=message) as caught:
        model.fit(X, X[:, :3], callbacks=[bp.Shrink()], verbose=0, epochs=2)
    assert "\n" not in str(caught.value)
    assert not model._train_counter


def test_callbacks_and_arguments_that_do_not_go_with_it_are_refused() -> None:
    for arguments, message in (
        ({"threshold": 1.0}, "threshold 1.0 needs a criterion"),
        ({"criterion": "snr"}, "'snr' cannot choose a threshold"),
        ({"criterion": "worth"}, "unknown criterion 'worth'"),
        ({"least": 2.0}, "least must be in"),
    ):
        with pytest.raises(BpruneError, match=message):
            bp.Shrink(**arguments)  # type: ignore[arg-type]
    restoring = keras.callbacks.EarlyStopping(restore_best_weights=True)
    with pytest.raises(BpruneError, match="EarlyStopping restores earlier weights"):
        compiled().fit(X, Y, callbacks=[bp.Shrink(), restoring], verbose=0)


@pytest.fixture
def run(mlp: Any, digits: Splits, tmp_path: Path) -> Callable[..., Path]:
    """Trains a network that shrinks, into a folder; the callbacks in an order that `fit` has to put right."""
    train, test = ((digits.examples(n).x, digits.examples(n).y) for n in ("train", "test"))
    data = from_arrays(train, test, info=digits.info, batch_size=500, validation_fraction=0.0)

    def train_into(name: str, *callbacks: Any, resume: bool = False, model: Any = None) -> Path:
        schedule = polynomial(0.6, begin=0, end=2 * data.steps)
        pruning = bp.GradualPruning(schedule, granularity="unit", every=1)
        network = mlp("deterministic", hidden=(16,), seed=1) if model is None else model
        more: Any = {"callbacks": [bp.Shrink(), pruning, *callbacks], "resume": resume, "progress": False}
        fit(network, data, settings=Settings(epochs=3, learning_rate=0.01), out=tmp_path / name, **more)
        return tmp_path / name

    return train_into


@pytest.mark.parametrize("prior", [None, pytest.param("ard", marks=pytest.mark.slow), "horseshoe"])
def test_a_run_holds_what_the_network_is_and_resumes_to_the_same_bits(
    run: Any, mlp: Any, prior: Any, tmp_path: Path
) -> None:
    """Of plain layers, of a prior over groups, and of posteriors that own the scales of groups."""

    def network(hidden: int = 16) -> Any:
        return (
            mlp("local", hidden=(hidden,), seed=1, prior=prior)
            if prior
            else mlp("deterministic", hidden=(hidden,), seed=1)
        )

    model = network()
    whole = run("whole", model=network())
    with pytest.raises(InterruptedError):
        run("parts", Interrupt(1, 2), model=model)
    small = load_model(tmp_path / "parts").model
    assert units(small) == units(model) != {"dense_1": 16, "logits": 10}
    run("parts", resume=True, model=network())
    assert_bit_identical(whole, tmp_path / "parts", times=False)
    row = Run.open(whole).read_rows()[-1]
    assert row["units/dense_1"] == units(load_model(whole).model)["dense_1"] < units(small)["dense_1"]
    assert {"seconds", "multiplications"} <= set(row)
    save_model(small, tmp_path / "again")
    for a, b in zip(load_model(tmp_path / "again").model.get_weights(), small.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(RunError, match="another architecture"):
        run("whole", resume=True, model=network(15))


def test_keras_stores_a_model_that_shrank(half: Any, tmp_path: Path) -> None:
    model = compiled(lambda: copied(half))
    optimizer_variables(model)
    shrink(model, kept_of(model))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert units(again) == units(model)
    for a, b in zip(
        again.weights + optimizer_variables(again), model.weights + optimizer_variables(model), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_convolution_is_multiplied_at_each_of_its_positions() -> None:
    layers: list[Any] = [keras.layers.Conv2D(4, 3, name="a"), keras.layers.Flatten(), keras.layers.Dense(2, name="b")]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    assert multiplications(model) == 6 * 6 * 3 * 3 * 3 * 4 + 6 * 6 * 4 * 2
