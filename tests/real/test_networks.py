"""Other people's networks through everything: made Bayesian, trained, pruned, exported in three ways, loaded again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.real.networks import EXAMPLES, NETWORKS, as_tensors
from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs.heads import heads_of, input_names, output_names
from tfp_bprune.layers import Variational, set_train_size, variational_layers
from tfp_bprune.types import ExportError

N = 40
DRAWS = 48
RHO = -4.0
BOUND = 7.0  # deviations of a mean of draws; beyond 1e-9 for each of the numbers compared, were they normal


@pytest.fixture(scope="module", params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def data(name: str) -> tuple[Any, Any]:
    return NETWORKS[name].data(np.random.default_rng(1))


@pytest.fixture(scope="module")
def bayesian(name: str, data: tuple[Any, Any]) -> Any:
    """The network after one training step."""
    keras.utils.set_random_seed(0)
    model = NETWORKS[name].build()
    raw = any(type(layer).__module__.startswith("tensorflow_probability.") for layer in model.layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what stays as it is
        strict = name in ("mobilenet", "efficientnet")  # of which no layer with weights stays plain
        made = bp.adopt(model) if raw else bp.bayesianize(model, rho_init=RHO, strict=strict)
    set_train_size(made, N)
    made.compile(keras.optimizers.Adam(1e-3), model.loss)
    history = made.fit(*data, batch_size=EXAMPLES, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    return made


def removed_of(model: Any) -> int:
    """Weights that the masks of all posteriors take away."""
    return sum(int((~q.mask.numpy()).sum()) for layer in variational_layers(model) for q in layer.posteriors.values())


@pytest.fixture(scope="module")
def pruned(bayesian: Any) -> Any:
    """Without half of its weights."""
    smaller, report = bp.prune(bayesian, sparsity=0.5)
    assert report.pruned == round(0.5 * report.prunable)
    gone = removed_of(smaller)
    assert gone == report.pruned
    return smaller


def served(model: Any, x: Any, path: Path, predictive: Any) -> dict[str, np.ndarray]:
    """What an export answers."""
    bp.export(model, path, predictive=predictive, samples=DRAWS)
    signature = tf.saved_model.load(str(path / "1")).signatures["serving_default"]
    values = dict(zip(input_names(model), tf.nest.flatten(as_tensors(x)), strict=True))
    return {key: value.numpy() for key, value in signature(**values).items()}


@pytest.fixture(scope="module")
def sampled(pruned: Any, data: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What the pruned network's export of draws answers."""
    return served(pruned, data[0], tmp_path_factory.mktemp("sampled") / "export", "sampled")


def means_of(model: Any, outputs: Any) -> dict[str, np.ndarray]:
    """A Keras model's outputs as exports name and shape them: probabilities, or means."""
    heads, found = heads_of(model), {}
    for (name, head), value in zip(heads.items(), tf.nest.flatten(outputs), strict=True):
        prefix = f"{name}_" if len(heads) > 1 else ""
        finished = np.asarray(head.finished(value))
        found[prefix + ("probabilities" if head.classifies else "mean")] = (
            finished if head.classifies else finished[..., 0]
        )
    return found


def test_the_kl_is_counted_once_a_pass(bayesian: Any, data: tuple[Any, Any]) -> None:
    bayesian(as_tensors(data[0]), training=False)
    kl = sum(float(layer.last_kl) for layer in variational_layers(bayesian)) / N
    np.testing.assert_allclose(sum(float(loss) for loss in bayesian.losses), kl, rtol=1e-4)


def test_the_mean_is_the_stripped_network(pruned: Any, data: tuple[Any, Any], tmp_path: Path) -> None:
    plain = bp.strip(pruned)
    assert not any(isinstance(layer, Variational) for layer in plain._flatten_layers())
    answers = served(pruned, data[0], tmp_path / "mean", "mean")
    dropout = keras.layers.Dropout(0.0)  # what draws in a plain network has no mean that its call could give
    if any(isinstance(layer, type(dropout)) and layer.rate for layer in plain.layers) and "monte" in plain.name:
        return
    for key, expected in means_of(plain, without_drawing(plain)(as_tensors(data[0]))).items():
        np.testing.assert_allclose(answers[key], expected, rtol=1e-4, atol=2e-5)


