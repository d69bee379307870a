"""Multi-head attention: its projections are Bayesian, and it is pruned, kept, stripped and exported as other layers are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import variational_layers, weights_of
from tfp_bprune.prediction import Predictor

L = keras.layers


def attending() -> tuple[Any, np.ndarray]:
    """A model with masks, two attentions, and what stands around them in a transformer."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((6,), dtype="int32")
    e = L.Embedding(11, 6, mask_zero=True, name="words")(inputs)
    h = L.MultiHeadAttention(2, 3, name="one")(e, e, use_causal_mask=True)
    h = L.LayerNormalization()(L.Add()([e, h]))
    h = L.Add()([h, L.MultiHeadAttention(2, 3, dropout=0.1, name="two")(h, e)])
    model = keras.Model(inputs, L.Dense(3, activation="softmax", name="head")(L.GlobalAveragePooling1D()(h)))
    model.set_weights([0.5 * rng.normal(size=w.shape).astype(np.float32) for w in model.weights])
    return model, rng.integers(0, 11, (5, 6)).astype(np.int32)


def test_attention_has_bayesian_projections_and_is_pruned_kept_stripped_and_exported(tmp_path: Path) -> None:
    plain, x = attending()
    for estimator in ("flipout", "reparameterization"):
        certain = bp.bayesianize(plain, layers=estimator, rho_init=-30.0, bayesian_bias=True, strict=True)
        np.testing.assert_allclose(certain(x), plain(x), rtol=1e-5, atol=1e-6)
        for one, other in zip(bp.strip(certain).get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    model = bp.bayesianize(plain, rho_init=-2.0, train_size=5)
    names = [layer.name for layer in variational_layers(model)]
    parts = [f"{name}_{part}" for name in ("one", "two") for part in ("query", "key", "value", "attention_output")]
    assert sorted(names) == sorted(["words", "head", *parts])
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(x, np.arange(5) % 3, epochs=1, verbose=0)
    pruned, report = bp.prune(model, sparsity=0.5)
    assert report.sparsity == pytest.approx(0.5, abs=0.5 / report.prunable)
    bp.save_model(pruned, tmp_path / "model")
    pruned.save(tmp_path / "model.keras")
    read = bp.load_model(tmp_path / "model")
    for again in (getattr(read, "model", read), keras.models.load_model(tmp_path / "model.keras")):
        for one, other in zip(again.get_weights(), pruned.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    mean = Predictor(pruned, "mean").predict(x)["probabilities"]
    np.testing.assert_allclose(mean, bp.strip(pruned)(x), rtol=1e-4, atol=1e-6)
    # Draws put into the plain layers by hand; means of 1,000 each, off by more than 7 of their deviations once in 1e11.
    sampled = tf.function(Predictor(pruned, "sampled", samples=1000).predict)(x)["probabilities"]
    by_hand = drawn_by_hand(pruned, x, 1000)
    error = np.sqrt(2 * by_hand.var(0) / len(by_hand)) + 1e-6
    assert (np.abs(sampled - by_hand.mean(0)) < 7 * error).all()


def drawn_by_hand(model: Any, x: np.ndarray, draws: int) -> np.ndarray:
    """Outputs of the stripped network under draws of the weights."""
    plain = bp.strip(model)
    held = [
        getattr(plain.get_layer(n), f"_{p}_dense") for n in ("one", "two") for p in ("query", "key", "value", "output")
    ]
    targets = [plain.get_layer("words"), *held, plain.get_layer("head")]
    sources = {layer.name: layer for layer in variational_layers(model)}
    order = [
        "words",
        *(f"{n}_{p}" for n in ("one", "two") for p in ("query", "key", "value", "attention_output")),
        "head",
    ]
    pairs = [
        (getattr(target, name), w)
        for source, target in zip(order, targets, strict=True)
        for name, w in weights_of(sources[source]).items()
        if w.scale is not None
    ]

    @tf.function
    def sampled() -> Any:
        def draw(number: Any) -> Any:
            for place, (variable, w) in enumerate(pairs):
                noise = tf.random.stateless_normal(w.loc.shape, [number, place])
                variable.assign(tf.reshape(w.loc + w.scale * noise, variable.shape))
            return plain(x)

        return tf.map_fn(draw, tf.range(draws), fn_output_signature=tf.float32, parallel_iterations=1)

    return sampled().numpy()
