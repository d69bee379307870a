"""Throughput of one worker and of two, one core each: weak scaling of Bayesian networks and of plain ones.

    python benchmarks/scaling.py                              # needs Horovod; starts its two workers itself
    python benchmarks/scaling.py --engine multiworker         # by tf.distribute; "both" has the engines side by side
    python benchmarks/scaling.py --accumulate 4 --networks vgg16 resnet18   # one exchange for four batches
    python benchmarks/scaling.py --engine both --networks vgg16 resnet18 --batches 64 --layers reparameterization flipout

What is asked for by any of these options goes into results/scaling_part.json, the rest into results/scaling.json.
In every round the first worker trains alone while the second waits, then both train with gradients exchanged, then both
train without: efficiency is throughput(2) / (2 throughput(1)), and the third turn tells what of the loss is the exchange's
and what comes from two processes on one memory. The last rows are of the exchange alone, and of pruned weights: gathering
what survives, exchanging only that, and putting it back, against exchanging everything.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import networks
import numpy as np

from tfp_bprune._keras import keras, tf

CASES = (
    ("mlp", 1, 100),
    ("lenet5", 1, 64),
    ("lenet5", 1, 512),
    ("vgg16", 0.25, 64),
    ("vgg16", 0.25, 256),
    ("resnet18", 0.25, 64),
    ("resnet18", 0.25, 256),
)
LAYERS = ("deterministic", "flipout")
SIZES = (2**10, 2**14, 2**17, 2**20, 2**22)
COLUMNS = {
    "engine": "",
    "network": "",
    "layers": "",
    "batch": "d",
    "accumulate": "d",
    "parameters": ",d",
    "one_ms": ".1f",
    "two_ms": ".1f",
    "efficiency": ".3f",
    "without_exchange": ".3f",
}


class Workers:
    """This worker of the two under Horovod, and how both take turns."""

    engine = "horovod"

    def __init__(self) -> None:
        import horovod.tensorflow as hvd

        from tfp_bprune.training import Horovod

        self.hvd, self.plain = hvd, Horovod()
        self.rank = self.plain.rank

    def slowest(self, spent: float) -> float:
        """The longest time of both, once both have come here."""
        return max(self.hvd.allgather_object(spent))

    def step(self, make: Callable[..., Any]) -> Any:
        """A training step that exchanges gradients."""
        return make(wrap=self.plain.wrap)

    def together(self, call: Callable[[], Any], times: int, alone: bool = False) -> float:
        """Milliseconds a call, of the slower worker; with `alone` the second waits meanwhile."""
        self.slowest(0.0)
        begin = time.perf_counter()
        if not alone or self.rank == 0:
            for _ in range(times):
                call()
        spent = (time.perf_counter() - begin) / times * 1e3
        return self.slowest(spent)


class ReplicaWorkers(Workers):
    """This worker of the two under tf.distribute."""

    engine = "multiworker"

    def __init__(self) -> None:
        from tfp_bprune.training import Strategy

        self.workers = Strategy("multiworker")
        self.rank = self.workers.rank

    def slowest(self, spent: float) -> float:
        """The longest time of both, once both have come here."""
        return float(self.workers._sum(np.eye(2)[self.rank] * spent).max())

    def step(self, make: Callable[..., Any]) -> Any:
        """A training step that exchanges gradients."""
        strategy = self.workers.strategy
        with strategy.scope():
            return make(spread=lambda dataset: strategy.distribute_datasets_from_function(lambda _: dataset))


def network_row(
    workers: Workers, network: str, width: float, batch: int, layers: str, rounds: int, accumulate: int
) -> dict[str, Any]:
    """One network's turns."""
    counted = []

    def make(wrap: Callable[[Any], Any] = lambda one: one, spread: Any = None) -> Any:
        model = networks.network(network, layers, width)
        optimizer = wrap(keras.optimizers.legacy.Adam(1e-4))
        counted.append(int(sum(np.prod(w.shape) for w in model.trainable_weights)))
        options = {"optimizer": optimizer, "accumulate": accumulate, "spread": spread}
        return measure.training_step(model, model.input_shape[1:], batch, **options)

    steps, parameters = {"one": make(), "two": workers.step(make)}, counted[0]
    took = workers.together(steps["one"], 3)
    times, turns = max(2, round(150 / took)), []
    for _ in range(rounds):
        alone = workers.together(steps["one"], times, alone=True)
        turns.append([alone, *(workers.together(steps[name], times) for name in ("two", "one"))])
    alone, two, apart = np.array(turns).T
    return {
        "engine": workers.engine,
        "network": network,
        "width": width,
        "layers": layers,
        "batch": batch,
        "accumulate": accumulate,
        "parameters": parameters,
        "one_ms": float(np.median(alone)),
        "two_ms": float(np.median(two)),
        "efficiency": float(np.median(alone / two)),
        "without_exchange": float(np.median(alone / apart)),
    }


