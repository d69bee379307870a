"""What `prune` says of its cost on validation data, and the smaller model that `strip` gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Splits
from tfp_bprune.evaluation import classification
from tfp_bprune.layers import DenseFlipout, variational_layers


def test_the_scores_are_those_of_the_mean_network(tiny_model: Any, digits: Splits) -> None:
    valid = digits.examples("valid")
    pruned, report = bp.prune(tiny_model, sparsity=0.3, validation_data=digits)
    for which, model in (("before", tiny_model), ("after", pruned)):
        p = bp.predict(model, valid, predictive="mean").probabilities
        expected = classification(p, valid.y)
        assert report.scores[which] == pytest.approx({key: expected[key] for key in ("accuracy", "nll")}, rel=1e-4)
    assert report.to_json()["scores"] == report.scores
    assert "scores" not in bp.prune(tiny_model, sparsity=0.3)[1].to_json()


def test_a_pruning_that_ruins_a_network_says_so(tiny_model: Any, digits: Splits) -> None:
    valid = digits.examples("valid")
    for data in (valid, (valid.x, valid.y), valid.batches(50)):
        with pytest.warns(
            UserWarning, match=r"pruning cost much.*nll .* -> .*, on 144 validation examples\): prune less"
        ):
            bp.prune(tiny_model, sparsity=0.99, validation_data=data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        bp.prune(tiny_model, sparsity=0.01, validation_data=valid)
    with pytest.raises(bp.BpruneError, match="validation data without targets"):
        bp.prune(tiny_model, sparsity=0.5, validation_data=valid.x)


def test_a_regression_and_two_outputs_have_a_cost() -> None:
    inputs = keras.Input((4,))
    number, kind = DenseFlipout(1, name="number")(inputs), DenseFlipout(1, activation="sigmoid", name="kind")(inputs)
    model = keras.Model(inputs, [number, kind])
    model.compile("sgd", ["mse", "binary_crossentropy"])
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    y = [bp.strip(model)(x)[0].numpy()[:, 0], (x[:, 0] > 0).astype(np.float32)]
    with pytest.warns(UserWarning, match="number_rmse 0 -> "):
        _, report = bp.prune(model, sparsity=0.75, validation_data=(x, y))
    assert set(report.scores["after"]) == {"number_rmse", "kind_accuracy", "kind_nll"}


def test_strip_gives_the_smaller_model_that_an_export_has_inside(mlp: Callable[..., Any], images: np.ndarray) -> None:
    pruned, _ = bp.prune(mlp(hidden=(32, 32)), sparsity=0.6, granularity="unit")
    whole, small = bp.strip(pruned), bp.strip(pruned, compact=True)
    assert small.count_params() < 0.7 * whole.count_params()
    np.testing.assert_allclose(small(images), whole(images), atol=1e-4)
    assert not list(variational_layers(small))


def test_keras_predict_says_once_that_it_gives_one_draw(mlp: Callable[..., Any], images: np.ndarray) -> None:
    model = mlp()
    with pytest.warns(UserWarning, match=r"one random draw of the weights.*tfp_bprune\.predict\(model, x\)") as found:
        model.predict(images[:4], verbose=0)
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.predict(images[:4], verbose=0)
        tf.function(lambda x: model(x, training=False))(images[:4])
        bp.strip(mlp()).predict(images[:4], verbose=0)


def test_what_is_bayesian_already_is_said_to_be(mlp: Callable[..., Any]) -> None:
    with pytest.raises(bp.BpruneError, match=r"is Bayesian already, by .*: train, prune or export it as it is"):
        bp.bayesianize(mlp())


def test_files_of_others_are_named(tmp_path: Any) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])
    model.save(tmp_path / "best.keras")
    with pytest.raises(
        bp.BpruneError, match=r"best\.keras is a file of Keras, and no run: tf_keras.models.load_model reads it"
    ):
        bp.load_model(tmp_path / "best.keras")
    bp.export(model, tmp_path / "served")
    with pytest.raises(
        bp.BpruneError, match=r"served is an export: expected a run.*`predict`, `evaluate` and `reload` run exports"
    ):
        bp.load_model(tmp_path / "served")
    with pytest.raises(bp.BpruneError, match="1 is a SavedModel, and no run"):
        bp.load_model(tmp_path / "served" / "1")
