"""What a product with a kernel costs in each form: a model of a few numbers, shipped or measured on the machine.

    dense(batch)  = call + in out (read + batch multiply)
    sparse(batch) = call + turn batch (in + out) + stored (entry + batch entry_each)
    csr(batch)    = the same with numbers of its own

in microseconds. A dense kernel is read once and multiplied once for each example; a sparse one costs a visit for each
stored entry and a little for each example in it. It takes and gives examples as columns, which only the first and the
last of a row of sparse layers have to turn. "sparse" is a list of entries and their places (COO), "csr" is compressed by
rows, which costs more a call and less an entry.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.files.reading import read_below, read_json
from tfp_bprune.files.schemas import COST, record
from tfp_bprune.files.writing import unsealed, write_json
from tfp_bprune.prediction.csr import CsrMatrix
from tfp_bprune.prediction.stored import Packed
from tfp_bprune.types import ExportError, Kernels, Product, RunError

BATCHES = tuple(2**i for i in range(14))
TYPICAL = 64
FORMS: tuple[Product, ...] = get_args(Product)
SPARSE = FORMS[1:]
_CLEAR, _CLEAR_PART = 8.0, 0.15  # microseconds, and part of the dense product's
_SHAPES = ((784, 500), (256, 128), (1024, 1024))
_SPARSITIES = (0.7, 0.9, 0.97)
_TAKEN = (0.2, 0.6)
_AS_SPARSE = {"csr_call": "sparse_call", "csr_entry": "entry", "csr_entry_each": "entry_each", "csr_turn": "turn"}
_ADDED = ("take_call", "take", "skip", *_AS_SPARSE)  # which files of before have not
_ROUNDS, _PRODUCTS = 9, 8
_NOISE = 30.0  # microseconds
_LEAST = 1e-9  # microseconds: a sum of costs that is divided by is never 0


@dataclass(frozen=True)
class Costs:
    """Microseconds; the shipped ones are of two cores of an AMD EPYC server.

    Attributes:
      dense_call, sparse_call: of a product, whatever its size.
      read, multiply: for each weight of a dense kernel, once a call and once an example.
      entry, entry_each: for each stored weight of a sparse kernel, once a call and once an example.
      turn: for each activation that a sparse product reads or makes.
      csr_call, csr_entry, csr_entry_each, csr_turn: the same of a kernel in compressed rows.
      take_call, take, skip: of taking some inputs out of an example's, once a call, for each that is taken and for each that
        there is.
    """

    dense_call: float = 10.0
    read: float = 1.6e-4
    multiply: float = 7.5e-6
    sparse_call: float = 9.0
    entry: float = 3.0e-3
    entry_each: float = 5.2e-5
    turn: float = 3.3e-4
    take_call: float = 5.0
    take: float = 4.0e-3
    skip: float = 1.0e-6
    csr_call: float = 85.0
    csr_entry: float = 2.1e-3
    csr_entry_each: float = 2.5e-5
    csr_turn: float = 3.3e-4

    def dense(self, batch: Any, shape: tuple[int, ...]) -> Any:
        """Microseconds of a dense product with a kernel [in, out]."""
        return self.dense_call + math.prod(shape) * (self.read + batch * self.multiply)

    def sparse(self, batch: Any, shape: tuple[int, ...], stored: int) -> Any:
        """Microseconds of a sparse product over `stored` entries."""
        return self.sparse_call + self.turn * batch * sum(shape) + stored * (self.entry + batch * self.entry_each)

    def csr(self, batch: Any, shape: tuple[int, ...], stored: int) -> Any:
        """Microseconds of a product over `stored` entries in compressed rows."""
        each = self.csr_entry + batch * self.csr_entry_each
        return self.csr_call + self.csr_turn * batch * sum(shape) + stored * each

    def of(self, form: Product, batch: Any, shape: tuple[int, ...], stored: int) -> Any:
        """Microseconds of a product in this form with a kernel [in, out] that has `stored` entries."""
        return self.dense(batch, shape) if form == "dense" else getattr(self, form)(batch, shape, stored)

    def fastest(self, batch: int, shape: tuple[int, ...], stored: int, forms: Sequence[Product] = FORMS) -> Product:
        """The form that costs the least; of several the one that `forms` names first."""
        return min(forms, key=lambda form: float(self.of(form, batch, shape, stored)))

    def taken(self, batch: Any, count: int, inputs: int) -> Any:
        """Microseconds of taking `count` inputs out of those of each example."""
        return self.take_call + batch * (self.take * count + self.skip * inputs)

    def break_even(self, shape: tuple[int, ...], batch: int, forms: Sequence[Product] = ("sparse",)) -> float:
        """The sparsity from which on one of these products of a kernel [in, out] is faster; above 1 where none ever is."""
        return min(self._break_even(form, shape, batch) for form in forms)

    def _break_even(self, form: Product, shape: tuple[int, ...], batch: int) -> float:
        empty, one = (self.of(form, batch, shape, stored) for stored in (0, 1))
        return 1 - float((self.dense(batch, shape) - empty) / (one - empty) / math.prod(shape))


# LiteRT and ONNX Runtime: calls cost next to nothing, and inputs are turned, taken as rows and turned back.
CONVERTED = Costs(2.0, 2.0e-4, 1.4e-5, take_call=2.0, take=4.0e-4, skip=4.0e-4)
SHIPPED = (Costs(), CONVERTED)


@dataclass(frozen=True)
class Choice:
    """In which form a kernel is multiplied, by the size of the batch.

    Attributes:
      forms: from small batches to large ones.
      limits: from which batch on the next one of them is used; one fewer than forms.
    """

    forms: tuple[Product, ...]
    limits: tuple[int, ...] = ()

    @property
    def sparse(self) -> bool:
        """Whether any form is sparse."""
        return any(form in SPARSE for form in self.forms)

    @property
    def form(self) -> str:
        """For people and manifests: "dense", or "csr below batch 32, sparse below batch 512, then dense"."""
        below = [f"{form} below batch {limit}" for form, limit in zip(self.forms, self.limits, strict=False)]
        return ", ".join([*below, f"then {self.forms[-1]}" if below else self.forms[-1]])


def choose(
    kernels: Kernels,
    shape: tuple[int, ...],
    stored: int,
    costs: Costs,
    by_batch: bool = True,
    forms: Sequence[Product] = FORMS,
) -> Choice:
    """The form of a dense layer's kernel that has `stored` entries left: of `forms` the fastest one at each batch size.

    Without `by_batch` one form for all, the fastest one at a batch of `TYPICAL`. By the shipped costs, which are another
    machine's, also this one, and sparse for a clear saving alone: changing between forms costs more than the small savings
    that these costs can tell. Between sparse forms, which both take columns, it changes where that clearly saves.
    """
    if kernels != "auto":
        return Choice((kernels,))
    typical = costs.fastest(TYPICAL, shape, stored, forms)
    if costs in SHIPPED and not _saves("dense", typical, TYPICAL, shape, stored, costs):
        return Choice(("dense",))
    if not by_batch:
        return Choice((typical,))

    def fastest(batch: int) -> Product:
        if costs not in SHIPPED:
            return costs.fastest(batch, shape, stored, forms)
        best = costs.fastest(batch, shape, stored, [form for form in forms if form in SPARSE])
        return best if _saves(typical, best, batch, shape, stored, costs) else typical

    used = [fastest(batch) for batch in BATCHES]
    changes = [i for i in range(1, len(BATCHES)) if used[i] != used[i - 1]]
    return Choice((used[0], *(used[i] for i in changes)), tuple(BATCHES[i] for i in changes))


def _saves(one: Product, other: Product, batch: int, shape: tuple[int, ...], stored: int, costs: Costs) -> bool:
    """Whether the other form is clearly faster, so that it should be on most machines."""
    before, after = (float(costs.of(form, batch, shape, stored)) for form in (one, other))
    return before - after > max(_CLEAR, _CLEAR_PART * before)


def takes(
    kernels: Kernels,
    shape: tuple[int, ...],
    read: int,
    stored: int,
    costs: Costs,
    products: int = 1,
    forms: Sequence[Product] = FORMS,
) -> bool:
    """Whether a kernel [in, out], of which `read` inputs have any entries, is multiplied faster by these alone.

    At a batch of `TYPICAL`, with taking them out of the others; by shipped costs for a clear saving alone, as in `choose`.

    Args:
      products: how many are made of inputs that are taken once.
      forms: of which one is chosen.
    """

    def product(inputs: int) -> float:
        kernel = (inputs, shape[1])
        form = costs.fastest(TYPICAL, kernel, stored, forms) if kernels == "auto" else kernels
        return products * float(costs.of(form, TYPICAL, kernel, stored))

    whole = product(shape[0])
    spared = whole - product(read) - costs.taken(TYPICAL, read, shape[0])
    return bool(spared > (max(_CLEAR, _CLEAR_PART * whole) if costs in SHIPPED else 0))


def measure() -> Costs:
    """The costs of this machine, from products of a few shapes, sparsities and batches; takes some seconds."""
    dense, sparse, csr = [], [], []
    taken: list[tuple[float, ...]] = []
    random = np.random.default_rng(0)
    for shape in _SHAPES:
        kernel = random.normal(size=shape).astype(np.float32)
        for batch in (1, 8, 64, 256):
            x = tf.constant(random.normal(size=(batch, shape[0])), tf.float32)
            dense.append((*_dense_terms(shape, batch), _beyond_call(_dense_product(kernel), x)))
            for part in _TAKEN:
                taken.append(
                    (1.0, round(part * shape[0]) * batch, shape[0] * batch, _beyond_call(_taking(shape[0], part), x))
                )
            for sparsity in _SPARSITIES:
                pattern = random.random(shape) > sparsity
                terms, columns = _sparse_terms(shape, batch, int(pattern.sum())), tf.transpose(x)
                sparse.append((*terms, _beyond_call(_sparse_product(kernel * pattern), columns)))
                csr.append((*terms, _beyond_call(_csr_product(kernel * pattern), columns)))
    call, read, multiply = _fitted(dense)
    sparse_call, turn, entry, each = _fitted(sparse)
    csr_call, csr_turn, csr_entry, csr_each = _fitted(csr)
    rest = {"csr_call": csr_call, "csr_entry": csr_entry, "csr_entry_each": csr_each, "csr_turn": csr_turn}
    rest |= dict(zip(("take_call", "take", "skip"), _fitted(taken), strict=True))
    return Costs(call, read, multiply, sparse_call, entry, each, turn, **rest)


def _dense_terms(shape: tuple[int, ...], batch: int) -> tuple[float, ...]:
    return 1.0, math.prod(shape), math.prod(shape) * batch


def _sparse_terms(shape: tuple[int, ...], batch: int, stored: int) -> tuple[float, ...]:
    return 1.0, batch * sum(shape), stored, stored * batch


def _fitted(rows: list[tuple[float, ...]]) -> list[float]:
    """Coefficients, none below `_LEAST`, of the least squared error relative to the time, or to what is noise in short ones."""
    from scipy.optimize import nnls

    table = np.array(rows)
    terms, took = table[:, :-1], table[:, -1]
    weights = 1 / np.maximum(took, _NOISE)
    scale = np.linalg.norm(terms * weights[:, None], axis=0)
    found, _ = nnls(terms * weights[:, None] / scale, took * weights)
    return [max(_LEAST, float(value)) for value in found / scale]


def _dense_product(kernel: np.ndarray) -> Callable[[Any], Any]:
    held = tf.constant(kernel)
    return lambda x: tf.matmul(x, held)


def _sparse_product(kernel: np.ndarray) -> Callable[[Any], Any]:
    turned = np.ascontiguousarray(kernel.T)
    held = tf.SparseTensor(np.argwhere(turned), turned[turned != 0], turned.shape)
    return lambda columns: tf.sparse.sparse_dense_matmul(held, columns)


def _csr_product(kernel: np.ndarray) -> Callable[[Any], Any]:
    pattern = np.ascontiguousarray(kernel.T) != 0
    held = CsrMatrix(Packed(pattern, [kernel.T], "float32"), 0)
    return held.times


def _taking(size: int, part: float) -> Callable[[Any], Any]:
    places = np.linspace(0, size - 1, round(part * size)).astype(np.int32)
    return lambda x: tf.gather(x, places, axis=1)


def _beyond_call(product: Callable[[Any], Any], x: Any) -> float:
    """Microseconds of a product by itself, without those of calling any function from Python; at least 1.

    A call takes longer, and varies by more, than what is to be told apart: so many products are made in each.
    """

    def repeated(inputs: Any) -> Any:
        made: list[Any] = []
        for _ in range(_PRODUCTS):  # one after the other, and all read: what nothing reads is not made
            with tf.control_dependencies(made[-1:]):
                made.append(product(inputs))
        return tf.add_n([one[:1, :1] for one in made])

    called = _microseconds(tf.function(lambda inputs: inputs[:1, :1] + 1.0), x)
    return max(1.0, (_microseconds(tf.function(repeated), x) - called) / _PRODUCTS)


def _microseconds(call: Callable[[Any], Any], x: Any) -> float:
    call(x)
    begin = time.perf_counter()
    call(x).numpy()
    times = max(1, min(50, round(3e-3 / (time.perf_counter() - begin))))
    rounds = []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        for _ in range(times):
            call(x).numpy()
        rounds.append((time.perf_counter() - begin) / times * 1e6)
    return float(np.median(rounds))


def save(costs: Costs, path: Path) -> None:
    """Writes costs as JSON, with a hash of the file in it."""
    write_json(path, dataclasses.asdict(costs), seal=True)


def read(path: Path) -> Costs:
    """Costs written by `save`.

    Raises:
      ExportError: there is no such file, it holds something else, or was changed.
    """
    names = [field.name for field in dataclasses.fields(Costs)]
    needed = tuple(name for name in names if name not in _ADDED)
    try:
        found = read_json(path, record(needed, **dict.fromkeys(names, COST)))
        if "sha256" in found:  # files of before state none
            unsealed(read_below(path.parent, path.name), path)
    except RunError as error:
        what = error if error.__cause__ is None else type(error.__cause__).__name__
        raise ExportError(
            f"{path} holds no costs of products ({what}): expected a file that --calibrate wrote, with {', '.join(names)}"
        ) from error
    # What was not measured is as slow as what was, and then never chosen: shipped numbers are another machine's.
    found = {name: found[like] for name, like in _AS_SPARSE.items()} | found
    return Costs(**{name: float(found[name]) for name in names if name in found})
