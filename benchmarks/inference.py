"""Latency, bytes and scores of exports beside ten draws of the unpruned network and beside its dense mean network.

    python benchmarks/inference.py --data-dir DIR --runs runs/inference [mlp lenet5 vgg16 grid]

Trains what is not yet in --runs (minutes for the first two, half an hour for vgg16), prunes, retrains where the table says
so, exports, and loads all exports of a network in one fresh process with TensorFlow alone, where they take turns. The
draws are ten calls of the Keras network, saved as one function. `grid` times the mean network of mlp with dense, sparse
and automatic kernels over sparsities and batches. Writes results/inference.json, where rows of what is not named stay, and
results/inference.png.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure

import tfp_bprune as bp
from tfp_bprune._keras import tf
from tfp_bprune.data.splits import Splits
from tfp_bprune.evaluation.fresh import reload
from tfp_bprune.evaluation.metrics import of_outputs
from tfp_bprune.evaluation.sweep import machine
from tfp_bprune.files.runs import Run
from tfp_bprune.types import Granularity, Layers, Scope

BATCHES = (1, 32, 256)
GRID_SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
GRID_BATCHES = (1, 8, 64, 512)
DRAWS = 10


@dataclass(frozen=True)
class Pruned:
    """What is removed from a network, and how long it is trained after."""

    sparsity: float
    granularity: Granularity = "weight"
    scope: Scope = "global"
    epochs: int = 0
    rate: float = 5e-4


@dataclass(frozen=True)
class Shrunk:
    """How a network is trained that loses its units while it learns, with a scale of the prior for each unit."""

    layers: Layers
    sparsity: float  # of the multiplications
    epochs: int
    kl_weight: float = 0.1


@dataclass(frozen=True)
class Case:
    """One network: how it is trained and what of it is exported."""

    network: str
    dataset: str
    options: dict[str, Any]
    settings: bp.Settings
    pruned: tuple[Pruned, ...]
    shrunk: Shrunk | None = None


CASES = {
    "mlp": Case(
        "mlp", "mnist", {"hidden": (500, 500)}, bp.Settings(20), (Pruned(0.95), Pruned(0.98, epochs=3)),
        Shrunk("local", 0.9, 40),
    ),
    "lenet5": Case(
        "lenet5", "mnist", {}, bp.Settings(10), (Pruned(0.9), Pruned(0.75, "unit", "layer", 8, 1e-3)),
        Shrunk("reparameterization", 0.933, 30),
    ),
    "vgg16": Case(
        "vgg16", "cifar10", {"width": 0.25}, bp.Settings(15, kl_weight=0.1),
        (Pruned(0.8), Pruned(0.6, "unit", "layer", 5, 1e-3)),
    ),
}  # fmt: skip
COLUMNS = {
    "network": "", "sparsity": ".3f", "granularity": "", "format": "", "predictive": "", "precision": "", "batch": "d",
    "ms": ".3f", "speedup_vs_draws": ".1f", "speedup_vs_dense": ".2f", "bytes": ",d", "payload_bytes": ",d",
    "accuracy": ".4f", "ece": ".4f",
}  # fmt: skip


def trained(name: str, data: Splits, runs: Path) -> Any:
    """The network of a case, trained first if it is not there or not all of its epochs are."""
    case = CASES[name]
    model = bp.build(case.network, data.info, layers="flipout", options=case.options)  # type: ignore[arg-type]
    return kept(runs / name, model, data, case.settings)


def kept(path: Path, model: Any, data: Splits, settings: bp.Settings, callbacks: Sequence[Any] = ()) -> Any:
    """What the run at `path` holds, once it has all epochs of training `model`."""
    if not Run(path).exists or Run.open(path).manifest["epoch"] < settings.epochs:
        bp.fit(model, data, settings=settings, out=path, resume=True, callbacks=list(callbacks))
    return bp.load_model(path).model


def pruned(place: Path, model: Any, data: Splits, case: Case, wanted: Pruned) -> Any:
    """The model without some of its weights, retrained for some epochs if asked, its normalization measured anew."""
    smaller, _ = bp.prune(model, sparsity=wanted.sparsity, granularity=wanted.granularity, scope=wanted.scope)
    if wanted.epochs:
        settings = bp.Settings(wanted.epochs, wanted.rate, kl="constant", kl_weight=case.settings.kl_weight)
        smaller = kept(place, smaller, data, settings)
    normalized = any("normalization" in layer.name for layer in smaller.layers)
    return bp.recalibrate(smaller, data.examples("train").batches(100)) if normalized else smaller


def shrunk(name: str, data: Splits, runs: Path) -> Any:
    """The network of a case that lost units while it learned."""
    case, wanted = CASES[name], CASES[name].shrunk
    assert wanted is not None
    model = bp.build(case.network, data.info, layers=wanted.layers, prior="ard", options=case.options)  # type: ignore[arg-type]
    given: Any = {"granularity": "unit", "criterion": "evidence", "counts": "multiplications", "inputs": True}
    callbacks = [bp.GradualPruning(wanted.sparsity, over=(0.05, 0.4), **given), bp.Shrink()]
    settings = bp.Settings(wanted.epochs, kl_weight=wanted.kl_weight)
    return kept(runs / f"{name}-shrunk", model, data, settings, callbacks)


def export_draws(model: Any, path: Path) -> Path:
    """Ten draws of the Keras network as an export, the way they would be served without this package's export."""

    class Draws(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            spec = tf.TensorSpec([None, *model.input_shape[1:]], tf.float32, name="inputs")
            self.predict = tf.function(self.draw, input_signature=[spec])

        def draw(self, inputs: Any) -> Any:
            each = [tf.nn.softmax(self.model(inputs)) for _ in range(DRAWS)]
            return {"probabilities": tf.reduce_mean(tf.stack(each), 0)}

    draws = Draws()
    tf.saved_model.save(draws, str(path / "1"), signatures={"serving_default": draws.predict})
    bp.export(model, path.with_name("like"), predictive="sampled", samples=DRAWS, kernels="dense")
    facts = {
        k: v for k, v in Run.open(path.with_name("like")).manifest.items() if k not in ("format", "files", "versions")
    }
    facts["bytes"] = sum(file.stat().st_size for file in (path / "1").rglob("*") if file.is_file())
    Run(path).record(**facts)
    return path


def exports_of(name: str, model: Any, data: Splits, runs: Path) -> dict[Path, dict[str, Any]]:
    """Everything of one network that is compared, with what its rows say of it; the two bases first."""
    about = {"network": name, "sparsity": 0.0, "granularity": "", "retrained": 0}
    place = runs / f"{name}-exports"
    shutil.rmtree(place, ignore_errors=True)
    made = {export_draws(model, place / "draws"): about | {"predictive": "draws", "format": "savedmodel"}}

    def add(label: str, network: Any, facts: dict[str, Any], **options: Any) -> None:
        bp.export(network, place / label, **options)
        told = {"predictive": options.get("predictive", "mean"), "format": options.get("format", "savedmodel")}
        precision = "float16" if options.get("float16") else options.get("precision", "float32")
        made[place / label] = facts | told | {"precision": precision, "float16": precision == "float16"}
        made[place / label]["throughout"] = "representative" in options  # activations are whole numbers, too

    add("dense", model, about, kernels="dense")
    add("dense-litert", model, about, format="litert")
    add("dense-litert-int8", model, about, format="litert", precision="int8")
    settled = {"representative": data.examples("train").x[:500]}
    add("dense-litert-all-int8", model, about, format="litert", precision="int8", **settled)

    def forms(label: str, smaller: Any, facts: dict[str, Any]) -> None:
        add(f"{label}-mean", smaller, facts)
        add(f"{label}-mean-half", smaller, facts, float16=True)
        add(f"{label}-litert", smaller, facts, format="litert")
        few = {"validation": data.examples("valid"), "precision": "int8"}
        add(f"{label}-litert-int8", smaller, facts, format="litert", **few)
        add(f"{label}-onnx-int8", smaller, facts, format="onnx", **few)
        add(f"{label}-litert-all-int8", smaller, facts, format="litert", **few, **settled)
        add(f"{label}-auto", smaller, facts, **few | {"precision": "auto"})
        if name == "mlp":
            add(f"{label}-moments", smaller, facts, predictive="moments")
            add(f"{label}-moments-half", smaller, facts, predictive="moments", float16=True)
            add(f"{label}-moments-litert", smaller, facts, predictive="moments", format="litert")
            add(f"{label}-adaptive", smaller, facts, predictive="sampled", error_rate=0.01)

    for wanted in CASES[name].pruned:
        label = f"{wanted.granularity}-{wanted.sparsity:g}"
        smaller = pruned(runs / f"{name}-{label}", model, data, CASES[name], wanted)
        facts = about | {key: getattr(wanted, key) for key in ("sparsity", "granularity", "scope")}
        forms(label, smaller, facts | {"retrained": wanted.epochs})
    if (gone := CASES[name].shrunk) is not None:
        facts = about | {"sparsity": gone.sparsity, "granularity": "unit", "scope": "learned"}
        forms("shrunk", shrunk(name, data, runs), facts)
    return made


def rows_of(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of one network."""
    data = bp.load(CASES[name].dataset, data_dir=arguments.data_dir, batch_size=64 if name != "mlp" else 100)
    model = trained(name, data, arguments.runs)
    made = exports_of(name, model, data, arguments.runs)
    test = data.examples("test")
    measured = reload(list(made), test.x, batches=BATCHES, rounds=arguments.rounds)
    rows = []
    base = dict(zip(made, measured, strict=True))
    draws, dense = base[next(iter(made))], {"savedmodel": "dense", "onnx": "dense", "litert": "dense-litert"}
    for path, found in base.items():
        about, manifest = made[path], Run.open(path).manifest
        plain = base[path.parent / dense[about["format"]]]
        scores = {k: v for k, v in of_outputs(found.outputs, test.y).items() if k in ("accuracy", "nll", "ece")}
        for batch in BATCHES:
            ms = found.latency_ms[str(batch)]["median"]
            speed = {
                "batch": batch,
                "ms": ms,
                "speedup_vs_draws": draws.latency_ms[str(batch)]["median"] / ms,
                "speedup_vs_dense": plain.latency_ms[str(batch)]["median"] / ms,
            }
            sizes = {key: manifest[key] for key in ("bytes", "payload_bytes") if key in manifest}
            rows.append(about | speed | sizes | scores | {"processor": machine()["processor"]})
    return rows


def grid_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The mean network of mlp in three forms, over sparsities and batches."""
    data = bp.load("mnist", data_dir=arguments.data_dir, batch_size=100)
    model, place = trained("mlp", data, arguments.runs), arguments.runs / "grid-exports"
    shutil.rmtree(place, ignore_errors=True)
    rows = []
    for sparsity in GRID_SPARSITIES:
        smaller = bp.prune(model, sparsity=sparsity)[0] if sparsity else model
        paths = [place / f"{sparsity:g}-{kernels}" for kernels in ("auto", "dense", "sparse")]
        for path in paths:
            bp.export(smaller, path, kernels=path.name.split("-")[1])  # type: ignore[arg-type]
        measured = reload(paths, data.examples("valid").x[:512], batches=GRID_BATCHES, rounds=3 * arguments.rounds)
        for batch in GRID_BATCHES:
            auto, dense, sparse = (found.latency_ms[str(batch)]["median"] for found in measured)
            row = {"grid": "mlp", "sparsity": sparsity, "batch": batch, "auto": auto, "dense": dense, "sparse": sparse}
            row |= {"over_best": auto / min(dense, sparse), "processor": machine()["processor"]}
            rows.append(row)
    return rows


def figure(rows: list[dict[str, Any]]) -> Any:
    """Speed-up over ten draws against bytes, at batch 1 and 256."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(10, 4.2), layout="constrained")
    colours = {"draws": "black", "mean": "#0072b2", "moments": "#d55e00", "sampled": "#009e73"}
    markers = {"savedmodel": "o", "litert": "^", "onnx": "s"}
    for axes, batch in zip(made.subplots(1, 2, sharex=True), (1, 256), strict=True):
        for row in (r for r in rows if r.get("batch") == batch and r.get("network") == "mlp"):
            filled = colours[row["predictive"]] if row["sparsity"] else "white"
            axes.scatter(
                row["bytes"], row["ms"], s=45, marker=markers[row["format"]], c=filled,
                edgecolors=colours[row["predictive"]],
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="bytes", ylabel="ms", title=f"784-500-500-10, batch {batch}")
        axes.spines[["top", "right"]].set_visible(False)
    for name, colour in colours.items():
        axes.scatter([], [], c=colour, s=45, label="ten draws" if name == "draws" else name)
    for marker, label in (("^", "LiteRT"), ("s", "ONNX, int8")):
        axes.scatter([], [], c="grey", marker=marker, s=45, label=label)
    axes.scatter([], [], c="white", edgecolors="grey", s=45, label="unpruned")
    made.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return made


def main() -> None:
    """Measures, writes and draws."""
    parser = measure.parser(__doc__, "inference")
    parser.add_argument("what", nargs="*", default=["mlp", "lenet5", "vgg16", "grid"])
    parser.add_argument("--data-dir", help="TensorFlow Datasets' folder")
    parser.add_argument("--runs", type=Path, default=Path("runs/inference"), help="where trained networks are kept")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.what:
        rows += grid_rows(arguments) if name == "grid" else rows_of(name, arguments)
    rows = measure.merged(rows, arguments.json, lambda row: row.get("network", "grid"))
    measure.write(rows, arguments.json)
    grid = [row for row in rows if "grid" in row]
    if arguments.json != "-":
        measure.draw(figure(rows), Path(arguments.json).with_suffix(".png"))
        print(measure.markdown([row for row in rows if "grid" not in row], COLUMNS))
        form = {"sparsity": ".2f", "batch": "d", "auto": ".3f", "dense": ".3f", "sparse": ".3f", "over_best": ".2f"}
        print(measure.markdown(grid, form))
    if grid:
        worst = max(grid, key=lambda row: row["over_best"])
        print(f"worst cell: {worst['over_best']:.2f} at {worst['sparsity']:g}, batch {worst['batch']}", file=sys.stderr)


if __name__ == "__main__":
    main()
