"""Fine-tuning: encoder + head + the task's loss, with drop path and layer decay."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from premed.contracts import Batch, Objective, Row, Sample, Task
from premed.models.network import Network


class Supervised(Objective):
    """Trains `network` on the task's loss; validation gives the task's scores.

    layer_decay: the learning rate of layer i (0 embeds, i + 1 is block i, depth + 1 the rest) is multiplied by
    layer_decay^(depth + 1 - i). weight_decay: on matrices, not on biases, norms, positions and the class token.
    """

    def __init__(
        self, network: Network, task: Task, *, weight_decay: float, layer_decay: float = 1.0, drop_path: float = 0.0
    ):
        super().__init__()
        self.network, self.task = network, task
        self.weight_decay, self.layer_decay = weight_decay, layer_decay
        network.encoder.drop_path = drop_path
        network.encoder.requires_grad_(True)  # positions are trained from here on, as in SelfMedMAE
        self.parts = {"encoder": network.encoder, "head": network.head}
        self.num_solutions = network.head.num_solutions

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.label is not None, "fine-tuning needs labels"
        return self.task.loss(self.network(batch.image, batch.keys), batch.label), {}

    def param_groups(self) -> list[dict[str, Any]]:
        last = self.network.encoder.depth + 1
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, parameter in self.network.named_parameters():
            in_encoder = name.startswith("encoder.")
            layer = self.network.encoder.layer(name.removeprefix("encoder.")) if in_encoder else last
            decays = parameter.ndim > 1 and not name.endswith(("pos_embed", "cls_token", ".bias"))
            group = groups.setdefault(
                (layer, decays),
                {
                    "params": [],
                    "weight_decay": self.weight_decay if decays else 0.0,
                    "lr_scale": self.layer_decay ** (last - layer),
                },
            )
            group["params"].append(parameter)
        return list(groups.values())

    def measure(self, samples: Sequence[Sample]) -> list[Row]:
        return self.task.measure(self.answer, samples)

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        return self.task.summary(rows)

    def pictures(self, samples: Sequence[Sample], folder: Path) -> list[Path]:
        return self.task.pictures(self.answer, samples, folder)

    @torch.no_grad()
    def answer(self, image: Tensor) -> Tensor:
        """Logits, on the CPU; the network stays on its device."""
        device = next(self.parameters()).device
        return self.network(image.to(device)).float().cpu()