def exchange_rows(workers: Workers, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of one all-reduce by its size, as it is and compressed."""
    rows = []
    for kind, name in (("all", "none"), ("all, fp16", "fp16")):
        for count in SIZES:
            values, way = tf.random.normal([count]), getattr(workers.hvd.Compression, name)
            reduce = tf.function(
                lambda v=values, w=way, n=f"{name}{count}": workers.hvd.allreduce(v, name=n, compression=w)
            )
            reduce()
            took = [workers.together(lambda r=reduce: r().numpy(), 10) for _ in range(rounds)]
            rows.append({"exchange": kind, "numbers": count, "ms": float(np.median(took))})
    return rows


def survivors_rows(workers: Workers, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of exchanging the gradients of an mlp 95 % of whose weights are gone, whole and in part."""
    shapes = [(784, 500), (500, 500), (500, 10)] * 2  # means and scales
    gradients = [tf.random.normal(shape) for shape in shapes]
    kept = [
        tf.constant(np.flatnonzero(np.random.default_rng(i % 3).random(s).ravel() < 0.05)) for i, s in enumerate(shapes)
    ]

    def everything() -> list[Any]:
        return [workers.hvd.allreduce(g, name=f"whole{i}") for i, g in enumerate(gradients)]

    def survivors() -> list[Any]:
        parts = [tf.gather(tf.reshape(g, [-1]), places) for g, places in zip(gradients, kept, strict=True)]
        sums = [workers.hvd.allreduce(part, name=f"part{i}") for i, part in enumerate(parts)]
        return [
            tf.reshape(tf.scatter_nd(places[:, None], s, [np.prod(shape)]), shape)
            for s, places, shape in zip(sums, kept, shapes, strict=True)
        ]

    calls = {"all weights": tf.function(everything), "survivors (5 %)": tf.function(survivors)}
    for call in calls.values():
        call()
    took = {
        name: np.median([workers.together(lambda c=call: c()[0].numpy(), 10) for _ in range(rounds)])
        for name, call in calls.items()
    }
    return [{"exchange": name, "numbers": 1_294_000, "ms": float(ms)} for name, ms in took.items()]


def work(path: Path, arguments: Any) -> None:
    """What each of the two workers does; the first writes the rows."""
    task = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task")
    # Before TensorFlow starts its threads.
    os.sched_setaffinity(0, {int(os.environ["HOROVOD_LOCAL_RANK"] if task is None else task["index"])})
    workers, rounds = Workers() if task is None else ReplicaWorkers(), arguments.rounds
    rows: list[dict[str, Any]] = []
    for network, width, batch in CASES:
        chosen = network in (arguments.networks or (network,)) and batch in (arguments.batches or (batch,))
        for layers in arguments.layers if chosen else ():
            rows.append(network_row(workers, network, width, batch, layers, rounds, arguments.accumulate))
            if workers.rank == 0:
                print(measure.markdown(rows[-1:], COLUMNS).splitlines()[-1], file=sys.stderr, flush=True)
    if task is None and not partial(arguments):
        rows += exchange_rows(workers, rounds) + survivors_rows(workers, rounds)
    if workers.rank == 0:
        path.write_text(json.dumps(rows))


def started(engine: str, arguments: Any) -> list[dict[str, Any]]:
    """The rows of both workers of an engine."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "rows.json"
        words = [sys.executable, __file__, "--worker", found, "--rounds", arguments.rounds]
        words += ["--accumulate", arguments.accumulate, "--layers", *arguments.layers]
        words += ["--networks", *arguments.networks] if arguments.networks else []
        words += ["--batches", *arguments.batches] if arguments.batches else []
        if engine == "horovod":
            horovodrun = [Path(sys.executable).with_name("horovodrun"), "-np", "2", "-H", "localhost:2"]
            subprocess.run([*map(str, horovodrun + words)], check=True, env=measure.with_package())
        else:
            places = [f"127.0.0.1:{free_port()}" for _ in range(2)]
            configs = ({"cluster": {"worker": places}, "task": {"type": "worker", "index": i}} for i in range(2))
            envs = [measure.with_package() | {"TF_CONFIG": json.dumps(one)} for one in configs]
            jobs = [subprocess.Popen([*map(str, words)], env=env) for env in envs]
            if any([job.wait() for job in jobs]):
                raise SystemExit("a worker failed")
        return json.loads(found.read_text())


def partial(arguments: Any) -> bool:
    """Whether not all is measured, or in another way."""
    usual = not arguments.networks and not arguments.batches and tuple(arguments.layers) == LAYERS
    return not usual or arguments.engine != "horovod" or arguments.accumulate != 1


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def figure(rows: list[dict[str, Any]]) -> Any:
    """Efficiency of each network, Bayesian and plain."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(9, 3.6), layout="constrained")
    axes = made.subplots()
    names = [f"{n}\n(width {w:g},\nbatch {b})" for n, w, b in CASES]
    for offset, (layers, label, colour) in enumerate(
        (("deterministic", "plain", "#56b4e9"), ("flipout", "Bayesian", "#d55e00"))
    ):
        heights = [row["efficiency"] for row in rows if row.get("layers") == layers]
        places = np.arange(len(names)) + 0.36 * (offset - 0.5)
        axes.bar(places, heights, 0.34, label=label, color=colour)
        for place, height in zip(places, heights, strict=True):
            axes.text(place, height, f"{height:.2f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylim(0, 1.15)
    axes.set_ylabel("throughput(2) / (2 throughput(1))")
    axes.legend(frameon=False, loc="upper left", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return made


def main() -> None:
    """Starts the workers, writes and draws."""
    parser = measure.parser(__doc__, "scaling")
    parser.add_argument("--worker", type=Path, help="used by this program for its workers")
    parser.add_argument(
        "--engine", choices=("horovod", "multiworker", "both"), default="horovod", help="what exchanges"
    )
    parser.add_argument("--accumulate", type=int, default=1, help="batches of a step (default: 1)")
    parser.add_argument("--networks", nargs="+", choices=sorted({name for name, *_ in CASES}), help="these alone")
    parser.add_argument("--batches", nargs="+", type=int, choices=sorted({b for *_, b in CASES}), help="these alone")
    parser.add_argument("--layers", nargs="+", choices=networks.LAYERS, default=LAYERS, help="these alone")
    parser.set_defaults(json=None)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments)
        return
    target = arguments.json or str(measure.RESULTS / f"scaling{'_part' * partial(arguments)}.json")
    engines = ("horovod", "multiworker") if arguments.engine == "both" else (arguments.engine,)
    rows = [row for engine in engines for row in started(engine, arguments)]
    measure.write(rows, target)
    if target != "-":
        if not partial(arguments):
            measure.draw(figure(rows), Path(target).with_suffix(".png"))
        print(measure.markdown([row for row in rows if "network" in row], COLUMNS))


if __name__ == "__main__":
    main()
