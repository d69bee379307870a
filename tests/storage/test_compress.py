"""Compressed weights: the same bits come back, the smaller form is taken, damage is one clear error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tfp_bprune._keras import keras, tf
from tfp_bprune.files.runs import Run, tensors_to_bytes
from tfp_bprune.graphs import bayesianize, strip
from tfp_bprune.pruning import prune
from tfp_bprune.storage import load_model, save_model, store
from tfp_bprune.storage.compress import Arrays, bytes_of, decode, encode
from tfp_bprune.storage.planes import Coded, opened
from tfp_bprune.types import RunError

Build = Callable[..., Any]
LOC, RHO, MASK = "0000/dense/kernel_loc", "0001/dense/kernel_rho", "0004/dense/kernel_mask"
PLAIN = "0002/plain/kernel"
SPARSITIES = (0.0, 0.5, 0.9, 0.98, 1.0)


def assert_same_bits(found: Arrays, expected: Arrays) -> None:
    """Names, types, shapes and bits agree."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def posterior(shape: tuple[int, ...], sparsity: float, seed: int = 0) -> Arrays:
    """A pruned loc, rho and mask."""
    random = np.random.default_rng(seed)
    mask = random.random(shape) >= sparsity
    loc, rho = random.normal(size=(2, *shape)).astype(np.float32)
    return {LOC: np.where(mask, loc, np.float32(0)), RHO: np.where(mask, rho, np.float32(-5)), MASK: mask}


def uncoded(stored: Arrays) -> Arrays:
    """The same forms as they were before their bytes were coded, as files of before hold them."""
    return {key: part.read() if isinstance(part, Coded) else part for key, part in opened(stored).items()}


def forms_of(stored: Arrays, name: str) -> set[str]:
    """How one tensor is stored: names of forms, or "dense"."""
    stored = uncoded(stored)
    return {key.removesuffix(f":{name}") for key in stored if key.endswith(f":{name}")} | (
        {"dense"} if name in stored else set()
    )


SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
FLOATS = st.sampled_from([np.float16, np.float32, np.float64])


@given(data=st.data(), shape=SHAPES, dtype=FLOATS, sparsity=st.sampled_from(SPARSITIES))
def test_any_tensors_come_back_to_the_bit(
    data: st.DataObject, shape: tuple[int, ...], dtype: Any, sparsity: float
) -> None:
    # From all bit patterns: signed zeros, infinities, and NaN of every payload.
    raw = arrays.arrays(f"u{np.dtype(dtype).itemsize}", shape)
    loc, rho, plain = (data.draw(raw).view(dtype) for _ in range(3))
    mask = np.random.default_rng(0).random(shape) >= sparsity
    fill = data.draw(raw).view(dtype).ravel()[:1]
    tensors = {
        LOC: np.where(mask, loc, dtype(0)),
        RHO: np.where(mask, rho, fill[0] if fill.size else dtype(0)),
        MASK: mask,
        PLAIN: np.where(mask, plain, dtype(0)),
        "0003/dense/noise_step": np.array(7, np.int64),
    }
    stored = encode(tensors)
    assert_same_bits(decode(stored), tensors)
    assert_same_bits(decode(uncoded(stored)), tensors)  # as files of before hold it
    assert_same_bits(decode(tensors), tensors)  # what was stored dense is read as it is
    assert len(tensors_to_bytes(stored)) <= len(tensors_to_bytes(tensors))


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("shape", [(5000,), (1, 4096), (70, 90), (3, 3, 16, 24), (4096, 1), (0, 3), ()])
def test_large_sparse_tensors_come_back_to_the_bit(shape: tuple[int, ...], sparsity: float) -> None:
    tensors = posterior(shape, sparsity)
    tensors[PLAIN] = tensors[LOC].T  # not contiguous
    assert_same_bits(decode(encode(tensors)), tensors)


