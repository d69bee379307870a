"""Trials of one search: evaluated once, written down, and taken from the log when the search is resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from tfp_bprune.claims.budget import Budget, NumberPair, Pair, auroc
from tfp_bprune.trials.log import TrialLog
from tfp_bprune.trials.ranking import Counts, Ranking
from tfp_bprune.trials.size import Sizes
from tfp_bprune.trials.trial import WHOLE, Answers, Bits, Examples, Numbers
from tfp_bprune.types import Json, RunError, Target


@dataclass
class Sample:
    """Examples to judge on, with what the unpruned network says of them; `strange` are of another dataset."""

    examples: Examples
    strange: Examples | None
    whole: Answers | Numbers

    def pair(self, masks: Any, bits: Bits = WHOLE) -> Pair | NumberPair:
        """The network under `masks`, its layers rounded to `bits`, beside the unpruned one."""
        pruned = self.examples.answers(masks, bits)
        strange = self.strange.answers(masks, bits) if self.strange else None
        if isinstance(self.whole, Numbers):
            return NumberPair(self.whole, cast(Numbers, pruned))
        return Pair(self.whole, cast(Answers, pruned), cast("Answers | None", strange))


@dataclass
class Session:
    """What every part of a search needs: the sample that it may look at, the budget, and the log.

    Attributes:
      proof: how many examples are kept aside to prove the budget on.
      rankings: by name, "score" and, once it is there, "refined".
      on_trial: told the number of each trial when it is done.
    """

    sample: Sample
    budget: Budget
    target: Target
    sizes: Sizes
    rankings: dict[str, Ranking]
    log: TrialLog
    proof: int
    on_trial: Callable[[Json], None] = lambda row: None
    done: int = 0
    evaluated: int = 0
    seconds: float = 0.0
    rows: list[Json] = field(default_factory=list)

    def trial(self, phase: str, ranking: str, counts: Counts, bits: Bits = WHOLE) -> Json:
        """Prunes, rounds and evaluates, or reads what an earlier process found.

        Returns:
          `trial` (its number), `phase`, `ranking`, `counts`, `bits` of layers that are rounded, if any; `accuracy`, `nll`, `ece`,
          `accuracy_drop`, `lost`, `gained`, with another dataset `ood_auroc`; of a regression `rmse` and `rmse_increase` instead;
          `excess` of the budget; `nonzeros`, `bytes`, `latency` as `Sizes` has them.

        Raises:
          RunError: the log holds another trial in this place.
        """
        asked: Json = {"trial": self.done, "phase": phase, "ranking": ranking, "counts": counts}
        asked |= {"bits": dict(bits)} if bits else {}
        if self.done < len(self.log.rows):
            row = self.log.trial(self.done)
            if any(row.get(key) != value for key, value in asked.items()) or row.get("bits", {}) != bits:
                raise RunError(
                    f"trial {self.done} in {self.log.path} is not the one that this search would make: "
                    "search with the same run, budget and seed, or choose another folder with --out"
                )
        else:
            begin = time.perf_counter()
            row = asked | self._measured(ranking, counts, bits)
            self.evaluated, self.seconds = self.evaluated + 1, self.seconds + time.perf_counter() - begin
            self.log.append(row)
            row = self.log.rows[-1]
        self.done += 1
        self.rows.append(row)
        self.on_trial(row)
        return row

    def _measured(self, ranking: str, counts: Counts, bits: Bits) -> Json:
        pair = self.sample.pair(self.rankings[ranking].masks(counts), bits)
        sizes = self.sizes.of(counts, self.rankings[ranking], bits)
        if isinstance(pair, NumberPair):
            return {
                "rmse": pair.pruned.rmse,
                "rmse_increase": pair.increase,
                "excess": self.budget.excess(pair, self.proof),
                **sizes,
            }
        scores = pair.pruned.scores()
        found: Json = {key: scores[key] for key in ("accuracy", "nll", "ece")}
        found |= {"accuracy_drop": pair.drop, "lost": pair.lost, "gained": pair.gained}
        if pair.strange is not None:
            found["ood_auroc"] = auroc(pair)
        return found | {
            "soft_drop": pair.soft_drop,
            "excess": self.budget.excess(pair, self.proof),
            **sizes,
        }

    @property
    def speed(self) -> Json:
        """`trials`, `evaluated` by this process and `trials_per_second` of those, None where there are none."""
        pace = self.evaluated / self.seconds if self.evaluated else None
        return {"trials": self.done, "evaluated": self.evaluated, "trials_per_second": pace}

    def within(self, row: Json) -> bool:
        """Whether a trial is within the budget as far as the searched examples tell."""
        return bool(row["excess"] <= 0)


def smallest(rows: Sequence[Json], target: Target) -> Json | None:
    """The smallest of the trials that are within the budget, as far as the searched examples tell; None where none is."""
    inside = [row for row in rows if row["excess"] <= 0]
    return min(inside, key=lambda row: (row[target], row["nonzeros"], row["trial"]), default=None)
