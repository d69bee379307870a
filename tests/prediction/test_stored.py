"""Arrays on their way through files: the same to the last bit, or to float16's."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import forks
from tests.exports.networks import classifier
from tfp_bprune._keras import keras, tf
from tfp_bprune.exports import export
from tfp_bprune.layers import DenseFlipout
from tfp_bprune.prediction import Predictor, kernels
from tfp_bprune.prediction.cost import Choice
from tfp_bprune.prediction.stored import Packed, digest

PATTERNS = {
    "none": np.zeros((7, 5), bool),
    "all": np.ones((7, 5), bool),
    "few": np.random.default_rng(0).random((60, 70)) > 0.97,
    "first and last": np.eye(1, 3000, dtype=bool)[:, ::-1] | np.eye(1, 3000, dtype=bool),
    "one gap of 255": np.arange(600)[None] % 256 == 255,
    "one gap of 254": np.arange(600)[None] % 255 == 254,
    "gaps of 510": np.arange(2000)[:, None] % 511 == 510,
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_packed_matrices_come_back(name: str, storage: Any) -> None:
    pattern = PATTERNS[name]
    rng = np.random.default_rng(1)
    arrays = [np.where(pattern, rng.normal(size=pattern.shape), 0).astype(np.float32) for _ in range(2)]
    packed = Packed(pattern, arrays, storage)
    np.testing.assert_array_equal(packed.indices(), np.argwhere(pattern))
    for which, array in enumerate(arrays):
        rounded = array.astype(storage).astype(np.float32)
        np.testing.assert_array_equal(packed.entries(which), rounded[pattern])
        np.testing.assert_array_equal(packed.matrix(which), rounded)
    assert packed.nbytes >= pattern.sum() * (1 + 2 * np.dtype(storage).itemsize)


def test_every_float_comes_back_to_the_bit() -> None:
    """Of the normal ones: a processor may flush what is below 1e-38."""
    bits = np.random.default_rng(2).integers(2**23, 255 * 2**23, (50, 40), dtype=np.uint32)
    bits[::2] |= np.uint32(2**31)
    array = bits.view(np.float32)
    packed = Packed(np.ones(array.shape, bool), [array], "float32")
    np.testing.assert_array_equal(packed.matrix(0).numpy().view(np.uint32), bits)


def test_values_beyond_float16_become_its_largest() -> None:
    array = np.array([[1e5, -1e30, 65504.0, np.inf]], np.float32)
    packed = Packed(array != 0, [array], "float16")
    np.testing.assert_array_equal(packed.matrix(0), [[65504, -65504, 65504, 65504]])


def test_names_of_contents_differ_where_contents_do() -> None:
    a = np.arange(6, dtype=np.float32)
    assert digest(a) == digest(a.copy())
    others = [a[:5], a.reshape(2, 3), a.astype(np.float16), -a]
    assert len({digest(a), *map(digest, others)}) == 5


def model(seed: int) -> Any:
    """Mostly pruned and of a size at which it is stored packed."""
    layers = [DenseFlipout(120, activation="relu"), DenseFlipout(40)]
    made = classifier(keras.Sequential([keras.Input((200,)), *layers]))
    rng = np.random.default_rng(seed)
    for layer in made.layers:
        q = layer.kernel_posterior
        q.loc_variable.assign(rng.normal(size=q.shape))
        q.mask.assign(rng.random(q.shape) > 0.9)
    return made


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(9, 200)).astype(np.float32)


STRANGER = """
import sys
import numpy as np, tensorflow as tf
serve = tf.saved_model.load(sys.argv[1] + "/1").signatures["serving_default"]
x = np.load(sys.argv[2])
answers = [serve(inputs=tf.constant(x[:n]))["probabilities"].numpy() for n in (1, 9)]
np.savez(sys.argv[3], *answers)
"""


@pytest.mark.parametrize("forms", [("sparse", "dense"), ("csr", "sparse"), ("dense", "csr")])
@pytest.mark.parametrize("options", [{}, {"float16": True}])
def test_both_forms_are_ready_in_a_process_that_loads_them(
    tmp_path: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], forms: Any
) -> None:
    monkeypatch.setattr(kernels, "choose", lambda *_: Choice(forms, (4,)))
    network = model(0)
    export(network, tmp_path / "out", **options)
    np.save(tmp_path / "x.npy", x)
    words = [sys.executable, "-I", "-c", STRANGER, *(str(tmp_path / name) for name in ("out", "x.npy", "found.npz"))]
    result = forks.run(words, cwd="/")
    assert result.returncode == 0, result.stderr
    expected = Predictor(network, "mean").predict(tf.constant(x))["probabilities"].numpy()
    for answer in np.load(tmp_path / "found.npz").values():
        np.testing.assert_allclose(answer, expected[: len(answer)], rtol=0.2 if options else 1e-4, atol=1e-3)


def test_two_exports_and_one_loaded_twice_each_answer_as_themselves(tmp_path: Path, x: np.ndarray) -> None:
    networks = [model(seed) for seed in (1, 2)]
    expected = []
    for i, network in enumerate(networks):
        export(network, tmp_path / str(i))
        expected.append(tf.nn.softmax(Predictor(network, "mean").predict(tf.constant(x))["probabilities"]).numpy())

    def load(i: int) -> Any:
        return tf.saved_model.load(str(tmp_path / str(i) / "1"))

    def answer(loaded: Any) -> np.ndarray:
        return tf.nn.softmax(loaded.signatures["serving_default"](inputs=tf.constant(x))["probabilities"]).numpy()

    first, second, again = load(0), load(1), load(0)
    for loaded, i in ((first, 0), (second, 1), (again, 0), (first, 0)):
        np.testing.assert_allclose(answer(loaded), expected[i], rtol=1e-5)
    del again
    gc.collect()
    np.testing.assert_allclose(answer(first), expected[0], rtol=1e-5)
    assert not np.allclose(expected[0], expected[1])
