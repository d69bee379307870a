"""Any number of examples for files that take batches of one size; this file stands alone."""

from collections.abc import Callable
from typing import Any

import numpy as np


def in_batches(run: Callable[[Any], Any], size: int) -> Callable[[Any], Any]:
    """`run`, which takes `size` examples, for any number from 1 on: the last one fills what is left of the last batch."""

    def any_number(inputs: Any) -> Any:
        count = len(next(iter(inputs.values())))
        places = [np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)]
        parts = [run({name: x[chosen] for name, x in inputs.items()}) for chosen in places]
        return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}

    return any_number
