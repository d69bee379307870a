"""A run that was interrupted, however and how often, ends in the same bits as one that never was."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras
from tfp_bprune.cli.common import Parser
from tfp_bprune.cli.train import add_arguments, request_of, train
from tfp_bprune.data.splits import Splits, from_arrays
from tfp_bprune.files import runs
from tfp_bprune.files.runs import CONFIG, Run
from tfp_bprune.layers import LAYERS
from tfp_bprune.storage import compress, load_model, store
from tfp_bprune.training import Settings, fit
from tfp_bprune.types import RunError, TrainingError

Build = Callable[..., Any]
EPOCHS = 12


def request() -> dict[str, Any]:
    parser = Parser()
    add_arguments(parser)
    words = f"--dataset digits --hidden 16 --batch-size 100 --epochs {EPOCHS} --kl warmup --out unused"
    return request_of(parser.parse_args(words.split()))


def train_in_a_process(out: Path) -> None:
    train(request(), out, resume=True, progress=False)


def tensors(path: Path) -> dict[str, np.ndarray]:
    """All that a run ends with: weights, noise steps, optimizer."""
    run = Run.open(path)
    run.verify()
    return compress.decode(run.read_tensors(run.manifest["checkpoint"]))


def assert_bit_identical(one: Path, other: Path, times: bool = True) -> None:
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    assert any(name.startswith("optimizer/") for name in a)
    for name, array in a.items():
        assert array.tobytes() == b[name].tobytes(), name
    rows = [[row | ({} if times else {"seconds": 0}) for row in Run.open(path).read_rows()] for path in (one, other)]
    assert rows[0] == rows[1]


def epoch_of(path: Path) -> int:
    """Epochs that a run has finished; it may be writing."""
    return Run(path).manifest.get("epoch", 0)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted, in a process of its own as the others are."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    process = start(out)
    process.join()
    assert process.exitcode == 0
    return out


def start(out: Path) -> Any:
    """A real process that trains; its server has TensorFlow loaded already, so that a kill costs no ten seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tfp_bprune.training", "tfp_bprune.networks", "tfp_bprune.storage", "tfp_bprune.reports"]
    )
    process = context.Process(target=train_in_a_process, args=(out,))
    process.start()
    return process


def kill_after(process: Any, out: Path, epoch: int, delay: float) -> bool:
    """SIGKILL `delay` seconds after `epoch` was committed; whether the process was still at work."""
    while process.is_alive() and epoch_of(out) < epoch:
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def trained_with_kills(out: Path, kills: list[tuple[int, float]]) -> None:
    """Trains to the end in spite of kills, each given as the epoch to wait for and how long after it."""
    landed = 0
    for epoch, delay in kills:
        landed += kill_after(start(out), out, epoch, delay)
        assert epoch_of(out) < EPOCHS
    assert landed == len(kills)
    last = start(out)
    last.join()
    assert last.exitcode == 0
    assert epoch_of(out) == EPOCHS


