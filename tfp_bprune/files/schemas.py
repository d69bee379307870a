"""What the files of runs, exports and searches hold, as JSON Schema; `reading.parse` holds them to it.

Entries that are not named here may be anything: nothing reads them but people.
"""

from __future__ import annotations

from typing import Any, get_args

from tfp_bprune.types import Order, Precision, Predictive

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
_LAYER = record(
    ("prunable", "nonzeros", "sparsity"),
    prunable=COUNT, nonzeros=COUNT, sparsity=PART, form=TEXT, shape=SHAPE, stored=COUNT, break_even=mapping(NUMBER),
    taken=optional(COUNT), precision=_PRECISION, elbo_loss=NUMBER,
)  # fmt: skip
_SCORES = record(split=TEXT, epoch=optional(COUNT), examples=COUNT) | {"additionalProperties": optional(NUMBER)}
_REQUEST = record(
    dataset=TEXT, model=optional(TEXT), data_dir=optional(TEXT), sparsity=optional(PART),
    validation_fraction={"type": "number", "minimum": 0, "exclusiveMaximum": 1},
)  # fmt: skip
_DATA = record(
    name=TEXT, task=TEXT, fingerprint=TEXT, batch_size=COUNT | {"minimum": 1}, seed=COUNT, train_size=COUNT,
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
    inputs=mapping(record(("shape", "dtype"), shape=INPUT_SHAPE, dtype=TEXT)), outputs=mapping({"type": "object"}),
    parameters=COUNT, prunable=COUNT, nonzeros=COUNT, sparsity=PART, layers=mapping(_LAYER),
    samples=COUNT, draw_seed=COUNT, error_rate=PART, float16={"type": "boolean"},
    costs=mapping(NUMBER), scores=_SCORES, before=_SCORES, latency_ms=mapping(POSITIVE), threads=COUNT,
    seconds=optional(NUMBER), request=optional(_REQUEST), pruning={"type": "object"}, machine={"type": "object"},
)  # fmt: skip

EXPORT_SCHEMA: Schema = record(
    ("predictive", "parameters", "prunable", "nonzeros", "sparsity", "layers", "bytes"),
    data=optional(_DATA),
)

CONFIG_SCHEMA: Schema = record(
    request=optional(_REQUEST), data=optional(_DATA), settings={"type": "object"}, architecture={"type": "object"},
    heads=mapping({"type": "object"}),
)  # fmt: skip

ARCHITECTURE_SCHEMA: Schema = {"type": "object"}

ROW_SCHEMA: Schema = record(epoch=COUNT) | {"additionalProperties": optional(NUMBER)}

TRIAL_SCHEMA: Schema = record(
    ("trial", "phase", "ranking", "counts", "excess", "nonzeros", "bytes", "latency", "accuracy", "accuracy_drop"),
    trial=COUNT, phase=TEXT, ranking={"enum": list(get_args(Order))}, counts=mapping(COUNT), nonzeros=NUMBER,
    accuracy=PART, nll=optional(NUMBER), ece=optional(NUMBER), accuracy_drop=NUMBER, excess=NUMBER,
    bytes=NUMBER, latency=NUMBER, sha256=DIGEST,
)  # fmt: skip

COST: Schema = {"type": "number", "exclusiveMinimum": 0, "maximum": 1e9}  # microseconds
