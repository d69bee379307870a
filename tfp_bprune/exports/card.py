"""The model card beside an export: `README.md` with the metadata that Hugging Face reads, made of the manifest alone."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace
from typing import Any

from tfp_bprune.types import Json

CARD = "README.md"
_NAMES = {"accuracy": "accuracy", "nll": "negative log-likelihood (nats)", "ece": "expected calibration error",
          "brier": "Brier score", "rmse": "root mean squared error", "coverage": "coverage of the 95 % interval",
          "exact_match": "exact match"}  # fmt: skip
_PASSES = {
    "mean": "the posterior mean of the weights, in one pass",
    "sampled": "the mean over draws of the weights",
    "moments": "means and variances of all activations, in one pass",
}
_ANSWERS = "| output | meaning |\n|:---|:---|\n"
_MEANINGS = {
    "probabilities": "probability of each class or label",
    "entropy": "total uncertainty, the entropy of the probabilities, in nats",
    "epistemic": "its part that comes from the weights (mutual information of class and weights), in nats",
    "aleatoric": "its part that stays if the weights were known, in nats",
    "mean": "predicted value, in target units",
    "noise_std": "standard deviation of the target around the mean",
    "weights_std": "standard deviation of the mean over draws of the weights",
    "prediction_set": "classes that together hold the right one with the stated probability",
    "interval": "lower and upper end of an interval that holds the target with the stated probability",
}


def card_of(manifest: Json) -> bytes:
    """The content of `README.md` for an export with this manifest."""
    card = _hub().card(f"---\n{_metadata(manifest).to_yaml()}\n---\n{_text(manifest)}")
    return str(card).encode()


def _hub() -> Any:
    """What is used of the library, whose progress bars complain when they are imported in a notebook without widgets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from huggingface_hub import EvalResult, ModelCard, ModelCardData

    return SimpleNamespace(card=ModelCard, data=ModelCardData, result=EvalResult)


def word(value: Any) -> str:
    """A name that came from outside as code in Markdown: nothing in it is markup, or ends the cell of a table.

    >>> word("a|b`<i>")
    '`a/b<i>`'
    """
    text = "".join(c if c.isprintable() else "?" for c in str(value)[:200])
    return f"`{text.replace('`', '').replace('|', '/') or '?'}`"


def _metadata(manifest: Json) -> Any:
    hub = _hub()
    scores, task = manifest.get("scores") or {}, _pipeline(manifest)
    data = manifest.get("data") or {}
    results = [
        hub.result(
            task_type=task or "other",
            dataset_type=_identifier(data.get("name", "arrays")),
            dataset_name=_identifier(data.get("name", "arrays")),
            dataset_split=_identifier(scores.get("split", "validation")),
            metric_type=name,
            metric_value=round(float(scores[name]), 6),
        )
        for name in _NAMES
        if scores.get(name) is not None
    ]
    more: Json = {"model_name": _identifier(manifest.get("network")), "eval_results": results} if results else {}
    tags = ["bayesian-neural-network", "uncertainty", "tensorflow-probability", manifest["predictive"]]
    tags += ["pruned"] if manifest["sparsity"] else []
    more |= {"pipeline_tag": task} if task else {}
    return hub.data(library_name="tfp_bprune", tags=tags, **more)


def _identifier(value: Any) -> str:
    """A name of letters, digits and a few signs."""
    return re.sub(r"[^A-Za-z0-9_.:/ -]", "_", str(value))[:100] or "unknown"


def _pipeline(manifest: Json) -> str | None:
    """Hugging Face's name for such a job; None where it has none."""
    task, shape = manifest.get("task"), manifest.get("input_shape") or []
    if len(shape) == 3 and shape[-1] in (1, 3) and task in ("classification", "binary"):
        return "image-classification"
    if len(shape) == 1:
        return {"classification": "tabular-classification", "binary": "tabular-classification",
                "regression": "tabular-regression"}.get(str(task))  # fmt: skip
    return None


