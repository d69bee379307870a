"""The command line and Python take the same words."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Iterator
from typing import Any

import pytest

import tfp_bprune as bp
from tests.extension.form import NPZ
from tfp_bprune.cli.choices import CRITERIA, FORMATS
from tfp_bprune.cli.main import parser_of_all
from tfp_bprune.data.splits import load
from tfp_bprune.exports.forms import FORMS
from tfp_bprune.graphs.bayesianize import bayesianize
from tfp_bprune.layers.prior import prior_from
from tfp_bprune.networks.build import build
from tfp_bprune.pruning import scores
from tfp_bprune.pruning.prune import prune
from tfp_bprune.searching import find
from tfp_bprune.studies import BUDGETS, STUDIES
from tfp_bprune.training import recalibrate
from tfp_bprune.training.distribute import detect
from tfp_bprune.training.schedules import kl_schedule, scale_for
from tfp_bprune.tuning.tuner import hyper_model, tune
from tfp_bprune.types import BpruneError, Calibrate, HeldOut, Logger, Shell

PYTHON: dict[str, tuple[Any, str]] = {  # the Python argument that each of the command line is handed to
    "granularity": (prune, "granularity"),
    "aggregate": (prune, "aggregate"),
    "scope": (prune, "scope"),
    "counts": (prune, "counts"),
    "prune recalibrate": (recalibrate, "predictive"),
    "search target": (find.Settings, "target"),
    "search order": (find.Settings, "order"),
    "export predictive": (bp.export, "predictive"),
    "evaluate predictive": (bp.export, "predictive"),
    "export kernels": (bp.export, "kernels"),
    "train task": (bp.Info, "task"),
    "train layers": (build, "layers"),
    "tune layers": (bayesianize, "layers"),
    "policy": (build, "policy"),
    "train kl": (bp.Settings, "kl"),
    "train scaling": (bp.Settings, "scaling"),
    "train compression": (detect, "compression"),
    "distribute": (detect, "distribution"),
    "train augmentation": (load, "augmentation"),
    "tune prior": (tune, "prior"),
    "tune method": (tune, "method"),
    "tune objective": (tune, "objective"),
}
NAMES: dict[str, Any] = {
    "criterion": scores.CRITERIA,
    "export format": FORMS,
    "export calibrate": ("products", *typing.get_args(Calibrate)),
    "train prior": ("scale_mixture", "normal", "ard", "normal_jeffreys", "horseshoe"),
    "train prior_groups": ("input", "output", "both"),
    "split": typing.get_args(HeldOut),
    "logger": typing.get_args(Logger),
    "completion shell": typing.get_args(Shell),
    "study study": STUDIES,
    "study budget": BUDGETS,
}


def actions() -> Iterator[tuple[str, argparse.Action]]:
    """All arguments of all commands that take only some words."""
    [commands] = [action for action in parser_of_all()._actions if isinstance(action, argparse._SubParsersAction)]
    for command, parser in commands.choices.items():
        for action in parser._actions:
            if action.choices is not None:
                yield f"{command} {action.dest}", action


def literals(kind: Any) -> tuple[Any, ...]:
    """The words of a `Literal`, of an optional one too."""
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    return tuple(word for part in typing.get_args(kind) for word in literals(part))


@pytest.mark.parametrize("name", [name for name, _ in actions()])
def test_the_command_line_takes_what_python_takes(name: str) -> None:
    action = dict(actions())[name]
    assert action.choices is not None
    key = name if name in {**PYTHON, **NAMES} else name.split()[1]
    if key in NAMES:
        assert list(action.choices) == list(NAMES[key])
    else:
        function, parameter = PYTHON[key]
        words = literals(typing.get_type_hints(function)[parameter])
        assert words
        assert list(action.choices) == list(words)
    assert action.default is None or action.default in action.choices


@pytest.mark.parametrize("kind", NAMES["train prior"])
def test_every_prior_of_the_command_line_is_one(kind: str) -> None:
    assert prior_from({"kind": kind}).kind == kind


def test_words_of_schedules_are_known() -> None:
    for word in literals(typing.get_type_hints(bp.Settings)["kl"]):
        assert kl_schedule(word, 10, 2, 0.5)(0) >= 0
    for word in literals(typing.get_type_hints(bp.Settings)["scaling"]):
        assert scale_for(word, 4) >= 1


def test_what_a_module_registers_is_a_choice() -> None:
    assert NPZ.name in FORMATS
    assert list(CRITERIA)[:2] == ["snr", "magnitude"]
    assert "pickle" not in FORMATS


def test_layers_without_a_prior_are_not_tuned(digits: Any) -> None:
    with pytest.raises(BpruneError, match="has no prior to tune: expected one of flipout, reparameterization, local"):
        hyper_model("mlp", digits, layers="dropout")  # type: ignore[arg-type]
