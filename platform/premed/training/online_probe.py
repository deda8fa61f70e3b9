"""The online probe: at each validation of a pre-training, a linear model on the frozen encoder's features of few images
with labels, scored on val; and, of strategies that may collapse, RankMe and spread of the encoder's features of val.

The images are the same at each validation, for each seed and strategy. Nothing of it reaches the training: weights,
random draws and the numbers of the curve are the same with and without it.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from premed.config.settings import OnlineProbe, Pretrain
from premed.contracts import Case, DataSet, Encoder, Objective, Part, Row, Sample, Task
from premed.data import views
from premed.data.splits import is_unlabelled
from premed.distributed import RaisedOnAllRanks, all_gather, raise_on_all_ranks, rank_and_world
from premed.errors import UserError
from premed.events import EventHandler, WarningIssued
from premed.models.embeddings import rank_me, spread
from premed.models.heads import probe
from premed.models.network import Network, seeded_init
from premed.rng import key, permutation
from premed.training.closed_form import extract_features
from premed.training.evaluate import evaluate
from premed.training.setup import StageJob, TaskOf, TrainingSetup, prepared

PRIOR = 0.75  # of the probe's head, for label maps: this share of the classes' log frequency is subtracted
MOST_ROWS = 4096  # patches of all training images that the regression sees: more take long, and say little more
EMBEDDED = 256  # images of each data set whose features give RankMe: it is this number at the most


LABELLED: tuple[Part, Part] = ("train", "val")


class Measures(NamedTuple):
    """What is measured at each validation of a pre-training beside its loss."""

    functions: Sequence[Callable[[], dict[str, float]]]
    """Called on every rank; each returns the same numbers on all."""
    probe: str | None = None
    """The probe in words, or why there is none; None where none is asked for."""
    score: str | None = None
    """The name of the probe's score."""


NO_MEASURES = Measures(())


class ProbeObjective(Objective):
    """Encoder and linear head, and how they are scored: what `evaluate` needs. It is never trained by `fit`."""

    def __init__(self, encoder: Encoder, task: Task, config: OnlineProbe):
        super().__init__()
        settings = probe.Config(strengths=(config.strength,), priors=(PRIOR,))
        with seeded_init(0, "probe"):  # torch's generator stays as it is; the weights are zero
            head = probe.build(settings, encoder, task)
        self.network, self.task = Network(encoder, head.to(next(encoder.parameters()).device)), task

    def measure(self, samples: Sequence[Sample]) -> list[Row]:
        if self.task.labels:
            return [self.dice_row(sample) for sample in samples]
        return self.task.measure(lambda image: self.answer(image).float().cpu(), samples)

    @torch.no_grad()
    def answer(self, image: Tensor) -> Tensor:
        """Logits on the network's device."""
        return self.network(image.to(next(self.parameters()).device))

    def dice_row(self, sample: Sample) -> Row:
        """Dice of each region over the case's fixed views, at most eight, on the preprocessed grid.

        Neither sliding windows nor surfaces (HD95), which would take longer than all the rest.
        """
        task, sums = self.task, {name: np.zeros(2) for name in self.task.regions}
        starts = views.tile_starts(sample.prepared.shape, task.roi)
        for start, tile in zip(starts, task.tiles(sample), strict=True):
            logits = self.answer(torch.from_numpy(tile)[None])[0]
            label = torch.from_numpy(sample.prepared.label(start, task.roi)).to(logits.device)
            known = torch.ones_like(label, dtype=torch.bool) if task.ignore is None else label != task.ignore
            chosen = logits.argmax(dim=0) if task.exclusive else None
            for number, (name, values) in enumerate(task.regions.items()):
                united = label.new_tensor(values)
                found = (logits[number] > 0 if chosen is None else torch.isin(chosen.to(label.dtype), united)) & known
                true = torch.isin(label, united)
                sums[name] += [2 * int((found & true).sum()), int(found.sum()) + int(true.sum())]
        dice = {f"dice/{name}": float(both / total) if total else np.nan for name, (both, total) in sums.items()}
        return {"case": sample.case.name, "patient": sample.case.patient, **dice}

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """The task's score as `probe_<score>`; of label maps, the mean over cases, then over regions."""
        if not self.task.labels:
            scores = self.task.summary(rows)
            return {f"probe_{self.task.score}": scores[self.task.score]} if self.task.score in scores else {}
        table = np.array([[row[f"dice/{name}"] for name in self.task.regions] for row in rows], float)
        means = [float(np.nanmean(column)) for column in table.T if np.isfinite(column).any()]
        return {"probe_dice": float(np.mean(means))} if means else {}


