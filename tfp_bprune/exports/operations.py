"""Which operations a SavedModel may hold to be loaded unseen: those that compute, and change nothing outside of it.

A SavedModel is a program: it can read and write any file that its user can. The list is of what exports are made of, also
those of other Keras layers; all else is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tfp_bprune.types import ExportError

_ARITHMETIC = """
Abs AccumulateNV2 Acos Acosh Add AddN AddV2 All Any ApproximateEqual ArgMax ArgMin Asin Asinh Atan Atan2 Atanh BatchMatMul
BatchMatMulV2 BatchMatMulV3 BesselI0e BesselI1e Betainc BiasAdd BitwiseAnd BitwiseOr BitwiseXor Bucketize Cast Ceil Cholesky
ClipByValue Complex ComplexAbs Conj Cos Cosh Cross Cumprod Cumsum CumulativeLogsumexp DenseBincount Bincount Digamma Div
DivNoNan Einsum Elu Equal Erf Erfc Erfinv Exp Expm1 FFT FFT2D Floor FloorDiv FloorMod Greater GreaterEqual IFFT IFFT2D IRFFT
Igamma Igammac Imag Inv Invert IsFinite IsInf IsNan L2Loss LeakyRelu Less LessEqual Lgamma Log Log1p LogSoftmax LogicalAnd
LogicalNot LogicalOr MatMul MatrixBandPart MatrixDeterminant MatrixDiag MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3
MatrixDiagV2 MatrixDiagV3 MatrixInverse MatrixSetDiag MatrixSetDiagV3 MatrixSolve MatrixTriangularSolve Max Maximum Mean Min
Minimum Mod Mul MulNoNan Ndtri Neg NextAfter NotEqual Polygamma Pow Prod Qr RFFT Real RealDiv Reciprocal Relu Relu6 Rint Round
Rsqrt SegmentMax SegmentMean SegmentMin SegmentSum Selu Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Square
SquaredDifference Sub Sum Svd Tan Tanh TruncateDiv TruncateMod UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd
UnsortedSegmentSum Xdivy Xlog1py Xlogy Zeta SparseSoftmaxCrossEntropyWithLogits SoftmaxCrossEntropyWithLogits
"""
_IMAGES = """
AvgPool AvgPool3D AvgPoolGrad AvgPool3DGrad Conv2D Conv2DBackpropFilter Conv2DBackpropInput Conv3D Conv3DBackpropFilterV2
Conv3DBackpropInputV2 CropAndResize DepthToSpace DepthwiseConv2dNative DepthwiseConv2dNativeBackpropInput Dilation2D
ExtractImagePatches ExtractVolumePatches FractionalAvgPool FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 LRN MaxPool MaxPool3D
MaxPoolV2 MaxPoolWithArgmax HSVToRGB RGBToHSV AdjustContrastv2 AdjustHue AdjustSaturation ImageProjectiveTransformV2
ImageProjectiveTransformV3 ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor ScaleAndTranslate SpaceToBatch
SpaceToBatchND BatchToSpace BatchToSpaceND SpaceToDepth
"""
_ARRAYS = """
BroadcastArgs BroadcastTo Concat ConcatV2 Const EnsureShape ExpandDims Fill Gather GatherNd GatherV2 Identity IdentityN
InvertPermutation LinSpace ListDiff LowerBound UpperBound MirrorPad OneHot OnesLike Pack Pad PadV2 ParallelConcat Placeholder
PlaceholderWithDefault PreventGradient Range Rank Reshape ResourceGather ResourceGatherNd Reverse ReverseSequence ReverseV2 Roll
ScatterNd ScatterNdNonAliasingAdd Select SelectV2 Shape ShapeN Size Slice Snapshot Split SplitV Squeeze StopGradient
StridedSlice TensorScatterAdd TensorScatterMax TensorScatterMin TensorScatterSub TensorScatterUpdate Tile TopK TopKV2 Transpose
Unique UniqueV2 UniqueWithCounts Unpack UnravelIndex Where ZerosLike Bitcast EmptyTensorList TensorListConcatV2
TensorListElementShape TensorListFromTensor TensorListGather TensorListGetItem TensorListLength TensorListPopBack
TensorListPushBack TensorListReserve TensorListResize TensorListScatterV2 TensorListSetItem TensorListSplit TensorListStack
RaggedGather RaggedRange RaggedTensorFromVariant RaggedTensorToSparse RaggedTensorToTensor RaggedTensorToVariant RaggedBincount
SparseAdd SparseConcat SparseFillEmptyRows SparseMatMul SparseReduceSum SparseReorder SparseReshape SparseSegmentMean
SparseSegmentSum SparseSlice SparseSoftmax SparseTensorDenseAdd SparseTensorDenseMatMul SparseToDense SparseCross SparseCrossV2
SparseCrossHashed SparseBincount SparseSegmentSqrtN SparseMatrixMatMul SparseTensorToCSRSparseMatrix
"""
_STATE = """
VarHandleOp ReadVariableOp AssignVariableOp AssignAddVariableOp AssignSubVariableOp VarIsInitializedOp VariableShape
DestroyResourceOp DisableCopyOnRead HashTableV2 MutableHashTableV2 InitializeTableV2 LookupTableFindV2 LookupTableImportV2
LookupTableInsertV2 LookupTableSizeV2 LookupTableExportV2 AnonymousHashTable AnonymousMutableHashTable
"""
_CONTROL = """
NoOp Assert If StatelessIf Case StatelessCase While StatelessWhile PartitionedCall StatefulPartitionedCall Switch Merge Enter Exit
NextIteration LoopCond ControlTrigger XlaSharding OptionalFromValue OptionalGetValue OptionalHasValue OptionalNone
"""
_CHANCE = """
Multinomial RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt RngReadAndSkip StatelessMultinomial
StatelessParameterizedTruncatedNormal StatelessRandomBinomial StatelessRandomGammaV2 StatelessRandomGammaV3
StatelessRandomGetAlg StatelessRandomGetKeyCounter StatelessRandomGetKeyCounterAlg StatelessRandomNormal
StatelessRandomNormalV2 StatelessRandomPoisson StatelessRandomUniform StatelessRandomUniformFullInt
StatelessRandomUniformFullIntV2 StatelessRandomUniformInt StatelessRandomUniformIntV2 StatelessRandomUniformV2 StatelessShuffle
StatelessTruncatedNormal StatelessTruncatedNormalV2 TruncatedNormal RandomGamma
"""
_WORDS = """
AsString RegexFullMatch RegexReplace StaticRegexFullMatch StaticRegexReplace StringJoin StringLength StringLower StringNGrams
StringSplit StringSplitV2 StringStrip StringToHashBucketFast StringToHashBucketStrong StringToNumber StringUpper Substr
UnicodeDecode UnicodeDecodeWithOffsets UnicodeEncode UnsortedSegmentJoin ReduceJoin StringFormat
"""
_STORED = """
DecodeCompressed DecodeRaw RightShift
"""
_NETWORKS = """
CudnnRNN CudnnRNNV2 CudnnRNNV3 CudnnRNNCanonicalToParams CudnnRNNCanonicalToParamsV2 CudnnRNNParamsSize GRUBlockCell LSTMBlockCell
"""
_GRADIENTS = """
AvgPoolGrad BiasAddGrad BroadcastGradientArgs ConcatOffset CudnnRNNBackprop CudnnRNNBackpropV2 CudnnRNNBackpropV3 DynamicStitch EluGrad
FusedBatchNormGradV3 InvGrad LeakyReluGrad MaxPoolGrad ReciprocalGrad Relu6Grad ReluGrad RsqrtGrad SeluGrad SigmoidGrad
SoftplusGrad SoftsignGrad SqrtGrad StridedSliceGrad TanhGrad
"""
ALLOWED = frozenset(
    " ".join((_ARITHMETIC, _IMAGES, _ARRAYS, _STATE, _CONTROL, _CHANCE, _WORDS, _STORED, _NETWORKS, _GRADIENTS)).split()
)
# In the functions that write and read the variables: nothing that answers a request may reach them.
_SAVING = frozenset({"MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"})
_CLASSES = frozenset(
    {"", "tf.MutableHashTable", "tf.StaticHashTable", "tf.TrackableConstant"}
)  # TensorFlow's, and no code
_MOST = 50


def check_harmless(content: bytes, path: object) -> None:
    """Refuses a SavedModel that could do more than compute.

    Args:
      content: of `saved_model.pb`.

    Raises:
      ExportError: naming the operation, or the content is no SavedModel of TensorFlow 2.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        stored = saved_model_pb2.SavedModel.FromString(content)
    except (DecodeError, RuntimeError) as error:
        raise ExportError(f"{path} holds no SavedModel ({error}): restore it from a copy") from error
    if len(stored.meta_graphs) != 1 or not stored.meta_graphs[0].object_graph_def.nodes:
        raise ExportError(f"{path} is not a SavedModel of TensorFlow 2 with one graph: expected what export writes")
    [graph] = stored.meta_graphs
    functions = {function.signature.name: function for function in graph.graph_def.library.function}
    reached = _reached(functions, graph.object_graph_def.concrete_functions)
    _check(graph.graph_def.node, ALLOWED, path)
    for name, function in functions.items():
        _check(function.node_def, ALLOWED if name in reached else ALLOWED | _SAVING, path)
    if any(node.variable.dtype == _VARIANT for node in graph.object_graph_def.nodes):
        raise ExportError(f"{path} holds a variable of {_UNCHECKED}: {_REMEDY}")
    foreign = {node.registered_name for node in graph.object_graph_def.nodes} - _CLASSES
    if foreign or graph.asset_file_def:
        what = sorted(foreign)[0] if foreign else graph.asset_file_def[0].filename
        raise ExportError(f"{path} holds {what[:_MOST]!r}, which no export has: {_REMEDY}")


