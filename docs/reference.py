"""Pages made of the code: a page of names for each job, and one of the commands with their help."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from examples import BEGINNING, EXAMPLES

# What users look for together; every public name is on one of these pages, which a test holds.
PAGES = {
    "data": ("Data", "load from_arrays dataset Info info_of"),
    "models": ("Models", "build bayesianize adopt inline strip save_model load_model"),
    "training": (
        "Training",
        "fit Settings compile_model recalibrate Horovod Strategy distribute distributed_callbacks TensorBoardLogger "
        "MLflowLogger",
    ),
    "asking": (
        "Predicting and scoring",
        "predict Prediction evaluate Evaluation ExpectedCalibrationError BrierScore NegativeLogLikelihood",
    ),
    "pruning": ("Pruning", "prune GradualPruning Shrink criterion"),
    "exporting": ("Exports", "export reload Form register_form log_export"),
    "measuring": ("Measuring and searching", "sweep search Budget tune hyper_model"),
    "distributions": (
        "Priors and posteriors",
        "Prior NormalPrior ScaleMixturePrior CentredPrior ARDPrior NormalJeffreysPrior HorseshoePrior register_prior "
        "Posterior register_posterior",
    ),
    "errors": ("Errors", "BpruneError"),
}
_BEGINNING = f"\nExamples on this page begin with\n\n```python\n{BEGINNING.strip()}\n```\n"


def write_reference(folder: Path, package: Any) -> None:
    """Writes all pages into `folder`, those that changed alone, so that a second build has nothing to do."""
    folder.mkdir(exist_ok=True)
    listed = "\n".join(["```{toctree}", *PAGES, "plots", "layers", "commands", "```"])
    first = "Every name is `tfp_bprune.NAME`, below `bp.NAME` after `import tfp_bprune as bp`. Shapes are in brackets: [batch, classes]."
    _write(folder / "index.md", f"# Reference\n\n{first}\n\n{listed}\n")
    for page, (title, names) in PAGES.items():
        parts = [_entry(package, name) for name in names.split()]
        _write(folder / f"{page}.md", "\n".join([f"# {title}", _BEGINNING, *parts]))
    _write(folder / "plots.md", _plots(package))
    layers = sorted(set(_layers()))
    _write(folder / "layers.md", "\n".join([_LAYERS, *(f"- `{name}`" for name in layers), ""]))
    _write(folder / "commands.md", _commands())


def _plots(package: Any) -> str:
    lines = [f"```{{eval-rst}}\n.. autofunction:: tfp_bprune.plot.{name}\n```\n" for name in package.plot.__all__]
    return "\n".join(["# Plots\n\nEvery name is `tfp_bprune.plot.NAME`.\n", *lines])


_LAYERS = """# Layers

Bayesian layers are in `tfp_bprune.layers`. Each takes the arguments of the Keras layer that it replaces, and these of
`tfp_bprune.layers.Variational`: `prior`, `rho_init` (initial rho; the standard deviation is softplus(rho)), `bayesian_bias`,
`train_size` (N, the number of training examples by which the KL is divided) and `seed`. The end of a name is the estimator of
the gradient: Flipout, reparameterization, or local reparameterization.
"""


def _layers() -> list[str]:
    from tfp_bprune import layers

    ends = ("Flipout", "Reparameterization", "LocalReparameterization")
    return [name for name in dir(layers) if name.endswith(ends) and isinstance(getattr(layers, name), type)]


def _entry(package: Any, name: str) -> str:
    kind = "class" if isinstance(getattr(package, name), type) else "function"
    modules = {base.__module__.split(".")[0] for base in getattr(getattr(package, name), "__mro__", ())}
    lines = [f".. auto{kind}:: tfp_bprune.{name}"]
    # What Keras or TensorFlow Probability calls is nothing that users do.
    theirs = {"tensorflow_probability", "tf_keras", "keras"} & modules
    lines += ["   :members:"] if kind == "class" and not theirs else []
    directive = "\n".join(["```{eval-rst}", *lines, "```"])
    return f"{directive}\n\n```python\n{EXAMPLES[name]}\n```\n"


def _commands() -> str:
    from tfp_bprune.cli.main import COMMANDS, parser_of_all

    os.environ["COLUMNS"] = "100"
    parsers: Any = next(action for action in parser_of_all()._actions if action.dest == "command").choices
    parts = [f"## {name}\n\n```text\n{parsers[name].format_help().rstrip()}\n```\n" for name in COMMANDS]
    return "\n".join(["# Commands\n\n`tfp-bprune COMMAND --help` prints the same.\n", *parts])


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