def _text(manifest: Json) -> str:
    about = [_head(manifest), _inputs(manifest), _calibrated(manifest), _weights(manifest), _measured(manifest)]
    parts = [*about, _LIMITS, _made(manifest)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(manifest: Json) -> str:
    data = manifest.get("data") or {}
    trained = f" It was trained on {word(data.get('name'))} ({word(data.get('task'))})." if data else ""
    samples = f" ({manifest['samples']} draws)" if "samples" in manifest else ""
    passes = f"{_PASSES.get(manifest['predictive'], manifest['predictive'])}{samples}"
    form = word(manifest.get("export_format", "savedmodel"))
    return f"""# {word(manifest.get("network", "network"))}

A Bayesian neural network, exported with tfp_bprune as {form}. It predicts by {passes}.{trained} \
`manifest.json` describes the folder and has the SHA-256 of every other file."""


def _inputs(manifest: Json) -> str:
    inputs = manifest.get("inputs") or {}
    lines = [
        f"- {word(name)}: {word([manifest.get('batch', 'batch'), *about['shape']])}, {word(about['dtype'])}"
        for name, about in inputs.items()
    ]
    shown = ("## Inputs, in raw units\n\n" + "\n".join(lines) + "\n\n") if lines else ""
    outputs = _meanings(manifest)
    return shown + "## Outputs\n\n" + _ANSWERS + "\n".join(f"| `{name}` | {_MEANINGS[name]} |" for name in outputs)


def _meanings(manifest: Json) -> list[str]:
    if manifest.get("task") == "regression":
        named = ["mean", "noise_std", *(["weights_std"] if manifest["predictive"] != "mean" else [])]
        return [*named, *(["interval"] if "conformal" in manifest else [])]
    named = ["probabilities", "entropy", *(["epistemic", "aleatoric"] if manifest["predictive"] != "mean" else [])]
    return [*named, *(["prediction_set"] if "conformal" in manifest else [])]


def _calibrated(manifest: Json) -> str:
    lines, found, sets = [], manifest.get("calibration"), manifest.get("conformal")
    if found:
        scores = [
            f"{key} {found['before'][key]:.4f} before, {value:.4f} after" for key, value in found["after"].items()
        ]
        lines.append(
            f"Logits are divided by a temperature of {found['temperature']:.4g}, fitted to {found['examples']:,} validation "
            f"examples: {'; '.join(scores)}."
        )
    if sets:
        lines.append(
            f"Sets or intervals hold the right answer with probability {sets['level']:g} or more on examples from the source "
            f"of the {sets['examples']:,} validation examples that settled them: on average over examples, not for each."
        )
    return "## Calibration\n\n" + " ".join(lines) if lines else ""


def _weights(manifest: Json) -> str:
    rows = [
        f"| {word(name)} | {layer['prunable']:,} | {layer['nonzeros']:,} | {100 * layer['sparsity']:.1f} % |"
        for name, layer in manifest["layers"].items()
    ]
    if not rows:
        return ""
    removed = f"{100 * manifest['sparsity']:.1f} % of {manifest['prunable']:,} prunable weights are removed."
    of_them = f", {manifest['payload_bytes']:,} of them for weights" if "payload_bytes" in manifest else ""
    head = "| layer | weights | left | removed |\n|:---|---:|---:|---:|\n"
    return f"## Weights\n\n{removed} The files take {manifest['bytes']:,} bytes{of_them}.\n\n{head}" + "\n".join(rows)


def _measured(manifest: Json) -> str:
    scores, times = manifest.get("scores") or {}, manifest.get("latency_ms") or {}
    if not scores:
        return ""
    rows = [f"| {title} | {scores[name]:.4f} |" for name, title in _NAMES.items() if scores.get(name) is not None]
    rows += [f"| median ms, batch {word(batch)} | {ms:.3f} |" for batch, ms in times.items()]
    where = f"On {scores.get('examples', 0):,} examples of the {word(scores.get('split'))} split, in a fresh process:"
    return f"## Measured\n\n{where}\n\n| score | value |\n|:---|---:|\n" + "\n".join(rows)


_LIMITS = """## Limits

Uncertainty is relative to the training data and the prior. Inputs unlike the training data usually have a higher epistemic \
uncertainty, but that is not guaranteed. Licence and intended use have to be filled in by whoever publishes this model."""


def _made(manifest: Json) -> str:
    from tfp_bprune.files.runs import versions

    made = manifest.get("versions") or versions()
    return "## Made with\n\n" + ", ".join(f"{name} {word(version)}" for name, version in made.items())
