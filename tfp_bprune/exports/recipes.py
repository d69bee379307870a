"""LiteRT files in few bits, by Google's quantizer: which product of which layer takes which numbers.

The weights that come here lie on their grid already; a scale by the largest of each channel finds the grid again. Products are
known by the scope of their layer (`prediction.lower.scope_of`), which converters keep in the names of tensors.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tfp_bprune.exports.converting import REMEDY_FEW, failure, require
from tfp_bprune.exports.sparsify import packed
from tfp_bprune.prediction.grids import bits_of
from tfp_bprune.prediction.lower import scope_of
from tfp_bprune.prediction.program import NETWORK
from tfp_bprune.types import ExportError, Storage

_VARIANCE = "variance_"  # how the scopes of products with variances begin, `prediction.lower.scope_of`
_OF_VARIANCES = 8  # bits: uncertainties keep their order (rank correlation .9999 with float32)
_AT_ONCE = 50  # examples by which ranges are settled
_NO_WIDTH = 1e-8  # of a range, in units of a tensor that is 0 throughout
_FLOATS = ("SOFTMAX", "LOGISTIC")  # what makes probabilities, of which 8 bits would leave 1/256


def quantized(
    content: bytes,
    precision: Mapping[str, Storage],
    representative: Mapping[str, np.ndarray] | None = None,
    ends: Mapping[str, set[str]] | None = None,
    batch: int | None = None,
) -> bytes:
    """A LiteRT file in float32 with the weights of some layers in 8 or 4 bits, a scale for each channel.

    Args:
      content: of the file.
      precision: by the layer's name.
      representative: examples [n, ...] by the input's name: activations of the whole network take 8 bits too, in ranges that
        these settle. Without them each product rounds what it reads as it comes.
      ends: as of `Predictor`: layers whose outputs stay in float32, as answers are made of them.
      batch: the one size of batches that the file takes; None for any.

    Raises:
      ExportError: the quantizer is not installed or fails, or LiteRT multiplies none of a layer's kernels in so few bits.
    """
    require("litert", "ai_edge_quantizer")
    from ai_edge_quantizer.qtyping import TFLOperationName as Op
    from ai_edge_quantizer.quantizer import Quantizer

    content, last = _scoped(content, ends or {}), set().union(*(ends or {}).values())
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all tensors are kept while ranges are settled, as it should be
        made = Quantizer(bytearray(content))
        if representative is not None:
            _all_static(made)
            for name in _behind_variances(content):
                made.update_quantization_recipe(f"^{re.escape(name)};", Op.ALL_SUPPORTED, algorithm_key="no_quantize")
        for layer, storage in precision.items():
            _of_layer(made, layer, storage, static=representative is not None and layer not in last)
        try:
            ranges = None if representative is None else _ranges(made, _batches(representative, batch))
            content = bytes(made.quantize(ranges).quantized_model)
        except ExportError:
            raise
        except Exception as error:
            raise failure("LiteRT's quantizer", error, remedy=REMEDY_FEW) from error
    _check_types(content, precision)
    return content


def _scoped(content: bytes, ends: Mapping[str, set[str]]) -> bytes:
    """The file with the scope of their layer before the names of products that are answers themselves, as the means of several
    targets are: the converter names these after the signature, where no recipe finds them."""
    from ai_edge_litert import schema_py_generated as schema

    model, changed = schema.ModelT.InitFromPackedBuf(content, 0), False
    for signature in model.signatureDefs or []:
        graph = model.subgraphs[signature.subgraphIndex]
        products = {one.outputs[0] for one in graph.operators if _kernels(model, graph, one)}
        for output in signature.outputs:
            name, tensor = output.name.decode(), graph.tensors[output.tensorIndex]
            layers = ends.get(max((prefix for prefix in ends if name.startswith(prefix)), key=len, default=""), set())
            if output.tensorIndex in products and len(layers) == 1:
                [layer] = layers
                tensor.name, changed = f"{scope_of(layer)}/".encode() + tensor.name, True
    return packed(model) if changed else content


def _all_static(made: Any) -> None:
    from ai_edge_quantizer.qtyping import TFLOperationName as Op

    made.add_static_config(f"{NETWORK}/", Op.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    for name in _FLOATS:
        made.update_quantization_recipe(f"{NETWORK}/", Op(name), algorithm_key="no_quantize")


def _behind_variances(content: bytes) -> list[str]:
    """The names of what is made of a variance, but for products with kernels, which `_of_layer` settles by itself. Variances
    differ by factors, and so does what they are made of and multiplied with: steps of one width would make 0 of the small ones,
    and LiteRT's kernels end the process where a sum's steps are far narrower than those of its parts."""
    from ai_edge_litert import schema_py_generated as schema

    model, found = schema.ModelT.InitFromPackedBuf(content, 0), []
    scope = f"{NETWORK}/{_VARIANCE}".encode()
    for graph in model.subgraphs:
        made: set[int] = set()
        for operator in graph.operators:  # in the order of computation
            if made.intersection(operator.inputs) or any(scope in graph.tensors[one].name for one in operator.outputs):
                made.update(operator.outputs)
                found.append(graph.tensors[operator.outputs[0]].name.decode())
    return found


def _of_layer(made: Any, layer: str, storage: Storage, static: bool) -> None:
    from ai_edge_quantizer.qtyping import TFLOperationName as Op

    bits, scope = bits_of(storage), scope_of(layer)
    for one in (scope, scope_of(layer, "variance")):
        made.update_quantization_recipe(one, Op.ALL_SUPPORTED, algorithm_key="no_quantize")
    if bits is not None and static:
        made.add_static_config(scope, Op.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=bits)
    elif bits is not None:
        made.add_dynamic_config(scope, Op.ALL_SUPPORTED, num_bits=bits)
        # Products with variances and squares of means: in float32, since what they read differs by factors.
        made.add_weight_only_config(scope_of(layer, "variance"), Op.ALL_SUPPORTED, num_bits=_OF_VARIANCES)


def _check_types(content: bytes, precision: Mapping[str, Storage]) -> None:
    """Refuses a layer of which a kernel stayed in float32, as the quantizer leaves what the runtime has no product for."""
    from ai_edge_litert import schema_py_generated as schema

    wanted = {f"int{bits}": getattr(schema.TensorType, f"INT{bits}") for bits in (4, 8)}
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for layer, storage in precision.items():
        scope = scope_of(layer).encode()
        for graph in model.subgraphs:
            for operator in (one for one in graph.operators if scope in graph.tensors[one.outputs[0]].name):
                for kernel in _kernels(model, graph, operator):
                    if kernel.type == schema.TensorType.FLOAT32 or (
                        kernel.type in wanted.values() and kernel.type != wanted[storage]
                    ):
                        others = "'float32'" if storage == "int8" else "'int8', or 'float32'"
                        raise ExportError(
                            f"LiteRT has no product of layer {layer!r} with weights in {storage}: choose {others}"
                        )


def _kernels(model: Any, graph: Any, operator: Any) -> list[Any]:
    """The constant inputs of an operator that have two axes or more."""
    tensors = [graph.tensors[index] for index in operator.inputs if index >= 0]
    stored = [
        tensor
        for tensor in tensors
        if model.buffers[tensor.buffer].data is not None or model.buffers[tensor.buffer].size
    ]
    return [tensor for tensor in stored if tensor.shape is not None and len(tensor.shape) >= 2]


def _ranges(made: Any, batches: Iterable[dict[str, np.ndarray]]) -> dict[str, Any]:
    """What each tensor reaches in any of the batches. The converter would take averages over them, and those of small batches
    cut off what only some examples reach."""
    found: dict[str, Any] = {}
    for batch in batches:
        for name, new in made.calibrate({"serving_default": [batch]}).items():
            old = found.get(name)
            wider = (
                {"min": np.minimum(old["min"], new["min"]), "max": np.maximum(old["max"], new["max"])} if old else {}
            )
            found[name] = new | wider
    _check_finite(found)
    return _with_width(found)


def _check_finite(ranges: Mapping[str, Any]) -> None:
    for name, reached in ranges.items():
        if not np.isfinite([np.min(reached["min"]), np.max(reached["max"])]).all():
            raise ExportError(
                f"representative examples settle the ranges of activations, and {name!r} overflows on them: expected finite "
                "activations; scale the inputs, or leave out representative examples"
            )


def _with_width(ranges: dict[str, Any]) -> dict[str, Any]:
    """The ranges, in which a tensor that none of the examples made anything but 0 has the middling width of all others: of none
    at all the quantizer would make steps so small that LiteRT's kernels fail, or end the process."""
    ends = {name: (min(0.0, float(np.min(r["min"]))), max(0.0, float(np.max(r["max"])))) for name, r in ranges.items()}
    widths = {name: high - low for name, (low, high) in ends.items()}
    usual = float(np.median([width for width in widths.values() if width > _NO_WIDTH] or [1.0]))
    return {
        name: one if widths[name] > _NO_WIDTH else one | {"max": np.full_like(one["max"], usual)}
        for name, one in ranges.items()
    }


def _batches(examples: Mapping[str, np.ndarray], batch: int | None) -> list[dict[str, np.ndarray]]:
    """The first examples in batches of the one size that a file takes, or all at once."""
    count = len(next(iter(examples.values())))
    size = batch or min(count, _AT_ONCE)
    starts = range(0, min(count, _AT_ONCE), size)
    return [{name: x[np.arange(i, i + size) % count] for name, x in examples.items()} for i in starts]


def constants(content: bytes) -> int:
    """Bytes of all numbers in a LiteRT file, and of where those of sparse kernels lie."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    size = sum(buffer.size if buffer.data is None else len(buffer.data) for buffer in model.buffers)
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        if tensor.quantization is not None and tensor.quantization.scale is not None:
            size += 4 * len(tensor.quantization.scale)
        for axis in [] if tensor.sparsity is None else tensor.sparsity.dimMetadata:
            for part in (axis.arraySegments, axis.arrayIndices):
                size += 0 if part is None else np.asarray(part.values).nbytes
    return size
