"""The bits of every layer's weights: the last part of a search, in which they get fewer while the budget holds."""

from __future__ import annotations

from tfp_bprune.searching.layers import best_of
from tfp_bprune.searching.session import Session
from tfp_bprune.trials.size import layer_of
from tfp_bprune.types import Json

CHOICES = (8, 6, 5, 4, 3, 2)


def fewest_bits(session: Session, start: Json, trials: int) -> Json:
    """Makes at most `trials` trials: all layers together with ever fewer bits, then each by itself, the largest first.

    Returns:
      The smallest trial of the search that is within the budget.
    """
    end, counts, ranking = session.done + trials, start["counts"], start["ranking"]
    sizes: dict[str, int] = {}
    for tensor, count in counts.items():
        sizes[layer_of(tensor)] = sizes.get(layer_of(tensor), 0) + count
    layers = sorted((name for name, size in sizes.items() if size), key=lambda name: (-sizes[name], name))
    bits: dict[str, int] = {}
    for group in (layers, *([name] for name in layers if len(layers) > 1)):
        while session.done < end and (number := _fewer(bits.get(group[0]))) is not None:
            tried = bits | dict.fromkeys(group, number)
            if not session.within(session.trial("bits", ranking, counts, tried)):
                break
            bits = tried
    return best_of(session) or start


def _fewer(bits: int | None) -> int | None:
    """The next choice; None where there is none."""
    return next((number for number in CHOICES if bits is None or number < bits), None)
