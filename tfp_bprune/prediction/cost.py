"""What a product with a kernel costs in each form: a model of a few numbers, shipped or measured on the machine.

    dense(batch)  = call + in out (read + batch multiply)
    sparse(batch) = call + turn batch (in + out) + stored (entry + batch entry_each)
    csr(batch)    = the same with numbers of its own

in microseconds. A dense kernel is read once and multiplied once for each example; a sparse one costs a visit for each
stored entry and a little for each example in it. It takes and gives examples as columns, and the turning is among what is
timed, though of a row of sparse layers only the first and the last have to. "sparse" is a list of
entries and their places (COO), "csr" is compressed by rows, which costs more a call and less an entry.
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
SERVED = 512
_CLEAR_PART = 0.15  # of the dense product's time, and at least as in `SHIPPED`
_CALL = 100.0  # microseconds of a call, whatever it multiplies
_CHANGE, _CHANGE_PART = 20.0, 0.1  # microseconds, and part of the product's
_SHAPES = ((784, 500), (256, 128), (1024, 1024))
_SPARSITIES = (0.9, 0.95, 0.98)  # where sparse products come into question
_TAKEN = (0.2, 0.6)
_AS_SPARSE = {"csr_call": "sparse_call", "csr_entry": "entry", "csr_entry_each": "entry_each", "csr_turn": "turn"}
_ADDED = ("take_call", "take", "skip", *_AS_SPARSE)  # which files of before have not
_ROUNDS, _CALLS, _PRODUCTS = 10, 3, 8
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
    csr_call: float = 120.0
    csr_entry: float = 2.4e-3
    csr_entry_each: float = 3.4e-5
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


# LiteRT and ONNX Runtime, as `benchmarks/taken.py` fits them: calls cost next to nothing, and inputs are turned, taken as rows
# and turned back. In whole numbers a product is four times as cheap, and taking its inputs is worth it the less often.
CONVERTED = Costs(4.0, 2.3e-5, 3.9e-6, take_call=0.2, take=6.5e-4, skip=4.7e-5)
CONVERTED_FEW = Costs(3.0, 8.6e-6, 8.5e-7, take_call=2.4, take=3.7e-4, skip=1e-9)
SHIPPED = {Costs(): 8.0, CONVERTED: 2.0, CONVERTED_FEW: 8.0}  # and the microseconds that are a clear saving by them


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

    def at(self, batch: int) -> Product:
        """The form of this batch size."""
        return self.forms[sum(batch >= limit for limit in self.limits)]

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
    """The form of a dense layer's kernel that has `stored` entries left, or one for each range of batch sizes.

    Of `forms`, and of the sparse ones in turns, each at batches where it is the faster one, the choice that is at no batch of
    up to `SERVED` slower than the fastest form by more than any other choice would be. Turns cost a tenth and some
    microseconds at all batches; in turns with dense products, which then take columns, nothing was saved. Without `by_batch`
    the form that is the fastest at a batch of `TYPICAL`. By the shipped costs, which are another machine's, sparse for a clear
    saving alone.
    """
    if kernels != "auto":
        return Choice((kernels,))
    typical = costs.fastest(TYPICAL, shape, stored, forms)
    if costs in SHIPPED:
        dense, least = (float(costs.of(form, TYPICAL, shape, stored)) for form in ("dense", typical))
        if dense - least <= max(SHIPPED[costs], _CLEAR_PART * dense):
            return Choice(("dense",))
        forms = [form for form in forms if form != "dense"]
    if not by_batch:
        return Choice((typical,))
    sparse = [form for form in forms if form in SPARSE]
    choices = [*(Choice((form,)) for form in forms), _mixed(sparse, shape, stored, costs)]
    return min(choices, key=lambda choice: _behind(choice, shape, stored, costs))


def _mixed(forms: Sequence[Product], shape: tuple[int, ...], stored: int, costs: Costs) -> Choice:
    used = [costs.fastest(batch, shape, stored, forms) for batch in BATCHES]
    changes = [i for i in range(1, len(BATCHES)) if used[i] != used[i - 1]]
    return Choice((used[0], *(used[i] for i in changes)), tuple(BATCHES[i] for i in changes))


def _behind(choice: Choice, shape: tuple[int, ...], stored: int, costs: Costs) -> float:
    """The most that a call with this choice takes, over batches of up to `SERVED`, as a multiple of one in the fastest form."""
    worst = 0.0
    for batch in (batch for batch in BATCHES if batch <= SERVED):
        chosen = float(costs.of(choice.at(batch), batch, shape, stored))
        for _ in choice.limits:
            chosen = _CHANGE + chosen * (1 + _CHANGE_PART)
        fastest = costs.of(costs.fastest(batch, shape, stored), batch, shape, stored)
        worst = max(worst, (_CALL + chosen) / (_CALL + float(fastest)))
    return worst


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
    return bool(spared > (max(SHIPPED[costs], _CLEAR_PART * whole) if costs in SHIPPED else 0))


def measure() -> Costs:
    """The costs of this machine, from products of a few shapes, sparsities and batches; takes some seconds."""
    dense, sparse = [], []
    taken: list[tuple[float, ...]] = []
    random = np.random.default_rng(0)
    for shape in _SHAPES:
        kernel = random.normal(size=shape).astype(np.float32)
        for batch in (1, 8, 64, 256):
            x = tf.constant(random.normal(size=(batch, shape[0])), tf.float32)
            for sparsity in _SPARSITIES:
                pattern = random.random(shape) > sparsity
                rivals = [_each(_dense_product, kernel)]
                rivals += [_each(product, kernel * pattern) for product in (_sparse_product, _csr_product)]
                took = _beyond_call(rivals, x)
                call, turn, *entries = _sparse_terms(shape, batch, int(pattern.sum()))
                dense.append((*_dense_terms(shape, batch), took[0]))
                sparse.append((turn, call, *entries, 0.0, 0.0, 0.0, took[1]))
                sparse.append((turn, 0.0, 0.0, 0.0, call, *entries, took[2]))
            for part in _TAKEN:
                [took_one] = _beyond_call([[_taking(shape[0], part)] * _PRODUCTS], x)
                taken.append((1.0, round(part * shape[0]) * batch, shape[0] * batch, took_one))
    call, read, multiply = _fitted(dense)
    # Both sparse forms turn the same activations: fitted apart, one would save in it what noise gave the other.
    turn, sparse_call, entry, each, csr_call, csr_entry, csr_each = _fitted(sparse)
    rest = {"csr_call": csr_call, "csr_entry": csr_entry, "csr_entry_each": csr_each, "csr_turn": turn}
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
    return _turned(lambda columns: tf.sparse.sparse_dense_matmul(held, columns))


def _turned(product: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """With examples as rows, as those of a sparse layer by itself come and go."""
    return lambda x: tf.transpose(product(tf.transpose(x)))


def _csr_product(kernel: np.ndarray) -> Callable[[Any], Any]:
    pattern = np.ascontiguousarray(kernel.T) != 0
    held = CsrMatrix(Packed(pattern, [kernel.T], "float32"), 0)
    return _turned(held.times)


def _taking(size: int, part: float) -> Callable[[Any], Any]:
    places = np.linspace(0, size - 1, round(part * size)).astype(np.int32)
    return lambda x: tf.gather(x, places, axis=1)


def _each(product: Callable[[np.ndarray], Callable[[Any], Any]], kernel: np.ndarray) -> list[Callable[[Any], Any]]:
    """Products with kernels of their own: one kernel alone would be in the caches, as those of a network are not."""
    return [product(np.roll(kernel, i, 0)) for i in range(_PRODUCTS)]


def _beyond_call(rivals: Sequence[Sequence[Callable[[Any], Any]]], x: Any) -> list[float]:
    """Microseconds of one product of each rival, without those of calling any function from Python; at least 1.

    A call takes longer, and varies by more, than what is to be told apart: so many products are made in each, and rivals take
    turns.
    """
    calls = [
        tf.function(lambda inputs: inputs[:1, :1] + 1.0),
        *(tf.function(_in_a_row(products)) for products in rivals),
    ]
    called, *took = _microseconds(calls, x)
    return [max(1.0, (one - called) / len(products)) for one, products in zip(took, rivals, strict=True)]


def _in_a_row(products: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def repeated(inputs: Any) -> Any:
        made: list[Any] = []
        for product in products:  # one after the other, and all read: what nothing reads is not made
            with tf.control_dependencies(made[-1:]):
                made.append(product(inputs))
        return tf.add_n([one[:1, :1] for one in made])

    return repeated


def _microseconds(calls: Sequence[Callable[[Any], Any]], x: Any) -> list[float]:
    """The median of each over rounds in which all have their turns."""
    took = np.array([[_turn(call, x) for call in calls] for _ in range(_ROUNDS)])
    return [float(median) for median in np.median(took[1:], 0)]  # the first round builds them


def _turn(call: Callable[[Any], Any], x: Any) -> float:
    call(x)
    begin = time.perf_counter()
    for _ in range(_CALLS):
        call(x).numpy()
    return (time.perf_counter() - begin) / _CALLS * 1e6


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
