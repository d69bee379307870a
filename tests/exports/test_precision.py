"""Exports in few bits: every form as asked by layer, what it costs said, and uncertainty as in float32."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.exports.networks import NETWORKS, classifier, settled
from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Splits
from tfp_bprune.evaluation.fresh import check_export, reload
from tfp_bprune.evaluation.metrics import of_outputs
from tfp_bprune.evaluation.uncertainty import ood_auroc
from tfp_bprune.exports import export, precision
from tfp_bprune.exports.forms import FORMS
from tfp_bprune.exports.precision import Plan, planned, wider
from tfp_bprune.exports.rounding import Examples, is_little, measured
from tfp_bprune.layers import DenseFlipout
from tfp_bprune.networks import build
from tfp_bprune.prediction import Predictor
from tfp_bprune.prediction.distance import rank_correlation
from tfp_bprune.prediction.grids import WITHIN
from tfp_bprune.prediction.kernels import Lowering, rounded
from tfp_bprune.pruning import prune
from tfp_bprune.training import Settings, fit
from tfp_bprune.types import BpruneError, DataError, ExportError

SAVED = FORMS["savedmodel"]


@pytest.fixture(scope="module")
def trained(digits: Splits) -> Any:
    """A Bayesian network that tells digits apart, pruned to 60 %."""
    model = build("mlp", digits.info, layers="flipout", options={"hidden": (24,)})
    fit(model, digits, settings=Settings(6, 0.02, kl_weight=0.3))
    return prune(model, sparsity=0.6)[0]


def outputs_of(path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    return reload(path, x)[0].outputs


def test_layers_have_the_precision_that_they_are_to_have(trained: Any, images: np.ndarray, tmp_path: Path) -> None:
    names = [layer.name for layer in trained.layers if hasattr(layer, "posteriors")]
    asked = dict(zip(names, ("int3", "int8"), strict=True))
    manifest = export(trained, tmp_path / "mixed", precision=asked)
    assert manifest["precision"] == asked
    assert {name: manifest["layers"][name]["precision"] for name in names} == asked
    assert manifest["layers"][names[0]]["elbo_loss"] > 10 * manifest["layers"][names[1]]["elbo_loss"] > 0
    one = export(trained, tmp_path / "one", precision={names[1]: "int8"})
    assert [one["layers"][name]["precision"] for name in names] == ["float32", "int8"]
    found = [outputs_of(tmp_path / name, images)["probabilities"] for name in ("mixed", "one")]
    assert 0.01 < np.abs(found[0] - found[1]).max() < 0.9
    assert check_export(tmp_path / "mixed")["payload_bytes"] < one["payload_bytes"] < one["bytes"]


@pytest.mark.parametrize("predictive", ["mean", "sampled", "moments"])
def test_answers_and_uncertainty_stay(trained: Any, digits: Splits, tmp_path: Path, predictive: Any) -> None:
    test = digits.examples("test")
    names = ("float32", "int8", "auto")
    sizes = [export(trained, tmp_path / n, predictive=predictive, precision=n)["payload_bytes"] for n in names]  # type: ignore[arg-type]
    assert sizes[1] < 0.45 * sizes[0]
    assert sizes[2] < sizes[1]
    outside = np.random.default_rng(0).uniform(0, 16, test.x.shape).astype(np.float32)
    x = np.concatenate([test.x.astype(np.float32), outside])
    whole, *few = (found.outputs for found in reload([tmp_path / name for name in names], x))
    inside = {n: v[: len(test)] for n, v in whole.items()}
    for outputs in few:
        scores, base = of_outputs({n: v[: len(test)] for n, v in outputs.items()}, test.y), of_outputs(inside, test.y)
        assert abs(scores["accuracy"] - base["accuracy"]) <= 0.01  # of 360 digits, three
        assert abs(scores["ece"] - base["ece"]) <= 0.01
        if predictive == "mean":
            continue
        unsure, was = outputs["epistemic"].astype(float), whole["epistemic"].astype(float)
        assert rank_correlation(unsure[: len(test)], was[: len(test)]) >= 0.98
        aurocs = [ood_auroc(u[: len(test)], u[len(test) :]) for u in (unsure, was)]
        assert abs(aurocs[0] - aurocs[1]) <= 0.01


WAYS = [(form, settled) for form in ("litert", "onnx") for settled in (False, True)]


@pytest.mark.parametrize(("form", "settles"), WAYS)
def test_small_runtimes_multiply_few_bits(
    trained: Any, digits: Splits, tmp_path: Path, form: Any, settles: bool
) -> None:
    pytest.importorskip("ai_edge_quantizer")
    test, names = digits.examples("test"), ("float32", "int8", "auto")
    examples = digits.examples("train").x if settles else None
    for name in names:
        few = {"representative": examples, "validation": digits.examples("valid")} if name != "float32" else {}
        manifest = export(trained, tmp_path / name, format=form, precision=name, **few)  # type: ignore[arg-type]
        assert manifest["payload_bytes"] < manifest["bytes"]
    assert {layer["precision"] for layer in manifest["layers"].values()} <= set(FORMS[form].precisions) - {"float32"}
    assert manifest["precision_cost"]["disagreement"] <= 0.02
    whole, *others = (found.outputs for found in reload([tmp_path / name for name in names], test.x))
    for outputs in others:
        assert np.abs(outputs["probabilities"] - whole["probabilities"]).mean() < 0.02
        scores, base = of_outputs(outputs, test.y), of_outputs(whole, test.y)
        assert abs(scores["accuracy"] - base["accuracy"]) <= 0.01
        assert abs(scores["ece"] - base["ece"]) <= (0.02 if settles else 0.015)  # of 360 digits


@pytest.mark.parametrize("form", ["litert", "onnx"])
def test_moments_in_few_bits_keep_their_order(trained: Any, digits: Splits, tmp_path: Path, form: Any) -> None:
    pytest.importorskip("ai_edge_quantizer")
    test = digits.examples("test")
    sizes = [
        export(trained, tmp_path / name, format=form, predictive="moments", precision=name)["payload_bytes"]  # type: ignore[arg-type]
        for name in ("float32", "int8")
    ]
    assert sizes[1] < 0.7 * sizes[0]  # biases and scales of so small a network are a part of it
    outside = np.random.default_rng(0).uniform(0, 16, test.x.shape)
    x = np.concatenate([test.x, outside]).astype(np.float32)
    was, few = (f.outputs["epistemic"].astype(float) for f in reload([tmp_path / n for n in ("float32", "int8")], x))
    count = len(test)
    assert rank_correlation(few[:count], was[:count]) >= 0.98
    assert abs(ood_auroc(few[:count], few[count:]) - ood_auroc(was[:count], was[count:])) <= 0.01


@pytest.mark.parametrize("name", ["lenet", "residual"])
@pytest.mark.parametrize(("form", "settles"), WAYS)
def test_convolutions_in_few_bits(name: str, form: Any, settles: bool, tmp_path: Path) -> None:
    """Also those into which a converter has drawn a normalization."""
    pytest.importorskip("ai_edge_quantizer")
    x = np.random.default_rng(0).normal(size=(60, 8, 8, 1)).astype(np.float32)
    few = {"representative": x} if settles else {}
    model = settled(NETWORKS[name]())
    cost = export(model, tmp_path / "out", format=form, precision="int8", validation=x, **few)["precision_cost"]
    assert 0 < cost["difference"] < 0.05
    stored = (tmp_path / "out" / FORMS[form].file).read_bytes()
    assert len(few) == 0 or count_of(form, stored) == 0


@pytest.mark.parametrize(("form", "settles"), WAYS)
def test_products_that_are_answers_themselves_are_in_few_bits(form: Any, settles: bool, tmp_path: Path) -> None:
    """Means of several targets come straight from a product, which a converter names after the answer; one begins as another
    does."""
    pytest.importorskip("ai_edge_quantizer")
    inputs = keras.Input((30,))
    hidden = keras.layers.Dense(40, "relu")(inputs)
    outputs = [keras.layers.Dense(size, name=name)(hidden) for name, size in (("a", 20), ("a_b", 25))]
    x = np.random.default_rng(0).normal(size=(50, 30)).astype(np.float32)
    given: Any = {"representative": x} if settles else {}
    manifest = export(
        keras.Model(inputs, outputs),
        tmp_path / "out",
        format=form,
        precision="int8",
        task="regression",
        validation=x,
        **given,
    )
    assert {layer["precision"] for layer in manifest["layers"].values()} == {"int8"}
    assert count_of(form, (tmp_path / "out" / FORMS[form].file).read_bytes()) == 0
    assert 0 < manifest["precision_cost"]["difference"] < 0.05


def count_of(form: str, content: bytes) -> int:
    """How many constants of two axes or more a file holds in float32."""
    if form == "onnx":
        import onnx

        tensors = onnx.load_from_string(content).graph.initializer
        return sum(len(t.dims) > 1 and t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) > 60 for t in tensors)
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    stored = [
        t
        for t in model.subgraphs[0].tensors
        if model.buffers[t.buffer].data is not None or model.buffers[t.buffer].size
    ]
    return sum(t.type == schema.TensorType.FLOAT32 and t.shape is not None and np.prod(t.shape) > 60 for t in stored)


@pytest.mark.parametrize("form", ["savedmodel", "onnx", "litert"])
def test_float16_is_the_precision_of_that_name(form: Any, tmp_path: Path) -> None:
    model, said = NETWORKS["mlp"](), []
    for name, options in (("a", {"float16": True}), ("b", {"precision": "float16"})):
        manifest = export(model, tmp_path / name, format=form, **options)  # type: ignore[arg-type]
        said.append({key: manifest[key] for key in ("precision", "payload_bytes", "layers", "float16")})
    assert said[0] == said[1]
    assert said[0]["payload_bytes"] < 0.6 * export(model, tmp_path / "c", format=form)["payload_bytes"]


@pytest.mark.parametrize("form", ["savedmodel", "onnx", "litert"])
@pytest.mark.parametrize("options", [{"float16": True}, {"precision": {"wide": "float16"}}], ids=str)
def test_weights_beyond_float16_are_refused_in_it(form: Any, options: Any, tmp_path: Path) -> None:
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, name="narrow"), keras.layers.Dense(2, name="wide")]
    )
    kernel = np.ones((3, 2))
    kernel[1, 1] = 1e5
    model.get_layer("wide").kernel.assign(kernel)
    if form != "savedmodel" and "precision" in options:
        options = {"precision": "float16"}
    with pytest.raises(
        ExportError, match=r"'wide' has weights up to 1e\+05, and float16 holds none beyond 65504: expected"
    ):
        export(model, tmp_path / "out", format=form, task="regression", **options)
    assert not (tmp_path / "out").exists()
    kernel[1, 1] = 6.5e4
    model.get_layer("wide").kernel.assign(kernel)
    export(model, tmp_path / "out", format=form, task="regression", **options)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("form", ["savedmodel", "onnx", "litert"])
@pytest.mark.parametrize(("task", "shift"), [("classification", [0.0, 300.0, -300.0]), ("binary", [300.0])])
def test_what_is_certain_has_no_entropy(
    form: Any, precision: Any, task: Any, shift: list[float], tmp_path: Path
) -> None:
    """Probabilities of exactly 0 and 1, in runtimes with and without an x log x of their own; others as by its formula."""
    pytest.importorskip("ai_edge_quantizer")
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(len(shift), name="d")])
    kernel = np.random.default_rng(0).normal(size=(20, len(shift)))
    model.set_weights([kernel, np.array(shift)])
    export(model, tmp_path / "sure", format=form, precision=precision, task=task, from_logits=True)
    x = np.random.default_rng(1).normal(size=(9, 20)).astype(np.float32)
    np.testing.assert_array_equal(outputs_of(tmp_path / "sure", x)["entropy"], np.zeros(9))
    model.set_weights([kernel / 5, np.zeros(len(shift))])
    export(model, tmp_path / "open", format=form, precision=precision, task=task, from_logits=True)
    found = outputs_of(tmp_path / "open", x)
    p = found["probabilities"].astype(np.float64)
    p = p if task == "classification" else np.concatenate([p, 1 - p], -1)
    np.testing.assert_allclose(found["entropy"], -(p * np.log(p)).sum(-1), rtol=1e-5)


def test_what_a_runtime_has_no_product_for_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_quantizer")
    layers = [keras.layers.DepthwiseConv2D(3, name="deep"), keras.layers.Flatten(), keras.layers.Dense(3)]
    model = classifier(keras.Sequential([keras.Input((8, 8, 4)), *layers]))
    with pytest.raises(
        ExportError, match=r"^LiteRT has no product of layer 'deep' with weights in int4: choose 'int8'"
    ):
        export(model, tmp_path / "four", format="litert", precision="int4")
    with pytest.raises(
        ExportError, match=r"^ONNX holds no weights in 'int4', which layer 'deep' is to have: expected one of"
    ):
        export(model, tmp_path / "onnx", format="onnx", precision="int4")
    layers = [keras.layers.Conv3D(2, 3, name="solid"), keras.layers.Flatten(), keras.layers.Dense(3)]
    solid = classifier(keras.Sequential([keras.Input((5, 5, 5, 1)), *layers]))
    with pytest.raises(ExportError, match=r"^LiteRT has no product of layer 'solid' .* in int8: choose 'float32'$"):
        export(solid, tmp_path / "solid", format="litert", precision="int8")
    export(model, tmp_path / "eight", format="litert", precision="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["eight"]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("loss", [None, 0.5])
def test_auto_is_the_fewest_bits_within_the_posterior(trained: Any, loss: float | None, sparse: bool) -> None:
    """With one step for a layer where that takes fewer bytes, which only sparse kernels have, or a scale for each output."""
    plan, most = planned(trained, "auto", replace(SAVED, sparse=sparse), "mean", loss), loss or WITHIN
    layers = {layer.name: layer for layer in trained.layers if layer.name in plan.storages}
    for name, storage in plan.storages.items():
        assert plan.losses[name] <= most
        if name in plan.steps:
            wider_step = plan.steps[name] * 2**0.125
            assert precision.loss_of(layers[name], storage, False, wider_step) > most
            continue
        fewer = f"int{int(storage[3:]) - 1}"
        assert fewer == "int1" or precision.loss_of(layers[name], fewer, False) > most  # type: ignore[arg-type]


def test_half_a_nat_is_the_shortest_description() -> None:
    """Of a weight that is known to D^2 / 24 nats, and of its place on a grid so fine: by steps of D deviations, both in nats."""
    rng, lengths = np.random.default_rng(0), {}
    for width in (1.0, 2.0, 12**0.5, 6.0, 12.0):
        scale = np.full(100_000, 0.01)
        loc = rng.normal(size=scale.size)
        grid = np.rint(loc / (width * scale)).astype(int)
        lost = np.mean(np.square(loc - grid * width * scale) / (2 * scale**2))
        counts = np.unique(grid, return_counts=True)[1] / scale.size
        lengths[width] = lost - np.sum(counts * np.log(counts))
    assert min(lengths, key=lambda width: lengths[width]) == 12**0.5
    assert lengths[1.0] - lengths[12**0.5] > 0.7  # ln sqrt(12) - 11/24 = .784


def test_a_looser_loss_takes_fewer_bytes_and_is_said(trained: Any, tmp_path: Path) -> None:
    made = {loss: export(trained, tmp_path / str(loss), precision="auto", rounding_loss=loss) for loss in (None, 0.5)}
    assert made[0.5]["payload_bytes"] < 0.85 * made[None]["payload_bytes"]
    assert (made[0.5]["rounding_loss"], "rounding_loss" in made[None]) == (0.5, False)
    assert max(layer["elbo_loss"] for layer in made[0.5]["layers"].values()) <= 0.5
    with pytest.raises(ExportError, match=r"^rounding_loss must be a positive number of nats per weight, got nan$"):
        export(trained, tmp_path / "out", precision="auto", rounding_loss=float("nan"))
    with pytest.raises(
        ExportError, match=r"^rounding_loss is what precision 'auto' may lose: leave it out with 'int8'$"
    ):
        export(trained, tmp_path / "out", precision="int8", rounding_loss=0.5)


def sparse_model(inputs: int = 80) -> Any:
    """Two layers with few weights an output, as wide posteriors leave them, and biases; 80 of the inputs are read."""
    layers = [DenseFlipout(60, activation="relu", name="a"), DenseFlipout(5, name="b")]
    model = classifier(keras.Sequential([keras.Input((inputs,)), *layers]))
    rng = np.random.default_rng(0)
    for layer in layers:
        q = layer.kernel_posterior
        q.loc_variable.assign(rng.choice([-1, 1], q.shape) * rng.uniform(0.3, 2, q.shape))
        q.rho_variable.assign(tf.fill(q.shape, -3.0))
        q.mask.assign((rng.random(q.shape) > 0.9) & (np.arange(q.shape[0]) < 80)[:, None])
        layer.bias.assign(rng.normal(0, 0.5, layer.bias.shape))
    return model


def test_layers_with_few_weights_an_output_have_one_step(tmp_path: Path) -> None:
    model, x = sparse_model(), np.random.default_rng(1).normal(size=(200, 80)).astype(np.float32)
    plan = planned(model, "auto", SAVED, "mean")
    assert set(plan.steps) == {"a", "b"}
    assert not planned(model, "auto", FORMS["litert"], "mean").steps
    assert not planned(model, "int4", SAVED, "mean").steps
    for predictive in ("mean", "sampled"):
        auto = export(model, tmp_path / predictive, predictive=predictive, precision="auto")  # type: ignore[arg-type]
        assert {name: layer["step"] for name, layer in auto["layers"].items()} == plan.steps
    storages = {name: layer["precision"] for name, layer in auto["layers"].items()}
    each = export(model, tmp_path / "each", precision=storages)  # type: ignore[arg-type]
    auto = check_export(tmp_path / "mean")
    assert auto["payload_bytes"] < 0.75 * each["payload_bytes"]
    lowering = Lowering(by_layer=plan.storages, steps=plan.steps)
    expected = Predictor(model, "mean", lowering=lowering).predict(tf.constant(x))["probabilities"]
    found = outputs_of(tmp_path / "mean", x)["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    whole = Predictor(model, "mean").predict(tf.constant(x))["probabilities"]
    assert 1e-4 < np.abs(found - whole).max() < 0.2


def test_more_bits_follow_the_one_step() -> None:
    model = sparse_model()
    plan = planned(model, "auto", SAVED, "mean")
    choices = plan.choices["a"]
    after = wider(plan, model, "mean")
    assert after is not None
    [name] = set(plan.steps) - set(after.steps)
    assert after.storages[name] == choices[1]
    assert after.losses[name] < plan.losses[name]


@pytest.mark.parametrize("precision", ["auto", "int8", "int3", "float32"])
def test_the_payload_is_all_that_files_hold_of_the_weights(tmp_path: Path, precision: Any) -> None:
    """Variables, and constants of the graph with more numbers than a shape has."""
    from tensorflow.core.protobuf import saved_model_pb2

    manifest = export(sparse_model(4000), tmp_path / "out", precision=precision, kernels="dense")
    assert 64 < manifest["layers"]["a"]["taken"] <= 80
    reader = tf.train.load_checkpoint(str(tmp_path / "out" / "1" / "variables" / "variables"))
    names = [name for name in reader.get_variable_to_shape_map() if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    arrays = [np.asarray(reader.get_tensor(name)) for name in names]
    held = sum(len(array.item()) if array.dtype == object else array.nbytes for array in arrays)
    stored = saved_model_pb2.SavedModel.FromString((tmp_path / "out" / "1" / "saved_model.pb").read_bytes())
    [graph] = stored.meta_graphs
    functions = [list(function.node_def) for function in graph.graph_def.library.function]
    constants = {
        tf.make_ndarray(node.attr["value"].tensor).tobytes()
        for node in [*graph.graph_def.node, *itertools.chain(*functions)]
        if node.op == "Const" and node.attr["dtype"].type != tf.string.as_datatype_enum
    }
    large = sum(len(content) for content in constants if len(content) > 64)
    assert manifest["payload_bytes"] == pytest.approx(held + large, abs=64)


def test_a_narrow_posterior_takes_more_bits() -> None:
    model = classifier(keras.Sequential([keras.Input((20,)), DenseFlipout(9, name="a"), DenseFlipout(9, name="b")]))
    for layer, rho in zip(model.layers, (-2.0, -7.0), strict=True):
        layer.kernel_posterior.rho_variable.assign(tf.fill(layer.kernel_posterior.shape, rho))
    plan = planned(model, "auto", SAVED, "mean")
    assert (plan.storages["a"], plan.storages["b"]) == ("int3", "float16")


@pytest.mark.parametrize("pinned", [0, 20])
def test_weights_that_could_as_well_be_0_allow_the_others_no_fewer_bits(pinned: int) -> None:
    """For each input that is read, 20 whose weights the prior holds at 0: they lose nothing in any number of bits."""
    count, rng = 40, np.random.default_rng(0)
    model = classifier(keras.Sequential([keras.Input((count * (1 + pinned),)), DenseFlipout(9, name="a")]))
    posterior = model.layers[0].kernel_posterior
    loc, rho = np.zeros(posterior.shape), np.full(posterior.shape, -6.0)
    loc[:count], rho[:count] = rng.normal(size=(count, 9)), -2.5
    posterior.loc_variable.assign(loc)
    posterior.rho_variable.assign(rho)
    plan = planned(model, "auto", SAVED, "moments")
    assert plan.storages == {"a": "int7"}
    read = posterior.scale.numpy()[:count]
    moved = rounded(loc.astype(np.float32), "int6")[:count] - loc[:count]
    assert (np.square(moved / read) / 2).mean() > WITHIN  # one bit fewer is too few for those that are read


def test_more_bits_are_given_where_few_cost_too_much(
    trained: Any, digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "WITHIN", 1e9)  # the posterior would allow anything
    valid = digits.examples("valid")
    blind = export(trained, tmp_path / "blind", precision="auto")
    assert {layer["precision"] for layer in blind["layers"].values()} == {"int2"}
    assert "precision_cost" not in blind
    checked = export(trained, tmp_path / "checked", precision="auto", validation=valid)
    cost = checked["precision_cost"]
    assert is_little(cost)
    assert min(layer["precision"] for layer in checked["layers"].values()) > "int2"
    assert (cost["examples"], set(cost["float32"])) == (len(valid), {"accuracy", "nll", "ece", "brier", "entropy"})


def test_what_moves_the_order_of_uncertainties_costs_too_much() -> None:
    scores = {"accuracy": 0.9, "ece": 0.02, "nll": 0.3}
    cost = {"float32": scores, "rounded": scores}
    assert is_little(cost)
    assert is_little(cost | {"rank_correlation": 0.99})
    assert not is_little(cost | {"rank_correlation": 0.97})


@pytest.mark.parametrize("name", ["entropy", "epistemic"])
def test_what_makes_answers_surer_or_less_sure_costs_too_much(name: str) -> None:
    rng = np.random.default_rng(0)
    expected = {"probabilities": np.eye(3)[rng.integers(0, 3, 90)]} | {
        key: rng.uniform(0, 0.2, 90) for key in ("entropy", "epistemic", "aleatoric")
    }
    examples = Examples.__new__(Examples)
    examples.y = None
    for factor, little in ((0.94, False), (0.96, True), (1.04, True), (1.06, False)):
        cost = measured(examples, expected, expected | {name: factor * expected[name]})
        assert cost["uncertainty_ratio"] == pytest.approx({"entropy": 1, "epistemic": 1} | {name: factor})
        assert is_little(cost) == little
    certain = expected | {"epistemic": np.full(90, 1e-8)}
    assert set(measured(examples, certain, certain)["uncertainty_ratio"]) == {"entropy"}
    mean = {key: expected[key] for key in ("probabilities", "entropy")}
    assert "uncertainty_ratio" not in measured(examples, mean, mean)


def test_what_it_costs_is_what_is_measured_anew(trained: Any, digits: Splits, tmp_path: Path) -> None:
    valid = digits.examples("valid")
    options: dict[str, Any] = {"predictive": "sampled", "samples": 20}
    manifest = export(trained, tmp_path / "few", precision="int4", validation=(valid.x, valid.y), **options)
    export(trained, tmp_path / "all", **options)
    few, whole = (found.outputs for found in reload([tmp_path / "few", tmp_path / "all"], valid.x))
    cost = manifest["precision_cost"]
    for key, outputs in (("rounded", few), ("float32", whole)):
        assert cost[key] == pytest.approx(of_outputs(outputs, valid.y), abs=1e-5)
    differ = few["probabilities"].argmax(1) != whole["probabilities"].argmax(1)
    assert cost["disagreement"] == pytest.approx(differ.mean())
    assert cost["difference"] == pytest.approx(np.abs(few["probabilities"] - whole["probabilities"]).max(), abs=1e-5)
    assert cost["rank_correlation"] == pytest.approx(rank_correlation(few["epistemic"], whole["epistemic"]), abs=1e-3)


def test_without_targets_classes_are_compared(trained: Any, images: np.ndarray, tmp_path: Path) -> None:
    cost = export(trained, tmp_path / "out", precision="int2", validation=images)["precision_cost"]
    assert set(cost["float32"]) == {"entropy"}
    assert cost["disagreement"] > 0


def test_a_regression_keeps_its_bands(regression_run: Path, tmp_path: Path) -> None:
    from tfp_bprune.storage import load_model

    model = load_model(regression_run).model
    x = np.random.default_rng(0).normal(size=(200, *model.input_shape[1:])).astype(np.float32)
    cost = export(model, tmp_path / "out", predictive="moments", precision="int8", validation=x)["precision_cost"]
    assert cost["difference"] < 0.02
    assert cost["rank_correlation"] > 0.98


def test_all_kinds_of_kernels_are_rounded_by_output() -> None:
    """Also those that stay plain layers of Keras in other exports: attention, and an einsum."""
    import tfp_bprune as bp

    inputs = keras.Input((8, 6))
    x = keras.layers.Conv1D(6, 3, padding="same", name="conv")(inputs)
    x = keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4), name="einsum")(x)
    x = keras.layers.Reshape((8, 8, 1))(x)
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=3, name="depthwise")(x)
    x = keras.layers.Conv2DTranspose(4, 2, name="transposed")(x)
    model = classifier(keras.Model(inputs, keras.layers.Dense(3, name="out")(keras.layers.Flatten()(x))))
    bayesian = bp.bayesianize(model, layers="flipout")
    names = planned(bayesian, "int8", SAVED, "mean").storages
    x = tf.constant(np.random.default_rng(0).normal(size=(30, 8, 6)), tf.float32)
    for predictive in ("mean", "sampled"):
        lowerings = [Lowering(by_layer=dict.fromkeys(names, storage)) for storage in ("float32", "int8", "int4")]
        made = [Predictor(bayesian, predictive, 2, lowering=lowering) for lowering in lowerings]
        whole, eight, four = (predictor.predict(x)["probabilities"].numpy() for predictor in made)
        assert 0 < np.abs(eight - whole).max() < min(0.02, np.abs(four - whole).max())
        assert made[1].payload < 0.7 * made[0].payload  # most kernels here have few weights an output


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"precision": "int9"},
        r"unknown precision 'int9' of layer '.*': expected one of 'auto', 'float32', 'float16', 'int8'",
    ),
    ({"precision": {"none": "int8"}}, r"precision names the layer 'none': expected of '"),
    ({"precision": "int8", "float16": True}, r"float16 and precision 'int8' contradict each other"),
    (
        {"precision": "int8", "representative": np.zeros((3, 8, 8, 1))},
        r"representative examples are for LiteRT and ONNX",
    ),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError, match=said) as caught:
        export(NETWORKS["mlp"](), tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ([[1.0, np.nan]], "expected finite numbers for '.*', got nan$"),
        ([[1.0, -np.inf]], "expected finite numbers for '.*', got -inf$"),
        (np.zeros((0, 2)), r"^representative has '.*' of shape \(0, 2\)"),
    ],
)
@pytest.mark.parametrize("form", ["litert", "onnx"])
def test_ranges_are_settled_by_finite_examples_alone(tmp_path: Path, form: str, examples: Any, said: str) -> None:
    model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(3)])
    given: Any = {"format": form, "precision": "int8", "task": "regression"}
    with pytest.raises(BpruneError, match=said):
        export(model, tmp_path / "out", representative=np.asarray(examples, np.float32), **given)
    assert list(tmp_path.iterdir()) == []


def test_auto_goes_by_a_posterior(tmp_path: Path) -> None:
    model = classifier(keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, name="plain"), DenseFlipout(3)]))
    assert planned(model, "auto", SAVED, "mean").storages["plain"] == "float32"
    with pytest.raises(ExportError, match="layer 'plain' has no posterior, which 'auto' needs: name a precision"):
        planned(model, {"plain": "auto"}, SAVED, "mean")
    plain = classifier(keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, name="dense")]))
    with pytest.raises(ExportError, match=r"has no posterior, which 'auto' needs: expected 'int8'"):
        export(plain, tmp_path / "out", precision="auto")
    assert export(plain, tmp_path / "int8", precision="int8")["layers"]["dense"]["precision"] == "int8"


def test_more_bits_end_with_float32() -> None:
    model = settled(NETWORKS["mlp"]())
    plan: Plan | None = planned(model, "auto", SAVED, "mean")
    seen = []
    while plan is not None:
        seen.append(plan)
        plan = wider(plan, model, "mean")
    assert seen[-1].whole
    held = [{n: (plan.storages[n], plan.steps.get(n)) for n in plan.storages} for plan in seen]
    assert all(sum(a[n] != b[n] for n in a) == 1 for a, b in itertools.pairwise(held))
    assert wider(planned(model, "int4", SAVED, "mean"), model, "mean") is None


def test_other_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"validation has 'inputs?.*' of shape \(3, 5\)"):
        export(NETWORKS["mlp"](), tmp_path / "out", precision="int8", validation=np.zeros((3, 5)))


def test_what_is_lost_does_not_depend_on_the_unit() -> None:
    """Squares of weights are beyond what float32 holds."""
    losses = []
    for unit in (1.0, 2.0**67, 2.0**-67):
        layer = DenseFlipout(5)
        layer.build((None, 6))
        posterior, rng = layer.kernel_posterior, np.random.default_rng(0)
        loc, scale = rng.normal(size=(6, 5)), rng.uniform(0.1, 3.0, (6, 5))
        posterior.loc_variable.assign(loc * unit)
        posterior.rho_variable.assign(scale * unit if unit > 1 else np.log(np.expm1(scale * unit)))
        losses.append(precision.loss_of(layer, "int4", with_scales=True))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)
    assert losses[0] > 0
