"""Rows of UNETR: a fine-tuning step beside SelfMedMAE's and MONAI's, and the settings of malloc that premed makes."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from premed.benchmarks import peers, steps
from premed.benchmarks.floors import apart_by, compute_floor, flops_of, relative_error
from premed.benchmarks.pairs import timed
from premed.benchmarks.result import Target, Times
from premed.benchmarks.settings import Comparison, NotMeasured, NotTheSame, Settings
from premed.contracts import Batch, Features
from premed.models.encoders import vit
from premed.models.heads import unetr
from premed.models.network import Network
from premed.tasks.common.losses import dice_ce
from premed.training.device import keep_freed_memory
from premed.training.supervised import Supervised

PATCH, CLASSES, DEPTH = 16, 14, 12
ON_GPU = 16  # crops of a step at full size
TARGET = Target(1.15, 1.5)


@dataclass(frozen=True)
class Sizes:
    roi: tuple[int, ...]
    width: int = 768
    heads: int = 12
    features: int = 16
    batch: int = 1

    def __str__(self) -> str:
        roi = " × ".join(map(str, self.roi))
        return (
            f"{self.batch} × 1 × {roi}, {CLASSES} classes, encoder {self.width} × {DEPTH}, {self.features} features, "
            "Dice + CE"
        )


FULL = Sizes((96, 96, 96))
SIZES = FULL, Sizes((32, 32, 32), 48, 3, 4)
OF_MALLOC = FULL, Sizes((32, 32, 32), 48, 3, 8)  # tensors of megabytes, for which the settings are


def build(sizes: Sizes) -> Supervised:
    """premed's objective, as a fine-tuning builds it; without drop path."""
    config = vit.Config(width=sizes.width, depth=DEPTH, heads=sizes.heads, patch=PATCH)
    encoder = vit.build(config, 1, sizes.roi)
    task: Any = SimpleNamespace(channels=1, classes=tuple(map(str, range(CLASSES))), loss=dice_ce)
    head = unetr.build(unetr.Config(feature_size=sizes.features), encoder, task)
    return Supervised(Network(encoder, head), task, weight_decay=steps.DECAY, layer_decay=0.75)


