"""ONNX and LiteRT files of strangers: what names code or other files is refused by name before a runtime gets it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper

from tfp_bprune._keras import keras
from tfp_bprune.evaluation.fresh import reload
from tfp_bprune.exports import export
from tfp_bprune.exports.others import check_litert, check_onnx
from tfp_bprune.exports.sparsify import packed as pack
from tfp_bprune.files.runs import Run
from tfp_bprune.types import ExportError

X = np.ones((3, 2), np.float32)


def exported(folder: Path, form: str) -> Path:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="logits")])
    export(model, folder / form, format=form, task="classification")
    return folder / form


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An export of one layer in each format."""
    folder = tmp_path_factory.mktemp("exports")
    return {form: exported(folder, form) for form in ("onnx", "litert")}


def far(model: Any, place: str) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)


def body(**arguments: Any) -> Any:
    """A graph for a branch, whose one node is of these arguments."""
    node = helper.make_node(inputs=[], outputs=["z"], **arguments)
    return helper.make_graph([node], "body", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])


def branched(model: Any, inner: Any) -> None:
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))


def constant(model: Any, **changes: Any) -> None:
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "w")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["k"], value=tensor))


def sparse(model: Any) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "v")
    values.external_data.add(key="location", value="x")
    made = helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64), "i"), [3])
    model.graph.sparse_initializer.append(made)


def function(model: Any) -> None:
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("f", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 17)]))


ONNX: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "numbers outside": ("in another file", lambda model: far(model, "../../outside/victim.txt")),
    "numbers of the system": ("in another file", lambda model: far(model, "/etc/passwd")),
    "numbers beside": ("in another file", lambda model: far(model, "weights.bin")),
    "numbers of a constant": ("in another file", constant),
    "numbers of a sparse tensor": ("in another file", sparse),
    "numbers within a branch": ("in another file", lambda model: branched(
        model, body(op_type="Constant", value=helper.make_tensor("t", TensorProto.FLOAT, [1], b"/etc", raw=True))
    ) or far_within(model)),
    "a custom operation": ("'evil.Write'", lambda model: model.graph.node.append(
        helper.make_node("Write", [], ["z"], domain="evil"))),
    "an operation of the runtime's own": ("'com.microsoft.EPContext'", lambda model: model.graph.node.append(
        helper.make_node("EPContext", [], ["z"], domain="com.microsoft", ep_cache_context="../../x"))),
    "Python": ("'ai.onnx.contrib.PyOp'", lambda model: model.graph.node.append(
        helper.make_node("PyOp", [], ["z"], domain="ai.onnx.contrib"))),
    "an operation that there is not": ("'ReadFile'", lambda model: model.graph.node.append(helper.make_node("ReadFile", [], ["z"]))),
    "within a branch": ("'evil.Write'", lambda model: branched(model, body(op_type="Write", domain="evil"))),
    "a function": ("functions", function),
    "a training": ("functions", lambda model: model.training_info.add()),
    "nothing": ("without operations", lambda model: model.graph.ClearField("node")),
}  # fmt: skip


def far_within(model: Any) -> None:
    tensor = model.graph.node[-1].attribute[0].g.node[0].attribute[0].t
    tensor.data_location = TensorProto.EXTERNAL


@pytest.mark.parametrize("kind", ONNX)
def test_an_onnx_file_that_names_code_or_files_is_refused(kind: str, folders: dict[str, Path]) -> None:
    said, change = ONNX[kind]
    model = onnx.load_model(folders["onnx"] / "model.onnx")
    check_onnx("model.onnx", model.SerializeToString(), "here")
    change(model)
    with pytest.raises(ExportError, match=f"here .*{said}"):
        check_onnx("model.onnx", model.SerializeToString(), "here")


def flex(model: Any, name: bytes = b"FlexWriteFile") -> None:
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = name


def renamed(model: Any, word: str) -> None:
    code = model.operatorCodes[0]
    code.builtinCode = getattr(schema.BuiltinOperator, word)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)


def elsewhere(model: Any) -> None:
    group, buffer = schema.ExternalBufferGroupT(), schema.ExternalBufferT()
    group.name, buffer.id = b"../../outside/victim.txt", 1
    model.externalBufferGroups, model.externalBuffers = [group], [buffer]


