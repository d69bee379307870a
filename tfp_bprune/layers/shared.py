"""Noise on a kernel that many positions read: what two sums of outputs have in common by it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tfp_bprune._keras import tf

if TYPE_CHECKING:
    from tfp_bprune.layers.kind import Kind


def common(kind: Kind, layer: Any, name: str, inputs: Any, variance: Any, one: Any, other: Any) -> Any:
    """As `Kind.common`, of a layer whose outputs read patches of its inputs."""
    groups, made = kind.groups(layer, name), kind.kernels[name].made
    read = _by_group(_patches(kind, layer, name, inputs, tuple(variance.shape)), groups)
    sums = [tf.matmul(read, _by_group(by_position(slopes), groups), transpose_a=True) for slopes in (one, other)]
    variance = _last(variance, made)
    entries = sums[0].shape[-2]
    if groups == 1:
        return tf.reduce_sum(tf.reshape(variance, [entries, -1]) * sums[0] * sums[1], [1, 2])
    by_group = tf.transpose(tf.reshape(variance, [entries, groups, -1]), [1, 0, 2])
    return tf.reduce_sum(by_group * sums[0] * sums[1], [1, 2, 3])


def by_position(values: Any) -> Any:
    """Values [batch, ..., channels] as [batch, positions, channels]."""
    return tf.reshape(values, [tf.shape(values)[0], -1, values.shape[-1]])


def _patches(kind: Kind, layer: Any, name: str, inputs: Any, shape: tuple[int, ...]) -> Any:
    """What each position reads, [batch, positions, groups * entries]: of each group the entries of its kernel."""
    groups, made = kind.groups(layer, name), kind.kernels[name].made
    axis = len(shape) - 1 if made is None else made % len(shape)
    others = [size for place, size in enumerate(shape) if place != axis]
    # A kernel without an axis of outputs alone has the groups among the others.
    entries = math.prod(others) // (groups if made is None else 1)
    unit = tf.one_hot(tf.range(entries), entries)  # `tf.eye` is an operation that few runtimes have
    each = unit if groups == 1 else tf.tile(unit[:, None], [1, groups, 1])
    last = tf.reshape(each, [*others, groups * entries**2 // math.prod(others)])
    places = list(range(len(others)))
    kernel = last if axis == len(others) else tf.transpose(last, [*places[:axis], len(others), *places[axis:]])
    return by_position(kind.linear(layer, name, inputs, kernel))


def _last(kernel: Any, axis: int | None) -> Any:
    """A kernel with the axis of its outputs last."""
    rank = len(kernel.shape)
    if axis is None or axis % rank == rank - 1:
        return kernel
    return tf.transpose(kernel, [*(place for place in range(rank) if place != axis % rank), axis % rank])


def _by_group(values: Any, groups: int) -> Any:
    """Values [batch, positions, channels] as [batch, groups, positions, channels of each]; as they are where there is one."""
    if groups == 1:
        return values
    width = values.shape[-1] // groups
    return tf.transpose(tf.reshape(values, [tf.shape(values)[0], -1, groups, width]), [0, 2, 1, 3])
