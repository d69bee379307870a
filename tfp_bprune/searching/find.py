"""The search: one threshold, the order refined, every layer's sparsity, and then what may be promised."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tfp_bprune.claims.budget import Budget
from tfp_bprune.data.arrays import leaves, shapes
from tfp_bprune.data.splits import Split, Splits
from tfp_bprune.files.runs import finite
from tfp_bprune.graphs.convert import adopt
from tfp_bprune.graphs.heads import Head, heads_for, heads_of, note_heads, noted_heads
from tfp_bprune.graphs.match import check_shapes
from tfp_bprune.pruning.scoring import Scoring, default_criterion
from tfp_bprune.searching import layers
from tfp_bprune.searching.bits import fewest_bits
from tfp_bprune.searching.claim import Candidate, Claim, on_test, prove_all
from tfp_bprune.searching.samples import digest, fingerprint_of, fingerprint_of_splits, others_parted, parted, sample_of
from tfp_bprune.searching.sensitivity import KEPT, sensitivity
from tfp_bprune.searching.session import Sample, Session
from tfp_bprune.searching.threshold import bisect
from tfp_bprune.trials.log import TrialLog, check_same
from tfp_bprune.trials.pareto import front
from tfp_bprune.trials.ranking import STEPS, Counts, Ranking, refined, stored_scores
from tfp_bprune.trials.size import Sizes, check_target
from tfp_bprune.trials.times import Times, stored_times
from tfp_bprune.trials.trial import WHOLE, Evaluator
from tfp_bprune.trials.units import ranked
from tfp_bprune.types import BpruneError, Criterion, Granularity, Json, Order, PruneError, Target

TRIALS_FILE, SETTINGS_FILE = "trials.jsonl", "settings.json"
_EXPECTED = 0.65  # of what one threshold leaves by score: where it is expected to end in the refined order
_LEAST_TRIALS = 20
_MOST = 16  # trials of one bisection, of which the first leaves some of _LEAST_TRIALS
_FOR_CURVES = 0.25
_FOR_BITS = 0.3
_LEAST_WITH_BITS = math.ceil(_LEAST_TRIALS / (1 - _FOR_BITS))
_FEWEST = 6


@dataclass(frozen=True)
class Settings:
    """How a search goes.

    Attributes:
      budget: the conditions that the network has to meet.
      target: what to minimize: "nonzeros", "bytes" or "latency".
      trials: largest number of networks to evaluate, including those for the single threshold and for the sensitivities.
      order: the order in which the weights of a kernel are removed: "refined" on training examples (`trials.ranking`), or "score",
        that of the criterion.
      criterion: score that weights are ranked by; by default as in `prune`.
      granularity: "weight", or "unit" for whole neurons and filters. Counts are then of the units of each layer, and the target
        "latency" is that of exports, a few of which are timed once before the first trial (`trials.times`).
      seed: seed of the optimization and the refinement.
      bits: for the target "bytes": also search for the fewest bits of each layer's weights, 8 to 2.
    """

    budget: Budget = field(default_factory=Budget)
    target: Target = "nonzeros"
    trials: int = 100
    order: Order = "refined"
    criterion: Criterion | None = None
    seed: int = 0
    granularity: Granularity = "weight"
    bits: bool = False

    def __post_init__(self) -> None:
        check_target(self.target)
        Scoring(self.criterion, granularity=self.granularity)
        least = _LEAST_WITH_BITS if self.bits else _LEAST_TRIALS
        if self.trials < least:
            raise BpruneError(f"trials must be at least {least}{' with bits' * self.bits}, got {self.trials}")
        if self.order not in get_args(Order):
            raise BpruneError(f"order must be 'refined' or 'score', got {self.order!r}")
        if self.bits and self.target != "bytes":
            raise BpruneError(
                f"fewer bits make files smaller: expected the target 'bytes' with bits, got {self.target!r}"
            )
        if self.seed < 0:
            raise BpruneError(f"seed must be at least 0, got {self.seed}")


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
      layers, single: the claims for a sparsity of every layer and for the best single threshold; both hold together at the budget's
        level.
      test, single_test: their drop on the test split; see `claim.on_test`.
      rows: all trials.
      front: the Pareto points, by number; see `pareto.front`.
      rankings: the orders that counts refer to.
      sizes: the sizes that the target was measured by.
      speed: `trials`, `evaluated` by this process and `trials_per_second` of those.
      evaluator: the evaluator of the network.
    """

    layers: Claim
    single: Claim
    test: Json
    single_test: Json
    rows: list[Json]
    front: list[Json]
    rankings: dict[str, Ranking]
    sizes: Sizes
    speed: Json
    evaluator: Evaluator

    def masks(self, ranking: str, counts: Counts) -> dict[str, np.ndarray]:
        """The masks of counts in a row of a trial."""
        return self.rankings[ranking].masks(counts)


