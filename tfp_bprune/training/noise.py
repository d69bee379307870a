"""The noise of Keras's own layers, such as Dropout, as a function of seed, layer, worker and epoch, so that a resumed run meets the
same as an unbroken one.

Keras draws it in a compiled step from a state that nothing outside can read. While a network is trained its layers have
generators with a state that can be set, and it is set when an epoch begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.types import Json

_Generator: Any = keras.src.backend.RandomGenerator


class NoiseByEpoch(keras.callbacks.Callback):
    """Sets the states of the random layers of Keras in the model that is trained; afterwards they have what they had.

    Args:
      seed, rank: of the training, and of this worker in it.
    """

    def __init__(self, seed: int, rank: int) -> None:
        super().__init__()
        self._seed, self._rank = seed, rank
        self._before: list[tuple[Any, Any]] = []

    def on_epoch_begin(self, epoch: int, logs: Json | None = None) -> None:
        """Sets them anew; layers that are new since have generators from here on."""
        for number, layer in enumerate(_random_layers(self.model)):
            if getattr(layer._random_generator, "_generator", None) is None:
                self._before.append((layer, layer._random_generator))
                layer._random_generator = _Generator(0, rng_type="stateful")
                layer._random_generator._maybe_init()
            words = np.random.SeedSequence([self._seed, self._rank, epoch, number])
            layer._random_generator._generator.reset_from_seed(int(words.generate_state(1, np.uint64)[0] >> 1))

    def on_train_end(self, logs: Json | None = None) -> None:
        """Gives layers back the generators that they had."""
        for layer, generator in self._before:
            layer._random_generator = generator
        self._before = []


def _random_layers(model: Any) -> Iterator[Any]:
    """The layers with a generator of Keras's, in an order that the architecture says: names may be others in another process."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _random_layers(layer)
            continue
        yield from (
            part for part in layer._flatten_layers() if isinstance(getattr(part, "_random_generator", None), _Generator)
        )
