"""SavedModels of strangers: what could do more than compute is refused before it is loaded, the rest within limits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import keras, tf
from tfp_bprune.evaluation import fresh
from tfp_bprune.evaluation.fresh import reload
from tfp_bprune.exports import export
from tfp_bprune.exports.operations import ALLOWED, check_harmless
from tfp_bprune.files.runs import Run
from tfp_bprune.types import BpruneError, ExportError

ABOUT = {
    "kind": "export", "predictive": "mean", "input_shape": [2], "parameters": 1, "prunable": 1, "nonzeros": 1,
    "sparsity": 0.0, "layers": {}, "bytes": 1, "network": "n", "task": "classification",
}  # fmt: skip
X = np.ones((3, 2), np.float32)
Answer = Callable[[Any], Any]


def saved(answer: Answer, folder: Path, module: Any = None) -> Path:
    """A folder that looks like an export and holds a program of the test's choice."""
    module = module or tf.Module()
    module.call = tf.function(lambda inputs: {"probabilities": answer(inputs)}, autograph=False)
    spec = tf.TensorSpec([None, 2], tf.float32, name="inputs")
    signature = module.call.get_concrete_function(spec)
    tf.saved_model.save(module, str(folder / "1"), signatures={"serving_default": signature})
    shutil.rmtree(folder / "1" / "assets", ignore_errors=True)
    Run(folder).record(**ABOUT)
    return folder


def after(effect: Any, x: Any) -> Any:
    with tf.control_dependencies([effect]):
        return tf.identity(x)


def writes(x: Any, place: Path) -> Any:
    return after(tf.io.write_file(str(place), "harm"), x)


def in_a_branch(x: Any, place: Path) -> Any:
    return tf.cond(tf.reduce_sum(x) > 0, lambda: writes(x, place), lambda: x)


def in_a_loop(x: Any, place: Path) -> Any:
    return tf.while_loop(lambda i, y: i < 1, lambda i, y: (i + 1, writes(y, place)), [0, x])[1]


def in_a_map(x: Any, place: Path) -> Any:
    return tf.map_fn(lambda row: writes(row, place), x)


HARM: dict[str, tuple[str, Callable[[Any, Path], Any]]] = {
    "write": ("WriteFile", writes),
    "in a branch": ("WriteFile", in_a_branch),
    "in a loop": ("WriteFile", in_a_loop),
    "in a map": ("WriteFile", in_a_map),
    "read": ("ReadFile", lambda x, place: after(tf.io.read_file(str(place)), x)),
    "print": ("PrintV2", lambda x, place: after(tf.print(x, output_stream=f"file://{place}"), x)),
    "python": ("EagerPyFunc", lambda x, place: tf.py_function(lambda y: y, [x], tf.float32)),
    "numpy": ("PyFunc", lambda x, place: tf.numpy_function(lambda y: y, [x], tf.float32)),
    "save": ("SaveV2", lambda x, place: after(tf.raw_ops.SaveV2(prefix=str(place), tensor_names=["x"], shape_and_slices=[""], tensors=[x]), x)),
    "restore": ("RestoreV2", lambda x, place: tf.raw_ops.RestoreV2(
        prefix=str(place), tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32])[0]),
    "list files": ("MatchingFiles", lambda x, place: after(tf.io.matching_files("/*"), x)),
    "dataset": ("TextLineDataset", lambda x, place: after(tf.raw_ops.TextLineDataset(filenames=[str(place)], compression_type="", buffer_size=0), x)),
}  # fmt: skip


@pytest.mark.parametrize("kind", HARM)
def test_a_program_that_does_more_than_compute_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    operation, answer = HARM[kind]
    canary = tmp_path / "canary"
    path = saved(lambda x: answer(x, canary), tmp_path / "export")
    with pytest.raises(ExportError, match=rf"holds the operation '{operation}', which can do more.*--trust"):
        reload([path], X)
    assert not canary.exists()


