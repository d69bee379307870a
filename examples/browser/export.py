"""Trains a small Bayesian network on scikit-learn's digits, prunes it, and writes the two files of the page into `models/`."""

from pathlib import Path

import tfp_bprune as bp

MODELS = Path(__file__).parent / "models"


def write(model: object, out: Path = MODELS) -> None:
    """One network in the formats of the two runtimes; LiteRT.js wants a batch of one size."""
    bp.export(model, out / "onnx", predictive="moments", format="onnx")
    bp.export(model, out / "litert", predictive="moments", format="litert", batch=1)


if __name__ == "__main__":
    data = bp.load("digits", batch_size=32)
    model = bp.build("mlp", data.info, options={"hidden": (128, 128)})
    bp.fit(model, data, settings=bp.Settings(epochs=100, learning_rate=3e-3))
    pruned, report = bp.prune(model, sparsity=0.8)
    print(f"{report.sparsity:.0%} of the weights are gone")
    write(pruned)
