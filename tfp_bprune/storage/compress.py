"""Weights in fewer bytes: arrays in, arrays out, and back to the last bit.

A tensor that has one value in many places is stored as a pattern, which says what is kept, and the values kept:

    shape:NAME   the shape of a pattern, int64 [rank]
    bits:NAME    the pattern with one bit for each of its n entries, as `np.packbits` has it, uint8 [ceil(n / 8)]
    gaps:NAME    or, in its place, how many entries are left out before each one that is kept, uint8
    kept:NAME    the one value of all entries that are left out, then those that are kept, in their order

A boolean tensor, such as a mask, is a pattern. What belongs to a weight that has a mask (`names.mask_of`) follows it, and
needs no pattern of its own. Whatever takes fewer bytes as it is stays as it is, under its name.

The gaps are the sparse index of Deep Compression (Han et al. 2016, arXiv 1510.00149, section 2), over the whole tensor
instead of row by row: a byte a weight, for rows of any length and number. They beat the bits where less than an eighth
is kept.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from tfp_bprune.layers.names import mask_of
from tfp_bprune.types import RunError

Arrays = dict[str, np.ndarray]

SKIP = 255  # a gap that ends with no kept entry: so many are left out, and the next gap goes on from there
_FORMS = ("shape", "bits", "gaps", "kept")
# What safetensors' header takes to name an array besides the name, at most, in files below a terabyte.
_ENTRY = 110


def encode(tensors: Mapping[str, np.ndarray]) -> Arrays:
    """`tensors` in the fewest bytes; names as `store.weights_of` has them, `position/layer/weight`."""
    masks = _masks(tensors)
    stored: Arrays = {}
    for name, array in tensors.items():
        forms: list[Arrays] = [{name: array}, *_forms(name, array, _mask_for(name, masks))]
        smallest = min(forms, key=bytes_of)
        stored |= smallest
    return stored


def bytes_of(arrays: Mapping[str, np.ndarray]) -> int:
    """What `arrays` take in a file, their names among it; never less than they do."""
    return sum(array.nbytes + len(name) + _ENTRY for name, array in arrays.items())


def decode(stored: Mapping[str, np.ndarray]) -> Arrays:
    """The tensors of which `encode` made `stored`, equal to the last bit; dense ones as they are.

    No tensor is made before its size was found to agree with what is stored of it: a byte stands for 255 entries at most.

    Raises:
      RunError: a part is missing, or of another type or length than the others tell, or its kind is unknown.
    """
    tensors, parts = _sorted_apart(stored)
    patterns = {name: _pattern(name, forms) for name, forms in parts.items() if set(forms) != {"kept"}}
    tensors |= {name: pattern for name, pattern in patterns.items() if "kept" not in parts[name]}
    masks = _masks(tensors)
    for name, forms in parts.items():
        if "kept" in forms:
            tensors[name] = _spread(name, forms["kept"], patterns.get(name, _mask_for(name, masks)))
    return tensors


def _masks(tensors: Mapping[str, np.ndarray]) -> Arrays:
    """Boolean tensors by name without the position, which differs between the tensors of one layer."""
    found = {name: array for name, array in tensors.items() if array.dtype == bool}
    count = Counter(map(_place, found))
    # Models nested side by side may have layers of one name: whose mask is whose cannot be told then.
    return {_place(name): array for name, array in found.items() if count[_place(name)] == 1}


def _place(name: str) -> str:
    return name.partition("/")[2] or name


def _mask_for(name: str, masks: Arrays) -> np.ndarray | None:
    """The mask that a tensor goes by, if it has one."""
    owner = mask_of(_place(name), masks)
    return None if owner is None else masks[owner]


def _forms(name: str, array: np.ndarray, mask: np.ndarray | None) -> Iterator[Arrays]:
    """The ways in which a tensor can be stored, besides as it is."""
    if array.dtype == bool:
        yield from _patterns(name, array)
    elif array.dtype.kind == "f":
        bits = array.view(f"u{array.itemsize}")  # by value -0 would pass for 0, and no NaN for itself
        if mask is not None and mask.shape == array.shape and _are_equal(bits[~mask]):
            yield {f"kept:{name}": np.append(array[~mask][:1], array[mask])}
        kept = np.append(np.zeros(1, array.dtype), array[bits != 0])
        yield from ({**pattern, f"kept:{name}": kept} for pattern in _patterns(name, bits != 0))


def _are_equal(values: np.ndarray) -> bool:
    return values.size > 0 and bool((values == values[0]).all())


def _patterns(name: str, pattern: np.ndarray) -> Iterator[Arrays]:
    shape = np.array(pattern.shape, np.int64)
    yield {f"shape:{name}": shape, f"bits:{name}": np.packbits(pattern)}
    yield {f"shape:{name}": shape, f"gaps:{name}": gaps_of(pattern)}


def gaps_of(pattern: np.ndarray) -> np.ndarray:
    """The gaps before the kept entries, and the one before the end, by which the sum of all tells the size."""
    gaps = np.diff(np.flatnonzero(pattern), prepend=-1, append=pattern.size) - 1
    skips = gaps // SKIP
    coded = np.full(gaps.size + skips.sum(), SKIP, np.uint8)
    coded[np.cumsum(skips + 1) - 1] = gaps % SKIP
    return coded


def _sorted_apart(stored: Mapping[str, np.ndarray]) -> tuple[Arrays, dict[str, Arrays]]:
    """Dense tensors by name, and the parts of the others by name and form."""
    dense: Arrays = {}
    parts: dict[str, Arrays] = defaultdict(dict)
    for key, array in stored.items():
        form, colon, name = key.partition(":")
        if not colon or "/" in form:  # a dense tensor: only what follows the first slash is for the user to name
            dense[key] = array
        elif form not in _FORMS:
            raise RunError(f"stored weight {name} is encoded as {form!r}: expected one of {', '.join(_FORMS)}")
        else:
            parts[name][form] = array
    for name in parts.keys() & dense.keys():
        raise _damaged(name, "it is stored both dense and encoded")
    return dense, parts


def _pattern(name: str, forms: Arrays) -> np.ndarray:
    """The boolean tensor of which `_patterns` made `forms`."""
    coding = [form for form in ("bits", "gaps") if form in forms]
    if "shape" not in forms or len(coding) != 1:
        raise _damaged(name, f"expected its shape and either bits or gaps, found {', '.join(sorted(forms))}")
    shape, coded = _vector(name, forms, "shape", "i8"), _vector(name, forms, coding[0], "u1")
    sides = tuple(map(int, shape))  # of Python, whose product cannot overflow
    if min(sides, default=0) < 0:
        raise _damaged(name, f"it has a negative side in its shape {sides}")
    unpack = _from_bits if coding == ["bits"] else _from_gaps
    flat = unpack(name, coded, math.prod(sides))
    try:
        return flat.reshape(sides)
    except ValueError as error:  # more sides than NumPy takes, or sides beyond its integers beside one of 0
        raise _damaged(name, f"there is no array of {len(sides)} sides with {flat.size} entries") from error


def _from_bits(name: str, bits: np.ndarray, size: int) -> np.ndarray:
    if len(bits) != -(-size // 8):
        raise _damaged(name, f"{size} entries take {-(-size // 8)} bytes of bits, found {len(bits)}")
    pattern = np.unpackbits(bits).view(bool)
    if pattern[size:].any():
        raise _damaged(name, f"a bit is set behind the last of {size} entries")
    return pattern[:size]


def _from_gaps(name: str, gaps: np.ndarray, size: int) -> np.ndarray:
    ends = gaps != SKIP
    places = np.cumsum(gaps + ends.astype(np.int64)) - 1
    if not len(places) or not ends[-1] or places[-1] != size:
        raise _damaged(name, f"its gaps end at {places[-1] if len(places) else None}, expected the size {size}")
    pattern = np.zeros(size, bool)
    pattern[places[ends][:-1]] = True
    return pattern


def _spread(name: str, kept: np.ndarray, pattern: np.ndarray | None) -> np.ndarray:
    """The tensor whose entries within `pattern` are `kept[1:]`, all others `kept[0]`."""
    if pattern is None:
        raise _damaged(name, "it has neither a pattern of its own nor a mask to go by")
    if kept.ndim != 1 or kept.dtype.kind != "f":
        raise _damaged(name, f"its kept values must be a vector of floats, found {kept.dtype} {list(kept.shape)}")
    count = int(np.count_nonzero(pattern))
    if len(kept) != count + 1:
        raise _damaged(name, f"{count} entries are kept, which takes {count + 1} values, found {len(kept)}")
    tensor = np.full(pattern.shape, kept[0])
    tensor[pattern] = kept[1:]
    return tensor


def _vector(name: str, forms: Arrays, form: str, dtype: str) -> np.ndarray:
    array = forms[form]
    if array.ndim != 1 or array.dtype != np.dtype(dtype):
        raise _damaged(
            name, f"its {form} must be a vector of {np.dtype(dtype)}, found {array.dtype} {list(array.shape)}"
        )
    return array


def _damaged(name: str, what: str) -> RunError:
    return RunError(f"stored weight {name} cannot be decoded: {what}; restore the run from a copy")