@pytest.mark.parametrize("kept", [[], [0], [254], [255], [256], [0, 511, 1020], [1019, 1020], [1275]])
def test_gaps_at_and_beyond_the_longest_code(kept: list[int]) -> None:
    mask = np.zeros(1276, bool)
    mask[kept] = True
    stored = encode({MASK: mask})
    assert forms_of(stored, MASK) == {"shape", "gaps"}
    assert_same_bits(decode(stored), {MASK: mask})


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.85, 0.875, 0.9, 0.99])
def test_the_smaller_form_of_a_mask_is_taken(sparsity: float) -> None:
    mask = posterior((300, 200), sparsity)[MASK]
    before = np.diff(np.append(np.flatnonzero(mask), mask.size), prepend=-1) - 1
    sizes = {"bits": -(-mask.size // 8), "gaps": sum(1 + gap // 255 for gap in before.tolist())}
    smaller = min(sizes, key=lambda form: sizes[form])
    stored = encode({MASK: mask})
    assert forms_of(stored, MASK) == {"shape", smaller}
    assert uncoded(stored)[f"{smaller}:{MASK}"].nbytes == sizes[smaller]


def test_loc_and_rho_share_the_mask_and_keep_nothing_else() -> None:
    tensors = posterior((100, 100), 0.9)
    stored, left = uncoded(encode(tensors)), int(tensors[MASK].sum())
    assert {key.partition(":")[0] for key in stored} == {"shape", "gaps", "kept"}
    assert [stored[f"kept:{name}"].size for name in (LOC, RHO)] == [left + 1] * 2
    assert (stored[f"kept:{LOC}"][0], stored[f"kept:{RHO}"][0]) == (0, -5)


def test_what_gains_nothing_stays_as_it_is() -> None:
    random = np.random.default_rng(0)
    tensors = {
        "0000/dense/bias_loc": np.zeros(3, np.float32),  # the header's entries would take more
        "0001/dense/bias_mask": np.array([False, True, False]),
        "0002/norm/beta": random.normal(size=500).astype(np.float32),  # the code of their exponents would take more
        "0003/norm/count": np.zeros(9, np.int64),
    }
    stored = encode(tensors)
    assert set(stored) == set(tensors)
    assert bytes_of(stored) == bytes_of(tensors)


def test_values_under_a_mask_that_differ_are_kept() -> None:
    # A mask that was set by hand leaves what was trained in the raw variables: the arrays alone do not say it is unread.
    tensors = posterior((50, 50), 0.9)
    tensors[LOC] = np.random.default_rng(1).normal(size=(50, 50)).astype(np.float32)
    stored = encode(tensors)
    assert [forms_of(stored, name) for name in (LOC, RHO)] == [{"dense"}, {"kept"}]
    assert_same_bits(decode(stored), tensors)


def test_zeros_of_a_plain_kernel_are_told_by_their_bits() -> None:
    kernel = np.zeros((60, 60), np.float32)
    kernel[0, :4] = [-0.0, np.nan, np.inf, 1e-45]
    stored = encode({PLAIN: kernel})
    assert forms_of(stored, PLAIN) == {"shape", "gaps", "kept"}
    assert uncoded(stored)[f"kept:{PLAIN}"].size == 1 + 4
    assert_same_bits(decode(stored), {PLAIN: kernel})


def test_masks_of_layers_of_one_name_are_not_mixed_up() -> None:
    first, second = posterior((40, 40), 0.9, seed=1), posterior((40, 40), 0.9, seed=2)
    both = first | {f"1{name[1:]}": array for name, array in second.items()}
    stored = encode(both)
    assert forms_of(stored, LOC) == {"shape", "gaps", "kept"}  # a pattern of its own
    assert_same_bits(decode(stored), both)


def remade(stored: Arrays, **changed: Any) -> Arrays:
    """`stored` with the parts of the mask, or with `kept`, of the loc, replaced, or left out for None."""
    names = {form: f"{form}:{LOC if form.startswith('kept') else MASK}" for form in changed}
    rest = {key: array for key, array in stored.items() if key not in names.values()}
    return rest | {names[form]: value for form, value in changed.items() if value is not None}


def ints(*values: int, dtype: Any = np.int64) -> np.ndarray:
    return np.array(values, dtype)


# Of 80 x 80 entries with 640 or so left; the gaps of what is left end behind the last entry.
DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "no shape": ({"shape": None}, "expected its shape and either bits or gaps, found gaps;"),
    "no pattern": ({"gaps": None}, "expected its shape and either bits or gaps, found shape;"),
    "two patterns": ({"bits": ints(dtype=np.uint8)}, "expected its shape and either bits or gaps, found bits, gaps"),
    "gaps of another type": ({"gaps": ints(1, 2)}, r"its gaps must be a vector of uint8, found int64 \[2\]"),
    "gaps of another rank": ({"gaps": np.zeros((2, 2), np.uint8)}, r"must be a vector of uint8, found uint8 \[2, 2\]"),
    "no gaps at all": ({"gaps": ints(dtype=np.uint8)}, "its gaps end at None, expected the size 6400"),
    "gaps too short": ({"gaps": ints(3, 4, dtype=np.uint8)}, "its gaps end at 8, expected the size 6400"),
    "gaps beyond the end": ({"gaps": np.full(6401, 1, np.uint8)}, "its gaps end at 12801, expected the size 6400"),
    "gaps that end in a skip": ({"gaps": np.full(26, 255, np.uint8)}, "its gaps end at 6629, expected the size 6400"),
    "bits too short": (
        {"gaps": None, "bits": np.zeros(799, np.uint8)},
        "6400 entries take 800 bytes of bits, found 799",
    ),
    "bits too long": (
        {"gaps": None, "bits": np.zeros(801, np.uint8)},
        "6400 entries take 800 bytes of bits, found 801",
    ),
    "bits behind the end": (
        {"gaps": None, "bits": np.full(1, 255, np.uint8), "shape": ints(7)},
        "a bit is set behind the last of 7 entries",
    ),
    "shape of another type": ({"shape": np.zeros(2, np.float32)}, "its shape must be a vector of int64, found float32"),
    "negative shape": ({"shape": ints(-80, -80)}, r"negative side in its shape \(-80, -80\)"),
    "forged shape": ({"shape": ints(2**62, 2**62)}, rf"expected the size {2**124}"),
    "forged shape, bits": (
        {"gaps": None, "bits": np.zeros(800, np.uint8), "shape": ints(2**40)},
        rf"{2**40} entries take {2**37} bytes of bits, found 800",
    ),
    "forged empty shape": (
        {"gaps": ints(0, dtype=np.uint8), "shape": ints(0, 2**62, 2**62)},
        "there is no array of 3 sides with 0 entries",
    ),
    "forged rank": ({"shape": np.append(ints(80, 80), np.ones(99, np.int64))}, "there is no array of 101 sides"),
    "kept too short": ({"kept": np.zeros(3, np.float32)}, r"entries are kept, which takes \d+ values, found 3"),
    "kept too long": ({"kept": np.zeros(9999, np.float32)}, r"entries are kept, which takes \d+ values, found 9999"),
    "kept of another type": ({"kept": ints(1)}, r"must be a vector of floats, found int64 \[1\]"),
    "kept without values": ({"kept": np.zeros((), np.float32)}, r"must be a vector of floats, found float32 \[\]"),
    "kept of booleans": ({"kept": np.zeros(2, bool)}, r"must be a vector of floats, found bool \[2\]"),
    "kept without a mask": ({"gaps": None, "shape": None}, "neither a pattern of its own nor a mask to go by"),
    "unknown form": ({"runs": ints(1)}, "is encoded as 'runs': expected one of shape, bits, gaps, kept"),
}


@pytest.mark.parametrize(("changed", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_clear_error(changed: dict[str, Any], message: str) -> None:
    stored = uncoded(encode(posterior((80, 80), 0.9)))
    with pytest.raises(RunError, match=message) as caught:
        decode(remade(stored, **changed))
    assert "\n" not in str(caught.value)
    assert MASK in str(caught.value) or LOC in str(caught.value)


def test_a_tensor_stored_twice_is_refused() -> None:
    tensors = posterior((80, 80), 0.9)
    with pytest.raises(RunError, match="it is stored both dense and encoded"):
        decode(encode(tensors) | {LOC: tensors[LOC]})


@given(data=st.data())
def test_no_change_of_a_part_crashes_or_takes_much_memory(data: st.DataObject) -> None:
    stored = uncoded(encode(posterior((80, 80), 0.9)))
    victim = data.draw(st.sampled_from(sorted(stored)))
    dtype = data.draw(st.sampled_from([np.uint8, np.int64, np.float32, np.bool_]))
    value = data.draw(arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=20)))
    with contextlib.suppress(RunError):
        decoded = decode(stored | {victim: value})
        assert sum(array.size for array in decoded.values()) <= 3 * 255 * sum(array.size for array in stored.values())


@pytest.mark.parametrize("sparsity", [0.0, 0.6, 0.95])
def test_a_pruned_network_comes_back_small(mlp: Build, sparsity: float, tmp_path: Path, images: np.ndarray) -> None:
    model, report = prune(mlp(hidden=(64, 64), train_size=1000), sparsity=sparsity)
    run = save_model(model, tmp_path / "run", config={})
    saved = load_model(tmp_path / "run")
    for old, new in zip(model.weights, saved.model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(strip(saved.model)(images[:9]), strip(model)(images[:9]))
    np.testing.assert_array_equal(saved.model(images[:9]), model(images[:9]))  # the same draw
    assert prune(saved.model, threshold=2.0)[1] == prune(model, threshold=2.0)[1]  # the same scores
    # Two floats for each weight that is left, a bit for each that there was, and the biases. Each of 3 layers has 8
    # arrays (two of kept values, two of the pattern, the bias, three scalars): less than 160 bytes for the name, type,
    # shape and place of each, with the scalars and what the kept values begin with.
    left, biases = report.prunable - report.pruned, 4 * (64 + 64 + 10)
    assert run.manifest["bytes"] <= 2 * 4 * left + report.prunable / 8 + biases + 3 * 8 * 160
    assert run.manifest["bytes"] == (tmp_path / "run/weights/model.safetensors").stat().st_size
    assert run.manifest["dense_bytes"] == sum(array.nbytes for array in store.weights_of(model).values())


@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam, keras.optimizers.AdamW, keras.optimizers.Adafactor])
def test_a_network_that_came_back_trains_on_to_the_same_bits(
    mlp: Build, optimizer: Any, tmp_path: Path, images: np.ndarray
) -> None:
    model, _ = prune(bayesianize(strip(mlp()), moped=0.1, train_size=1000), sparsity=0.9)
    save_model(model, tmp_path / "run", config={})
    both = model, load_model(tmp_path / "run").model
    for each in both:
        each.compile(optimizer(0.01), "mse")
        for _ in range(3):
            each.train_on_batch(images[:50], np.zeros((50, 10), np.float32))
    for old, new in zip(both[0].weights, both[1].weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert Run.open(tmp_path / "run").manifest["bytes"] < 0.3 * Run.open(tmp_path / "run").manifest["dense_bytes"]


def test_what_momentum_left_under_a_mask_is_put_to_rest(mlp: Build, tmp_path: Path, images: np.ndarray) -> None:
    model, _ = prune(mlp(), sparsity=0.9)
    posterior = model.get_layer("dense_1").kernel_posterior
    for variable in (posterior.loc_variable, posterior.rho_variable):
        drift = np.random.default_rng(0).normal(size=variable.shape)
        variable.assign(tf.where(posterior.mask, variable, tf.cast(drift, tf.float32)))
    before = [w.numpy() for w in model.weights]
    run = save_model(model, tmp_path / "run", config={})
    for old, now in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, now)  # the model itself stays as it is
    loaded = load_model(tmp_path / "run").model
    found = loaded.get_layer("dense_1").kernel_posterior
    for variable, value in found.resting:
        assert (variable.numpy()[~found.mask.numpy()] == np.float32(value)).all()
    np.testing.assert_array_equal(loaded(images[:9]), model(images[:9]))
    assert run.manifest["bytes"] < 0.5 * run.manifest["dense_bytes"]


def test_a_network_pruned_by_magnitude_is_small_too(mlp: Build, tmp_path: Path) -> None:
    model, _ = prune(mlp("deterministic", hidden=(64, 64)), sparsity=0.9)
    run = save_model(model, tmp_path / "run", config={})
    for old, new in zip(model.weights, load_model(tmp_path / "run").model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert run.manifest["bytes"] < 0.3 * run.manifest["dense_bytes"]


def test_a_model_stored_dense_is_read_as_before(mlp: Build, tmp_path: Path) -> None:
    model, _ = prune(mlp(), sparsity=0.9)
    run = save_model(model, tmp_path / "run", config={})
    with run.locked():
        run.commit({run.manifest["checkpoint"]: tensors_to_bytes(store.weights_of(model))})
    for old, new in zip(model.weights, load_model(tmp_path / "run").model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
