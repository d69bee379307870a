"""Trials of a tuning in TensorBoard's HParams and in MLflow: a run for each, with what was chosen and its score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tfp_bprune._keras import tf
from tfp_bprune.files.reading import check_inside, check_no_links
from tfp_bprune.training.loggers import mlflow, write_hparams
from tfp_bprune.types import Json, Logger


def trial_logger(name: Logger, out: Path, objective: str) -> Callable[[Json], None]:
    """What is to be told the row of each trial that ends, as `tune(on_trial=...)` does.

    Raises:
      BpruneError: MLflow is not installed.
    """
    library = mlflow() if name == "mlflow" else None

    def to_tensorboard(row: Json) -> None:
        folder = check_inside(out, f"tensorboard/trial-{row['trial']}")
        check_no_links(folder)
        writer = tf.summary.create_file_writer(str(folder))
        write_hparams(writer, row["values"], trial=str(row["trial"]))
        if row["score"] is not None:
            with writer.as_default(step=0):
                tf.summary.scalar(objective, row["score"])
        writer.close()

    def to_mlflow(row: Json) -> None:
        assert library is not None
        with library.start_run(run_name=f"trial {row['trial']}", nested=library.active_run() is not None):
            library.log_params(row["values"])
            if row["score"] is not None:
                library.log_metric(objective, row["score"])

    return to_mlflow if library is not None else to_tensorboard