def without_drawing(plain: Any) -> Any:
    """The network with dropout off, also where a call says that it is on."""

    def off(layer: Any) -> Any:
        return keras.layers.Dropout(0.0, name=layer.name) if isinstance(layer, keras.layers.Dropout) else None

    from tfp_bprune.graphs.rebuild import rebuild

    quiet = rebuild(plain, off, lambda old, new: None)
    return lambda x: quiet(x, training=False)


def test_draws_are_those_of_the_network(pruned: Any, data: tuple[Any, Any], sampled: dict[str, np.ndarray]) -> None:
    x = as_tensors(data[0])

    @tf.function
    def draw() -> Any:
        return pruned(x, training=False)

    drawn = [means_of(pruned, draw()) for _ in range(DRAWS)]
    for key in drawn[0]:
        values = np.stack([one[key] for one in drawn]).astype(np.float64)
        error = np.sqrt(2 * values.var(0, ddof=1) / DRAWS)  # of the difference of two means of so many
        # Where units are rarely active so few draws may miss what happens seldom: no error is taken for less than a tenth
        # of the largest.
        error = np.maximum(error, 0.1 * error.max())
        assert (np.abs(sampled[key] - values.mean(0)) <= BOUND * error + 1e-5).all()


def test_moments_are_near_or_refused_by_name(
    name: str, pruned: Any, data: tuple[Any, Any], sampled: dict[str, np.ndarray], tmp_path: Path
) -> None:
    refused_at = NETWORKS[name].moments
    if refused_at is not None:
        with pytest.raises(ExportError, match=refused_at) as caught:
            bp.export(pruned, tmp_path / "moments", predictive="moments")
        assert "\n" not in str(caught.value)
        assert "'sampled'" in str(caught.value)
        return
    answers = served(pruned, data[0], tmp_path / "moments", "moments")
    for key in sampled:
        if key.endswith(("probabilities", "mean")):
            assert np.abs(answers[key] - sampled[key]).max() < 0.05 * max(1.0, np.abs(sampled[key]).max())


def test_units_go(bayesian: Any, data: tuple[Any, Any], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where fewer can go than were asked for
        smaller, report = bp.prune(bayesian, sparsity=0.3, granularity="unit")
    assert report.pruned == removed_of(smaller)
    answers = served(smaller, data[0], tmp_path / "mean", "mean")
    for key, expected in means_of(smaller, without_drawing(bp.strip(smaller))(as_tensors(data[0]))).items():
        np.testing.assert_allclose(answers[key], expected, rtol=1e-4, atol=2e-5)


def test_a_stored_network_comes_back(pruned: Any, data: tuple[Any, Any], tmp_path: Path) -> None:
    bp.save_model(pruned, tmp_path / "model")
    loaded = bp.load_model(tmp_path / "model").model
    x = as_tensors(data[0])
    for one, other in zip(
        tf.nest.flatten(without_drawing(bp.strip(loaded))(x)),
        tf.nest.flatten(without_drawing(bp.strip(pruned))(x)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert heads_of(loaded) == heads_of(pruned)


@pytest.mark.parametrize("fresh", ["table", "siamese", "tagger"])
def test_a_fresh_process_answers_the_same(fresh: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if fresh == "table":
        request.getfixturevalue("real_process")  # for one of them no fork
    keras.utils.set_random_seed(0)
    model = bp.bayesianize(NETWORKS[fresh].build(), rho_init=RHO)
    x, _ = NETWORKS[fresh].data(np.random.default_rng(2))
    here = [served(model, x, tmp_path / kind, kind) for kind in ("mean", "sampled")]
    inputs: Any = dict(zip(input_names(model), x, strict=True)) if isinstance(x, list) else x
    for found, expected in zip(bp.reload([tmp_path / "mean", tmp_path / "sampled"], inputs), here, strict=True):
        assert isinstance(found.outputs, Mapping)
        for key, value in expected.items():
            np.testing.assert_allclose(found.outputs[key], value, rtol=1e-5, atol=1e-6)
    assert len(output_names(model)) == 1
