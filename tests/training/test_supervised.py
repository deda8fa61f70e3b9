"""supervised.py: what fine-tuning learns, how fast each layer, and what its parts are."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from premed.contracts import Batch, Features, Head
from premed.errors import UserError
from premed.models.encoders import vit
from premed.models.heads import linear, unetr
from premed.models.network import Network
from premed.pretext import mae
from premed.rng import key
from premed.training.optimizer import make_optimizer, set_lr
from premed.training.schedule import Schedule
from premed.training.supervised import Supervised, label_for

DEPTH = 3
IMAGES = SimpleNamespace(
    dims=2,
    channels=1,
    classes=("a", "b"),
    loss=lambda logits, label: F.mse_loss(logits, label),
    measure=lambda forward, samples: [{"answer": forward(sample)} for sample in samples],
    summary=lambda rows: {"score": len(rows)},
)


def make_encoder() -> vit.ViT:
    torch.manual_seed(0)
    return vit.build(vit.Config(width=24, depth=DEPTH, heads=2, patch=8), 1, (16, 16))


def supervised(head: Any = linear, encoder: vit.ViT | None = None, **settings) -> Supervised:
    encoder = encoder or make_encoder()
    network = Network(encoder, head.build(head.Config(), encoder, IMAGES))
    return Supervised(network, IMAGES, **{"weight_decay": 0.05} | settings)  # type: ignore[arg-type]


def batch(n: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(1)
    image, label = torch.randn(n, 1, 16, 16, generator=generator), torch.randn(n, 2, generator=generator)
    return Batch(image, torch.tensor([key("sample", i) for i in range(n)]), tuple("abcdefgh"[:n]), label)


def groups_by_name(objective: Supervised, groups: list[dict]) -> dict[str, dict]:
    of = {id(p): group for group in groups for p in group["params"]}
    return {name: of[id(p)] for name, p in objective.network.named_parameters()}


def expected_layer(name: str) -> int:
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    embeds = name.startswith(("encoder.patch_embed", "encoder.pos_embed", "encoder.cls_token"))
    return 0 if embeds else DEPTH + 1


# Layer decay and weight decay -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [linear, unetr])
def test_every_layer_has_its_learning_rate_at_every_step(head):
    objective = supervised(head, layer_decay=0.75)
    optimizer = make_optimizer(objective, (0.9, 0.999))
    schedule = Schedule(num_steps=10, warmup_steps=3, lr=1e-3)
    for step in range(10):
        set_lr(optimizer, schedule.at(step))
        for name, group in groups_by_name(objective, optimizer.param_groups).items():
            assert group["lr"] == pytest.approx(schedule.at(step) * 0.75 ** (DEPTH + 1 - expected_layer(name)))


def test_layer_decay_reaches_the_weights():
    objective = supervised(layer_decay=0.5, weight_decay=0.0)
    torch.nn.init.normal_(objective.network.head.get_parameter("fc.weight"))
    before = {name: p.detach().clone() for name, p in objective.network.named_parameters()}
    optimizer = make_optimizer(objective, (0.9, 0.999))
    set_lr(optimizer, 1e-2)
    objective(batch(), 0.0)[0].backward()
    optimizer.step()  # Adam's first step has the learning rate's size, wherever there is a gradient
    for name, p in objective.network.named_parameters():
        size = (p.detach() - before[name]).abs().max().item()
        assert size == pytest.approx(1e-2 * 0.5 ** (DEPTH + 1 - expected_layer(name)), rel=1e-2), name


def test_without_layer_decay_all_learn_alike():
    assert {group["lr_scale"] for group in supervised().param_groups()} == {1.0}


@pytest.mark.parametrize("head", [linear, unetr])
def test_only_matrices_decay(head):
    objective = supervised(head)
    named = groups_by_name(objective, objective.param_groups())
    free = {name for name, group in named.items() if group["weight_decay"] == 0}
    assert {group["weight_decay"] for group in named.values()} == {0.0, 0.05}
    assert free == {
        name
        for name, p in objective.network.named_parameters()
        if p.ndim == 1 or name in ("encoder.pos_embed", "encoder.cls_token")
    }


@pytest.mark.parametrize("head", [linear, unetr])
def test_every_weight_is_learnt_in_one_group(head):
    objective = supervised(head)
    grouped = [id(p) for group in objective.param_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in objective.parameters())
    assert all(p.requires_grad for p in objective.parameters())


# Encoder and head -----------------------------------------------------------------------------------------------------


def test_positions_are_fixed_in_pretraining_and_learnt_in_finetuning():
    encoder = make_encoder()
    mae.MAE(mae.Config(decoder_width=24, decoder_depth=1, decoder_heads=2), encoder, IMAGES, 0.05)  # type: ignore[arg-type]
    assert not encoder.pos_embed.requires_grad
    objective = supervised(encoder=encoder)
    assert encoder.pos_embed.requires_grad
    torch.nn.init.normal_(objective.network.head.get_parameter("fc.weight"))
    objective(batch(), 0.0)[0].backward()
    assert encoder.pos_embed.grad is not None and encoder.pos_embed.grad.any()


def test_the_loss_is_the_tasks_on_the_networks_answer():
    objective, some = supervised(), batch()
    assert some.label is not None
    answer = objective.network.head(some.image, objective.network.encoder(some.image))
    torch.testing.assert_close(objective(some, 0.0)[0], ((answer - some.label) ** 2).mean())


def test_the_head_sees_the_image_and_the_blocks_that_it_asks_for():
    class Curious(Head):
        taps = (0, 2)

        def forward(self, image, features: Features):
            assert set(features.taps) == {0, 2}
            return image.mean(dim=(2, 3)) + sum(tap.mean(dim=(1, 2))[:, None] for tap in features.taps.values())

    assert Network(make_encoder(), Curious())(batch().image).shape == (4, 1)


def test_drop_path_is_drawn_by_the_samples_keys_in_training_alone():
    objective, some = supervised(unetr, drop_path=0.9).train(), batch()
    network = objective.network
    with torch.no_grad():
        first, again, free = network(some.image, some.keys), network(some.image, some.keys), network(some.image)
        assert torch.equal(first, again) and not torch.equal(first, free)
        assert torch.equal(network.eval()(some.image, some.keys), network(some.image))


def test_the_saved_parts_are_the_encoder_and_the_head():
    objective = supervised()
    assert objective.parts == {"encoder": objective.network.encoder, "head": objective.network.head}


def test_a_task_is_answered_on_the_cpu_without_gradient():
    objective = supervised().eval()
    (row,) = objective.measure([batch().image])  # type: ignore[list-item]
    assert row["answer"].shape == (4, 2) and not row["answer"].requires_grad
    assert objective.summary([row]) == {"score": 1}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_an_answer_that_is_no_number_gets_no_score(number):
    """The class of the highest logit, or the label map, would look like any other's."""
    objective = supervised()
    with torch.no_grad():
        objective.network.head.get_parameter("fc.bias")[0] = number
    with pytest.raises(UserError, match="the network's answer is NaN or infinite; lower finetune.lr"):
        objective.measure([batch().image])


def test_no_pretraining_means_there_is_nothing_to_train():
    from premed.pretext import none

    assert none.Config().name == "none" and none.build is None


# Labels of coarser answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "coarser"), [((4, 6), (2, 3)), ((4, 6, 2), (2, 3, 2)), ((8, 8), (2, 2))])
def test_a_coarser_label_map_has_the_value_of_the_nearest_voxel(size, coarser):
    label = torch.randint(200, (2, *size), dtype=torch.uint8)
    steps = [a // b for a, b in zip(size, coarser, strict=True)]
    nearest = label[(slice(None), *(slice(step // 2, None, step) for step in steps))]
    found = label_for(label, torch.zeros(2, 3, *coarser))
    assert torch.equal(found, nearest) and found.dtype == torch.uint8


def test_labels_of_the_answers_own_size_and_of_images_are_left_alone():
    label, numbers = torch.ones(2, 4, 6), torch.full((2, 3), torch.nan)
    assert label_for(label, torch.zeros(2, 3, 4, 6)) is label and label_for(numbers, torch.zeros(2, 3)) is numbers