_REMEDY = "load it with --trust (trust=True) if you know who wrote it"


_VARIANT = 21  # types_pb2.DT_VARIANT
_UNCHECKED = "type variant, such as a sparse matrix whose places nobody checked"


def _check(nodes: Iterable[Any], allowed: frozenset[str], path: object) -> None:
    for node in nodes:
        if _stores_variant(node):
            raise ExportError(f"{path} holds the operation {node.op[:_MOST]!r} with numbers of {_UNCHECKED}: {_REMEDY}")
        if node.op not in allowed:
            raise ExportError(
                f"{path} holds the operation {node.op[:_MOST]!r}, which can do more than compute: {_REMEDY}"
            )


def _stores_variant(node: Any) -> bool:
    """Whether a node takes a variant out of a file, and not from an operation that made it, which checks what it makes."""
    if any(one.dtype == _VARIANT for value in node.attr.values() for one in (value.tensor, *value.list.tensor)):
        return True
    return node.op == "RestoreV2" and _VARIANT in node.attr["dtypes"].list.type


def _reached(functions: dict[str, Any], roots: Iterable[str]) -> set[str]:
    """The functions that are called, at any depth, by those that a loader makes callable."""
    reached: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in reached and name in functions:
            reached.add(name)
            waiting += _called(functions[name])
    return reached


def _called(function: Any) -> Iterator[str]:
    for node in function.node_def:
        yield node.op  # a function's name may stand in the place of an operation
        for value in node.attr.values():
            yield value.func.name
            yield from (one.name for one in value.list.func)