def of_graph(model: Any, number: int, graph: int | None = None) -> None:
    """By which the interpreter would read beyond its memory; the graph after the last by default."""
    model.signatureDefs = [copy.copy(model.signatureDefs[0]) for _ in range(number + 1)]
    model.signatureDefs[number].subgraphIndex = len(model.subgraphs) if graph is None else graph


LITERT: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "an operation of TensorFlow's": ("'FlexWriteFile'", flex),
    "a custom operation": ("'evil'", lambda model: flex(model, b"evil")),
    "a builtin one with a name": ("'evil'", lambda model: setattr(model.operatorCodes[0], "customCode", b"evil")),
    "a delegate": ("'DELEGATE'", lambda model: renamed(model, "DELEGATE")),
    "a custom call": ("'STABLEHLO_CUSTOM_CALL'", lambda model: renamed(model, "STABLEHLO_CUSTOM_CALL")),
    "a composite": ("'STABLEHLO_COMPOSITE'", lambda model: renamed(model, "STABLEHLO_COMPOSITE")),
    "no known operation": ("'9999'", lambda model: setattr(model.operatorCodes[0], "builtinCode", 9999)),
    "numbers elsewhere": ("another file", elsewhere),
    "no operations": ("0 kinds", lambda model: setattr(model, "operatorCodes", [])),
    "ten thousand kinds": ("kinds", lambda model: setattr(model, "operatorCodes", model.operatorCodes[:1] * 10_000)),
    "no graph": ("kinds", lambda model: setattr(model, "subgraphs", [])),
    "no signature": ("kinds", lambda model: setattr(model, "signatureDefs", [])),
    "a signature of no graph": ("signature of the graph 77", lambda model: of_graph(model, 0, 77)),
    "a signature of the graph after the last": ("signature of the graph", lambda model: of_graph(model, 0)),
    "a second signature of no graph": ("signature of the graph", lambda model: of_graph(model, 1)),
}


@pytest.mark.parametrize("kind", LITERT)
def test_a_litert_file_that_names_code_or_files_is_refused(kind: str, folders: dict[str, Path]) -> None:
    said, change = LITERT[kind]
    content = (folders["litert"] / "model.tflite").read_bytes()
    check_litert("model.tflite", content, "here")
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    change(model)
    with pytest.raises(ExportError, match=f"here .*{said}"):
        check_litert("model.tflite", pack(model), "here")


GARBAGE = {
    "empty": b"", "short": b"TFL3", "garbage": b"\xff" * 100, "the mark alone": b"\0\0\0\0TFL3", "JSON": b"{}" * 50,
    "a root outside": b"\xff\xff\xff\x7fTFL3" + b"\0" * 50, "a table of itself": b"\x08\0\0\0TFL3\0\0\0\0" + b"\0" * 40,
    "text": b"TFL3" * 30, "a deep message": b"\x3a\x02" * 5000, "a length without end": b"\x3a\xff\xff\xff\xff\x0f" + b"x" * 9,
}  # fmt: skip


@pytest.mark.parametrize("check", [check_onnx, check_litert])
@pytest.mark.parametrize("kind", GARBAGE)
def test_what_is_no_model_is_refused(kind: str, check: Callable[..., None]) -> None:
    with pytest.raises(ExportError, match=r"^here holds") as raised:
        check("model", GARBAGE[kind], "here")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("form", ["onnx", "litert"])
def test_a_stranger_gives_it_to_no_runtime(form: str, folders: dict[str, Path], copied: Any, monkeypatch: Any) -> None:
    folder, changes = copied(folders[form]), {"onnx": ONNX["numbers outside"], "litert": LITERT["a custom operation"]}
    file = folder / {"onnx": "model.onnx", "litert": "model.tflite"}[form]
    facts = Run.open(folder).manifest
    if form == "onnx":
        model = onnx.load_model(file)
        changes[form][1](model)
        file.write_bytes(model.SerializeToString())
    else:
        packed = schema.ModelT.InitFromPackedBuf(file.read_bytes(), 0)
        changes[form][1](packed)
        file.write_bytes(pack(packed))
    (folder / "manifest.json").unlink()
    Run(folder).record(**{k: v for k, v in facts.items() if k not in ("files", "format", "versions", "sha256")})
    monkeypatch.setattr("tfp_bprune.evaluation.fresh._run", lambda request: pytest.fail("a runtime got it"))
    with pytest.raises(ExportError, match=r"--trust"):
        reload([folder], X)