def search(
    model: Any,
    data: Splits,
    out: str | os.PathLike[str],
    *,
    settings: Settings | None = None,
    strange: Split | None = None,
    on_trial: Callable[[Json], None] = lambda row: None,
    on_step: Callable[[str], None] = lambda what: None,
) -> Found:
    """Finds the smallest or fastest network within a budget, without retraining.

    A third of the validation split is searched on. The rest is used once, to certify the result, and the test split once, to
    report it. Call it again with the same arguments to resume a search that was stopped.

    Args:
      model: what `prune` takes, with one output: classes (binary or more), several labels, or a regression.
      data: the splits that it was trained on.
      out: folder for the trials; it may exist.
      settings: `tfp_bprune.searching.Settings`, with the budget, the target and the number of trials. The default budget is an accuracy
        drop of half a point; for a regression an RMSE grown by 5 %.
      strange: examples of another dataset with the same shape, for `min_ood_auroc`.
      on_trial: called with the row of each trial.
      on_step: called with a line of text before each step.

    Returns:
      A `Found`: `layers` and `single`, the certified networks with a sparsity for each layer and with a single threshold; `front`,
      the Pareto front; `rows`, all trials.

    Raises:
      PruneError: nothing can be pruned, or the network has several outputs.
      BpruneError: the budget has a condition that does not apply to the task; there are too few validation examples; or a condition
        lacks its data.
      RunError: the folder holds another search, or a damaged one.

    Example:
      found = bp.search(model, data, "searched", settings=Settings(bp.Budget(max_accuracy_drop=0.01)))
    """
    out, model = Path(out), _told(adopt(model), data)
    settings = settings_for(model, data, settings)
    criterion = settings.criterion or default_criterion(model)
    evaluator, order = Evaluator(model, criterion), ranked(model, criterion, settings.granularity)
    _check_data(evaluator, data, settings, strange)
    check_same(out / SETTINGS_FILE, _fingerprint(model, data, settings, strange))
    looked_at, kept_aside = parted(data.examples("valid"))
    odd, odd_aside, odd_test = others_parted(strange) if strange else (None, None, None)
    whole = order.masks(order.left)
    sizes = Sizes(evaluator, _times(model, order, looked_at, settings, out, on_step))
    session = Session(
        sample_of(evaluator, looked_at, odd, whole), settings.budget, settings.target, sizes,
        {"score": order}, TrialLog(out / TRIALS_FILE), len(kept_aside), on_trial,
    )  # fmt: skip
    on_step("one threshold")
    best = single = bisect(session, most=_MOST)
    if single is not None:
        most = round(settings.trials * (1 - _FOR_BITS)) if settings.bits else settings.trials
        weights = replace(settings, trials=most, bits=False)
        best = _every_layer(session, evaluator, data, weights, single, out, on_step) or single
        if settings.bits:
            on_step("bits")
            best = fewest_bits(session, best, settings.trials - session.done)
    on_step("proving")
    aside = sample_of(evaluator, kept_aside, odd_aside, whole)
    test = sample_of(evaluator, data.examples("test"), odd_test, whole)
    all_layers, alone = prove_all(aside, settings.budget, [_candidate(session, row) for row in (best, single)])
    return Found(
        all_layers, alone, _on_test(session, test, all_layers), _on_test(session, test, alone),
        session.rows, front(session.rows, settings.target), session.rankings, sizes, session.speed, evaluator,
    )  # fmt: skip


def _times(model: Any, order: Ranking, split: Split, settings: Settings, out: Path, on_step: Any) -> Times | None:
    """Of exports, where they are what is to be made small and change with what goes."""
    if settings.granularity != "unit" or settings.target != "latency":
        return None
    on_step("timing exports")
    return stored_times(out, model, order, split)


def _candidate(session: Session, row: Json | None) -> Candidate:
    """The network of a trial; that of all weights where there is none."""
    order = session.rankings["score"]
    name, counts = (row["ranking"], row["counts"]) if row else ("score", order.left)
    return Candidate(session.rankings[name], name, counts, row.get("bits", WHOLE) if row else WHOLE)


def _on_test(session: Session, test: Sample, claim: Claim) -> Json:
    return on_test(test.pair(session.rankings[claim.ranking].masks(claim.counts), claim.bits), session.budget)


