"""Published figures to stand beside ours, as fractions."""

from __future__ import annotations

PRASAD_SPARSITIES = (0.0, 0.5, 0.75, 0.9)
PRASAD = {
    "mnist": {
        "sgd": (0.9783, 0.9753, 0.9586, 0.6943),
        "dropout_0.5": (0.9827, 0.9763, 0.9108, 0.2216),
        "dropout_0.75": (0.9576, 0.9290, 0.6097, 0.1287),
        "dropout_0.9": (0.8663, 0.7493, 0.2537, 0.1960),
        "bbb": (0.9820, 0.9819, 0.9823, 0.9822),
    },
    "fashion_mnist": {
        "sgd": (0.8967, 0.8877, 0.8003, 0.4890),
        "dropout_0.5": (0.8756, 0.8765, 0.7595, 0.3436),
        "dropout_0.75": (0.8277, 0.8256, 0.5790, 0.2150),
        "dropout_0.9": (0.7198, 0.6552, 0.3479, 0.1539),
        "bbb": (0.8925, 0.8941, 0.8934, 0.8962),
    },
}
"""Test accuracy by dataset and method: D. Prasad, "Model compression using Bayesian Deep Learning", tables 1 and 2."""


def prasad(dataset: str, method: str, sparsity: float) -> float | None:
    """The published accuracy, None where there is none."""
    if dataset not in PRASAD or sparsity not in PRASAD_SPARSITIES:
        return None
    return PRASAD[dataset][method][PRASAD_SPARSITIES.index(sparsity)]


BLUNDELL = {0.0: 0.9876, 0.5: 0.9876, 0.75: 0.9876, 0.95: 0.9871, 0.98: 0.9861}
"""Test accuracy on MNIST by sparsity: Blundell et al. 2015 (arXiv 1505.05424), table 2."""
