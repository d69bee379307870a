"""Weights in fewer bytes: arrays in, arrays out, and back to the last bit.

A tensor that has one value in many places is stored as a pattern, which says what is kept, and the values kept:

    shape:NAME   the shape of a pattern, int64 [rank]
    bits:NAME    the pattern with one bit for each of its n entries, as `np.packbits` has it, uint8 [ceil(n / 8)]
    gaps:NAME    or, in its place, how many entries are left out before each one that is kept, uint8
    kept:NAME    the one value of all entries that are left out, then those that are kept, in their order

A boolean tensor, such as a mask, is a pattern. What belongs to a weight that has a mask (`names.mask_of`) follows it, and
needs no pattern of its own. Whatever takes fewer bytes as it is stays as it is, under its name. Each of these arrays but
shapes and booleans is stored entropy-coded, as in `planes`, where that takes fewer bytes.

The gaps are the sparse index of Deep Compression (Han et al. 2016, arXiv 1510.00149, section 2), over the whole tensor
instead of row by row: a byte a weight, for rows of any length and number. They beat the bits where less than an eighth
is kept.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from tfp_bprune.files.reading import check_memory
from tfp_bprune.layers.names import mask_of
from tfp_bprune.storage.planes import CODED, TYPE, Arrays, Coded, coded, damaged, opened
from tfp_bprune.types import RunError

SKIP = 255  # a gap that ends with no kept entry: so many are left out, and the next gap goes on from there
_FORMS = ("shape", "bits", "gaps", "kept")
_PLAIN = (f"{CODED}:", f"{TYPE}:", "shape:")  # what is never coded, or is so already
# What safetensors' header takes to name an array besides the name, at most, in files below a terabyte.
_ENTRY = 110

Parts = Mapping[str, np.ndarray | Coded]
Typed = TypeVar("Typed", np.ndarray, "Declared")


class Declared(NamedTuple):
    """What is stored of a tensor, without its numbers."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """What the tensor takes in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


def encode(tensors: Mapping[str, np.ndarray]) -> Arrays:
    """`tensors` in the fewest bytes; names as `store.weights_of` has them, `position/layer/weight`."""
    masks = _masks(tensors)
    stored: Arrays = {}
    for name, array in tensors.items():
        forms: list[Arrays] = [{name: array}, *_forms(name, array, _mask_for(name, masks))]
        # The values of a tensor are coded once it is known which of them are kept: they shrink by about the same part.
        smallest = min(forms, key=bytes_of)
        for key, part in smallest.items():
            stored |= _smaller(key, part)
    return stored


def _smaller(key: str, array: np.ndarray) -> Arrays:
    """An array as it is, or coded."""
    if array.dtype.kind not in "fiu" or key.startswith(_PLAIN):
        return {key: array}
    return min({key: array}, coded(key, array), key=bytes_of)


def bytes_of(arrays: Mapping[str, np.ndarray]) -> int:
    """What `arrays` take in a file, their names among it; never less than they do."""
    return sum(array.nbytes + len(name) + _ENTRY for name, array in arrays.items())


def name_of(key: str) -> str:
    """The name of the tensor of which a part is stored under `key`."""
    place, slash, rest = key.partition("/")
    return place.rpartition(":")[2] + slash + rest


def declared(stored: Mapping[str, np.ndarray]) -> dict[str, Declared]:
    """What `decode` will give, found without unpacking anything.

    Raises:
      RunError: parts are missing, or of another type than the others tell, or longer than they allow.
    """
    tensors, parts = _sorted_apart(opened(stored))
    return _declared(tensors, parts)


def decode(stored: Mapping[str, np.ndarray]) -> Arrays:
    """The tensors of which `encode` made `stored`, equal to the last bit; dense ones as they are.

    No tensor is made before its size was found to agree with what is stored of it: a byte stands for 255 entries at most,
    or where it is coded for 1,032 such bytes; nor before all were found to fit into memory. No stream is unpacked beyond
    the size that it is to have.

    Raises:
      RunError: a part is missing, or of another type or length than the others tell, or its kind is unknown; a stream is
        damaged; or all do not fit into memory.
    """
    dense, parts = _sorted_apart(opened(stored))
    check_memory(sum(each.nbytes for each in _declared(dense, parts).values()), "the stored weights")
    tensors = {name: _read(array) for name, array in dense.items()}
    patterns = {name: _pattern(name, forms) for name, forms in parts.items() if set(forms) != {"kept"}}
    tensors |= {name: pattern for name, pattern in patterns.items() if "kept" not in parts[name]}
    masks = _masks(tensors)
    for name, forms in parts.items():
        if "kept" in forms:
            pattern = patterns[name] if name in patterns else _mask_for(name, masks)
            assert pattern is not None  # as `_declared` found
            tensors[name] = _spread(name, _read(forms["kept"]), pattern)
    return tensors


def _read(array: np.ndarray | Coded) -> np.ndarray:
    return array.read() if isinstance(array, Coded) else array


def _declared(dense: Parts, parts: Mapping[str, Parts]) -> dict[str, Declared]:
    """Types and shapes of all tensors; what is coded is held to them, what is not is so where it is read."""
    found = {name: Declared(array.dtype, array.shape) for name, array in dense.items()}
    sides = {name: _sides(name, forms) for name, forms in parts.items() if set(forms) != {"kept"}}
    found |= {name: Declared(np.dtype(bool), shape) for name, shape in sides.items() if "kept" not in parts[name]}
    masks = _masks(found)
    for name, forms in parts.items():
        if "kept" in forms:
            mask = _mask_for(name, masks)
            if name not in sides and mask is None:
                raise damaged(name, "it has neither a pattern of its own nor a mask to go by")
            shape = sides[name] if mask is None else sides.get(name, mask.shape)
            _check_most(name, forms["kept"], math.prod(shape) + 1)
            found[name] = Declared(forms["kept"].dtype, shape)
    return found


