"""A training in the tools that people watch it with: Keras callbacks for TensorBoard and MLflow, also for `model.fit`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.files.reading import check_no_links
from tfp_bprune.files.runs import Run
from tfp_bprune.layers import kernels_of, variational_layers
from tfp_bprune.types import BpruneError, Json

_LONGEST = 250  # characters of a value that MLflow takes everywhere


class TensorBoardLogger(keras.callbacks.Callback):
    """A callback that writes scalars and histograms for TensorBoard after each epoch.

    The scalars are the scores and the KL of each Bayesian layer, the histograms its signal-to-noise ratios in dB.

    Args:
      folder: where the event files go: `tensorboard --logdir FOLDER`.
      settings: the settings of the training, shown in TensorBoard's HParams.

    Raises:
      RunError: `folder` contains a link.

    Example:
      >>> model = bp.compile_model(model, data, settings=bp.Settings())
      >>> history = model.fit(data.train, epochs=1, verbose=0, callbacks=[bp.TensorBoardLogger("logs")])
    """

    def __init__(self, folder: str | os.PathLike[str], *, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._folder, self._settings = Path(folder), dict(settings or {})
        self._writer: Any = None

    def on_train_begin(self, logs: Json | None = None) -> None:
        """Opens the event file."""
        check_no_links(self._folder)
        self._writer = tf.summary.create_file_writer(str(self._folder))
        if self._settings:
            write_hparams(self._writer, self._settings)

    def on_epoch_end(self, epoch: int, logs: Json | None = None) -> None:
        """Writes what the epoch gave."""
        with self._writer.as_default(step=epoch + 1):
            for name, value in figures_of(self.model, logs).items():
                tf.summary.scalar(name, value)
            for name, ratios in ratios_of(self.model).items():
                tf.summary.histogram(f"snr_db/{name}", ratios)
        self._writer.flush()

    def on_train_end(self, logs: Json | None = None) -> None:
        """Closes the event file."""
        self._writer.close()


def write_hparams(writer: Any, settings: Mapping[str, Any], trial: str | None = None) -> None:
    """Has TensorBoard's HParams show `settings` as those of the run that the writer belongs to."""
    from tensorboard.plugins.hparams import api

    shown = {name: value if isinstance(value, int | float | bool) else str(value) for name, value in settings.items()}
    with writer.as_default(step=0):
        api.hparams(shown, trial_id=trial)


class MLflowLogger(keras.callbacks.Callback):
    """A callback that logs settings, the scores of each epoch and, at the end, the run directory or an export to MLflow.

    It logs to the active MLflow run; if there is none it starts one, which ends with the training. MLflow decides where the run
    is kept: `mlflow.set_tracking_uri`, or the environment variable MLFLOW_TRACKING_URI.

    Args:
      settings: the settings of the training, logged as MLflow's parameters.
      name: name of a new MLflow run.

    Raises:
      BpruneError: MLflow is not installed.

    Example:
      >>> logger = bp.MLflowLogger(settings={"hidden": 16})  # doctest: +SKIP
    """

    def __init__(self, *, settings: Mapping[str, Any] | None = None, name: str | None = None) -> None:
        super().__init__()
        self._settings, self._name = dict(settings or {}), name
        self._mlflow, self._begun = mlflow(), False

    def on_train_begin(self, logs: Json | None = None) -> None:
        """Begins an MLflow run, if there is none."""
        if self._mlflow.active_run() is None:
            self._mlflow.start_run(run_name=self._name)
            self._begun = True
        if self._settings:
            self._mlflow.log_params({name: str(value)[:_LONGEST] for name, value in self._settings.items()})

    def on_epoch_end(self, epoch: int, logs: Json | None = None) -> None:
        """Logs what the epoch gave."""
        found = {name: value for name, value in figures_of(self.model, logs).items() if np.isfinite(value)}
        self._mlflow.log_metrics(found, step=epoch + 1)

    def on_train_end(self, logs: Json | None = None) -> None:
        """Ends the MLflow run that it began."""
        if self._begun:
            self._mlflow.end_run()
            self._begun = False


def log_export(path: str | os.PathLike[str], *, artifact_path: str = "export") -> None:
    """Logs an export to MLflow: its files as artifacts; scores, bytes and sparsity from its manifest as metrics.

    It logs to the active MLflow run, or starts a new one.

    Args:
      path: a folder written by `export`.
      artifact_path: the folder of the artifacts in the MLflow run.

    Raises:
      RunError: there is no export, or one of its files was changed.
      BpruneError: MLflow is not installed.

    Example:
      >>> bp.log_export("served/mine")  # doctest: +SKIP
    """
    run, library = Run.open(path), mlflow()
    run.verify()
    manifest = run.manifest
    numbers = {f"export_{name}": manifest[name] for name in ("bytes", "sparsity", "nonzeros") if name in manifest}
    scores = {f"export_{name}": value for name, value in (manifest.get("scores") or {}).items()}
    own = library.active_run() is None
    if own:
        library.start_run(run_name=str(manifest.get("network", "export"))[:_LONGEST])
    library.log_metrics({k: v for k, v in (numbers | scores).items() if isinstance(v, int | float)})
    library.log_artifacts(str(run.path), artifact_path)
    if own:
        library.end_run()


def mlflow() -> Any:
    """The library.

    Raises:
      BpruneError: it is not installed.
    """
    try:
        import mlflow as library
    except ImportError as error:
        raise BpruneError("MLflow is not installed: pip install 'tfp-bprune[mlflow]'") from error
    return library


def figures_of(model: Any, logs: Json | None) -> dict[str, float]:
    """The scores of an epoch, the KL of each layer in nats, the fraction of the weights removed, and the learning rate."""
    found = {name: float(value) for name, value in (logs or {}).items()}
    masks = []
    for layer in variational_layers(model):
        found[f"kl/{layer.name}"] = float(layer.last_kl.numpy())
        masks += [weights.mask.ravel() for weights in kernels_of(layer).values()]
    if masks:
        found["sparsity"] = 1 - float(np.concatenate(masks).mean())
    rate = getattr(model.optimizer, "lr", None)
    rate = rate(model.optimizer.iterations) if callable(rate) else rate
    return found | ({} if rate is None else {"learning_rate": float(rate)})


def ratios_of(model: Any) -> dict[str, np.ndarray]:
    """10 log10(|mu| / sigma) of the weights that are left and not 0, by layer and kernel."""
    found = {}
    for layer in variational_layers(model):
        for name, weights in kernels_of(layer).items():
            if weights.scale is None:
                continue
            kept = weights.mask & (weights.loc != 0) & (weights.scale > 0)
            ratio = np.abs(weights.loc[kept]) / weights.scale[kept]
            found[f"{layer.name}/{name}"] = 10 * np.log10(ratio)
    return found