def test_three_kills_leave_no_trace(unbroken: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    trained_with_kills(tmp_path / "run", [(epoch, chance.uniform(0, 0.02)) for epoch in (1, 3, 6)])
    assert_bit_identical(tmp_path / "run", unbroken)


@pytest.mark.slow
def test_twenty_kills_at_any_moment_leave_no_trace(unbroken: Path, tmp_path: Path) -> None:
    chance = random.Random(1)
    # Epoch 0 is there before the run: such kills fall into start-up, before or while the first files are written.
    epochs = sorted(chance.choice(range(8)) for _ in range(20))
    trained_with_kills(tmp_path / "run", [(e, chance.uniform(0, 1.5 if e == 0 else 0.03)) for e in epochs])
    assert_bit_identical(tmp_path / "run", unbroken)


class Interrupt(keras.callbacks.Callback):
    """Ends training within an epoch, as an error in somebody's callback would."""

    def __init__(self, epoch: int, batch: int) -> None:
        super().__init__()
        self.at, self.epoch = (epoch, batch), 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (self.epoch, batch) == self.at:
            raise InterruptedError


@pytest.mark.parametrize("layers", ["flipout", "reparameterization", "local", "deterministic", "dropout"])
def test_networks_with_layers_of_each_kind_continue_to_the_same_bits(
    mlp: Build, digits: Splits, tmp_path: Path, layers: str
) -> None:
    settings, options = Settings(epochs=4, learning_rate=0.01, kl="blundell"), {"bayesian_bias": True, "seed": 3}
    fit(mlp(layers, **options), digits, settings=settings, out=tmp_path / "whole", progress=False)
    stop = Interrupt(epoch=2, batch=3)
    with pytest.raises(InterruptedError):
        fit(mlp(layers, **options), digits, settings=settings, out=tmp_path / "parts", callbacks=[stop], progress=False)
    assert epoch_of(tmp_path / "parts") == 2
    rows = fit(mlp(layers, **options), digits, settings=settings, out=tmp_path / "parts", resume=True, progress=False)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert_bit_identical(tmp_path / "whole", tmp_path / "parts")


@pytest.fixture
def resumed(mlp: Build, digits: Splits, tiny_run: Path, copied: Callable[[Path], Path]) -> Callable[..., Any]:
    """Continues a copy of the tiny run with something changed; the folder is `resumed.path`."""

    def again(data: Splits = digits, epochs: int = 2, hidden: tuple[int, ...] = (16,), **options: Any) -> Any:
        settings = Settings(epochs=epochs, learning_rate=0.01)
        return fit(mlp(hidden=hidden, **options), data, settings=settings, out=again.path, resume=True, progress=False)  # type: ignore[attr-defined]

    again.path = copied(tiny_run)  # type: ignore[attr-defined]
    return again


def test_a_finished_run_stays_as_it_is(resumed: Any, tiny_run: Path) -> None:
    assert len(resumed()) == 2
    assert_bit_identical(resumed.path, tiny_run)


def test_changed_settings_are_refused_by_name(resumed: Any, digits: Splits) -> None:
    before = {p: p.read_bytes() for p in resumed.path.rglob("*") if p.is_file()}
    other = from_arrays(
        *[(digits.examples(n).x, digits.examples(n).y) for n in ("train", "test")], info=digits.info, batch_size=200
    )
    for change, message in (
        ({"epochs": 3}, r"other settings \(epochs\)"),
        ({"hidden": (17,)}, "another architecture"),
        ({"data": other}, r"other data \(fingerprint, train_size\)"),
    ):
        with pytest.raises(RunError, match=f"{message}.*resume it as it was started"):
            resumed(**change)
    assert {p: p.read_bytes() for p in resumed.path.rglob("*") if p.is_file()} == before


def unnamed(units: int = 6, names: bool = False) -> Any:
    """A network of layers in layers, which Keras names."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input([64])
    x = keras.layers.Reshape((8, 8))(inputs)
    x = keras.layers.MultiHeadAttention(2, 4)(x, x)
    x = keras.layers.TimeDistributed(keras.layers.Dense(4, "relu"))(x)
    x = keras.layers.Bidirectional(keras.layers.LSTM(3))(x) * 0.5
    x = keras.Sequential([keras.layers.Dense(units, "relu", name="mine" if names else None)])(x)
    return bp.bayesianize(keras.Model(inputs, keras.layers.Dense(10)(x)), strict=False)


def test_a_network_that_keras_names_otherwise_goes_on_to_the_same_bits(digits: Splits, tmp_path: Path) -> None:
    settings = Settings(epochs=2, learning_rate=0.01)
    x, y = (np.asarray(a[:300]) for a in (digits.examples("train").x, digits.examples("train").y))
    x = x.reshape(len(x), 64).astype(np.float32)
    for folder in ("whole", "parts"):
        keras.backend.clear_session()
        stop = [Interrupt(epoch=1, batch=1)] if folder == "parts" else []
        with pytest.raises(InterruptedError) if stop else contextlib.nullcontext():
            fit(unnamed(), x, y, settings=settings, out=tmp_path / folder, callbacks=stop, progress=False)
    names = list(store.weights_of(load_model(tmp_path / "parts").model))
    other = unnamed()
    assert list(store.weights_of(other)) != names
    fit(other, x, y, settings=settings, out=tmp_path / "parts", resume=True, progress=False)
    assert_bit_identical(tmp_path / "whole", tmp_path / "parts")
    assert list(store.weights_of(other)) == names
    assert other.output_names == [other.layers[-1].name]
    assert (
        keras.models.Model.from_config(
            other.get_config(), custom_objects={layer.__name__: layer for layer in LAYERS.values()}
        ).name
        == other.name
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"units": 7}, r"another architecture \(layer 'dense_\d+' units: 6 instead of 7, "),
        ({"names": True}, r"another architecture \(.*'dense_1' instead of 'mine'"),
    ],
)
def test_another_network_is_told_from_one_that_keras_names_otherwise(
    digits: Splits, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    x, y = np.zeros([40, 64], np.float32), np.arange(40) % 10
    keras.backend.clear_session()
    fit(unnamed(), x, y, settings=Settings(epochs=1), out=tmp_path / "run", progress=False)
    other = unnamed(**options)
    names = [layer.name for layer in other._flatten_layers()]
    with pytest.raises(RunError, match=said):
        fit(other, x, y, settings=Settings(epochs=1), out=tmp_path / "run", resume=True, progress=False)
    assert [layer.name for layer in other._flatten_layers()] == names


def test_a_run_goes_on_whose_layers_have_moved_to_another_module_since(resumed: Any, tiny_run: Path) -> None:
    run = Run.open(resumed.path)
    older = run.read(CONFIG).replace(b"tfp_bprune.layers.dense", b"tfp_bprune.layers.variational")
    assert older != run.read(CONFIG)
    with run.locked():
        run.commit({CONFIG: older})
    assert len(resumed()) == 2
    assert_bit_identical(resumed.path, tiny_run)


def test_a_truncated_checkpoint_is_said_and_nothing_else_is_touched(resumed: Any) -> None:
    name = Run.open(resumed.path).manifest["checkpoint"]
    content = (resumed.path / name).read_bytes()
    (resumed.path / name).write_bytes(content[: len(content) // 2])
    before = {p: p.read_bytes() for p in resumed.path.rglob("*") if p.is_file()}
    for attempt in (resumed, lambda: load_model(resumed.path)):
        with pytest.raises(RunError, match=f"{name} is truncated"):
            attempt()
    assert {p: p.read_bytes() for p in resumed.path.rglob("*") if p.is_file()} == before


def test_a_run_in_use_is_refused(resumed: Any) -> None:
    with Run(resumed.path).locked(), pytest.raises(RunError, match="being written by another process"):
        resumed()


def test_without_resume_a_run_is_never_written_over(mlp: Build, digits: Splits, tiny_run: Path) -> None:
    with pytest.raises(RunError, match="already holds a run"):
        fit(mlp(), digits, settings=Settings(epochs=1), out=tiny_run, progress=False)


def test_a_run_killed_before_its_first_manifest_starts_anew(
    mlp: Build, digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runs, "write_json", die)
        with pytest.raises(KeyboardInterrupt):
            fit(mlp("deterministic"), digits, settings=Settings(epochs=1), out=tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "config.json").exists()
    rows = fit(
        mlp("deterministic"), digits, settings=Settings(epochs=1), out=tmp_path / "run", resume=True, progress=False
    )
    assert [row["epoch"] for row in rows] == [1]


def test_a_pruned_model_is_not_resumed_as_a_training(resumed: Any) -> None:
    run = Run(resumed.path)
    arrays = {k: v for k, v in tensors(resumed.path).items() if not k.startswith("optimizer/")}
    with run.locked():
        run.commit({run.manifest["checkpoint"]: runs.tensors_to_bytes(compress.encode(arrays))})
    with pytest.raises(TrainingError, match="the checkpoint has 0 optimizer variables"):
        resumed()


def test_a_poisoned_layer_is_named_and_the_last_good_epoch_kept(mlp: Build, digits: Splits, tmp_path: Path) -> None:
    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                rho = self.model.get_layer("logits").kernel_posterior.rho_variable
                rho.assign(rho * np.nan)

    with pytest.raises(TrainingError, match="the loss became nan at batch 1: the KL of layer 'logits' is not finite"):
        fit(mlp(), digits, settings=Settings(epochs=3), out=tmp_path / "run", callbacks=[Poison()], progress=False)
    assert epoch_of(tmp_path / "run") == 1
    for weight in load_model(tmp_path / "run").model.get_weights():
        assert np.isfinite(weight.astype(np.float64)).all()


def test_poisoned_inputs_are_told_from_poisoned_layers(mlp: Build, digits: Splits) -> None:
    train, test = ((digits.examples(n).x.astype(np.float32), digits.examples(n).y) for n in ("train", "test"))
    data = from_arrays(train, test, info=digits.info, batch_size=2000)
    data.examples("train").x[7] = np.nan  # behind the back of the check that arrays go through
    with pytest.raises(
        TrainingError, match="the KLs of all layers are finite, so the likelihood is not; check the inputs"
    ):
        fit(mlp(), data, settings=Settings(epochs=2), progress=False)


def test_leftovers_of_a_kill_are_swept_away(resumed: Any) -> None:
    (resumed.path / "weights" / ".partial-x").write_bytes(b"half")
    shutil.copytree(resumed.path / "weights", resumed.path / "exports" / ".partial-y")
    resumed()
    assert not list(resumed.path.rglob(".partial-*"))
