"""Small real data and small trained runs, made once a session and only read; `copied` gives a test its own copy."""

from __future__ import annotations

import gc
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from tests import forks
from tfp_bprune._keras import keras
from tfp_bprune.cli.main import main
from tfp_bprune.data.splits import Splits, load
from tfp_bprune.evaluation import fresh, session
from tfp_bprune.graphs.rebuild import rebuild
from tfp_bprune.graphs.slots import optimizer_variables
from tfp_bprune.networks import build
from tfp_bprune.pruning.prune import apply_masks
from tfp_bprune.pruning.select import prunable_weights
from tfp_bprune.storage import load_model

# Processes of a suite in the background of a shell inherit that SIGINT is ignored; the tests send it to theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes depends on what else the machine does; what it finds must not depend on chance.
settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")

# Files that take longest, as measured on two cores: begun first, so that no worker ends with one while others wait.
LONGEST = (
    "training/test_horovod.py", "test_notebooks.py", "layers/test_kinds.py", "real/test_networks.py",
    "studies/test_studies.py", "searching/test_search.py", "prediction/test_moments.py", "cli/test_commands.py",
    "layers/test_passes.py", "layers/test_variational.py", "pruning/test_callback.py", "exports/test_robust.py",
    "prediction/test_walk.py", "searching/test_tuner.py", "storage/test_compress.py", "graphs/test_applications.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the files, with --no-loadscope-reorder also among workers; a file's tests stay in their order."""
    root = Path(__file__).parent
    places = {root / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _traceback() -> Iterator[None]:
    """An error that commands did not foresee is raised, and not said in one line."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TFP_BPRUNE_TRACEBACK", "1")
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _forked() -> Iterator[None]:
    """Exports are loaded again in forks of a process that has TensorFlow: `real_process` has each begin for itself."""
    patch = pytest.MonkeyPatch()
    patch.setattr(fresh, "subprocess", SimpleNamespace(run=forks.run))
    patch.setattr(session, "subprocess", SimpleNamespace(Popen=forks.Popen, PIPE=subprocess.PIPE))
    yield
    patch.undo()


@pytest.fixture
def real_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is reloaded gets a new process, as it does outside of the tests."""
    monkeypatch.setattr(fresh, "subprocess", subprocess)
    monkeypatch.setattr(session, "subprocess", subprocess)


_KERAS_TRACES = keras.Model.make_train_function


def _traced_once(model: Any, *arguments: Any, **options: Any) -> Any:
    if model.built and model.trainable_variables:
        optimizer_variables(model)
    return _KERAS_TRACES(model, *arguments, **options)


@pytest.fixture(scope="session", autouse=True)
def _steps() -> Iterator[None]:
    """Keras traces a step twice where the first creates the optimizer's variables: they are there before, as in our `fit`."""
    patch = pytest.MonkeyPatch()
    patch.setattr(keras.Model, "make_train_function", _traced_once)
    yield
    patch.undo()


@pytest.fixture
def traced_as_keras_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, where variables are created."""
    monkeypatch.setattr(keras.Model, "make_train_function", _KERAS_TRACES)


def pytest_collection_finish() -> None:
    """What was imported stays: else the garbage collector went through it again and again."""
    gc.collect()
    gc.freeze()


TINY = ("--hidden", "16", "--batch-size", "200", "--epochs", "2", "--learning-rate", "0.01")
Copy = Callable[[Path], Path]


@pytest.fixture(scope="session")
def digits() -> Splits:
    """The embedded handwriting."""
    return load("digits", batch_size=200)


@pytest.fixture(scope="session")
def images(digits: Splits) -> np.ndarray:
    """The test images as a model takes them, [n, 8, 8, 1]."""
    return digits.examples("test").x.astype(np.float32)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Flipout network trained on digits by the command line."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "--dataset", "digits", *TINY, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network with plain layers."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    words = ["train", "--dataset", "digits", "--layers", "deterministic", *TINY, "--out", str(out)]
    assert main(words) == 0
    return out


@pytest.fixture(scope="session")
def regression_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for the diabetes data, with a learned noise."""
    out = tmp_path_factory.mktemp("runs") / "diabetes"
    words = ["train", "--dataset", "diabetes", "--task", "regression", *TINY, "--out", str(out)]
    assert main(words) == 0
    return out


@pytest.fixture(scope="session")
def tiny_model(tiny_run: Path) -> Any:
    """The model of `tiny_run`; tests leave it as it is."""
    return load_model(tiny_run).model


@pytest.fixture
def copied(tmp_path: Path) -> Copy:
    """Copies a run, so that a test may damage it."""

    def copy(run: Path) -> Path:
        return Path(shutil.copytree(run, tmp_path / f"copy-of-{run.name}"))

    return copy


@pytest.fixture(scope="session")
def mlp(digits: Splits) -> Callable[..., Any]:
    """Builds small fully connected networks for digits."""

    def make(layers: Any = "flipout", hidden: tuple[int, ...] = (12,), **options: Any) -> Any:
        return build("mlp", digits.info, layers=layers, options={"hidden": hidden}, **options)

    return make


@pytest.fixture(scope="session")
def prune_at_random() -> Callable[..., Any]:
    """Removes each weight with a given probability, which leaves dead units where prune would rarely do so."""

    def pruned(model: Any, rng: np.random.Generator, fraction: float, include_bias: bool = False) -> Any:
        weights = prunable_weights(model, "magnitude", include_bias)
        copy = rebuild(model, lambda layer: None, lambda old, new: None)
        apply_masks(copy, {name: rng.random(w.loc.shape) >= fraction for name, w in weights.items()})
        return copy

    return pruned
