"""A Bayesian training step here beside those of Bayesian-Torch and BLiTZ: 784-500-500-10 in each, in one process.

    pip install -r benchmarks/peers.txt      # PyTorch and both libraries, into an environment that has this package
    python benchmarks/peers.py

A peer that is not installed is left out. Every network uses its framework's Adam; ratios are to the plain network of
the same framework. Peers' priors: Bayesian-Torch a normal, its only one; BLiTZ the scale mixture.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable
from typing import Any

import measure
import networks
import numpy as np

from tfp_bprune._keras import keras

TRAIN_SIZE, SIZES = 60000, (784, 500, 500, 10)
OURS = ("local", "flipout", "reparameterization")
COLUMNS = {"library": "", "variant": "", "batch": "d", "ms": ".1f", "ratio": ".2f"}


def torch_network(torch: Any, make: Callable[[int, int], Any]) -> Any:
    """784-500-500-10 of the layers that `make` gives for (inputs, outputs)."""
    nn, layers = torch.nn, []
    for inputs, outputs in itertools.pairwise(SIZES):
        layers += [make(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def torch_step(torch: Any, network: Any, kl: Callable[[Any], Any], batch: int) -> measure.Step:
    """One step of Adam on the bound, on a batch of images of noise."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    random = np.random.default_rng(0)
    x = torch.tensor(random.integers(0, 256, (batch, SIZES[0])), dtype=torch.float32) / 126
    y = torch.tensor(random.integers(0, 10, batch))

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x), y) + kl(network) / TRAIN_SIZE
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    step()
    return step


def torch_steps(batch: int) -> dict[tuple[str, str], measure.Step]:
    """The PyTorch networks that can be made with what is installed."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        print("PyTorch is not installed: its rows are left out", file=sys.stderr)
        return {}
    made: dict[tuple[str, str], Any] = {("torch", "plain"): (torch_network(torch, torch.nn.Linear), lambda _: 0.0)}
    made |= _bayesian_torch(torch) | _blitz(torch)
    return {name: torch_step(torch, network, kl, batch) for name, (network, kl) in made.items()}


def _bayesian_torch(torch: Any) -> dict[tuple[str, str], Any]:
    try:
        layers = importlib.import_module("bayesian_torch.layers")
    except ImportError:
        print("Bayesian-Torch is not installed: its rows are left out", file=sys.stderr)
        return {}

    def made(layer: type) -> Any:
        return torch_network(torch, lambda inputs, outputs: _WithoutKL.of(torch, layer(inputs, outputs)))

    def kl(network: Any) -> Any:
        return sum(part.kl for part in network if hasattr(part, "kl"))

    return {
        ("bayesian-torch", "flipout, normal"): (made(layers.LinearFlipout), kl),
        ("bayesian-torch", "reparameterization, normal"): (made(layers.LinearReparameterization), kl),
    }


class _WithoutKL:
    """Makes a layer that returns (outputs, KL) one that returns the outputs and keeps the KL."""

    @staticmethod
    def of(torch: Any, layer: Any) -> Any:
        class Kept(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer, self.kl = layer, 0.0

            def forward(self, x: Any) -> Any:
                outputs, self.kl = self.layer(x)
                return outputs

        return Kept()


def _blitz(torch: Any) -> dict[tuple[str, str], Any]:
    try:
        modules, losses = (importlib.import_module(f"blitz.{name}") for name in ("modules", "losses"))
    except ImportError:
        print("BLiTZ is not installed: its rows are left out", file=sys.stderr)
        return {}
    return {
        ("blitz", "reparameterization, mixture"): (
            torch_network(torch, modules.BayesianLinear),
            losses.kl_divergence_from_nn,
        )
    }


def steps_of(batch: int) -> dict[tuple[str, str], measure.Step]:
    """Every network's step."""
    steps = {}
    for layers in ("plain", *OURS):
        model = networks.network("mlp", "deterministic" if layers == "plain" else layers, 1)
        optimizer = keras.optimizers.Adam(1e-4) if layers == "plain" else None
        name = ("keras", "plain") if layers == "plain" else ("tfp_bprune", f"{layers}, mixture")
        steps[name] = measure.training_step(model, model.input_shape[1:], batch, TRAIN_SIZE, optimizer)
    return steps | torch_steps(batch)


def main() -> None:
    """Measures and writes."""
    arguments = measure.parser(__doc__, "peers").parse_args()
    rows: list[dict[str, Any]] = []
    for batch in (100, 1000):
        steps = steps_of(batch)
        times = measure.interleaved(steps, arguments.rounds)
        for library, variant in steps:
            plain = ("keras" if library in ("keras", "tfp_bprune") else "torch", "plain")
            ms = float(np.median(times[library, variant]))
            ratio = measure.ratio(times, (library, variant), plain)
            rows.append({"library": library, "variant": variant, "batch": batch, "ms": ms, "ratio": ratio})
    measure.write(rows, arguments.json)
    if arguments.json != "-":
        print(measure.markdown(rows, COLUMNS))


if __name__ == "__main__":
    main()
