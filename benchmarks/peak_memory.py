"""Peak resident memory of a process that trains: its own high-water mark, so each network needs a process of its own.

    python benchmarks/peak_memory.py NETWORK LAYERS WIDTH BATCH    # prints MiB, TensorFlow's own included

`train_step.py` runs this for VGG-16. `plain` stands for deterministic layers with Keras's Adam.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

STEPS = 5


def of_process(network: str, layers: str, width: float, batch: int) -> float:
    """MiB at the peak of a new process that builds the network and takes a few steps."""
    words = [sys.executable, __file__, network, layers, str(width), str(batch)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def main(network: str, layers: str, width: str, batch: str) -> None:
    """Trains in this process."""
    import measure
    import networks

    from tfp_bprune._keras import keras

    plain = layers == "plain"
    model = networks.network(network, "deterministic" if plain else layers, float(width))
    optimizer = keras.optimizers.Adam(1e-4) if plain else None
    step = measure.training_step(model, model.input_shape[1:], int(batch), optimizer=optimizer)
    for _ in range(STEPS):
        step()
    # Of this program's own memory: getrusage would count that of the process that started it, too.
    [peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(int(peak.split()[1]) / 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
