"""The whole way in one file, for a Python that gets no more than this: train, prune, export, reload in a fresh process.

What every export answers is compared with kernels drawn here, in NumPy, from the posterior that is left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import special, stats

import tfp_bprune as bp
from tests.bounds import FALSE_ALARM

pytestmark = pytest.mark.short

SAMPLES, DRAWS, SPARSITY = 400, 4000, 0.5
FORMATS = {
    "mean": ("savedmodel", "onnx", "litert"),
    "sampled": ("savedmodel",),
    "moments": ("savedmodel", "onnx", "litert"),
}
EXPORTS = [(predictive, form) for predictive, forms in FORMATS.items() for form in forms]


@pytest.fixture(scope="module")
def pruned(tiny_model: Any) -> Any:
    """The trained digits network without half of its weights."""
    network, report = bp.prune(tiny_model, sparsity=SPARSITY)
    assert report.sparsity == pytest.approx(SPARSITY, abs=1e-3)
    return network


def posteriors(network: Any) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Mean and standard deviation of each kernel, and its bias."""
    layers = [layer for layer in network.layers if hasattr(layer, "kernel_posterior")]
    assert all(layer.bias_posterior is None for layer in layers)
    return [
        (layer.kernel_posterior.loc.numpy(), layer.kernel_posterior.scale.numpy(), layer.bias.numpy())
        for layer in layers
    ]


@pytest.fixture(scope="module")
def drawn(pruned: Any, images: np.ndarray) -> np.ndarray:
    """Class probabilities [draws, n, 10] of networks drawn here."""
    rng = np.random.default_rng(0)
    rescaling, weights = pruned.get_layer("rescaling"), posteriors(pruned)

    def once(noise: float) -> np.ndarray:
        h = images[:60].reshape(60, -1) * rescaling.scale + rescaling.offset
        for i, (loc, scale, bias) in enumerate(weights):
            h = h @ (loc + noise * scale * rng.normal(size=loc.shape)) + bias
            h = h if i == len(weights) - 1 else np.maximum(h, 0)
        return special.softmax(h, axis=-1)

    return np.stack([once(0.0), *(once(1.0) for _ in range(DRAWS))])


@pytest.fixture(scope="module")
def served(pruned: Any, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What a fresh process without this package says of the same examples."""
    place = tmp_path_factory.mktemp("served")
    for predictive, form in EXPORTS:
        bp.export(pruned, place / f"{predictive}-{form}", predictive=predictive, samples=SAMPLES, format=form)  # type: ignore[arg-type]
    answers = bp.reload([place / "-".join(pair) for pair in EXPORTS], images[:60])
    return dict(zip(EXPORTS, (answer.outputs for answer in answers), strict=True))


def test_half_of_the_weights_are_gone_for_good(pruned: Any) -> None:
    left = sum(np.count_nonzero(loc) for loc, _, _ in posteriors(pruned))
    drawn_ones = sum(np.count_nonzero(scale) for _, scale, _ in posteriors(pruned))
    total = sum(loc.size for loc, _, _ in posteriors(pruned))
    assert left == drawn_ones == total - round(SPARSITY * total)


@pytest.mark.parametrize("form", FORMATS["mean"])
def test_the_mean_network_is_served(served: dict[Any, Any], drawn: np.ndarray, form: str) -> None:
    np.testing.assert_allclose(served["mean", form]["probabilities"], drawn[0], atol=2e-5)


def test_draws_are_served(served: dict[Any, Any], drawn: np.ndarray) -> None:
    each = drawn[1:]
    # Two independent means: the difference is normal by the central limit theorem, in all 600 entries at once.
    z = stats.norm.isf(FALSE_ALARM / (2 * each[0].size))
    bound = z * each.std(0) * np.sqrt(1 / SAMPLES + 1 / DRAWS)
    error = np.abs(served["sampled", "savedmodel"]["probabilities"] - each.mean(0))
    assert (error <= bound + 1e-6).all()


@pytest.mark.parametrize("form", FORMATS["moments"])
def test_moments_are_served(served: dict[Any, Any], drawn: np.ndarray, form: str) -> None:
    found = served["moments", form]
    assert np.abs(found["probabilities"] - drawn[1:].mean(0)).mean() < 0.003
    aleatoric = special.entr(drawn[1:]).sum(-1).mean(0)
    epistemic = special.entr(drawn[1:].mean(0)).sum(-1) - aleatoric
    np.testing.assert_allclose(found["aleatoric"].mean(), aleatoric.mean(), rtol=0.02)
    np.testing.assert_allclose(found["epistemic"].mean(), epistemic.mean(), rtol=0.1)
