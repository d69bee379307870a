"""What `fit` trains each kind of output by: the likelihood of its task, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import special, stats

import tfp_bprune as bp
from tfp_bprune._keras import keras
from tfp_bprune.data.splits import Splits, from_arrays
from tfp_bprune.graphs.heads import Head, heads_of
from tfp_bprune.layers import DenseFlipout, GaussianOutput
from tfp_bprune.training import Settings, compile_model, fit
from tfp_bprune.types import BpruneError, DataError

L = keras.layers
N = 24
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3)).astype(np.float32)
BITS, CLASSES = np.arange(N) % 2, np.arange(N) % 3
LABELS = np.stack([BITS, CLASSES > 0, CLASSES > 1], 1)
REAL = 100 * X[:, 0] + 7
SEVERAL = np.stack([REAL, -REAL, 2 * REAL], 1)


def ending_in(*layers: Any) -> Any:
    return keras.Sequential([keras.Input((3,)), *layers])


def data_of(y: Any, x: Any = X, **more: Any) -> Splits:
    return from_arrays((x, y), (x, y), validation_fraction=0, batch_size=8, **more)


def measured(model: Any, data: Splits) -> dict[str, float]:
    """What Keras says of the test split, in batches that do not divide it."""
    compile_model(model, data, settings=Settings(epochs=1))
    return model.evaluate(data.examples("test").batches(7), return_dict=True, verbose=0)


def bernoulli(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    return -np.where(y > 0, np.log(p), np.log1p(-p))


KINDS: dict[str, Any] = {
    # end of the model, targets, then nats of each example and accuracy or squared error by the model's outputs
    "logits": (
        L.Dense(3), CLASSES, lambda o: -special.log_softmax(o, 1)[np.arange(N), CLASSES], lambda o: o.argmax(1) == CLASSES
    ),
    "softmax": (
        L.Dense(3, "softmax"), CLASSES, lambda o: -np.log(o[np.arange(N), CLASSES]), lambda o: o.argmax(1) == CLASSES
    ),
    "softmax_layer": (
        L.Softmax(), CLASSES, lambda o: -np.log(o[np.arange(N), CLASSES]), lambda o: o.argmax(1) == CLASSES
    ),
    "softmax_on_one_hot": (
        L.Dense(3, "softmax"), np.eye(3)[CLASSES], lambda o: -np.log(o[np.arange(N), CLASSES]),
        lambda o: o.argmax(1) == CLASSES,
    ),
    "one_logit": (
        L.Dense(1), BITS, lambda o: bernoulli(special.expit(o[:, 0]), BITS), lambda o: (o[:, 0] > 0) == (BITS > 0)
    ),
    "sigmoid": (
        L.Dense(1, "sigmoid"), (BITS > 0)[:, None], lambda o: bernoulli(o[:, 0], BITS), lambda o: (o[:, 0] > 0.5) == (BITS > 0)
    ),
    "labels": (
        L.Dense(3), LABELS, lambda o: bernoulli(special.expit(o), LABELS).sum(1), lambda o: ((o > 0) == (LABELS > 0)).mean(1)
    ),
    "labels_by_sigmoid": (
        L.Dense(3, "sigmoid"), LABELS > 0, lambda o: bernoulli(o, LABELS).sum(1), lambda o: ((o > 0.5) == (LABELS > 0)).mean(1)
    ),
    "mean": (
        L.Dense(1), REAL, lambda o: -stats.norm.logpdf(REAL, o[:, 0], REAL.std() / 2), lambda o: (o[:, 0] - REAL) ** 2
    ),
    "means": (
        L.Dense(3), SEVERAL, lambda o: -stats.norm.logpdf(SEVERAL, o, SEVERAL.std() / 2).sum(1),
        lambda o: ((o - SEVERAL) ** 2).mean(1),
    ),
    "mean_and_deviation": (
        GaussianOutput(noise=30.0), REAL, lambda o: -stats.norm.logpdf(REAL, o[:, 0], 30), lambda o: (o[:, 0] - REAL) ** 2
    ),
    "means_and_deviations": (
        L.Dense(6, "softplus"), SEVERAL, lambda o: -stats.norm.logpdf(SEVERAL, o[:, :3], o[:, 3:]).sum(1),
        lambda o: ((o[:, :3] - SEVERAL) ** 2).mean(1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_is_the_likelihood_of_the_task(name: str) -> None:
    end, y, nats, quality = KINDS[name]
    before = {"mean_and_deviation": [L.Dense(1)], "softmax_layer": [L.Dense(3)]}.get(name, [])
    layers = [*before, end.__class__.from_config(end.get_config())]
    model = ending_in(*layers)
    found = measured(model, data_of(y))
    outputs = model.predict(X, verbose=0).astype(np.float64)
    expected = nats(outputs).mean()
    assert found["loss"] == pytest.approx(expected, rel=1e-4)
    assert found["nll"] == pytest.approx(expected, rel=1e-4)
    assert found["mse" if "mean" in name else "accuracy"] == pytest.approx(quality(outputs).mean(), rel=1e-4)


def test_labels_of_steps_are_summed_over_an_example_and_masked_steps_left_out() -> None:
    words = RNG.integers(1, 9, (N, 5))
    words[:, 3:] = np.where(BITS[:, None] > 0, 0, words[:, 3:])  # every other text is shorter
    tags = words % 3
    model = keras.Sequential([keras.Input((None,), dtype="int32"), L.Embedding(9, 4, mask_zero=True), L.Dense(3)])
    found = measured(model, data_of(tags, words))
    logs = special.log_softmax(model.predict(words, verbose=0).astype(np.float64), -1)
    nats = -np.take_along_axis(logs, tags[..., None], -1)[..., 0]
    assert found["loss"] == pytest.approx((nats * (words > 0)).sum(1).mean(), rel=1e-4)
    assert found["nll"] == pytest.approx(nats[words > 0].mean(), rel=1e-4)
    assert found["accuracy"] == pytest.approx((logs.argmax(-1) == tags)[words > 0].mean(), rel=1e-4)


@pytest.mark.parametrize("width", [1, 2])
def test_labels_of_pixels_are_summed_over_an_image(width: int) -> None:
    images, seen = RNG.normal(size=(N, 4, 6, 1)).astype(np.float32), RNG.integers(0, 2, (N, 4, 6, 1))
    model = keras.Sequential(
        [keras.Input((None, None, 1)), L.Conv2D(width, 1, activation="sigmoid" if width == 1 else None)]
    )
    found = measured(model, data_of(seen, images))
    outputs = model.predict(images, verbose=0).astype(np.float64)
    p = outputs[..., 0] if width == 1 else special.softmax(outputs, -1)[..., 1]
    assert found["loss"] == pytest.approx(bernoulli(p, seen[..., 0]).sum((1, 2)).mean(), rel=1e-4)
    assert found["accuracy"] == pytest.approx(((p > 0.5) == (seen[..., 0] > 0)).mean(), rel=1e-4)


def test_workers_weights_count_by_example() -> None:
    # A worker's part of the global batch may be larger by one example; Data gives the weights.
    model, data = ending_in(L.Dense(1)), data_of(BITS)
    compile_model(model, data, settings=Settings(epochs=1))
    weights = np.arange(N, dtype=np.float32)
    nats = bernoulli(special.expit(model.predict(X, verbose=0)[:, 0].astype(np.float64)), BITS)
    found = model.evaluate(X, BITS, sample_weight=weights, batch_size=N, return_dict=True, verbose=0)["loss"]
    assert found == pytest.approx((weights * nats).mean(), rel=1e-4)


def test_losses_of_several_outputs_are_added_and_their_meaning_is_kept(tmp_path: Any) -> None:
    one, other = keras.Input((3,), name="one"), keras.Input((2,), name="other")
    hidden = L.Concatenate()([one, other])
    model = keras.Model([one, other], [DenseFlipout(3, name="kind")(hidden), DenseFlipout(1, name="price")(hidden)])
    data = data_of([CLASSES, REAL], [X, X[:, :2]])
    [row] = fit(model, data, settings=Settings(epochs=1), out=tmp_path / "run", progress=False)
    nats = row["kind_nll"] + row["price_nll"]
    assert row["loss"] > nats  # by the KL
    assert row["kind_loss"] + row["price_loss"] == pytest.approx(nats, rel=1e-5)
    assert {"kind_accuracy", "price_mse"} <= set(row)
    heads = {"kind": Head("classification", True), "price": Head("regression")}
    assert heads_of(model) == heads_of(bp.load_model(tmp_path / "run").model) == heads


def test_a_bayesian_layer_of_one_unit_learns_two_classes() -> None:
    x = np.concatenate([X - 3, X + 3])
    model, data = ending_in(DenseFlipout(1)), data_of(np.repeat([0, 1], N), x)
    rows = fit(model, data, settings=Settings(epochs=30, learning_rate=0.1), progress=False)
    assert rows[-1]["accuracy"] == 1


UNSUITED: list[Any] = [
    (lambda: ending_in(L.Dense(4)), CLASSES, "4 outputs.*needs 3, logits or by a softmax"),
    (lambda: ending_in(L.Dense(3, "sigmoid")), CLASSES, "expected a softmax or logits"),
    (lambda: ending_in(L.Dense(2, "softmax")), LABELS[:, :2], "expected a sigmoid or logits"),
    (lambda: ending_in(L.Dense(3, "relu")), CLASSES, "from_logits=True or False"),
    (lambda: ending_in(L.Dense(3)), REAL, "3 outputs.*needs 1, or 2 with standard deviations"),
    (lambda: ending_in(L.Dense(4), L.Reshape((2, 2))), BITS, r"outputs \(2, 2\)"),
    (lambda: keras.Sequential([keras.Input((4,)), L.Dense(3)]), CLASSES, r"shape \(3,\).*expects \(4,\)"),
    (lambda: ending_in(L.Dense(3, name="end")), [CLASSES, BITS], "'0', '1'.*expects 'end'"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(UNSUITED)))
def test_a_model_that_does_not_suit_the_data_is_refused_in_one_line(case: int) -> None:
    build, y, said = UNSUITED[case]
    with pytest.raises((DataError, BpruneError), match=said) as caught:
        fit(build(), data_of(y), settings=Settings(epochs=1), progress=False)
    assert "\n" not in str(caught.value)


def test_what_an_end_means_can_be_said() -> None:
    model = ending_in(L.Dense(3, "exponential"))
    fit(model, data_of(CLASSES), settings=Settings(epochs=1), progress=False, from_logits=True)
    assert list(heads_of(model).values()) == [Head("classification", True)]