def test_a_write_when_the_model_is_loaded_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Resource(tf.saved_model.experimental.TrackableResource):
        def _create_resource(self) -> Any:
            return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], shared_name="r")

        def _initialize(self) -> None:
            tf.io.write_file(str(canary), "harm")

    module = tf.Module()
    module.resource = Resource()
    path = saved(tf.identity, tmp_path / "export", module)
    canary.unlink(missing_ok=True)
    with pytest.raises(ExportError, match="holds the operation 'WriteFile'"):
        reload([path], X)
    assert not canary.exists()


def test_an_asset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("a")
    module = tf.Module()
    module.asset = tf.saved_model.Asset(str(tmp_path / "words"))
    path = saved(lambda x: x, tmp_path / "export", module)
    with pytest.raises(ExportError, match="holds"):
        reload([path], X)


def test_a_loop_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "SECONDS", 2.0)
    path = saved(
        lambda x: tf.while_loop(lambda y: tf.reduce_sum(y) > 0, lambda y: (y + 0,), [x])[0], tmp_path / "export"
    )
    with pytest.raises(ExportError, match="took more processor time than one example should"):
        reload([path], X)


ANSWERS: dict[str, tuple[str, Answer]] = {
    "too much memory": ("failed in a fresh process", lambda x: tf.reduce_sum(tf.fill([100_000, 100_000], x[0, 0])) + x),
    "not finite": ("gives probabilities that is not finite", lambda x: x / 0 - x / 0),
    "strings": ("expected numbers for each example", tf.strings.as_string),
    "one answer for all": ("for 3 examples: expected one each", lambda x: tf.ones([1, 2])),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_that_are_none(kind: str, tmp_path: Path) -> None:
    said, answer = ANSWERS[kind]
    with pytest.raises(ExportError, match=said):
        reload([saved(answer, tmp_path / "export")], X)


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of one layer."""
    out = tmp_path_factory.mktemp("harmless") / "export"
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="logits")])
    export(model, out, task="classification")
    return out


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100], ids=["empty", "garbage", "bytes"])
def test_what_is_no_saved_model_is_refused(content: bytes) -> None:
    with pytest.raises(ExportError, match="SavedModel"):
        check_harmless(content, "here")


@pytest.mark.parametrize("damage", ["no files", "another file", "pbtxt", "no graph", "no signature"])
def test_an_export_names_what_an_export_has(damage: str, harmless: Path, tmp_path: Path) -> None:
    path = tmp_path / "export"
    shutil.copytree(harmless, path)
    facts = {
        key: value
        for key, value in Run.open(path).manifest.items()
        if key not in ("files", "format", "versions", "sha256")
    }
    if damage in ("another file", "pbtxt"):
        (path / "1" / ("saved_model.pbtxt" if damage == "pbtxt" else "more.so")).write_text("x")
    if damage == "no graph":
        (path / "1" / "saved_model.pb").unlink()
    if damage == "no files":
        shutil.rmtree(path / "1")
    (path / "manifest.json").unlink()
    if damage == "no signature":
        facts.pop("predictive")
    Run(path).record(**facts)
    with pytest.raises(BpruneError, match=r"does not name 1/|which no export|not as it was written"):
        fresh.check_export(path)


def test_exports_hold_only_what_is_allowed(harmless: Path) -> None:
    check_harmless((harmless / "1" / "saved_model.pb").read_bytes(), harmless)
    known = set(tf.raw_ops.__dict__)
    assert {name for name in ALLOWED if name not in known} <= {"CudnnRNNCanonicalToParamsV2", "XlaSharding"}


LAYERS: dict[str, tuple[tuple[int, ...], Callable[[], list[Any]]]] = {
    "convolutions": ((8, 8, 3), lambda: [
        keras.layers.Conv2D(4, 3, activation="swish"), keras.layers.BatchNormalization(), keras.layers.MaxPooling2D(),
        keras.layers.SeparableConv2D(4, 2), keras.layers.Conv2DTranspose(3, 2), keras.layers.UpSampling2D(),
        keras.layers.ZeroPadding2D(), keras.layers.Cropping2D(), keras.layers.DepthwiseConv2D(2),
        keras.layers.LayerNormalization(), keras.layers.GlobalAveragePooling2D(), keras.layers.PReLU()]),
    "sequences": ((5, 3), lambda: [
        keras.layers.LSTM(4, return_sequences=True), keras.layers.GRU(4)]),
    "vectors": ((6,), lambda: [
        keras.layers.Normalization(mean=1.0, variance=2.0), keras.layers.Dense(4, activation="gelu"),
        keras.layers.GroupNormalization(2), keras.layers.ELU(), keras.layers.UnitNormalization(), keras.layers.Reshape((2, 2)),
        keras.layers.Permute((2, 1)), keras.layers.Flatten(), keras.layers.RepeatVector(2), keras.layers.Conv1D(2, 2),
        keras.layers.Flatten()]),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
def test_other_layers_of_keras_are_allowed(kind: str, tmp_path: Path) -> None:
    shape, layers = LAYERS[kind]
    model = keras.Sequential([keras.Input(shape), *layers(), keras.layers.Dense(3, name="logits")])
    export(model, tmp_path / "export", task="multilabel")
    check_harmless((tmp_path / "export" / "1" / "saved_model.pb").read_bytes(), "here")


@pytest.mark.slow
def test_a_bomb_of_compressed_numbers_is_stopped_by_the_limits(tmp_path: Path) -> None:
    """As weights in few bits are stored: a megabyte or two that would be two gigabytes."""
    import zlib

    packer = zlib.compressobj(1)
    content = b"".join(packer.compress(bytes(2**26)) for _ in range(2**5)) + packer.flush()

    def answer(x: Any) -> Any:
        numbers = tf.io.decode_raw(tf.io.decode_compressed(tf.constant(content), "ZLIB"), tf.uint8)
        return x + tf.cast(tf.reduce_sum(numbers[:1]), tf.float32)

    with pytest.raises(ExportError, match=r"failed in a fresh process|took more processor time"):
        reload([saved(answer, tmp_path / "export")], X)


def rows(x: Any, indices: Any, values: Any, shape: Any) -> Any:
    """A matrix in compressed rows, of which TensorFlow learns only when it computes."""
    hidden = tf.shape(x, tf.int64)[0] * 0
    return tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=(tf.constant(indices, tf.int64, [len(indices), len(shape)]) + hidden)[hidden:],
        values=tf.constant(values, tf.float32)[hidden:],
        dense_shape=tf.constant(shape, tf.int64) + hidden,
    )


def times(matrix: Any, x: Any) -> Any:
    return tf.transpose(tf.raw_ops.SparseMatrixMatMul(a=matrix, b=tf.transpose(x)))


def another_variant(x: Any) -> Any:
    """A list of tensors where a matrix should be."""
    place = tf.raw_ops.VarHandleOp(dtype=tf.variant, shape=[], shared_name="list")
    made = tf.raw_ops.TensorListReserve(element_shape=-1, num_elements=3, element_dtype=tf.float32)
    with tf.control_dependencies([tf.raw_ops.AssignVariableOp(resource=place, value=made)]):
        read = tf.ensure_shape(tf.raw_ops.ReadVariableOp(resource=place, dtype=tf.variant), [])
    return times(tf.raw_ops.Pack(values=[rows(x, [], [], [2, 2]), read])[1], x)


COMPRESSED: dict[str, Answer] = {
    "a row beyond": lambda x: times(rows(x, [[10**9, 0]], [1.0], [2, 2]), x),
    "a row below": lambda x: times(rows(x, [[-(10**6), 0]], [1.0], [2, 2]), x),
    "a column beyond": lambda x: times(rows(x, [[0, 10**9]], [1.0], [2, 2]), x),
    "fewer values": lambda x: times(rows(x, [[0, 0], [1, 1]], [1.0], [2, 2]), x),
    "rows beyond memory": lambda x: times(rows(x, [], [], [2**30, 2]), x),
    "rows beyond 32 bits": lambda x: times(rows(x, [], [], [2**40, 2]), x),
    "sizes that wrap": lambda x: times(rows(x, [[0, 2**32 + 1]], [1.0], [2, 2**32 + 2]), x),
    "other sizes": lambda x: times(rows(x, [[0, 0]], [1.0], [2, 7]), x),
    "another variant": another_variant,
}


@pytest.mark.parametrize(
    "kind", [next(iter(COMPRESSED)), *(pytest.param(k, marks=pytest.mark.slow) for k in [*COMPRESSED][1:])]
)
def test_wrong_matrices_in_compressed_rows_end_in_one_line(kind: str, tmp_path: Path) -> None:
    """TensorFlow checks places and sizes of those that operations make."""
    path = saved(COMPRESSED[kind], tmp_path / "export")
    with pytest.raises(
        ExportError, match=r"failed in a fresh process|ended a fresh process|not finite|expected"
    ) as caught:
        reload([path], X)
    assert "\n" not in str(caught.value)


def variant() -> Any:
    """The proto of a matrix that no operation has checked: its rows begin far behind its entries."""
    from tensorflow.core.framework import tensor_pb2

    made = tensor_pb2.TensorProto(dtype=tf.variant.as_datatype_enum)
    made.tensor_shape.SetInParent()
    value = made.variant_val.add(type_name="tensorflow::CSRSparseMatrix")
    value.tensors.add().CopyFrom(tf.make_tensor_proto(np.array([0, 10**8, 10**8], np.int32)))
    return made


@pytest.mark.parametrize("place", ["constant", "list", "function", "variable", "restored"])
def test_a_matrix_that_no_operation_made_is_refused(place: str, harmless: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    content = (harmless / "1" / "saved_model.pb").read_bytes()
    stored = saved_model_pb2.SavedModel.FromString(content)
    [graph] = stored.meta_graphs
    functions = graph.graph_def.library.function
    if place == "variable":
        graph.object_graph_def.nodes.add().variable.dtype = tf.variant.as_datatype_enum
    elif place == "restored":
        node = next(n for f in functions for n in f.node_def if n.op == "RestoreV2")
        node.attr["dtypes"].list.type.append(tf.variant.as_datatype_enum)
    else:
        node = (functions[0].node_def if place == "function" else graph.graph_def.node).add(name="made", op="Const")
        node.attr["dtype"].type = tf.variant.as_datatype_enum
        held = node.attr["value"].list.tensor.add() if place == "list" else node.attr["value"].tensor
        held.CopyFrom(variant())
    with pytest.raises(ExportError, match=r"holds .* of type variant, such as a sparse matrix .*--trust"):
        check_harmless(stored.SerializeToString(), "here")


def test_an_export_with_compressed_rows_is_allowed(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="logits")])
    manifest = export(model, tmp_path / "export", task="classification", kernels="csr")
    assert manifest["layers"]["logits"]["form"] == "csr"
    assert reload([tmp_path / "export"], X)[0].outputs["probabilities"].shape == (3, 2)


OUTPUTS = {"NaN": [0.5, np.nan, 0.5], "infinite": [np.inf, 0.0, 0.0], "two of three": [0.1, 0.2], "one": 0.5}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_that_are_none(kind: str) -> None:
    fresh.check_outputs("here", {"mean": np.ones(3)}, 3)
    with pytest.raises(ExportError, match="here gives mean"):
        fresh.check_outputs("here", {"mean": np.asarray(OUTPUTS[kind])}, 3)
