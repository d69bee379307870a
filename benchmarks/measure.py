"""What the benchmarks share: training steps to time, rounds in which rivals take turns, and the JSON they write."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Info, Splits
from tfp_bprune.evaluation.sweep import machine
from tfp_bprune.files.runs import write_atomically, write_json
from tfp_bprune.layers import set_train_size
from tfp_bprune.plot.style import png
from tfp_bprune.reports.tables import markdown_table
from tfp_bprune.training.accumulate import accumulating

Step = Callable[[], Any]
RESULTS = Path(__file__).parent / "results"
IMAGES = {
    "mnist": Info("mnist", "classification", (28, 28, 1), 10, 1 / 126),
    "cifar10": Info("cifar10", "classification", (32, 32, 3), 10, 1 / 126, -1.0),
}


def dataset_of(network: str) -> str:
    """The dataset whose images a network is for."""
    return "cifar10" if network in ("vgg16", "resnet18") else "mnist"


def training_step(
    model: Any,
    shape: tuple[int, ...],
    batch: int,
    train_size: int = 60000,
    optimizer: Any = None,
    accumulate: int = 1,
    spread: Callable[[Any], Any] | None = None,
) -> Step:
    """One step of `model.fit`, compiled, on a batch of images of noise; traced and run twice before it is returned.

    The optimizer is the one that `compile_model` chooses, unless another is given. With `accumulate` the batch is so many times
    as large and taken in as many parts; `spread` makes of a dataset what a strategy of tf.distribute takes.
    """
    set_train_size(model, train_size)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.legacy.Adam(1e-4), loss)
    random = np.random.default_rng(0)
    x = tf.constant(random.integers(0, 256, (accumulate * batch, *shape)), tf.float32)
    dataset = tf.data.Dataset.from_tensors((x, tf.constant(random.integers(0, 10, accumulate * batch)))).repeat()
    batches = iter(dataset if spread is None else spread(dataset))
    with accumulating(model, accumulate):
        function = model.make_train_function()
        for _ in range(2):
            function(batches)
    # What the step returns is read, so that it has really ended.
    return lambda: float(function(batches)["loss"])


def interleaved(
    steps: Mapping[str, Step], rounds: int, least_ms: float = 30.0, rest_ms: float = 0.0
) -> dict[str, np.ndarray]:
    """Milliseconds a call of each rival, [rounds]; in every round each has one turn of at least `least_ms`.

    Before a turn of short calls comes a rest, in which idle threads of other runtimes stop waiting at full speed, and two
    calls that do not count.
    """
    calls = {name: _calls_within(step, least_ms) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        names = list(steps) if turn % 2 == 0 else list(reversed(steps))
        for name in names:
            if rest_ms:
                time.sleep(rest_ms / 1e3)
                steps[name](), steps[name]()
            begin = time.perf_counter()
            for _ in range(calls[name]):
                steps[name]()
            times[name].append((time.perf_counter() - begin) / calls[name] * 1e3)
    return {name: np.array(values) for name, values in times.items()}


def _calls_within(step: Step, milliseconds: float) -> int:
    begin = time.perf_counter()
    step()
    return max(1, round(milliseconds / ((time.perf_counter() - begin) * 1e3)))


class Turns(keras.callbacks.Callback):
    """Lets one training after the other have an epoch, and notes what each took, validation included.

    Attributes:
      seconds: of each epoch.
    """

    def __init__(self, locks: list[threading.Semaphore], mine: int) -> None:
        super().__init__()
        self.locks, self.mine, self.seconds = locks, mine, list[float]()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Waits for its turn."""
        self.locks[self.mine].acquire()
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Passes it on."""
        self.seconds.append(time.perf_counter() - self.began)
        self.locks[(self.mine + 1) % len(self.locks)].release()


def by_turns(train: Callable[[str, Turns], Any], rivals: Sequence[str]) -> dict[str, Any]:
    """What `train(rival, turns)` gives for each rival, all of as many epochs and with `turns` among their callbacks."""
    locks = [threading.Semaphore(int(number == 0)) for number in range(len(rivals))]

    def let_go(job: Future[Any]) -> None:
        if job.exception():  # the others are not to wait for turns that it never passes on
            for lock in locks:
                lock.release(10**6)

    with ThreadPoolExecutor(len(rivals)) as pool:
        jobs = {name: pool.submit(train, name, Turns(locks, number)) for number, name in enumerate(rivals)}
        for job in jobs.values():
            job.add_done_callback(let_go)
        return {name: job.result() for name, job in jobs.items()}


def of_few(data: Splits, train: int, valid: int | None = None) -> Splits:
    """As many training examples, and validation examples if that is said."""
    few = {
        name: data.examples(name).rows(np.arange(n))
        for name, n in (("train", train), ("valid", valid))
        if n is not None
    }
    return replace(data, parts={**data.parts, **few})


def ratio(times: Mapping[str, np.ndarray], name: str, base: str) -> float:
    """Median over rounds of the ratio within a round, in which both met the same machine."""
    return float(np.median(times[name] / times[base]))


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Arguments that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=15, help="turns of each rival (default: 15)")
    made.add_argument("--json", default=str(RESULTS / f"{name}.json"), help="where the rows go; - for standard output")
    return made


def write(rows: list[dict[str, Any]], target: str) -> None:
    """Writes the rows with the machine that they were measured on."""
    result = {"machine": machine() | {"tensorflow": tf.__version__}, "rows": rows}
    if target == "-":
        print(json.dumps(result))
        return
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(target), result)


def merged(rows: list[dict[str, Any]], target: str, key: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
    """The rows that `target` has of others, by their key, and these."""
    made = {key(row) for row in rows}
    before = json.loads(Path(target).read_text())["rows"] if target != "-" and Path(target).exists() else []
    return [row for row in before if key(row) not in made] + rows


def draw(figure: Any, path: Path) -> None:
    """Writes a matplotlib figure, atomically."""
    figure.set_dpi(120)
    write_atomically(path, png(figure))


def with_package() -> dict[str, str]:
    """The environment in which another process of this Python finds what this one imports."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def markdown(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows as a table; `columns` gives the format of each key."""
    cells = [[format(row.get(k, ""), f if k in row else "") for k, f in columns.items()] for row in rows]
    return markdown_table(list(columns), cells, names=0)
