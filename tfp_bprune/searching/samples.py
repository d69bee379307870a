"""The examples of a search: parted once for all searches, put on the device, and told from others by a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from tfp_bprune.data.arrays import leaves
from tfp_bprune.data.splits import Split, Splits
from tfp_bprune.graphs.convert import adopt
from tfp_bprune.searching.session import Sample
from tfp_bprune.trials.trial import Evaluator


def parted(split: Split) -> tuple[Split, Split]:
    """What is searched on, a third of a split by chance, and what is kept aside to prove.

    The same for every search of a split, whatever its seed: what one search has looked at proves nothing in another.
    """
    order = np.random.default_rng(0).permutation(len(split))
    cut = len(split) // 3
    return _rows(split, order[:cut]), _rows(split, order[cut:])


def others_parted(strange: Split) -> tuple[Split, Split, Split]:
    """Thirds of another dataset's examples: to search on, to prove on and to report."""
    looked_at, rest = parted(strange)
    half = len(rest) // 2
    order = np.random.default_rng(1).permutation(len(rest))
    return looked_at, _rows(rest, order[:half]), _rows(rest, order[half:])


def _rows(split: Split, rows: np.ndarray) -> Split:
    rows = np.sort(rows)
    return split.rows(rows)


def sample_of(evaluator: Evaluator, split: Split, strange: Split | None, whole: dict[str, np.ndarray]) -> Sample:
    """Examples put on the device, with what the network under the masks `whole` says of them."""
    examples = evaluator.on(split)
    return Sample(examples, evaluator.on(strange) if strange else None, examples.answers(whole))


def fingerprint_of(model: Any) -> str:
    """Of all numbers of a network: means, standard deviations, masks, biases, statistics."""
    return digest(adopt(model).get_weights())


def fingerprint_of_splits(data: Splits) -> str:
    """Of all examples, as they are parted, ordered and batched."""
    splits = [data.examples(name) for name in ("train", "valid", "test")]
    order = np.array([data.seed, data.batch_size])
    return digest([order, *(array for split in splits for array in (*leaves(split.x), *leaves(split.y)))])


def digest(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of arrays with their types and shapes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
