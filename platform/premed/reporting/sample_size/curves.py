"""Forecasts of a comparison: the arms' scores and differences at more labels than were used."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

import numpy as np

from premed.reporting.comparison.artifacts import stage_result
from premed.reporting.comparison.grouping import Arm, Block
from premed.reporting.formatting import LOWER_IS_BETTER
from premed.reporting.sample_size.arms import Tables, pseudo
from premed.reporting.sample_size.forecast import Law, bounds, fit, redrawn, refusal
from premed.reporting.sample_size.result import Forecast, ForecastPoint
from premed.reporting.statistics import SEEDS
from premed.tracking.run_store import RunStore

TIMES = (2.0, 4.0)
"""The largest share of the labels that was used, at which scores are forecast."""
NO_RISE = "the score does not improve with more labels, so there is no law to continue"


@dataclass(frozen=True)
class Curve:
    """An arm's forecast, and what it is made of."""

    forecast: Forecast
    largest: float = np.nan
    laws: tuple[Law, ...] = ()
    """Of the arm, through the means and through the means drawn anew; then the baseline's on the same draws, if any."""
    sign: float = 1.0

    def at(self, times: float) -> tuple[float, np.ndarray]:
        """The score at `times` the largest share, and its draws."""
        share = times * self.largest
        return self.sign * float(self.laws[0].at(share)[0]), self.sign * self.laws[1].at(share)

    def difference_at(self, times: float) -> tuple[float, np.ndarray]:
        (value, drawn), share = self.at(times), times * self.largest
        return value - self.sign * float(self.laws[2].at(share)[0]), drawn - self.sign * self.laws[3].at(share)


def curves_of(store: RunStore, block: Block, baselines: dict[float, Arm], tables: Tables, score: str) -> list[Curve]:
    """A curve for each label that has several shares of the labels, the baseline first."""
    by_label: dict[str, dict[float, Arm]] = {}
    for arm in block.arms:
        by_label.setdefault(arm.label, {})[arm.fraction] = arm
    base = next((arm.label for arm in baselines.values()), "")
    found = []
    for label in sorted(by_label, key=lambda label: label != base):
        if len(arms := by_label[label]) > 1:
            other = by_label[base] if base and label != base else {}
            found.append(curve(store, label, arms, other, tables, score))
    return found


def curve(
    store: RunStore, label: str, arms: dict[float, Arm], others: dict[float, Arm], tables: Tables, score: str
) -> Curve:
    """An arm's curve. arms, others: the arm's and the baseline's, by share of the labels."""
    shares = sorted(arms)
    own = stacked(arms, shares, common_seeds(arms, shares), tables, score)
    plain = Forecast(
        label=label,
        shares=shares,
        scores=[float(np.mean([tables[run.run.run_id].scores[score].full[0] for run in arms[x].runs])) for x in shares],
        limit=np.nan,
        factor=np.nan,
        exponent=np.nan,
        points=(),
        differences=(),
        refused=refusal(len(shares), len(own)),
    )
    if plain.refused:
        return Curve(plain)
    sign, most = (-1.0, 0.0) if score in LOWER_IS_BETTER else (1.0, 1.0)
    laws = laws_of(paired_groups(arms, others, shares, tables, score) if set(shares) <= set(others) else [own],
                   shares, sign, most)  # fmt: skip
    law = Law(*(each[0] for each in laws[0]))
    if not law.factor > 0:
        return Curve(replace(plain, refused=NO_RISE))
    made = Curve(plain, shares[-1], laws, sign)
    images = num_images(store, arms[shares[-1]])
    points = [point(times, images, *made.at(times)) for times in TIMES]
    differences = [point(times, images, *made.difference_at(times)) for times in TIMES] if len(laws) > 2 else ()
    forecast = replace(
        plain,
        limit=sign * float(law.limit),
        factor=float(law.factor),
        exponent=float(law.exponent),
        points=points,
        differences=differences,
    )
    return replace(made, forecast=forecast)


def point(times: float, images: float | None, value: float, drawn: np.ndarray) -> ForecastPoint:
    return ForecastPoint(times, None if images is None else round(times * images), value, bounds(drawn))


def laws_of(groups: Sequence[np.ndarray], shares: Sequence[float], sign: float, most: float) -> tuple[Law, ...]:
    """Laws through the means of groups' pseudo-values and through means drawn anew; a pair for each K columns."""
    num = len(shares)
    means = np.concatenate([group.mean(axis=(0, 1)) for group in groups])[None]
    drawn = redrawn(groups)
    laws = []
    for begin in range(0, means.shape[1], num):
        here = slice(begin, begin + num)
        laws += [fit(shares, sign * of[:, here], most) for of in (means, drawn)]
    return tuple(laws)


def paired_groups(
    arms: dict[float, Arm], others: dict[float, Arm], shares: Sequence[float], tables: Tables, score: str
) -> list[np.ndarray]:
    """Pseudo-values of an arm and its baseline: [S, P, 2K] on both's seeds; or [S, P, K] of each; or of the arm."""
    ours, theirs = common_seeds(arms, shares), common_seeds(others, shares)
    both = [seed for seed in ours if seed in theirs]
    if len(both) >= SEEDS:
        pair = [stacked(each, shares, both, tables, score) for each in (arms, others)]
        if len(pair[0]) == len(pair[1]):
            return [np.concatenate(pair, axis=2)]
    pair = [stacked(each, shares, seeds, tables, score) for each, seeds in ((arms, ours), (others, theirs))]
    return pair if len(pair[1]) >= SEEDS else pair[:1]


def common_seeds(arms: dict[float, Arm], shares: Sequence[float]) -> list[tuple[str, str]]:
    """The independent seeds that an arm has at every share."""
    return [seed for seed in arms[shares[0]].by_seed if all(seed in arms[share].by_seed for share in shares)]


def stacked(
    arms: dict[float, Arm], shares: Sequence[float], seeds: Sequence[tuple[str, str]], tables: Tables, score: str
) -> np.ndarray:
    """Pseudo-values [S, P, K] of the seeds whose score is defined at every share; [0] without any."""
    found = [
        np.stack([pseudo(arms[share].by_seed[seed], tables, score).mean(axis=0) for share in shares], axis=-1)
        for seed in seeds
    ]
    found = [each for each in found if np.isfinite(each).all()]
    return np.stack(found) if found else np.zeros(0)


def num_images(store: RunStore, arm: Arm) -> float | None:
    """The mean size of an arm's training sets; None where no run tells it."""
    with TemporaryDirectory() as folder:
        results = [stage_result(store, run.stages["finetune"], folder) for run in arm.experiments]
    numbers = [num for result in results if (num := result.get("num_cases"))]
    return float(np.mean(numbers)) if numbers else None
