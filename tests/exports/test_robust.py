"""Exports under what servers are sent: wrong requests, no examples, no numbers, many callers at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forks
from tests.exports.networks import classifier
from tfp_bprune._keras import keras
from tfp_bprune.exports import export
from tfp_bprune.layers import Conv2DFlipout, DenseFlipout

L = keras.layers
KINDS: dict[str, dict[str, Any]] = {
    "mean": {"predictive": "mean"},
    "sampled": {"predictive": "sampled"},
    "settled": {"predictive": "sampled", "error_rate": 0.05},
    "moments": {"predictive": "moments"},
}
NETWORKS = ("dense", "sparse", "convolution")

# Runs where there is nothing but TensorFlow, and prints what came of each request; that it prints all is that
# nothing crashed it.
STRANGER = """
import sys, json, threading
import numpy as np, tensorflow as tf

rng = np.random.default_rng(0)
x = rng.normal(size=(12, 8, 8, 1)).astype(np.float32)

def outcome(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "answered"

def examine(folder):
    loaded = tf.saved_model.load(folder + "/1")
    serve = loaded.signatures["serving_default"]
    def answers(batch):
        return {name: value.numpy() for name, value in serve(inputs=tf.constant(batch)).items()}
    wrong = {
        "shape": lambda: answers(np.zeros((2, 7, 8, 1), np.float32)),
        "rank": lambda: answers(np.zeros((2, 64), np.float32)),
        "other rows": lambda: answers(np.zeros((64, 7, 8, 1), np.float32)),
        "scalar": lambda: answers(np.float32(1)),
        "double": lambda: answers(x.astype(np.float64)),
        "integer": lambda: answers(np.zeros((2, 8, 8, 1), np.int32)),
        "word": lambda: serve(inputs=tf.constant(["word"])),
        "none": lambda: serve(inputs=None),
        "missing": lambda: serve(),
        "name": lambda: serve(images=tf.constant(x)),
        "further": lambda: serve(inputs=tf.constant(x), more=tf.constant(x)),
    }
    found = {"wrong": {name: outcome(call) for name, call in wrong.items()}}
    found["empty"] = {name: list(value.shape) for name, value in answers(x[:0]).items()}
    clean = answers(x)
    found["repeatable"] = all(np.array_equal(clean[n], v) for n, v in answers(x).items())
    found["whole"] = {name: bool(np.isfinite(value).all()) for name, value in clean.items()}
    for name, value in (("nan", np.nan), ("inf", np.inf), ("huge", 1e30)):
        bad = x.copy()
        bad[3, 2, 2] = value
        dirty = answers(bad)
        found[name] = max(
            float(np.max(np.abs(np.delete(dirty[n], 3, 0) - np.delete(clean[n], 3, 0)))) for n in clean if n != "draws"
        )
        found[name + " row"] = sorted(n for n in dirty if np.isfinite(dirty[n][3]).all())
    several = [None] * 10
    def ask(i):
        several[i] = [answers(x) for _ in range(5)]
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(10)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    found["threads"] = max(
        float(np.max(np.abs(a[n].astype(float) - clean[n]))) for each in several for a in each for n in clean
    )
    return found

print(json.dumps({folder.split("/")[-1]: examine(folder) for folder in sys.argv[1:]}))
"""


def network(kind: str) -> Any:
    if kind == "convolution":
        layers = [Conv2DFlipout(4, 3, activation="relu"), L.MaxPooling2D(2), Conv2DFlipout(4, 2), L.Flatten()]
    else:
        layers = [L.Flatten(), DenseFlipout(30, activation="relu")]
    return classifier(keras.Sequential([keras.Input((8, 8, 1)), *layers, DenseFlipout(4, rho_init=-2.0)]))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of all requests, by network and kind of prediction."""
    place = tmp_path_factory.mktemp("exports")
    folders = []
    for name in NETWORKS:
        model = network(name)
        for kind, options in KINDS.items():
            folders.append(place / f"{name} {kind}")
            export(model, folders[-1], samples=24, kernels="sparse" if name == "sparse" else "auto", **options)
    return strangers_view(folders)


def strangers_view(folders: list[Path]) -> dict[str, Any]:
    words = [sys.executable, "-I", "-c", STRANGER, *map(str, folders)]
    result = forks.run(words, cwd="/")
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(params=[f"{name} {kind}" for name in NETWORKS for kind in KINDS])
def case(request: pytest.FixtureRequest, found: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """One export: its kind of prediction, and what came of requests to it."""
    name, kind = request.param.split()
    return kind, {**found[request.param], "pools": name == "convolution"}


def test_wrong_requests_raise(case: tuple[str, dict[str, Any]]) -> None:
    for name, outcome in case[1]["wrong"].items():
        assert outcome in ("InvalidArgumentError", "TypeError", "ValueError"), f"{name}: {outcome}"


def test_no_examples_get_no_answers(case: tuple[str, dict[str, Any]]) -> None:
    kind, outcome = case
    names = {"mean": ["entropy"], "settled": ["entropy", "aleatoric", "epistemic", "draws"]}
    expected = {name: [0] for name in names.get(kind, ["entropy", "aleatoric", "epistemic"])}
    assert outcome["empty"] == {"probabilities": [0, 4], **expected}


@pytest.mark.parametrize("value", ["nan", "inf", "huge"])
def test_an_example_beyond_numbers_spoils_its_own_answer_alone(case: tuple[str, dict[str, Any]], value: str) -> None:
    _, outcome = case
    assert all(outcome["whole"].values())
    assert outcome[value] <= 1e-5
    if value == "nan" and not outcome["pools"]:
        # Nothing finite is made up for it but the number of draws it took. TensorFlow's pooling takes the largest number
        # beside one that is none, so a network that pools may give an answer.
        assert set(outcome["nan row"]) <= {"draws"}


def test_the_same_batch_gets_the_same_answer_from_ten_threads(case: tuple[str, dict[str, Any]]) -> None:
    assert case[1]["threads"] <= 1e-6
    assert case[1]["repeatable"]
