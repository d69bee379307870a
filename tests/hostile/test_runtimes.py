"""ONNX and LiteRT files that only compute, and not what an export does: a runtime meets them in a process with limits."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper

import tfp_bprune as bp
from tests.hostile.test_savedmodels import ABOUT, X
from tfp_bprune._keras import tf
from tfp_bprune.evaluation import fresh
from tfp_bprune.evaluation.fresh import complaint, reload
from tfp_bprune.exports.sparsify import packed as pack
from tfp_bprune.files.runs import Run
from tfp_bprune.types import ExportError


def node(kind: str, takes: list[str], gives: str = "probabilities", **more: Any) -> Any:
    return helper.make_node(kind, takes, [gives], **more)


def constant(name: str, value: Any) -> Any:
    return node("Constant", [], name, value=numpy_helper.from_array(np.asarray(value), name))


def graph(nodes: list[Any], takes: list[Any], gives: list[Any]) -> Any:
    return helper.make_graph(nodes, "g", takes, gives)


def value(name: str, kind: int = TensorProto.FLOAT, shape: Any = None) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def onnx_of(*nodes: Any, kind: int = TensorProto.FLOAT) -> bytes:
    made = graph(list(nodes), [value("inputs", shape=[None, 2])], [value("probabilities", kind)])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def plus(name: str) -> Any:
    return node("Add", ["inputs", name])


def filled(*shape: int) -> bytes:
    sides = constant("s", np.array(shape, np.int64))
    return onnx_of(sides, node("ConstantOfShape", ["s"], "b"), node("ReduceSum", ["b"], "m", keepdims=0), plus("m"))


def loop() -> bytes:
    inner = [node("Identity", ["c"], "d"), node("Identity", ["x"], "y")]
    takes = [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("x")]
    body = graph(inner, takes, [value("d", TensorProto.BOOL, []), value("y")])
    count = constant("n", np.int64(2**62))
    return onnx_of(count, constant("t", np.bool_(True)), node("Loop", ["n", "t", "inputs"], body=body))


ONNX: dict[str, Callable[[], bytes]] = {
    "10^10 numbers": lambda: filled(10**5, 10**5),
    "more than numbers": lambda: filled(10**9, 10**9, 8),
    "2^40 numbers in a row": lambda: onnx_of(
        constant("a", np.int64(0)), constant("b", np.int64(2**40)), constant("c", np.int64(1)), node("Range", ["a", "b", "c"], "r"),
        node("Cast", ["r"], "f", to=1), node("ReduceSum", ["f"], "m", keepdims=0), plus("m")),
    "NaN": lambda: onnx_of(constant("z", np.float32(np.nan)), plus("z")),
    "infinite": lambda: onnx_of(constant("z", np.float32(np.inf)), plus("z")),
    "strings": lambda: onnx_of(node("Cast", ["inputs"], to=TensorProto.STRING), kind=TensorProto.STRING),
    "one answer for all": lambda: onnx_of(node("ReduceSum", ["inputs"], keepdims=0)),
    "a list": lambda: onnx_of(node("SequenceConstruct", ["inputs"])),
    "of what there is not": lambda: onnx_of(node("Identity", ["nowhere\n\x1b[1m[/b]"])),
    "of itself": lambda: onnx_of(plus("probabilities")),
}  # fmt: skip


def litert_of(answer: Callable[[Any], Any]) -> bytes:
    module = tf.Module()
    spec = tf.TensorSpec([None, 2], tf.float32, name="inputs")
    module.f = tf.function(lambda inputs: {"probabilities": answer(inputs)}, input_signature=[spec], autograph=False)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"serving_default": module.f.get_concrete_function()})
        return bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


@pytest.fixture(scope="module")
def litert() -> bytes:
    """A layer."""
    return litert_of(lambda x: tf.nn.relu(tf.matmul(x, tf.constant(np.eye(2), tf.float32)) + 0.5))


def each(part: str, **values: Any) -> Callable[[Any], None]:
    """Changes all tensors, operators, buffers, signatures or their outputs."""

    def change(model: Any) -> None:
        parts = {
            "graph": model.subgraphs,
            "signature": model.signatureDefs,
            "buffer": [b for b in model.buffers if b.data is not None],
        }
        parts |= {"tensor": model.subgraphs[0].tensors, "operator": model.subgraphs[0].operators}
        parts["output"] = model.signatureDefs[0].outputs
        for one in parts[part]:
            for name, new in values.items():
                setattr(one, name, np.array(new, np.int32) if isinstance(new, list) else new)

    return change  # fmt: skip


LITERT: dict[str, Callable[[Any], None]] = {
    "an operation of no kind": each("operator", opcodeIndex=500),
    "an operation of no tensor": each("operator", inputs=[9999, 1, 2]),
    "an operation of tensors below 0": each("operator", inputs=[-7, -1, -5]),
    "an operation into no tensor": each("operator", outputs=[9999]),
    "a tensor of no buffer": each("tensor", buffer=10**6),
    "tensors of 2^60 numbers": each("tensor", shape=[2**30, 2**30]),
    "tensors of negative size": each("tensor", shape=[-5, -5]),
    "tensors larger than their numbers": each("tensor", shape=[2000, 2000]),
    "tensors of strings": each("tensor", type=5),
    "numbers beyond the file": each("buffer", data=None, offset=2**40, size=2**40),
    "numbers around the file": each("buffer", data=None, offset=2, size=2**63),
    "no numbers": lambda model: setattr(model, "buffers", []),
    "no operation": each("graph", operators=[]),
    "outputs of no tensor": each("graph", outputs=[10**6]),
    "a signature of no tensor": each("output", tensorIndex=10**6),
    "a signature of no graph": each("signature", subgraphIndex=77),
    "a signature of another name": each("signature", signatureKey=b"\x1b[1m[/b]\n"),
}


def refused(content: bytes, folder: Path, form: str) -> str:
    """The line by which both ways to ask an export say no."""
    folder.mkdir(exist_ok=True)
    (folder / {"onnx": "model.onnx", "litert": "model.tflite"}[form]).write_bytes(content)
    Run(folder).record(**ABOUT, export_format=form)
    with pytest.raises(ExportError) as asked:
        bp.predict(folder, X)
    with pytest.raises(ExportError) as loaded:
        reload([folder], X)
    for line in (str(asked.value), str(loaded.value)):
        assert "\n" not in line
        assert len(line) < 600
    return str(loaded.value)


@pytest.mark.parametrize("kind", ONNX)
def test_an_onnx_file_that_gives_no_answers(kind: str, tmp_path: Path) -> None:
    refused(ONNX[kind](), tmp_path / "export", "onnx")


@pytest.mark.parametrize("kind", LITERT)
def test_a_litert_file_that_gives_no_answers(kind: str, litert: bytes, tmp_path: Path) -> None:
    model = schema.ModelT.InitFromPackedBuf(litert, 0)
    LITERT[kind](model)
    refused(pack(model), tmp_path / "export", "litert")


@pytest.mark.parametrize("form", ["onnx", "litert"])
def test_a_file_that_computes_without_end_is_ended(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "SECONDS", 2.0)
    content = loop() if form == "onnx" else litert_of(
        lambda x: tf.while_loop(lambda y: tf.reduce_sum(y) > 0, lambda y: (y + 0,), [x])[0])  # fmt: skip
    assert "took more processor time than one example should" in refused(content, tmp_path / "export", form)


def test_what_a_process_said_is_one_line() -> None:
    said = 'Traceback (most recent call last):\n  File "x.py", line 1\n    raise\nFail: first\n second\n'
    assert complaint(said, 1) == "Fail: first second"
    assert complaint("INFO: hello\nits output is none\n", 1) == "its output is none"
    assert complaint("", -11) == "it was ended by SIGSEGV"
    assert complaint("\n", 3) == "exit code 3"
    assert len(complaint("x" * 9999, 1)) < 310
