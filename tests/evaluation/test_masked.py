"""A network under masks: what goes, what comes back, and that it is what `prune` gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.data.splits import Splits
from tfp_bprune.evaluation.masked import MaskedNetwork
from tfp_bprune.pruning import prune
from tfp_bprune.pruning.select import prunable_weights
from tfp_bprune.storage import load_model


def test_weights_go_and_come_back(tiny_run: Path, digits: Splits) -> None:
    network, x = MaskedNetwork(load_model(tiny_run).model), digits.examples("test").x[:50]
    whole = network.probabilities(x)
    np.testing.assert_allclose(whole.sum(1), 1, rtol=1e-12)
    first, *others = network.kernels
    nothing = {first: np.zeros(network.locs[first].shape, bool)}
    without = network.probabilities(x, nothing)
    assert not np.allclose(without, whole)
    np.testing.assert_array_equal(network.kernels[first].numpy(), 0)
    # A tensor without a mask is whole again.
    network.hold({name: np.ones(network.locs[name].shape, bool) for name in others})
    np.testing.assert_array_equal(network.kernels[first].numpy(), network.locs[first])
    np.testing.assert_array_equal(network.probabilities(x, nothing), without)
    np.testing.assert_array_equal(network.probabilities(x), whole)


def test_masks_give_what_prune_gives(tiny_run: Path, digits: Splits) -> None:
    model, x = load_model(tiny_run).model, digits.examples("test").x[:50]
    pruned, _ = prune(model, sparsity=0.7)
    masks = {name: w.mask for name, w in prunable_weights(pruned, "snr").items()}
    ours, theirs = MaskedNetwork(model).probabilities(x, masks), MaskedNetwork(pruned).probabilities(x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_the_model_stays_as_it_is(tiny_run: Path) -> None:
    model = load_model(tiny_run).model
    before = [w.copy() for w in model.get_weights()]
    network = MaskedNetwork(model)
    network.hold({name: np.zeros(loc.shape, bool) for name, loc in network.locs.items()})
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_what_one_mask_removed_comes_back_under_another() -> None:
    dense = keras.layers.Dense(3, activation="softmax", name="a")
    network = MaskedNetwork(keras.Sequential([keras.Input((4,)), dense]))
    mask = np.arange(12).reshape(4, 3) % 2 == 0
    for held in (mask, ~mask, mask):
        network.hold({"a/kernel": held})
        np.testing.assert_array_equal(network.kernels["a/kernel"], network.locs["a/kernel"] * held)
