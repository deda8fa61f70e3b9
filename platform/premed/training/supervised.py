"""Fine-tuning: encoder + head + the task's loss, with drop path and layer decay."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from premed.config.policy import Full, WarmupThenFull
from premed.config.spec import Spec
from premed.contracts import Batch, Objective, Row, Sample, Task
from premed.models.network import Network, finite
from premed.training.optimizer import layer_decay_groups
from premed.training.policy import choose_trained, keep_frozen_in_eval


class Supervised(Objective):
    """Trains `network` on the task's loss; validation gives the task's scores.

    weight_decay, layer_decay: see `layer_decay_groups`. policy: what is trained, see `choose_trained`.
    """

    def __init__(
        self,
        network: Network,
        task: Task,
        *,
        weight_decay: float,
        layer_decay: float = 1.0,
        drop_path: float = 0.0,
        policy: Spec | None = None,
    ):
        super().__init__()
        self.network, self.task, self.policy = network, task, policy or Full()
        self.weight_decay, self.layer_decay = weight_decay, layer_decay
        network.encoder.drop_path = drop_path
        choose_trained(self.policy, network)
        self.parts = {"encoder": network.encoder, "head": network.head}
        self.num_solutions = network.head.num_solutions

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.label is not None, "fine-tuning needs labels"
        if isinstance(self.policy, WarmupThenFull):
            self.set_encoder_trained(progress >= self.policy.share)
        answers = self.network.answers(batch.image, batch.keys)
        losses = [weight * self.task.loss(logits, label_for(batch.label, logits)) for weight, logits in answers]
        return torch.stack(losses).sum(), {}

    def train(self, mode: bool = True) -> "Supervised":
        """As any module's; what is frozen stays in eval (`keep_frozen_in_eval`)."""
        super().train(mode)
        if mode:
            keep_frozen_in_eval(self.network)
        return self

    def set_encoder_trained(self, trained: bool) -> None:
        """Freezes the encoder, or ends that. A function of the step alone, and not of the steps before: a resumed
        training is the same. What has had no gradient yet has no state in the optimizer, and is not decayed."""
        if next(self.network.encoder.parameters()).requires_grad != trained:
            self.network.encoder.requires_grad_(trained)
            self.train(self.training)

    def param_groups(self) -> list[dict[str, Any]]:
        return layer_decay_groups(self.network, self.weight_decay, self.layer_decay)

    def measure(self, samples: Sequence[Sample]) -> list[Row]:
        return self.task.measure(self.answer, samples)

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        return self.task.summary(rows)

    def pictures(self, samples: Sequence[Sample], folder: Path) -> list[Path]:
        return self.task.pictures(self.answer, samples, folder)

    @torch.no_grad()
    def answer(self, image: Tensor) -> Tensor:
        """Returns logits on the CPU; the network stays on its device."""
        device = next(self.parameters()).device
        return finite(self.network(image.to(device)).float(), "lower finetune.lr, or set finetune.clip").cpu()


def label_for(label: Tensor, logits: Tensor) -> Tensor:
    """A label map [B, *S] at the resolution of coarser logits [B, K, *s], the nearest voxel's as in nnU-Net; any other
    label as it is."""
    size = logits.shape[2:]
    if size in ((), label.shape[1:]):
        return label
    return F.interpolate(label[:, None].float(), size, mode="nearest-exact")[:, 0].to(label.dtype)
