"""What the files of runs, exports and searches hold, as JSON Schema; `reading.parse` holds them to it.

Entries that are not named here may be anything: nothing reads them but people.
"""

from __future__ import annotations

from typing import Any, get_args

from tfp_bprune.types import Granularity, Order, OutputTask, Precision, Predictive, Task

Schema = dict[str, Any]

_LARGEST = 2**53  # up to here a double holds every integer
NUMBER: Schema = {"type": "number"}
POSITIVE: Schema = {"type": "number", "exclusiveMinimum": 0}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": _LARGEST}
PART: Schema = {"type": "number", "minimum": 0, "maximum": 1}
TEXT: Schema = {"type": "string", "maxLength": 1000}
DIGEST: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
SIDE: Schema = {"type": "integer", "minimum": 1, "maximum": 2**31}
SHAPE: Schema = {"type": "array", "items": SIDE, "maxItems": 16}
INPUT_SHAPE: Schema = {"type": "array", "items": {"anyOf": [SIDE, {"type": "null"}]}, "maxItems": 16}


def optional(schema: Schema) -> Schema:
    """As `schema`, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def record(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """An object with these entries, all of them or those that are `required`, and maybe others."""
    return {"type": "object", "required": list(required), "properties": properties}


def mapping(entry: Schema) -> Schema:
    """An object whose entries all are alike."""
    return {"type": "object", "additionalProperties": entry}


def listing(item: Schema, most: int = 10**6) -> Schema:
    """A list of items that are alike."""
    return {"type": "array", "items": item, "maxItems": most}


_PRECISION: Schema = {"enum": list(get_args(Precision))}
_BITS = (8, 16, 32, 64)
_TYPES = [*(f"{kind}{bits}" for kind in ("float", "int", "uint") for bits in _BITS), "bfloat16", "bool", "string"]
_LAYER = record(
    ("prunable", "nonzeros", "sparsity"),
    prunable=COUNT, nonzeros=COUNT, sparsity=PART, form=TEXT, shape=SHAPE, stored=COUNT, break_even=mapping(NUMBER),
    taken=optional(COUNT), precision=_PRECISION, step=NUMBER, elbo_loss=NUMBER,
)  # fmt: skip
_SCORES = record(split=TEXT, epoch=optional(COUNT), examples=COUNT) | {"additionalProperties": optional(NUMBER)}
_REQUEST = record(
    dataset=TEXT, model=optional(TEXT), data_dir=optional(TEXT), sparsity=optional(PART),
    validation_fraction={"type": "number", "minimum": 0, "exclusiveMaximum": 1},
)  # fmt: skip
_HEAD = record(("task",), task={"enum": list(get_args(OutputTask))}, logits={"type": "boolean"})
_DATA = record(
    name=TEXT, task=TEXT, fingerprint=TEXT, batch_size=COUNT | {"minimum": 1}, seed=COUNT, train_size=COUNT,
)  # fmt: skip

# What the data of a run are loaded again by.
LOADED: Schema = record(
    ("request", "data"),
    request=_REQUEST | {"required": ["dataset", "validation_fraction"]},
    data=_DATA | {"required": ["batch_size", "seed"]},
)  # fmt: skip
_OF_FEATURES: Schema = {"anyOf": [NUMBER, listing(NUMBER, 10**7)]}
_TARGET = record(
    ("task", "classes"), task={"enum": list(get_args(Task))}, classes=SIDE, positions=SHAPE, loc=NUMBER, scale=NUMBER
)
INFO_SCHEMA: Schema = record(
    ("name", "task", "input_shape", "classes", "fingerprint"),
    name=TEXT, task={"enum": list(get_args(Task))}, input_shape=SHAPE, classes=SIDE, fingerprint=TEXT,
    scale=_OF_FEATURES, offset=_OF_FEATURES, target_loc=NUMBER, target_scale=NUMBER, positions=SHAPE,
    inputs=optional(mapping(SHAPE)), outputs=optional(mapping(_TARGET)),
)  # fmt: skip

MANIFEST_SCHEMA: Schema = record(
    ("format", "files"),
    format={"type": "integer"},
    sha256=DIGEST,
    files=mapping(record(("bytes", "sha256"), bytes=COUNT, sha256=DIGEST)),
    versions=mapping(TEXT), kind=TEXT, checkpoint=optional(TEXT), architecture=optional(TEXT), epoch=COUNT, seed=COUNT,
    bytes=COUNT, dense_bytes=COUNT, bytes_gzip=COUNT, payload_bytes=COUNT,
    precision={"anyOf": [_PRECISION, mapping(_PRECISION)]}, difference=NUMBER, precision_cost=record(examples=COUNT),
    network=optional(TEXT), inference=optional(TEXT), dataset=optional(TEXT),
    predictive={"enum": list(get_args(Predictive))}, export_format=TEXT, input_shape=INPUT_SHAPE,
    inputs=mapping(record(("shape", "dtype"), shape=INPUT_SHAPE, dtype={"enum": _TYPES})), outputs=mapping({"type": "object"}),
    parameters=COUNT, prunable=COUNT, nonzeros=COUNT, sparsity=PART, layers=mapping(_LAYER),
    samples=COUNT, batch={"type": "integer", "minimum": 1, "maximum": 2**16}, draw_seed=COUNT, error_rate=PART, float16={"type": "boolean"},
    rounding_loss=POSITIVE,
    costs=mapping(NUMBER), scores=_SCORES, before=_SCORES, latency_ms=mapping(POSITIVE), threads=COUNT,
    seconds=optional(NUMBER), request=optional(_REQUEST), pruning={"type": "object"}, machine={"type": "object"},
)  # fmt: skip

EXPORT_SCHEMA: Schema = record(
    ("predictive", "parameters", "prunable", "nonzeros", "sparsity", "layers", "bytes"),
    data=optional(_DATA),
)

CONFIG_SCHEMA: Schema = record(
    request=optional(_REQUEST), data=optional(_DATA), settings={"type": "object"}, architecture={"type": "object"},
    heads=mapping(_HEAD),
)  # fmt: skip

ARCHITECTURE_SCHEMA: Schema = {"type": "object"}

ROW_SCHEMA: Schema = record(epoch=COUNT) | {"additionalProperties": optional(NUMBER)}

TRIAL_SCHEMA: Schema = record(
    ("trial", "phase", "ranking", "counts", "excess", "nonzeros", "bytes", "latency"),
    trial=COUNT, phase=TEXT, ranking={"enum": list(get_args(Order))}, counts=mapping(COUNT), nonzeros=NUMBER,
    accuracy=PART, nll=optional(NUMBER), ece=optional(NUMBER), accuracy_drop=NUMBER, excess=NUMBER,
    rmse=NUMBER, rmse_increase=NUMBER, bytes=NUMBER, latency=NUMBER, bits=mapping({"enum": list(range(2, 9))}), sha256=DIGEST,
) | {"anyOf": [{"required": ["accuracy", "accuracy_drop", "nll"]}, {"required": ["rmse", "rmse_increase"]}]}  # fmt: skip

SEARCHED_SCHEMA: Schema = record(
    network=DIGEST, criterion=optional(TEXT), granularity={"enum": list(get_args(Granularity))}, sha256=DIGEST,
)  # fmt: skip

COST: Schema = {"type": "number", "exclusiveMinimum": 0, "maximum": 1e9}  # microseconds