class Probe:
    """Refits the linear model and scores it: `measure` is called at each validation."""

    def __init__(
        self, objective: ProbeObjective, train: Sequence[Sample], val: Sequence[Sample], precision: torch.dtype
    ):
        self.objective, self.train, self.val, self.precision = objective, train, val, precision

    @property
    def words(self) -> str:
        """What it is, in a line."""
        task = self.objective.task
        return (
            f"a linear model on the frozen features of {len(self.train)} labelled images of {task.name}"
            f", on {len(self.val)} of val"
        )

    def measure(self) -> dict[str, float]:
        """The score. Rank 0 solves; all ranks encode, and score their share of val.

        Raises RaisedOnAllRanks if features are not finite.
        """
        objective, encoder, task = self.objective, self.objective.network.encoder, self.objective.task
        training = encoder.training
        objective.eval()
        num_views = sum(len(views.tile_starts(sample.prepared.shape, task.roi)) for sample in self.train)
        most = max(1, MOST_ROWS // num_views)
        try:
            rows, shares = extract_features(objective.network, task, self.train, self.precision, most)
            head = objective.network.head
            if rank_and_world()[0] == 0:
                next(head.solve(rows, shares))
            if rank_and_world()[1] > 1:
                for tensor in head.state_dict().values():
                    dist.broadcast(tensor, 0)
            return objective.summary(evaluate(objective, self.val, self.precision))
        finally:
            encoder.train(training)


def warn_in_place_of(measure: Callable[[], dict[str, float]], on_event: EventHandler) -> Callable[[], dict[str, float]]:
    """The same, but where features are not finite there is no score, and once a warning: the training goes on."""
    warned = False

    def measured() -> dict[str, float]:
        nonlocal warned
        try:
            return measure()
        except RaisedOnAllRanks as error:
            if not warned:
                on_event(WarningIssued(f"the probe has no score here: {error}; pretrain.probe=null leaves it out"))
            warned = True
            return {}

    return measured


def measures_of(job: StageJob, setup: TrainingSetup, tasks: TaskOf, on_event: EventHandler) -> Measures:
    """What a pre-training measures, and nothing of other stages. Every rank must call it.

    Raises UserError if there is no probe, and the training is to be stopped by it.
    """
    settings = job.stage.training
    if not isinstance(settings, Pretrain):
        return NO_MEASURES
    functions = [partial(collapse_measures, setup)] if setup.objective.may_collapse else []
    if settings.probe is None:
        return Measures(functions)
    try:
        made = make_probe(job, setup, tasks, settings.probe)
    except UserError as error:
        if settings.stop:
            raise RaisedOnAllRanks(f"pretrain.stop: there is no probe to stop by: {error}") from None
        return Measures(functions, f"none: {error}")
    measure = warn_in_place_of(made.measure, on_event)
    return Measures([*functions, measure], made.words, f"probe_{made.objective.task.score}")


def make_probe(job: StageJob, setup: TrainingSetup, tasks: TaskOf, config: OnlineProbe) -> Probe:
    """The probe, its images prepared. Raises UserError, on every rank, if no data set can have one."""
    with raise_on_all_ranks():
        task = probed_task(job, setup.data_sets, tasks)
        train, val = (
            within(job, task, spread_over_classes(task.split(part), part), config.images) for part in LABELLED
        )
        if not (train and val):
            raise UserError(f"{task.name} has no labelled images of train and val")
        encoder = setup.objective.parts["encoder"]
        assert isinstance(encoder, Encoder)
        return Probe(ProbeObjective(encoder, task, config), train, val, setup.precision)


def probed_task(job: StageJob, data_sets: Sequence[DataSet], tasks: TaskOf) -> Task:
    """The first of the pre-training's tasks that has labels and whose images the encoder takes as the task has them.

    Label maps need the encoder's grid, which is that of the first data set. Raises UserError, which says why, if there
    is none.
    """
    reasons = []
    first = data_sets[0].task
    for source, data_set in zip(job.stage.sources, data_sets, strict=True):
        task = tasks(source.task)
        if is_unlabelled(task):
            reasons.append(f"no image of {task.name} has a label")
        elif data_set.task is not task:
            reasons.append(f"the strategy sees other images than {task.name} has labels for")
        elif task.labels and (task.channels, tuple(task.roi)) != (first.channels, tuple(first.roi)):
            reasons.append(f"{task.name} has label maps on another grid than {first.name}")
        else:
            return task
    raise UserError("; ".join(dict.fromkeys(reasons)))


def spread_over_classes(cases: Iterable[Case], part: str) -> list[Case]:
    """The cases with a known label in a fixed order, of which any first few show the classes as evenly as they can:
    one of each class in turn, and one without any."""
    cases = sorted((case for case in cases if is_labelled(case)), key=lambda case: case.name)
    shuffled = [cases[i] for i in permutation(key("probe", part), len(cases))]
    groups: dict[int, list[Case]] = {}
    for case in shuffled:
        positive = [i for i, value in enumerate(case.label) if value > 0] if isinstance(case.label, tuple) else []
        for number in positive or [-1]:
            groups.setdefault(number, []).append(case)
    order: dict[str, Case] = {}
    for turn in range(max(map(len, groups.values()), default=0)):
        for number in sorted(groups):
            if turn < len(groups[number]):
                order.setdefault(groups[number][turn].name, groups[number][turn])
    return list(order.values())


def is_labelled(case: Case) -> bool:
    return any(value == value for value in case.label) if isinstance(case.label, tuple) else case.label is not None


def within(job: StageJob, task: Task, cases: Sequence[Case], most: int) -> list[Sample]:
    """The first of the cases, prepared, as many as have at most `most` fixed views; at least one, if there is one."""
    samples, num_views = list[Sample](), 0
    while (left := most - num_views) > 0 and len(samples) < len(cases):
        # no more than fit in any case: preparing a volume takes long
        following = cases[len(samples) : len(samples) + max(1, left // views.MOST_TILES)]
        for sample in prepared(job, task, following):
            num_views += len(views.tile_starts(sample.prepared.shape, task.roi))
            samples.append(sample)
    return samples[:-1] if num_views > most and len(samples) > 1 else samples


# ---- collapse


def collapse_measures(setup: TrainingSetup) -> dict[str, float]:
    """RankMe and spread of the encoder's features of val (`embeddings`), where they are lowest of all data sets."""
    found = []
    for number, data_set in enumerate(setup.data_sets):
        samples = [sample for sample in setup.val if sample.data_set == number][:EMBEDDED]
        if len(samples) > 1:
            features = encode(setup.objective, data_set.task, samples, setup.precision)
            found.append((float(rank_me(features)), float(spread(features))))
    return {"rankme": min(each[0] for each in found), "spread": min(each[1] for each in found)} if found else {}


@torch.no_grad()
def encode(objective: Objective, task: Task, samples: Sequence[Sample], precision: torch.dtype) -> Tensor:
    """The encoder's features [N, D] of the first fixed view of each sample, on every rank; each encodes its share.

    The class token, or the mean of the patches where there is none.
    """
    rank, world = rank_and_world()
    encoder, training, chunks = objective.parts["encoder"], objective.training, views.chunks(samples, task.roi)
    device, mine = next(encoder.parameters()).device, []
    encoder.eval()
    for chunk in chunks[rank::world]:
        image = torch.from_numpy(np.stack([task.tiles(sample)[0] for sample in chunk])).to(device)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            features = encoder(image)
        summary = features.tokens.mean(dim=1) if features.summary is None else features.summary
        mine.append(summary.float().cpu())
    encoder.train(training)
    parts: list[Tensor] = [torch.empty(0)] * len(chunks)
    for sender, part in enumerate(all_gather(mine)):
        parts[sender::world] = part
    return torch.cat(parts)