def _every_layer(
    session: Session, evaluator: Evaluator, data: Splits, settings: Settings, single: Json, out: Path, on_step: Any
) -> Json | None:
    """The best trial of all layers' search, started at the best single threshold of the order in use."""
    name, center = "score", single
    if settings.order == "refined":
        name, center = "refined", _refined_threshold(session, evaluator, data, settings, single, out, on_step)
    on_step("layer by layer")
    counts = center["counts"]
    parts = layers.PARTS[: max(1, min(len(layers.PARTS), int(_FOR_CURVES * settings.trials) // len(counts)))]
    curves: list[Json] = []
    if session.done + len(parts) * len(counts) < settings.trials:
        curves = [center | {"tensor": None, "kept": 1.0}, *sensitivity(session, name, parts, counts)]
    layers.per_layer(session, counts, curves, settings.trials - session.done, settings.seed, name)
    return layers.best_of(session)


def _refined_threshold(
    session: Session, evaluator: Evaluator, data: Splits, settings: Settings, single: Json, out: Path, on_step: Any
) -> Json:
    """The best single threshold of the refined order; as many weights as of the other order where none is within the budget."""
    around, start, train = sum(single["counts"].values()), session.rankings["score"], data.examples("train")

    def told(step: int) -> None:
        if step % 100 == 0:
            on_step(f"refining the order, {100 * step // STEPS} %")

    def compute() -> dict[str, np.ndarray]:
        return refined(evaluator, train, start, around, settings.seed, on_step=told)

    shapes = {name: scores.shape for name, scores in start.scores.items()}
    session.rankings["refined"] = order = start.with_scores(stored_scores(out, shapes, compute))
    left = settings.trials - session.done
    found = bisect(session, "refined", most=min(_MOST, left - 1), start=max(1, round(_EXPECTED * around)))
    return found or session.trial("global", "refined", order.globally(around))


def analyse(
    model: Any,
    data: Splits,
    out: str | os.PathLike[str],
    criterion: Criterion | None = None,
    granularity: Granularity = "weight",
    on_trial: Callable[[Json], None] = lambda row: None,
) -> list[Json]:
    """The sensitivity of the whole network to pruning one layer, on the whole validation split; see `sensitivity`.

    Returns:
      Rows by layer and part kept, before them one of the unpruned network (`layer` None, `kept` 1).
    """
    out, model = Path(out), _told(adopt(model), data)
    criterion = criterion or default_criterion(model)
    evaluator, order = Evaluator(model, criterion), ranked(model, criterion, granularity)
    valid = data.examples("valid")
    if not len(valid):
        raise BpruneError("the run held out no examples for validation: train with --validation-fraction above 0")
    path = out / "sensitivity.jsonl"
    path.unlink(missing_ok=True)
    sample = sample_of(evaluator, valid, None, order.masks(order.left))
    session = Session(
        sample,
        settings_for(model, data).budget,
        "nonzeros",
        Sizes(evaluator),
        {"score": order},
        TrialLog(path),
        len(valid),
        on_trial,
    )
    unpruned = session.trial("sensitivity", "score", order.left) | {"layer": None, "tensor": None, "kept": 1.0}
    rows = [unpruned, *sensitivity(session, "score", KEPT)]
    path.unlink(missing_ok=True)
    return rows


def settings_for(model: Any, data: Splits, settings: Settings | None = None) -> Settings:
    """The settings with the budget of the network's task.

    Raises:
      BpruneError: it asks for what the task has not; see `Budget.of`.
    """
    settings = settings or Settings()
    head = _head(_told(model, data))
    return replace(settings, budget=settings.budget.of(head, head.task == "multilabel" or bool(data.info.positions)))


def _head(model: Any) -> Head:
    heads = list(heads_of(model).values())
    if len(heads) != 1:
        raise PruneError(f"model {model.name!r} has {len(heads)} outputs: a search expects one")
    return heads[0]


def _told(model: Any, data: Splits) -> Any:
    """The model, of which it is said what its outputs mean on this data where nothing else says it."""
    return model if noted_heads(model) else note_heads(model, heads_for(model, data.info))


def _check_data(evaluator: Evaluator, data: Splits, settings: Settings, strange: Split | None) -> None:
    check_shapes(evaluator.network, data)
    suited, task = evaluator.head.task, data.info.task
    expected = {
        "gaussian": ("regression",),
        "classification": ("classification", "binary"),
        "binary": ("classification", "binary"),
    }
    if task not in expected.get(suited, (suited,)):
        raise BpruneError(f"{data.info.name} is a {task}: the network was made for {suited}")
    if len(data.examples("valid")) < _FEWEST:
        raise BpruneError(
            f"{len(data.examples('valid'))} validation examples are too few to search on, expected {_FEWEST} at least: "
            "train with a larger --validation-fraction"
        )
    if (settings.budget.min_ood_auroc is not None) != (strange is not None):
        raise BpruneError("min_ood_auroc and examples of another dataset (--ood) go together: give both or none")
    if strange is not None and len(strange) < _FEWEST:
        raise BpruneError(f"{len(strange)} examples of the other dataset are too few: expected {_FEWEST} at least")
    if strange is not None and shapes(strange.x) != (wanted := shapes(data.examples("valid").x)):
        raise BpruneError(f"examples of the other dataset have shape {shapes(strange.x)}: expected {wanted}")


def _fingerprint(model: Any, data: Splits, settings: Settings, strange: Split | None) -> Json:
    """What decides every trial."""
    odd = digest(leaves(strange.x)) if strange else None
    asked = asdict(settings)
    if settings.budget.max_rmse_increase is None:  # searches from before there was such a condition go on
        del asked["budget"]["max_rmse_increase"]
    if settings.granularity == "weight":  # nor such a choice
        del asked["granularity"]
    if not settings.bits:
        del asked["bits"]
    return finite(asked | {"network": fingerprint_of(model), "data": fingerprint_of_splits(data), "ood": odd})
