"""Is one variant worse than another? Paired differences, with a bootstrap interval.

Two variants score nearly alike because they see the same queries and pairs; what counts is how they
differ on each. Resampling the queries (pairs, test texts, clusterings) with replacement, both variants
on the same ones, says how far the difference would move on other queries of the kind.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .scores import of_pairs

RESAMPLES = 1000
# A loss of less than this is called none, in points of 100.
MEASURABLE = 0.5


@dataclass(frozen=True)
class Difference:
    """A variant's score less the baseline's, in points of 100, with its 95 % interval.

    Some resamplings have no score (one class alone, equal similarities): the interval is of the others.

    Attributes:
        resampled: (`RESAMPLES`,) the differences that the interval comes from.
    """

    value: float
    low: float
    high: float
    resampled: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    @property
    def known(self) -> bool:
        """Whether both variants have a score, on the data and on some resamplings."""
        return math.isfinite(self.value + self.low + self.high)

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if not self.known:
            return "undecided"
        if self.high < 0:
            return "worse"
        if self.low > 0:
            return "better"
        return "no measurable loss" if self.low > -MEASURABLE else "undecided"


def difference(
    variant: Sequence[float],
    baseline: Sequence[float],
    metric: str,
    gold: Sequence[float] | None = None,
) -> Difference:
    """The difference and its percentile bootstrap interval.

    Args:
        variant: its items, as in scores.Score.
        baseline: those of the baseline, in the same order.
        metric: of the task; matters where the score is a rank statistic of pairs.
        gold: values that the pairs are ranked against; None where the score is the items' mean.
    """
    a, b = np.asarray(variant), np.asarray(baseline)
    draws = np.random.default_rng(0).integers(0, len(a), (RESAMPLES, len(a)))
    if gold is None:
        value = (a - b).mean()
        resampled = (a - b)[draws].mean(axis=1)
    else:
        truth = np.asarray(gold)

        def gap(rows: np.ndarray) -> float:
            return of_pairs(metric, a[rows], truth[rows]) - of_pairs(metric, b[rows], truth[rows])

        value = gap(np.arange(len(a)))
        resampled = np.array([gap(rows) for rows in draws])
    return _with_interval(100 * float(value), 100 * resampled)


def mean(differences: Sequence[Difference]) -> Difference:
    """Of several tasks, whose resamplings have nothing to do with each other."""
    resampled = np.ma.masked_invalid([found.resampled for found in differences]).mean(axis=0)
    value = float(np.mean([found.value for found in differences]))
    return _with_interval(value, np.ma.filled(resampled, np.nan))


def _with_interval(value: float, resampled: np.ndarray) -> Difference:
    scored = resampled[np.isfinite(resampled)]
    low, high = np.percentile(scored if len(scored) else np.nan, [2.5, 97.5])
    return Difference(value, float(low), float(high), resampled)
