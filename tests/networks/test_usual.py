"""Which estimator is taken where none is named: in one network one for all, by its kinds of layers; runs keep their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras
from tfp_bprune.cli.main import main, parser_of_all
from tfp_bprune.data.splits import Info, Splits
from tfp_bprune.files.runs import CONFIG, Run, json_to_bytes
from tfp_bprune.layers import LAYERS, Kind, kinds, usual_estimator, variational_layers
from tfp_bprune.networks import build, usual_layers
from tfp_bprune.networks.build import NETWORKS
from tfp_bprune.storage import load_model
from tfp_bprune.tuning import hyper_model, tune
from tfp_bprune.types import RunError

L = keras.layers
WITH_CONVOLUTIONS = {"lenet5", "convnet", "vgg16", "resnet18"}
CONVNET = ["train", "--model", "convnet", "--width", "0.05", "--epochs", "1", "--validation-fraction", "0.2", "--out"]


def kind(called: str, wants: Any, *estimators: str) -> Kind:
    """A kind that prefers `wants` and has layers for `estimators`."""

    class Made(Kind):
        name, prefers, plain = called, wants, keras.layers.Layer

    LAYERS.update({(called, estimator): keras.layers.Layer for estimator in estimators})
    return Made()


def estimators_of(model: Any) -> set[str]:
    """Those of the Bayesian layers."""
    by_class = {made: estimator for (_, estimator), made in LAYERS.items() if estimator != "local"}
    return {by_class[type(layer)] for layer in variational_layers(model)}


def test_convolutions_ask_for_one_draw_a_batch_and_nothing_else_does() -> None:
    ours = [kind for kind in kinds() if type(kind).__module__.startswith("tfp_bprune.")]
    assert {kind.name for kind in ours if kind.prefers == "reparameterization"} == {
        kind.name for kind in ours if "Conv" in kind.name
    }
    assert {kind.prefers for kind in ours} == {"reparameterization", None}


def test_the_first_kind_that_asks_decides_for_all_where_all_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfp_bprune.layers.kind.LAYERS", LAYERS)
    both = ("flipout", "reparameterization", "local")
    silent, shared, local = kind("a", None, *both), kind("b", "reparameterization", *both), kind("c", "local", *both)
    alone = kind("d", None, "flipout")
    try:
        assert usual_estimator([]) == usual_estimator([silent]) == "flipout"
        assert usual_estimator([silent, shared, local]) == "reparameterization"
        assert usual_estimator(iter([local, shared])) == "local"
        assert usual_estimator([shared, alone]) == "flipout"  # of which there is no other layer
    finally:
        for key in [key for key in LAYERS if key[0] in "abcd"]:
            del LAYERS[key]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_built_as_suits_its_layers(name: str) -> None:
    info = Info(name, "classification", (32, 32, 3), 10)
    options = {"hidden": (3,)} if name == "mlp" else {"width": 0.02}
    expected = "reparameterization" if name in WITH_CONVOLUTIONS else "flipout"
    assert usual_layers(name, info, options) == expected
    model = build(name, info, options=options)
    assert estimators_of(model) == {expected}
    named = build(name, info, layers=expected, options=options)  # what is looked at before leaves no trace
    assert model.get_config() == named.get_config()
    assert estimators_of(build(name, info, layers="flipout", options=options)) == {"flipout"}


def test_a_model_is_made_bayesian_as_suits_the_layers_that_are() -> None:
    dense = keras.Sequential([keras.Input((6, 6, 2)), L.Flatten(), L.Dense(3, name="logits")])
    for convolution in (L.Conv2D(2, 3), L.DepthwiseConv2D(3), L.SeparableConv2D(2, 3), L.Conv2DTranspose(2, 3)):
        model = keras.Sequential([keras.Input((6, 6, 2)), convolution, L.Flatten(), L.Dense(3, name="logits")])
        assert estimators_of(bp.bayesianize(model)) == {"reparameterization"}
        assert estimators_of(bp.bayesianize(model, include="logits")) == {"flipout"}
        assert estimators_of(bp.bayesianize(model, layers="flipout")) == {"flipout"}
    assert estimators_of(bp.bayesianize(dense)) == {"flipout"}


def test_a_model_of_another_estimator_is_refused_by_its_layers(tmp_path: Path) -> None:
    data = bp.load("digits", batch_size=400)
    named, usual = (bp.build("convnet", data.info, layers=one, options={"width": 0.05}) for one in ("flipout", None))
    bp.fit(named, data, epochs=1, out=tmp_path / "run", progress=False)
    said = "architecture .*Conv2DFlipout, DenseFlipout instead of Conv2DReparameterization, DenseReparameterization"
    with pytest.raises(RunError, match=said):
        bp.fit(usual, data, epochs=1, out=tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize("word", ["layers", "twin"])
def test_a_run_says_what_it_has_and_goes_on_with_it(tmp_path: Path, word: str, capsys: Any) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    assert main([*CONVNET, str(new)]) == 0
    assert Run.open(new).config["request"]["layers"] == "reparameterization"
    assert estimators_of(load_model(new).model) == {"reparameterization"}
    assert main([*CONVNET, str(old), "--layers", "flipout"]) == 0  # the default of its time
    run = Run.open(old)
    config = run.config
    config["request"] = {word if key == "layers" else key: value for key, value in config["request"].items()}
    with run.locked():
        run.commit({CONFIG: json_to_bytes(config)})
    for out in (new, old):
        assert main([*CONVNET, str(out), "--resume"]) == 0
    capsys.readouterr()
    assert main([*CONVNET, str(old), "--layers", "reparameterization", "--resume"]) == 2
    assert "was started with --layers flipout, got reparameterization" in capsys.readouterr().err


def test_a_tuning_says_what_it_has_and_goes_on_with_it(tmp_path: Path, capsys: Any) -> None:
    data = bp.load("digits", batch_size=400, validation_fraction=0.2)
    options: Any = {"method": "random", "trials": 1, "epochs": 1}
    for out, more, expected in (("new", {}, "reparameterization"), ("old", {"layers": "flipout"}, "flipout")):
        first = tune("convnet", data, tmp_path / out, **options, **more)
        again = tune("convnet", data, tmp_path / out, **options)
        assert first["layers"] == again["layers"] == expected
        assert again["rows"] == first["rows"]
        assert json.loads((tmp_path / out / "settings.json").read_text())["layers"] == expected
    with pytest.raises(RunError, match="differs in layers"):
        tune("convnet", data, tmp_path / "old", **options, layers="reparameterization")
    words = [
        "tune",
        "--model",
        "convnet",
        "--method",
        "random",
        "--trials",
        "1",
        "--epochs",
        "1",
        "--batch-size",
        "400",
    ]
    words += ["--validation-fraction", "0.2"]
    assert main([*words, "--out", str(tmp_path / "new")]) == 0
    [said] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert parser_of_all().parse_args(said.split()[2:]).layers == "reparameterization"


def test_candidates_are_built_as_suits_their_layers(digits: Splits) -> None:
    from tfp_bprune.tuning import keras_tuner

    for network, expected in (("mlp", "flipout"), ("convnet", "reparameterization")):
        model = hyper_model(network, digits, hidden=(4,)).build(keras_tuner().HyperParameters())
        assert estimators_of(model) == {expected}
