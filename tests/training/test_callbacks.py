"""Callbacks that change weights, the learning rate or the end of a training: the run holds what the model ends with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.test_resume import Interrupt, assert_bit_identical, tensors
from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Splits
from tfp_bprune.files.runs import Run, tensors_from
from tfp_bprune.layers import DenseFlipout
from tfp_bprune.pruning import GradualPruning
from tfp_bprune.storage import load_model
from tfp_bprune.training import KLSchedule, Settings, fit
from tfp_bprune.types import RunError

Build = Callable[..., Any]
C = keras.callbacks
SETTINGS = Settings(epochs=4, learning_rate=0.01)


class Worse(C.Callback):
    """Makes a metric that is best after the second epoch."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["score"] = float(abs(epoch - 1))


class Halved(C.Callback):
    """Changes weights after each epoch and when training ends, as an average of weights would."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.set_weights([w * 0.5 if w.dtype == np.float32 and w.ndim else w for w in self.model.get_weights()])

    def on_train_end(self, logs: Any = None) -> None:
        self.on_epoch_end(0)


def stopping(patience: int = 1) -> list[Any]:
    return [Worse(), C.EarlyStopping("score", patience=patience, mode="min", restore_best_weights=True)]


def assert_on_disk(model: Any, path: Path) -> None:
    Run.open(path).verify()
    for ours, stored in zip(model.get_weights(), load_model(path).model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, stored)


@pytest.mark.parametrize("make", [stopping, lambda: [Halved()], lambda: [GradualPruning(0.6), *stopping()]])
def test_the_run_ends_as_the_model_does_and_stays_so(mlp: Build, digits: Splits, tmp_path: Path, make: Any) -> None:
    model, out = mlp(), tmp_path / "run"
    rows = fit(model, digits, settings=SETTINGS, out=out, callbacks=make(), progress=False)
    assert len(rows) == (4 if len(make()) == 1 else 3)
    assert_on_disk(model, out)
    before, again = tensors(out), mlp()
    if not isinstance(make()[0], Halved):  # which changes weights whenever a training ends
        assert fit(again, digits, settings=SETTINGS, out=out, resume=True, callbacks=make(), progress=False) == rows
        assert_on_disk(again, out)
        for name, array in tensors(out).items():
            assert array.tobytes() == before[name].tobytes(), name


@pytest.mark.parametrize(
    "make",
    [
        lambda: stopping(2),
        lambda: [C.LearningRateScheduler(lambda epoch, rate: rate * 0.5)],
        lambda: [Worse(), C.ReduceLROnPlateau("score", factor=0.5, patience=2, mode="min")],
        lambda: [Halved()],
    ],
)
def test_an_interrupted_run_ends_in_the_same_bits(mlp: Build, digits: Splits, tmp_path: Path, make: Any) -> None:
    fit(mlp(), digits, settings=SETTINGS, out=tmp_path / "whole", callbacks=make(), progress=False)
    parts: dict[str, Any] = {"out": tmp_path / "parts", "resume": True, "progress": False}
    with pytest.raises(InterruptedError):
        fit(mlp(), digits, settings=SETTINGS, callbacks=[*make(), Interrupt(3, 2)], **parts)
    fit(mlp(), digits, settings=SETTINGS, callbacks=make(), **parts)
    assert_bit_identical(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(("make", "epochs"), [(list, 4), (stopping, 3)], ids=["to the end", "stopped"])
def test_the_last_checkpoint_alone_is_coded(
    mlp: Build, digits: Splits, tmp_path: Path, make: Any, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, bool, int]] = []
    commit = Run.commit

    def noted(run: Run, files: Any, **others: Any) -> None:
        for name, content in files.items():
            if name.endswith(".safetensors"):
                parts = tensors_from(content, name)
                written.append((name, any(key.startswith("coded:") for key in parts), len(content)))
        commit(run, files, **others)

    monkeypatch.setattr(Run, "commit", noted)
    model = mlp()
    fit(model, digits, settings=SETTINGS, out=tmp_path / "run", callbacks=make(), progress=False)
    assert_on_disk(model, tmp_path / "run")
    assert [coded for _, coded, _ in written] == [False] * (epochs - 1) + [True] * (len(written) - epochs + 1)
    assert len(written) in (epochs, epochs + 1)  # the weights of the best epoch come at the end
    assert written[-1][2] < written[0][2]


def test_a_callback_sets_the_learning_rate(mlp: Build, digits: Splits) -> None:
    seen: list[float] = []
    model = mlp()

    def read(*_: Any) -> None:
        seen.append(float(keras.backend.get_value(model.optimizer.lr)))

    def rates(*callbacks: Any) -> list[float]:
        seen.clear()
        fit(
            model,
            digits,
            settings=SETTINGS,
            callbacks=[*callbacks, C.LambdaCallback(on_epoch_end=read)],
            progress=False,
        )
        return list(seen)

    steps = digits.steps
    cosine = [0.005 * (1 + np.cos(np.pi * epoch / 4)) for epoch in (1, 2, 3, 4)]
    np.testing.assert_allclose(rates(), cosine, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(
        rates(C.LearningRateScheduler(lambda e, rate: 0.5 * rate)), 0.01 * 0.5 ** np.arange(1, 5), rtol=1e-6
    )
    plateau = C.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=1e9)
    np.testing.assert_allclose(rates(plateau), [0.01, 0.001, 1e-4, 1e-5], rtol=1e-5)
    zero = C.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: setattr(model.optimizer, "learning_rate", 0.0) if epoch == 2 else None
    )
    kept: list[Any] = []
    keep = C.LambdaCallback(on_epoch_end=lambda epoch, logs: kept.append(model.layers[-1].get_weights()[0]))
    np.testing.assert_allclose(rates(zero, keep), [*cosine[:2], 0, 0], rtol=1e-5)
    np.testing.assert_array_equal(kept[1], kept[3])  # the steps went by it
    assert (kept[0] != kept[1]).any()
    assert steps > 1


def test_ordinary_callbacks_of_keras(mlp: Build, digits: Splits, tmp_path: Path) -> None:
    model = mlp()
    callbacks = [
        C.CSVLogger(str(tmp_path / "log.csv")),
        C.ModelCheckpoint(str(tmp_path / "best.weights.h5"), save_weights_only=True),
        C.TerminateOnNaN(),
        C.TensorBoard(str(tmp_path / "board")),
    ]
    fit(model, digits, settings=Settings(epochs=2), out=tmp_path / "run", callbacks=callbacks, progress=False)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3
    assert (tmp_path / "best.weights.h5").exists()
    assert_on_disk(model, tmp_path / "run")


def test_only_a_run_needs_a_network_that_can_be_stored(digits: Splits, tmp_path: Path) -> None:
    def network() -> Any:
        inputs = keras.Input((8, 8, 1))
        x = keras.layers.Lambda(lambda x: tf.sqrt(x + 1.0), name="root")(keras.layers.Flatten()(inputs))
        return keras.Model(inputs, DenseFlipout(10)(tf.roll(x, 1, -1)))

    assert len(fit(network(), digits, settings=Settings(epochs=1), progress=False)) == 1
    with pytest.raises(RunError, match=r"layer 'root' cannot be kept in a run: .*Lambda") as error:
        fit(network(), digits, settings=Settings(epochs=1), out=tmp_path / "run", progress=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("execution", "expected"), [(1, [0, 1, 2, 3, 4]), (2, [0.5, 2.5, 4]), (5, [2])])
def test_an_execution_has_the_mean_factor_of_its_steps(execution: int, expected: list[float]) -> None:
    model = keras.Sequential([keras.Input((2,)), DenseFlipout(1, train_size=5)])
    model.compile("sgd", "mse", steps_per_execution=execution)
    layer, seen = model.layers[-1], []
    watch = C.LambdaCallback(on_batch_end=lambda batch, logs: seen.append(float(layer.kl_schedule)))
    model.fit(np.ones((5, 2)), np.ones(5), 1, callbacks=[KLSchedule(float, 5), watch], verbose=0, shuffle=False)
    assert seen == expected
