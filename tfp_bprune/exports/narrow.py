"""ONNX files in few bits: products in whole numbers by ONNX Runtime's own tools, other weights stored small and made ready at load.

The weights that come here lie on their grid already; a scale by the largest of each channel finds the grid again. Products
are known by the scope of their layer (`prediction.lower.scope_of`), which is kept in the names of nodes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune._keras import errors_alone
from tfp_bprune.files.aside import scratch
from tfp_bprune.prediction.lower import scope_of
from tfp_bprune.prediction.program import NETWORK
from tfp_bprune.types import Storage

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_PASSING = (
    "Relu",
    "MaxPool",
    "AveragePool",
    "Reshape",
    "Transpose",
    "Flatten",
    "Add",
)  # in the ranges of what they read
_VARIANCE = "variance_"  # how the scopes of products with variances begin, `prediction.lower.scope_of`
_AT_ONCE, _BATCH = 500, 50  # examples by which ranges are settled
_TOP = 127


def narrowed(
    model: Any,
    precision: Mapping[str, Storage],
    representative: Mapping[str, np.ndarray] | None,
    last: Collection[str],
    batch: int | None = None,
) -> Any:
    """An ONNX model in float32 with the weights of some layers in 8 or 16 bits.

    Args:
      model: `onnx.ModelProto`.
      precision: by the layer's name.
      representative: examples [n, ...] by the input's name, which settle the ranges of activations: products of all layers in
        8 bits but the last ones are in whole numbers then. Without them dense products are, which round what they read as it
        comes; convolutions read weights of 8 bits in float32.
      last: layers whose outputs stay in float32, as answers are made of them.
      batch: the one size of batches that the model takes; None for any.
    """
    layers = [name for name, storage in precision.items() if storage == "int8"]
    settled = [name for name in layers if representative is not None and name not in last]
    if settled:
        model = _static(model, settled, representative, batch or _BATCH)
    products = [node.name for node in _nodes_of(model, layers) if node.op_type in ("MatMul", "Gemm")]
    if products:
        model = _by_tool(model, lambda source, target: _dynamic(source, target, products))
    for storage, store in (("int8", _as_int8), ("float16", _as_float16)):
        _store(model, [name for name, one in precision.items() if one == storage], store)
    return model


def _static(model: Any, layers: Collection[str], examples: Any, batch: int) -> Any:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    nodes = [node.name for node in _nodes_of(model, layers) if node.op_type in _PRODUCTS]
    behind = _behind_variances(model)
    nodes += [
        node.name
        for node in model.graph.node
        if node.op_type in _PASSING and node.name.startswith(f"{NETWORK}/") and node.name not in behind
    ]

    def quantize(source: Path, target: Path) -> None:
        quantize_static(
            source, target, _Reader(examples, batch), quant_format=QuantFormat.QDQ, per_channel=True, nodes_to_quantize=nodes,
            op_types_to_quantize=[*_PRODUCTS, *_PASSING], weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
        )  # fmt: skip

    return _by_tool(model, quantize)


def _behind_variances(model: Any) -> set[str]:
    """The names of nodes that read what is made of a variance. Variances differ by factors: steps of one width would make 0 of
    the small ones, by which others are divided."""
    made: set[str] = set()
    found = set()
    for node in model.graph.node:  # in the order of computation
        if f"{NETWORK}/{_VARIANCE}" in node.name or made.intersection(node.input):
            found.add(node.name)
            made.update(node.output)
    return found


def _dynamic(source: Path, target: Path, nodes: list[str]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source, target, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8,
        nodes_to_quantize=nodes,
    )  # fmt: skip


class _Reader:
    """Batches of examples, one after the other, as the tools ask for them."""

    def __init__(self, examples: Mapping[str, np.ndarray], size: int) -> None:
        count = len(next(iter(examples.values())))
        starts = range(0, min(count, _AT_ONCE), size)
        self._batches = iter({name: x[np.arange(i, i + size) % count] for name, x in examples.items()} for i in starts)

    def get_next(self) -> Any:
        """The next batch; None after the last."""
        return next(self._batches, None)


def _by_tool(model: Any, tool: Callable[[Path, Path], None]) -> Any:
    """What a tool makes of the model, which takes and gives files, without what it says."""
    import onnx

    with errors_alone(logging.getLogger()), scratch() as folder:
        source, target = folder / "source.onnx", folder / "target.onnx"
        onnx.save(model, str(source))
        tool(source, target)
        return onnx.load(str(target))


def _nodes_of(model: Any, layers: Collection[str]) -> Iterator[Any]:
    """The nodes that multiply by the means of these layers."""
    scopes = [scope_of(name) for name in layers]
    return (node for node in model.graph.node if any(f"/{scope}/" in f"/{node.name}/" for scope in scopes))


def _store(model: Any, layers: Collection[str], store: Callable[[Any, str, np.ndarray], list[Any]]) -> None:
    """Stores small what constants of these layers are still in float32; ONNX Runtime makes them ready when it loads the file."""
    from onnx import numpy_helper

    scopes = [scope_of(name, of) for name in layers for of in ("mean", "variance")]
    found = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) > 1}
    readers = [node for node in model.graph.node if any(scope in node.name for scope in scopes)]
    names = [name for name in Counter(name for node in readers for name in node.input) if name in found]
    for name in names:
        array = numpy_helper.to_array(found[name])
        if array.dtype == np.float32:
            model.graph.initializer.remove(found[name])
            for node in reversed(store(model, name, array)):
                model.graph.node.insert(0, node)


def _as_float16(model: Any, name: str, array: np.ndarray) -> list[Any]:
    from onnx import TensorProto, helper, numpy_helper

    most = np.finfo(np.float16).max
    small = np.clip(array, -most, most).astype(np.float16)
    model.graph.initializer.append(numpy_helper.from_array(small, f"{name}/half"))
    return [helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT)]


def _as_int8(model: Any, name: str, array: np.ndarray) -> list[Any]:
    """Whole numbers times a scale along the axis on which they lose least: that of the outputs.

    A cast and a product, which ONNX Runtime computes once: `DequantizeLinear` it would compute in every call.
    """
    from onnx import TensorProto, helper, numpy_helper

    tried = [_whole(array, axis) for axis in range(array.ndim)]
    codes, scale = min(tried, key=lambda one: float(np.square((one[0] * one[1] - array).astype(np.float64)).sum()))
    model.graph.initializer.extend(
        [numpy_helper.from_array(codes, f"{name}/codes"), numpy_helper.from_array(scale, f"{name}/scale")]
    )
    return [
        helper.make_node("Cast", [f"{name}/codes"], [f"{name}/wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}/wide", f"{name}/scale"], [name]),
    ]


def _whole(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    others = tuple(one for one in range(array.ndim) if one != axis)
    peak = np.abs(array).max(others, keepdims=True, initial=0.0)
    scale = np.where(peak > 0, peak / _TOP, 1).astype(np.float32)
    return np.rint(array / scale).astype(np.int8), scale
