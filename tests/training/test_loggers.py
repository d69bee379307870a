"""What the loggers write, read back by the libraries that show it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras, tf
from tfp_bprune.cli.main import main
from tfp_bprune.layers import kernels_of
from tfp_bprune.storage import load_model
from tfp_bprune.training.loggers import MLflowLogger, TensorBoardLogger, log_export, ratios_of
from tfp_bprune.types import BpruneError, RunError

TRAIN = ("train", "--dataset", "digits", "--hidden", "8", "--batch-size", "400", "--epochs", "2", "--sparsity", "0.5")


def accumulated(folder: Path) -> Any:
    """All events below a folder, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    found.Reload()
    return found


def values(events: Any, tag: str) -> list[float]:
    return [float(tf.make_ndarray(one.tensor_proto)) for one in events.Tensors(tag)]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with TensorBoard's files in it."""
    out = tmp_path_factory.mktemp("runs") / "logged"
    assert main([*TRAIN, "--logger", "tensorboard", "--out", str(out)]) == 0
    return out


def test_tensorboard_reads_scalars_histograms_and_hparams(logged: Path) -> None:
    events, rows = accumulated(logged / "tensorboard"), load_model(logged).manifest
    assert rows["epoch"] == 2
    import json

    history = [json.loads(line) for line in (logged / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "nll", "val_nll", "val_accuracy", "kl/dense_1"):
        assert values(events, name) == pytest.approx([row[name] for row in history], rel=1e-5)
    assert values(events, "sparsity")[-1] == pytest.approx(0.5, abs=0.01)
    steps = [event.step for event in events.Tensors("snr_db/dense_1/kernel")]
    assert steps == [1, 2]
    last = tf.make_ndarray(events.Tensors("snr_db/dense_1/kernel")[-1].tensor_proto)  # [buckets, (left, right, count)]
    [weights] = kernels_of(load_model(logged).model.get_layer("dense_1")).values()
    assert last[:, 2].sum() == weights.mask.sum()
    from tensorboard.plugins.hparams import metadata

    found = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data
    told = metadata.parse_session_start_info_plugin_data(found.content).hparams
    assert told["layers"].string_value == "flipout"
    assert told["epochs"].number_value == 2


def test_ratios_are_those_of_the_weights_left(logged: Path) -> None:
    model = load_model(logged).model
    [weights] = kernels_of(model.get_layer("logits")).values()
    assert weights.scale is not None
    expected = 10 * np.log10(np.abs(weights.loc[weights.mask]) / weights.scale[weights.mask])
    np.testing.assert_allclose(np.sort(ratios_of(model)["logits/kernel"]), np.sort(expected), rtol=1e-6)


def test_a_logger_changes_no_bit_of_the_training(logged: Path, tmp_path: Path) -> None:
    assert main([*TRAIN, "--out", str(tmp_path / "plain")]) == 0
    one, other = (load_model(path).model.get_weights() for path in (logged, tmp_path / "plain"))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


def test_links_in_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    os.symlink(tmp_path, tmp_path / "logs" / "elsewhere")
    with pytest.raises(RunError, match="is a symbolic link"):
        TensorBoardLogger(tmp_path / "logs").on_train_begin()


def test_trials_are_hparams(tmp_path: Path) -> None:
    words = (
        "tune --dataset digits --hidden 4 --method random --trials 2 --epochs 1 --batch-size 600 --logger tensorboard"
    )
    assert main([*words.split(), "--out", str(tmp_path / "tuned")]) == 0
    folders = sorted((tmp_path / "tuned" / "tensorboard").iterdir())
    assert len(folders) == 2
    from tensorboard.plugins.hparams import metadata

    for folder in folders:
        events = accumulated(folder)
        content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
        told = metadata.parse_session_start_info_plugin_data(content).hparams
        assert {"learning_rate", "prior_pi", "width"} <= set(told)
        assert values(events, "val_nll")[0] > 0


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow, which keeps its files in a folder of the test."""
    library = pytest.importorskip("mlflow")
    place = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    library.set_tracking_uri(place)
    yield library
    while library.active_run() is not None:
        library.end_run()
    library.set_tracking_uri(None)


def test_mlflow_reads_parameters_metrics_and_the_export(tracking: Any, tiny_run: Path, tmp_path: Path) -> None:
    with tracking.start_run() as run:
        assert main([*TRAIN, "--logger", "mlflow", "--out", str(tmp_path / "run")]) == 0
        assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "served"), "--quiet"]) == 0
        log_export(tmp_path / "served")
    client = tracking.MlflowClient()
    found = client.get_run(run.info.run_id).data
    assert found.params["layers"] == "flipout"
    assert found.params["sparsity"] == "0.5"
    assert {"val_nll", "kl/dense_1", "export_bytes", "export_accuracy"} <= set(found.metrics)
    assert [one.step for one in client.get_metric_history(run.info.run_id, "val_nll")] == [1, 2]
    kept = {one.path for one in client.list_artifacts(run.info.run_id, "export")}
    assert {"export/manifest.json", "export/README.md", "export/1"} <= kept


def test_mlflow_begins_and_ends_a_run_of_its_own(tracking: Any, mlp: Any, digits: Any) -> None:
    bp.fit(mlp(), digits, settings=bp.Settings(epochs=1), progress=False, callbacks=[MLflowLogger(name="mine")])
    assert tracking.active_run() is None
    [run] = tracking.MlflowClient().search_runs(["0"])
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")


def test_what_reads_all_of_the_data_before_a_training_reads_one_epoch(
    mlp: Any, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MLflow's autolog does, around `fit` of Keras."""
    fit, read = keras.Model.fit, []

    def reading(model: Any, x: Any, **options: Any) -> Any:
        read.append([batch for batch in x.as_numpy_iterator()])
        return fit(model, x, **options)

    plain = bp.fit(mlp(), digits, settings=bp.Settings(epochs=2), progress=False)
    monkeypatch.setattr(keras.Model, "fit", reading)
    x, y = digits.examples("train").x, digits.examples("train").y
    for data in (digits, tf.data.Dataset.from_tensor_slices((x.astype("float32"), y)).batch(200)):
        rows = bp.fit(mlp(), data, settings=bp.Settings(epochs=2), progress=False)
        assert sum(len(batch[0]) for batch in read.pop()) == len(x)
        assert len(rows) == 2
        assert data is not digits or [row["loss"] for row in rows] == [row["loss"] for row in plain]


def test_autolog_of_mlflow_takes_a_training(tracking: Any, mlp: Any, digits: Any) -> None:
    pytest.importorskip("pandas", reason="mlflow.tensorflow needs it")
    import mlflow.tensorflow

    mlflow.tensorflow.autolog(log_models=False, checkpoint=False, silent=True)
    try:
        bp.fit(mlp(), digits, settings=bp.Settings(epochs=2), progress=False)
    finally:
        mlflow.tensorflow.autolog(disable=True, silent=True)
    client = tracking.MlflowClient()
    [run] = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert {"loss", "nll", "val_nll", "val_accuracy"} <= set(run.data.metrics)
    assert len(client.get_metric_history(run.info.run_id, "val_nll")) == 2
    assert [one.tags[0].value for one in run.inputs.dataset_inputs] == ["train", "eval"]


def test_without_mlflow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(BpruneError, match=r"MLflow is not installed: pip install 'tfp-bprune\[mlflow\]'"):
        MLflowLogger()
