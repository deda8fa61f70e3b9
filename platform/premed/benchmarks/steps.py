"""Training steps: premed's, which is `fit` over one step, and a peer's, which is what its script does in one."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from premed.benchmarks.floors import apart_by, joined, relative_error
from premed.benchmarks.settings import NotTheSame, Settings, Work
from premed.contracts import Batch, BatchIndices, Objective
from premed.data.samplers import EpochSampler
from premed.training.device import has_bf16_products
from premed.training.fit import fit
from premed.training.optimizer import make_optimizer
from premed.training.schedule import Schedule

LR, DECAY, BETAS = 1e-4, 0.05, (0.9, 0.95)
NO_BF16 = "this CPU does not multiply bf16 (AMX, AVX512_BF16)"


class OneBatch:
    """A BatchLoader of the same batch again and again."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def batches(self, indices: Iterable[BatchIndices]) -> Iterator[Batch]:
        for _ in indices:
            yield self.batch


def has_bf16(settings: Settings) -> bool:
    return settings.device != "cpu" or has_bf16_products()


def autocast(settings: Settings, precision: torch.dtype) -> Any:
    """The context in which networks compute with `precision`."""
    if precision == torch.float32:
        return nullcontext()
    return torch.autocast(torch.device(settings.device).type, precision)


def premed_step(objective: Objective, batch: Batch, precision: torch.dtype, lr: float = LR) -> Work:
    """One step of premed's loop with its optimizer."""
    optimizer, num = make_optimizer(objective, BETAS), len(batch.image)
    plan, schedule = EpochSampler(num, num, 1, 0, "bench"), Schedule(1, 0, lr)
    return lambda: fit(objective, OneBatch(batch), plan, schedule, optimizer, ignore, precision=precision)


def ignore(step: int, loss: Tensor, metrics: dict[str, Tensor | float]) -> None:
    """A callback that does nothing."""


def peer_step(settings: Settings, model: nn.Module, loss: Callable[[], Tensor], precision: torch.dtype) -> Work:
    """One step as the peers' scripts write it, with `torch.optim.AdamW` as they call it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [each for each in trained if each.ndim > 1], "weight_decay": DECAY},
        {"params": [each for each in trained if each.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS)

    def step() -> None:
        with autocast(settings, precision):
            value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        value.item()

    return step


def loss_and_gradients(
    settings: Settings, module: nn.Module, loss: Callable[[], Tensor], precision: torch.dtype = torch.float32
) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients of a module's parameters by name; the module has none afterwards."""
    module.zero_grad(set_to_none=True)
    with autocast(settings, precision):
        value = loss()
    value.backward()
    gradients = {name: each.grad for name, each in module.named_parameters() if each.grad is not None}
    module.zero_grad(set_to_none=True)
    return value.item(), gradients


def assert_same_training(
    ours: tuple[float, dict[str, Tensor]], theirs: tuple[float, dict[str, Tensor]], precision: torch.dtype
) -> str:
    """What was asserted of two losses and gradients. Raises NotTheSame if they differ.

    In fp32 they are equal but for the order of sums; in bf16 the loss is within 1 %, and the gradients' cosine .99.
    """
    (loss, gradients), (peer_loss, peer_gradients) = ours, theirs
    if {*gradients} != {*peer_gradients}:
        raise NotTheSame(f"gradients of {', '.join(sorted({*gradients} ^ {*peer_gradients})[:3])} on one side alone")
    a, b = (joined(each[name] for name in sorted(gradients)) for each in (gradients, peer_gradients))
    of_loss, of_gradients = abs(loss - peer_loss) / abs(peer_loss), relative_error(b, a)
    if precision == torch.float32:
        if of_loss > 1e-5 or of_gradients > 1e-3:
            raise NotTheSame(f"losses {loss:.6g} and {peer_loss:.6g}, gradients apart by {of_gradients:.1e}")
        return f"equal loss and gradients from the same weights {apart_by(max(of_loss, of_gradients))}"
    cosine = float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))
    if of_loss > 1e-2 or cosine < 0.99:
        raise NotTheSame(f"losses {loss:.6g} and {peer_loss:.6g}, cosine of the gradients {cosine:.4f}")
    apart = f"loss apart by {of_loss:.0e}, cosine of the gradients {cosine:.4f}"
    return f"the peer's loss and gradients in fp32 from the same weights, but for rounding to bf16 ({apart})"
