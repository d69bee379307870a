"""The report of a run and its exports: one page of HTML from plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfp_bprune.files.reading import printable
from tfp_bprune.plot.compared import calibration_curves, latencies, risk_curves, sizes, uncertainties
from tfp_bprune.plot.training import divergences, history
from tfp_bprune.plot.weights import sparsity
from tfp_bprune.reports.page import figure, figures, page, paragraph, section, table
from tfp_bprune.reports.tables import human_bytes, payload
from tfp_bprune.types import Json

_SCORES = (
    ("accuracy", "accuracy"), ("exact_match", "exact match"), ("rmse", "RMSE"), ("nll", "NLL, nats"), ("ece", "ECE"),
    ("brier", "Brier"), ("aurc", "area under risk-coverage"), ("coverage", "coverage of the 95 % interval"),
)  # fmt: skip
_KINDS = {
    "entropy": "entropy: total uncertainty of the prediction",
    "epistemic": "epistemic uncertainty: the weights disagree",
    "aleatoric": "aleatoric uncertainty: the example is ambiguous",
    "noise_std": "noise: standard deviation of the target",
    "weights_std": "standard deviation of the mean over draws of the weights",
}
_MOST_LAYERS = 40  # bars in a picture


def report_page(report: Json) -> str:
    """The page.

    Args:
      report: `run`, what the run says of itself (`path`, `facts`, `data`, `settings`, `versions`, `files`); `history`, a row
        an epoch; `networks`, the run and its exports (`name`, `predictive`, `layers`, `bytes`, ...), each with `summary`, what
        `evaluation.summary` found, or None; `split`, what they were scored on, or `unscored`, why they were not.
    """
    report = _readable(report)
    run, networks = report["run"], report["networks"]
    parts = [
        _about(run), _data(run), _curves(report["history"]), _scores(report), _calibration(networks),
        _risk(networks), _pruned(networks), _costs(networks), _uncertainty(networks), _provenance(report),
    ]  # fmt: skip
    return page(
        f"{run['facts'].get('network', 'Network')} on {run['facts'].get('dataset', 'data')}", [p for p in parts if p]
    )


def _readable(node: Any) -> Any:
    """The same without control characters, in pictures too."""
    if isinstance(node, dict):
        return {_readable(key): _readable(one) for key, one in node.items()}
    if isinstance(node, list):
        return [_readable(one) for one in node]
    return printable(node).replace("\n", " ") if isinstance(node, str) else node


def _about(run: Json) -> str:
    facts, settings = run["facts"], run.get("settings") or {}
    how = facts.get("inference", "a model built in Python")
    told = f"A Bayesian neural network ({how}), trained in {run['path']}. Every weight is a normal distribution."
    told = (
        told
        if facts.get("inference") not in ("deterministic", "dropout")
        else f"A network of plain layers ({how}), trained in {run['path']}."
    )
    rows = [(name.replace("_", " "), _cell(value)) for name, value in settings.items() if value is not None]
    return section("What it is", paragraph(told), table(("setting", "value"), rows))


def _data(run: Json) -> str:
    data = run.get("data") or {}
    shown = (
        "name",
        "task",
        "input_shape",
        "classes",
        "train_size",
        "batch_size",
        "seed",
        "augmentation",
        "fingerprint",
    )
    rows = [(name.replace("_", " "), _cell(data[name])) for name in shown if name in data]
    return section("Data", table(("", "value"), rows, words=2))


def _curves(rows: Sequence[Json]) -> str:
    if not rows:
        return ""
    scores = {
        "nll": "Negative log-likelihood of one draw of the weights, by epoch.",
        next((key for key in ("accuracy", "mse") if key in rows[0]), ""): "The score of the same draw, by epoch.",
    }
    drawn = [
        figure(lambda axes, score=score: history(rows, score=score, axes=axes), caption)  # type: ignore[misc]
        for score, caption in scores.items()
        if score in rows[0]
    ]
    if any(key.startswith("kl/") for key in rows[0]):
        caption = "Divergence of posterior from prior by layer. It counts in the loss divided by the number of training examples."
        drawn.append(figure(lambda axes: divergences(rows, axes=axes), caption))
    return section("Training", figures(*drawn))


def _scores(report: Json) -> str:
    scored = [one for one in report["networks"] if one.get("summary")]
    if not scored:
        return section(
            "Scores", paragraph(f"Nothing was scored: {report.get('unscored', 'the data was not at hand')}.")
        )
    keys = [(key, title) for key, title in _SCORES if any(key in one["summary"] for one in scored)]
    rows = [
        [one["name"], one["predictive"], *(_with_interval(one["summary"], key) for key, _ in keys)] for one in scored
    ]
    said = (
        f"On {scored[0]['summary']['examples']:,} examples of the {report['split']} split, with 95 % intervals of what other examples "
        "of the same kind would give."
    )
    return section(
        "Scores", paragraph(said), table(("network", "predictive", *(title for _, title in keys)), rows, words=2)
    )


def _with_interval(summary: Json, key: str) -> str:
    if key not in summary:
        return ""
    interval = (summary.get("intervals") or {}).get(key)
    shown = f"{summary[key]:.4f}"
    return shown if interval is None else f"{shown} [{interval[0]:.4f}, {interval[1]:.4f}]"


def _of(networks: Sequence[Json], key: str) -> Json:
    return {one["name"]: one["summary"][key] for one in networks if one.get("summary") and one["summary"].get(key)}


def _classifies(networks: Sequence[Json]) -> bool:
    return any("accuracy" in one["summary"] for one in networks if one.get("summary"))


def _calibration(networks: Sequence[Json]) -> str:
    found, classes = _of(networks, "calibration"), _classifies(networks)
    if not found:
        return ""
    of_classes = (
        "A point for each tenth of confidence, larger for more examples; fewer than five are left out. Below the diagonal the "
        "network is overconfident, above it too cautious."
    )
    caption = of_classes if classes else "How often the interval of a level holds the target; ideally on the diagonal."
    return section(
        "Calibration", figures(figure(lambda axes: calibration_curves(found, classes=classes, axes=axes), caption))
    )


def _risk(networks: Sequence[Json]) -> str:
    found, classes = _of(networks, "risk"), _classifies(networks)
    if not found:
        return ""
    caption = (
        "Errors among the predictions that are answered when the most uncertain ones are refused. Lower is better."
    )
    return section(
        "Risk and coverage", figures(figure(lambda axes: risk_curves(found, classes=classes, axes=axes), caption))
    )


def _pruned(networks: Sequence[Json]) -> str:
    shown = [one for one in networks if one.get("sparsity")]
    drawn, rows = [], []
    for one in shown:
        layers = dict(list(one["layers"].items())[:_MOST_LAYERS])
        size = (4.6, 1.1 + 0.28 * len(layers))
        caption = f"{one['name']}: {100 * one['sparsity']:.1f} % of {one['prunable']:,} weights removed."
        drawn.append(figure(lambda axes, layers=layers: sparsity(layers, axes=axes), caption, size))  # type: ignore[misc]
        rows += [
            (one["name"], name, f"{layer['prunable']:,}", f"{layer['nonzeros']:,}", f"{100 * layer['sparsity']:.1f}")
            for name, layer in one["layers"].items()
        ]
    header = ("network", "layer", "weights", "left", "removed, %")
    nothing = "" if shown else paragraph("No network here is pruned.")
    return section("What was pruned where", nothing, figures(*drawn), table(header, rows, words=2))


def _costs(networks: Sequence[Json]) -> str:
    stored = [one for one in networks if one.get("bytes")]
    timed = [one for one in stored if one.get("latency_ms")]
    batches = sorted({int(batch) for one in timed for batch in one["latency_ms"]})
    rows = [
        [one["name"], one.get("format", ""), one["predictive"], human_bytes(one["bytes"]), payload(one), f"{one['nonzeros']:,}",
         *(f"{one['latency_ms'][str(b)]:.3f}" if str(b) in (one.get("latency_ms") or {}) else "" for b in batches)]
        for one in stored
    ]  # fmt: skip
    drawn = (
        [figure(lambda axes: sizes(stored, axes=axes), "Size of the files on disk.", (4.6, 1.1 + 0.3 * len(stored)))]
        if stored
        else []
    )
    if timed:
        machine = timed[0].get("machine") or {}
        caption = f"Latency in a fresh process; {machine.get('processor', 'processor unknown')}, {machine.get('cores', '?')} cores."
        drawn.append(figure(lambda axes: latencies(timed, axes=axes), caption))
    header = (
        "network",
        "format",
        "predictive",
        "bytes",
        "of weights",
        "weights left",
        *(f"ms, batch {b}" for b in batches),
    )
    return section("What each form costs", figures(*drawn), table(header, rows, words=3))


def _uncertainty(networks: Sequence[Json]) -> str:
    found = _of(networks, "uncertainty")
    kinds = list(dict.fromkeys(kind for groups in found.values() for kind in groups))
    drawn = []
    for kind in kinds:
        groups = {name: of[kind] for name, of in found.items() if kind in of}
        unit = "nats" if kind in ("entropy", "epistemic", "aleatoric") else "target units"
        bars = sum(len([v for v in one.values() if v]) for one in groups.values())
        caption = f"{_KINDS[kind].capitalize()}. Line: 5 to 95 % of the examples; bar: 25 to 75 %; point: median."
        drawn.append(
            figure(lambda axes, g=groups, u=unit: uncertainties(g, unit=u, axes=axes), caption, (4.6, 1.2 + 0.3 * bars))  # type: ignore[misc]
        )
    told = "Where the network is right and where it is wrong, before pruning (the run) and after it (its exports)."
    return (
        section("Uncertainty before and after", paragraph(told) if _classifies(networks) else "", figures(*drawn))
        if drawn
        else ""
    )


def _provenance(report: Json) -> str:
    run = report["run"]
    versions = [(name, version) for name, version in (run.get("versions") or {}).items()]
    rows = [
        (place, name, f"{entry['bytes']:,}", entry["sha256"])
        for place, files in report["files"].items()
        for name, entry in files.items()
    ]
    hashes = table(("folder", "file", "bytes", "SHA-256"), rows, words=2)
    said = paragraph("Each file below was checked against its manifest when this page was written.")
    return section("Versions and hashes", table(("package", "version"), versions, words=2), said, hashes)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)
