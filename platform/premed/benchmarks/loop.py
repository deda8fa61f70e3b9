"""Row fit: the loop with its callback, checkpoints and curve beside a bare loop on the same batches."""

import shutil
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from premed.benchmarks import steps
from premed.benchmarks.result import Target
from premed.benchmarks.settings import Comparison, NotMeasured, NotTheSame, Settings
from premed.config.image_processing import Augmentation
from premed.contracts import BatchLoader, DataSet, Sample
from premed.data.cache import Cache
from premed.data.loader import PreparedLoader
from premed.data.phantoms.writers import write_chestxray14
from premed.data.samplers import EpochSampler
from premed.models.encoders import vit
from premed.pretext import mae
from premed.tasks import chestxray14
from premed.training.callback import TrainingCallback
from premed.training.fit import fit
from premed.training.optimizer import make_optimizer
from premed.training.schedule import Schedule
from premed.training.storage import StageStorage
from premed.training.throughput import Throughput

LR, CLIP, LOG_STEPS = 1.5e-3, 1.0, 20
BATCH, STEPS, PATIENTS = (32, 16), (40, 4), (40, 8)


def loop(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    with TemporaryDirectory() as name:
        folder, num_steps, size = Path(name), settings.size(*STEPS), settings.size(*BATCH)
        write_chestxray14(folder / "chests", settings.size(*PATIENTS), 0, size=64)
        config = chestxray14.Config.model_validate({"root": folder / "chests", "size": 64, "stored": 64})
        task: Any = chestxray14.build(config)
        cases = task.split("train")
        entries = Cache(folder / "cache").prepare(cases, task.preprocessing)
        samples = [Sample(*pair) for pair in zip(cases, entries, strict=True)]
        data_set, device = DataSet(task, "X-ray", Augmentation(scale=(0.8, 1.0))), torch.device(settings.device)
        plan = EpochSampler(len(samples), size, num_steps, 0, "pretrain")
        reading = PreparedLoader([data_set], samples, seed=0, stage="pretrain", device=device)
        (batch,) = reading.batches([plan.at(0)])
        sources: dict[str, BatchLoader] = {
            "a bare loop, same source": reading,
            "a bare loop, one batch": steps.OneBatch(batch),
        }
        for peer, source in sources.items():
            torch.manual_seed(0)
            objective = build(task).to(device)
            bare = deepcopy(objective)
            ours = partial(
                premed_loop, objective, make_optimizer(objective, steps.BETAS), source, plan, samples, folder
            )
            theirs = partial(bare_loop, bare, make_optimizer(bare, steps.BETAS), source, plan)
            ours()
            theirs()
            yield Comparison(
                peer,
                ours,
                theirs,
                unit=f"{num_steps} steps",
                sizes=f"MAE of {size} pictures of 64 pixels, encoder 192 × 6; points of the curve, a checkpoint in "
                f"{num_steps} steps (a training has one in 5 minutes), a validation of one picture",
                same=same_weights(objective, bare),
                target=Target(0.97, 0.99),
                most=2 if settings.short else None,
            )


def build(task: Any) -> mae.MAE:
    """The objective of experiments/chestxray14/small.yaml."""
    encoder = vit.build(vit.Config(width=192, depth=6, heads=3, patch=8), 1, (64, 64))
    config = mae.Config(decoder_width=96, decoder_depth=2, decoder_heads=3)
    return mae.MAE(config, encoder, task, steps.DECAY)


def premed_loop(
    objective: mae.MAE, optimizer: Any, source: BatchLoader, plan: EpochSampler, samples: list[Sample], folder: Path
) -> None:
    """As `training/stage.py` has it, without Ray and MLflow."""
    throughput = Throughput(next(objective.parameters()).device, num_loaders=0)
    shutil.rmtree(folder / "stage", ignore_errors=True)
    callback = TrainingCallback(
        objective,
        optimizer,
        plan,
        StageStorage(str(folder), "stage"),
        samples[:1],
        validations=1,
        score=None,
        log_steps=min(LOG_STEPS, plan.num_steps // 2),
        save_minutes=0,
        precision=torch.float32,
        sample_names=lambda indices: [samples[i].case.name for i in indices.samples],
        on_event=lambda event: None,
        report=lambda numbers: None,
        throughput=throughput,
    )
    schedule = Schedule(plan.num_steps, 0, LR)
    fit(objective, throughput.timed(source), plan, schedule, optimizer, callback, clip=CLIP)


def bare_loop(objective: mae.MAE, optimizer: Any, source: BatchLoader, plan: EpochSampler) -> None:
    """What one would write by hand: the same batches, learning rates and clipping, and nothing else."""
    schedule = Schedule(plan.num_steps, 0, LR)
    objective.train()
    for step, batch in enumerate(source.batches(plan.at(step) for step in range(plan.num_steps))):
        for group in optimizer.param_groups:
            group["lr"] = schedule.at(step)
        loss, _ = objective(batch, 0.0)
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()


def same_weights(ours: nn.Module, bare: nn.Module) -> str:
    """Raises NotTheSame if weights differ by one bit."""
    pairs = zip(ours.state_dict().items(), bare.state_dict().values(), strict=True)
    differing = [name for (name, a), b in pairs if not torch.equal(a, b)]
    if differing:
        raise NotTheSame(f"weights after the same steps: {', '.join(differing[:3])}")
    return "the same weights after the same steps, bit for bit"
