"""TensorBoard's callback beside masks, which are no numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import Conv2DFlipout, DenseFlipout


def images(folder: Path) -> dict[str, np.ndarray]:
    """The images among the summaries of a training, by the name of the weight."""
    found = {}
    for file in folder.rglob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "images":
                    found[value.tag] = tf.io.decode_png(tf.make_ndarray(value.tensor)[2]).numpy()
    return found


def test_masks_are_shown_beside_histograms_and_images_of_weights(tmp_path: Path) -> None:
    layers = [
        Conv2DFlipout(3, 2, name="conv"),
        Conv2DFlipout(1, 2, name="one"),
        keras.layers.Flatten(),
        DenseFlipout(3, train_size=4, bayesian_bias=True, name="head"),
    ]
    model = keras.Sequential([keras.Input((4, 4, 1)), *layers])
    for layer in layers[:2]:
        layer.train_size = 4
    mask = np.random.default_rng(0).random((4, 3)) < 0.5
    layers[3].kernel_posterior.keep_only(mask)
    model.compile("sgd", "mse")
    board = keras.callbacks.TensorBoard(str(tmp_path), histogram_freq=1, write_images=True)
    model.fit(np.ones((4, 4, 4, 1)), np.zeros((4, 3)), verbose=0, callbacks=[board])
    shown = images(tmp_path)
    [name] = [name for name in shown if name.startswith("head/kernel_mask")]
    np.testing.assert_array_equal(shown[name][..., 0], 255 * mask.T)  # Keras lays the longer side across
    assert sum("mask" in name for name in shown) == sum("loc" in name for name in shown)