def _check_most(name: str, part: np.ndarray | Coded, most: int) -> None:
    if isinstance(part, Coded) and part.size > most:
        raise damaged(name, f"a part of it holds {part.size} numbers, expected {most} at most")


def _masks(tensors: Mapping[str, Typed]) -> dict[str, Typed]:
    """Boolean tensors by name without the position, which differs between the tensors of one layer."""
    found = {name: array for name, array in tensors.items() if array.dtype == bool}
    count = Counter(map(_place, found))
    # Models nested side by side may have layers of one name: whose mask is whose cannot be told then.
    return {_place(name): array for name, array in found.items() if count[_place(name)] == 1}


def _place(name: str) -> str:
    return name.partition("/")[2] or name


def _mask_for(name: str, masks: Mapping[str, Typed]) -> Typed | None:
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


def _sorted_apart(stored: Parts) -> tuple[Parts, dict[str, Parts]]:
    """Dense tensors by name, and the parts of the others by name and form."""
    dense: dict[str, np.ndarray | Coded] = {}
    parts: dict[str, dict[str, np.ndarray | Coded]] = defaultdict(dict)
    for key, array in stored.items():
        form, colon, name = key.partition(":")
        if not colon or "/" in form:  # a dense tensor: only what follows the first slash is for the user to name
            dense[key] = array
        elif form not in _FORMS:
            raise RunError(f"stored weight {name} is encoded as {form!r}: expected one of {', '.join(_FORMS)}")
        else:
            parts[name][form] = array
    for name in parts.keys() & dense.keys():
        raise damaged(name, "it is stored both dense and encoded")
    return dense, dict(parts)


def _sides(name: str, forms: Parts) -> tuple[int, ...]:
    """The shape of a pattern, of Python's integers, whose product cannot overflow; what says it is long enough to do so."""
    form = _coding(name, forms)
    shape, how = _vector(name, forms, "shape", "i8"), _vector(name, forms, form, "u1")
    if isinstance(shape, Coded):
        raise damaged(name, "its shape must be stored as it is, found it coded")
    sides = tuple(map(int, shape))
    if min(sides, default=0) < 0:
        raise damaged(name, f"it has a negative side in its shape {sides}")
    size = math.prod(sides)
    if form == "bits":
        _check_bits(name, len(how), size)
    elif size > SKIP * len(how):
        raise damaged(name, f"its gaps end at {_end(how)}, expected the size {size}")
    _check_most(name, how, size + size // SKIP + 1)
    return sides


def _coding(name: str, forms: Parts) -> str:
    coding = [form for form in ("bits", "gaps") if form in forms]
    if "shape" not in forms or len(coding) != 1:
        raise damaged(name, f"expected its shape and either bits or gaps, found {', '.join(sorted(forms))}")
    return coding[0]


def _pattern(name: str, forms: Parts) -> np.ndarray:
    """The boolean tensor of which `_patterns` made `forms`."""
    sides, form = _sides(name, forms), _coding(name, forms)
    unpack = _from_bits if form == "bits" else _from_gaps
    flat = unpack(name, _read(forms[form]), math.prod(sides))
    try:
        return flat.reshape(sides)
    except ValueError as error:  # more sides than NumPy takes, or sides beyond its integers beside one of 0
        raise damaged(name, f"there is no array of {len(sides)} sides with {flat.size} entries") from error


def _end(gaps: np.ndarray | Coded) -> str:
    """Where gaps end that are too few; those that are not read yet at most."""
    if isinstance(gaps, Coded):
        return f"{SKIP * gaps.size} at most"
    return str(int((gaps + (gaps != SKIP).astype(np.int64)).sum()) - 1 if gaps.size else None)


def _check_bits(name: str, length: int, size: int) -> None:
    if length != -(-size // 8):
        raise damaged(name, f"{size} entries take {-(-size // 8)} bytes of bits, found {length}")


def _from_bits(name: str, bits: np.ndarray, size: int) -> np.ndarray:
    _check_bits(name, len(bits), size)
    pattern = np.unpackbits(bits).view(bool)
    if pattern[size:].any():
        raise damaged(name, f"a bit is set behind the last of {size} entries")
    return pattern[:size]


def _from_gaps(name: str, gaps: np.ndarray, size: int) -> np.ndarray:
    ends = gaps != SKIP
    places = np.cumsum(gaps + ends.astype(np.int64)) - 1
    if not len(places) or not ends[-1] or places[-1] != size:
        raise damaged(name, f"its gaps end at {places[-1] if len(places) else None}, expected the size {size}")
    pattern = np.zeros(size, bool)
    pattern[places[ends][:-1]] = True
    return pattern


def _spread(name: str, kept: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """The tensor whose entries within `pattern` are `kept[1:]`, all others `kept[0]`."""
    if kept.ndim != 1 or kept.dtype.kind != "f":
        raise damaged(name, f"its kept values must be a vector of floats, found {kept.dtype} {list(kept.shape)}")
    count = int(np.count_nonzero(pattern))
    if len(kept) != count + 1:
        raise damaged(name, f"{count} entries are kept, which takes {count + 1} values, found {len(kept)}")
    tensor = np.full(pattern.shape, kept[0])
    tensor[pattern] = kept[1:]
    return tensor


def _vector(name: str, forms: Parts, form: str, dtype: str) -> np.ndarray | Coded:
    array = forms[form]
    if array.ndim != 1 or array.dtype != np.dtype(dtype):
        raise damaged(
            name, f"its {form} must be a vector of {np.dtype(dtype)}, found {array.dtype} {list(array.shape)}"
        )
    return array