def made_up_batch(settings: Settings, sizes: Sizes) -> Batch:
    """Noise, and labels of blocks."""
    num = sizes.batch
    image = torch.randn(num, 1, *sizes.roi)
    coarse = torch.randint(CLASSES, (num, 1, *(n // 8 for n in sizes.roi))).float()
    label = nn.functional.interpolate(coarse, sizes.roi)[:, 0].to(torch.uint8)
    device, names = settings.device, tuple(map(str, range(num)))
    return Batch(image.to(device), torch.arange(num, device=device), names, label=label.to(device))


# ---- a step


def step_bf16(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    """The same with autocast to bf16 on both sides; what is asserted is asserted in fp32."""
    yield from step(settings, torch.bfloat16)


def step(settings: Settings, precision: torch.dtype = torch.float32) -> Iterator[Comparison | NotMeasured]:
    """Row unetr."""
    sizes = settings.size(*SIZES)
    sizes = replace(sizes, batch=settings.batch(sizes.batch, ON_GPU))
    torch.manual_seed(0)
    objective, batch = build(sizes).to(settings.device), made_up_batch(settings, sizes)
    flops = flops_of(lambda: steps.loss_and_gradients(settings, objective, lambda: objective(batch, 0.0)[0]))

    def comparison(peer: str, model: nn.Module, same: str) -> Comparison:
        return Comparison(
            peer,
            steps.premed_step(objective, batch, precision),
            steps.peer_step(settings, model, lambda: peer_loss(model, batch), precision),
            unit="a step",
            sizes=str(sizes),
            same=same,
            floor=lambda: compute_floor(settings, flops, precision),
            target=TARGET,
            samples=sizes.batch,
        )

    if peers.SELFMEDMAE in settings.peers:
        model = build_selfmedmae(settings, sizes, objective).to(settings.device)
        same = f"{same_answers(objective, model, batch)}; {same_gradients(settings)}"
        yield comparison("SelfMedMAE", model, same)
    else:
        yield NotMeasured("SelfMedMAE", peers.missing(peers.SELFMEDMAE))
    model = build_monai(sizes).to(settings.device)
    theirs = flops_of(lambda: steps.loss_and_gradients(settings, model, lambda: peer_loss(model, batch)))
    yield comparison("MONAI", model, same_head(objective, model, batch, flops, theirs))


def peer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that SelfMedMAE's trainer computes."""
    from monai.losses import DiceCELoss

    assert batch.label is not None
    criterion = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)
    return criterion(model(batch.image), batch.label[:, None])


def same_gradients(settings: Settings) -> str:
    """Raises NotTheSame if SelfMedMAE's loss or gradients are others, of a small network in double precision.

    In fp32 the rounding of convolutions alone moves gradients by a thousandth; in double the large one takes minutes.
    """
    objective, batch = build(SIZES[1]), made_up_batch(Settings(), SIZES[1])
    model = build_selfmedmae(settings, SIZES[1], objective).double()
    objective.double()
    batch.image = batch.image.double()
    loss, gradients = steps.loss_and_gradients(Settings(), objective, lambda: objective(batch, 0.0)[0])
    named = loss, {renamed(name.removeprefix("network.")): each for name, each in gradients.items()}
    theirs = steps.loss_and_gradients(Settings(), model, lambda: peer_loss(model, batch))
    return f"{steps.assert_same_training(named, theirs, torch.float32)}, of a small network in double precision"


def renamed(name: str) -> str:
    """SelfMedMAE's name of one of the network's parameters."""
    return f"decoder.{name.removeprefix('head.')}" if name.startswith("head.") else name


@torch.no_grad()
def same_answers(objective: Supervised, model: nn.Module, batch: Batch) -> str:
    """Raises NotTheSame if the peer's logits or its loss are others."""
    apart = relative_error(model(batch.image), objective.network(batch.image))
    loss, theirs = objective(batch, 0.0)[0].item(), peer_loss(model, batch).item()
    if apart > 1e-4 or abs(loss - theirs) > 1e-5 * abs(theirs):
        raise NotTheSame(f"logits apart by {apart:.1e} of their norm, losses {loss:.7g} and {theirs:.7g}")
    return f"equal loss and logits from the same weights {apart_by(apart)}"


@torch.no_grad()
def same_head(objective: Supervised, model: Any, batch: Batch, flops: int, theirs: int) -> str:
    """Raises NotTheSame if MONAI's decoder gives other logits, or if the steps' FLOPs differ.

    MONAI's transformer has no class token and no biases of q, k and v, so that the networks' answers are not equal.
    """
    head: Any = objective.network.head
    head.load_state_dict({name: each for name, each in model.state_dict().items() if not name.startswith("vit.")})
    tokens, states = model.vit(batch.image)
    features = Features(tokens, objective.network.encoder.grid, taps={tap: states[tap] for tap in head.taps})
    apart, share = relative_error(model(batch.image), head(batch.image, features)), flops / theirs
    if apart > 1e-4 or not 0.98 < share < 1.02:
        raise NotTheSame(f"decoders' logits apart by {apart:.1e} of their norm, premed's FLOPs {share:.2f} of MONAI's")
    return (
        f"equal logits of the decoder from the same weights and tokens {apart_by(apart)}, and {share:.1%} of MONAI's "
        "FLOPs: premed's transformer has a class token and biases of q, k and v, which MONAI's has not"
    )


def build_selfmedmae(settings: Settings, sizes: Sizes, objective: Supervised) -> Any:
    """SelfMedMAE's network with the weights of premed's."""
    edges = dict(zip(("roi_x", "roi_y", "roi_z"), sizes.roi, strict=True))
    encoder = {"encoder_embed_dim": sizes.width, "encoder_depth": DEPTH, "encoder_num_heads": sizes.heads}
    decoder = {"num_classes": CLASSES, "feature_size": sizes.features}
    model = peers.selfmedmae_unetr(settings, patch_size=PATCH, in_chans=1, **edges, **encoder, **decoder)
    model.load_state_dict({renamed(name): each for name, each in objective.network.state_dict().items()})
    return model


def build_monai(sizes: Sizes) -> Any:
    from monai.networks.nets import unetr as monai_unetr

    return monai_unetr.UNETR(
        in_channels=1,
        out_channels=CLASSES,
        img_size=sizes.roi,
        feature_size=sizes.features,
        hidden_size=sizes.width,
        mlp_dim=4 * sizes.width,
        num_heads=sizes.heads,
    )


# ---- malloc


def malloc(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    """Row unetr-malloc: each execution is a process of its own, for such settings cannot be taken back."""
    if settings.device != "cpu" or sys.platform != "linux":
        yield NotMeasured("the default", "the settings are glibc's, for trainings on CPUs")
        return
    first = {keep: steps_in_process(settings, keep) for keep in (True, False)}
    losses, faults = ([first[keep][name] for keep in (True, False)] for name in ("loss", "faults"))
    if losses[0] != losses[1]:
        raise NotTheSame(f"losses {losses[0]:.9g} and {losses[1]:.9g} after the same steps")

    def steps_of(keep: bool) -> Times:
        found = first.pop(keep, None) or steps_in_process(settings, keep)
        return Times(found["cpu"], found["wall"])

    yield Comparison(
        "premed's step with glibc's default",
        lambda: steps_of(True),
        lambda: steps_of(False),
        unit="a step, in a process of its own",
        sizes=str(settings.size(*OF_MALLOC)),
        same=f"equal loss after the same steps; page faults a step {faults[0]:,.0f} beside {faults[1]:,.0f}",
        most=1 if settings.short else None,
    )


def steps_in_process(settings: Settings, keep: bool) -> dict[str, float]:
    """What `print_steps` finds in a process of its own."""
    code = "import sys; from premed.benchmarks.unetr import print_steps; print_steps(*map(int, sys.argv[1:]))"
    arguments = [settings.short, settings.threads, keep]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", code, *(str(int(each)) for each in arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a process of unetr-malloc failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def print_steps(short: int, threads: int, keep: int) -> None:
    """Prints what a step takes in this process after a first one: seconds and page faults, and the last loss."""
    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()
    settings = Settings(short=bool(short))
    sizes, num = settings.size(*OF_MALLOC), settings.size(3, 1)
    torch.manual_seed(0)
    objective, batch = build(sizes), made_up_batch(settings, sizes)
    work = steps.premed_step(objective, batch, torch.float32)
    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    times = [timed(work) for _ in range(num)]
    faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / num
    cpu, wall = (sum(getattr(each, clock) for each in times) / num for clock in ("cpu", "wall"))
    with torch.no_grad():
        loss = objective(batch, 0.0)[0].item()
    print(json.dumps({"cpu": cpu, "wall": wall, "faults": faults, "loss": loss}))
