"""ONNX and LiteRT files of strangers: searched, as SavedModels are (`operations`), before a runtime gets them.

The operations of both formats compute and do nothing else, but both let a file name code that the runtime may have from
elsewhere, and numbers that lie in other files.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Any

from tfp_bprune.exports.converting import require
from tfp_bprune.types import ExportError

_REMEDY = "load it with --trust (trust=True) if you know who wrote it"
_STANDARD = ("", "ai.onnx")  # the domain of the operations that ONNX itself defines
_IDENTIFIER = b"TFL3"
_MOST_CODES = 1000  # operations of different kinds; there are some two hundred
_FOREIGN = ("CUSTOM", "DELEGATE", "PLACEHOLDER_FOR_GREATER_OP_CODES", "STABLEHLO_CUSTOM_CALL", "STABLEHLO_COMPOSITE")
_MOST = 50  # characters of a name


def check_onnx(name: str, content: bytes, path: object) -> None:
    """Refuses an ONNX file with operations that ONNX does not define, or with numbers in other files.

    Raises:
      ExportError: naming what was found, or the file is no ONNX file.
    """
    require("onnx", "onnx")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(content)
    except (DecodeError, RuntimeError) as error:
        raise ExportError(f"{path} holds no ONNX model ({error}): restore it from a copy") from error
    if not model.graph.node:
        raise ExportError(f"{path} holds an ONNX model without operations: expected what export writes")
    if model.functions or model.training_info:
        raise ExportError(f"{path} holds functions or a training of its own, which no export has: {_REMEDY}")
    for node in nodes_of(model.graph):
        if node.domain not in _STANDARD or not onnx.defs.has(node.op_type, ""):
            what = ".".join(filter(None, (node.domain, node.op_type)))
            raise ExportError(f"{path} holds the operation {what[:_MOST]!r}, which is none of ONNX's own: {_REMEDY}")
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
            raise ExportError(f"{path} has the numbers of {tensor.name[:_MOST]!r} in another file: {_REMEDY}")


def nodes_of(graph: Any) -> Iterator[Any]:
    """All nodes of an ONNX graph, those in the bodies of loops and branches too."""
    for node in graph.node:
        yield node
        for inner in _inner(node):
            yield from nodes_of(inner)


def _inner(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
        for inner in _inner(node):
            yield from _tensors(inner)


def check_litert(name: str, content: bytes, path: object) -> None:
    """Refuses a LiteRT file with operations other than the builtin ones, or with numbers in other files.

    Raises:
      ExportError: naming what was found, or the file is no LiteRT file.
    """
    require("litert", "ai_edge_litert")
    from ai_edge_litert import schema_py_generated as schema

    builtin = {code: word for word, code in vars(schema.BuiltinOperator).items() if not word.startswith("_")}
    with _readable(content, path):
        model = schema.Model.GetRootAs(content, 0)
        codes, subgraphs = model.OperatorCodesLength(), model.SubgraphsLength()
        if not 0 < codes <= _MOST_CODES or not subgraphs or not model.SignatureDefsLength():
            raise ExportError(
                f"{path} holds a LiteRT model of {codes} kinds of operations, {subgraphs} graphs and "
                f"{model.SignatureDefsLength()} signatures: expected what export writes"
            )
        for signature in map(model.SignatureDefs, range(model.SignatureDefsLength())):
            if signature.SubgraphIndex() >= subgraphs:  # by which the interpreter would read beyond its memory
                raise ExportError(
                    f"{path} has a signature of the graph {signature.SubgraphIndex()}, of {subgraphs}: "
                    "restore it from a copy"
                )
        if model.ExternalBuffersLength() or model.ExternalBufferGroupsLength():
            raise ExportError(f"{path} has numbers in another file: {_REMEDY}")
        for operation in map(model.OperatorCodes, range(codes)):
            code = max(operation.BuiltinCode(), operation.DeprecatedBuiltinCode())
            found = builtin.get(code, str(code))
            if code not in builtin or found in _FOREIGN or operation.CustomCode() is not None:
                what = (operation.CustomCode() or found.encode())[:_MOST].decode(errors="replace")
                raise ExportError(f"{path} holds the operation {what!r}, which is none of LiteRT's own: {_REMEDY}")


@contextlib.contextmanager
def _readable(content: bytes, path: object) -> Iterator[None]:
    """Within it places that lie outside of `content` are said to be damage."""
    try:
        if content[4:8] != _IDENTIFIER:
            raise ValueError("it does not say that it is one")
        yield
    except ExportError:
        raise
    except (struct.error, ValueError, TypeError, IndexError, OverflowError) as error:
        raise ExportError(f"{path} holds no LiteRT model ({error}): restore it from a copy") from error
