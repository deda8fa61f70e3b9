"""heads/unet.py: nnU-Net's logits, what deep supervision adds to the loss, refusals."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.nnunet_reference import CASES, CHANNELS, NUM_CLASSES, fill, image, read, some

from premed.contracts import Batch, Encoder
from premed.errors import UserError
from premed.models.encoders import resenc, vit
from premed.models.encoders import unet as unet_encoder
from premed.models.heads import unet
from premed.models.network import Network
from premed.tasks.common.losses import dice_ce
from premed.training.supervised import Supervised


def task(num_classes: int = NUM_CLASSES, **more) -> Any:
    return SimpleNamespace(classes=tuple("abcdefgh"[:num_classes]), **more)


def encoder(roi=(32, 48), stages: int = 4, **settings) -> Encoder:
    torch.manual_seed(0)
    return resenc.build(resenc.Config(widths=(8,) * stages, blocks=(1,) * stages, **settings), 1, roi)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_its_logits_are_those_of_nnu_nets_own_package(name):
    case = CASES[name]
    model = resenc.build(
        resenc.Config(widths=case.widths, blocks=case.blocks, strides=case.strides), CHANNELS, case.roi
    )
    head = unet.build(unet.Config(), model, task())
    fill((f"encoder.{name}", parameter) for name, parameter in model.named_parameters())
    names = {f"seg_layers.{i}": f"seg_layers.{len(case.widths) - 2 - i}" for i in range(len(head.seg_layers))}
    for name_here, parameter in head.named_parameters():  # here the answers are numbered from fine to coarse
        stem, _, last = name_here.rpartition(".")
        fill([(f"decoder.{names.get(stem, stem)}.{last}", parameter)])
    expected = read(name)[len(case.widths) :]
    answers = head.answers(image(case), model(image(case)))
    assert len(answers) == max(len(case.widths) - 2, 1)
    for (_, logits), values in zip(answers, expected, strict=False):
        np.testing.assert_allclose(some(logits), values, rtol=1e-3, atol=2e-4)
    assert torch.equal(head(image(case), model(image(case))), answers[0][1])


@pytest.mark.parametrize(("stages", "weights"), [(2, [1]), (3, [1]), (4, [2 / 3, 1 / 3]), (5, [4 / 7, 2 / 7, 1 / 7])])
@torch.no_grad()
def test_each_coarser_answer_weighs_half_and_the_coarsest_nothing(stages, weights):
    model, picture = encoder(stages=stages), torch.randn(1, 1, 32, 48)
    answers = unet.build(unet.Config(), model, task()).answers(picture, model(picture))
    assert [weight for weight, _ in answers] == pytest.approx(weights)
    assert [tuple(logits.shape[2:]) for _, logits in answers] == [(32 >> i, 48 >> i) for i in range(len(weights))]


def test_the_loss_is_the_weighted_sum_over_labels_of_each_resolution():
    model = encoder()
    head = unet.build(unet.Config(), model, task())
    objective = Supervised(Network(model, head), task(loss=dice_ce), weight_decay=0.05)
    picture, label = torch.randn(2, 1, 32, 48), torch.randint(3, (2, 32, 48), dtype=torch.uint8)
    (_, fine), (_, coarse) = head.answers(picture, model(picture))
    by_hand = 2 / 3 * dice_ce(fine, label) + 1 / 3 * dice_ce(coarse, label[:, 1::2, 1::2])
    loss, _ = objective(Batch(picture, torch.arange(2), ("a", "b"), label), 0.0)
    torch.testing.assert_close(loss, by_hand)


@torch.no_grad()
def test_without_deep_supervision_the_full_resolution_answers_alone():
    model, picture = encoder(), torch.randn(1, 1, 32, 48)
    ((weight, logits),) = unet.build(unet.Config(deep_supervision=False), model, task()).answers(
        picture, model(picture)
    )
    assert weight == 1 and logits.shape == (1, 3, 32, 48)


@torch.no_grad()
def test_logits_are_not_rounded_to_the_eight_bits_of_bf16():
    model, picture = encoder(), torch.randn(1, 1, 32, 48)
    head = unet.build(unet.Config(), model, task())
    with torch.autocast("cpu", torch.bfloat16):
        answers = head.answers(picture, model(picture))
    assert all(logits.dtype == torch.float32 for _, logits in answers)
    assert (answers[0][1] != answers[0][1].bfloat16().float()).float().mean() > 0.9


@pytest.mark.parametrize(
    "model",
    [
        lambda: vit.build(vit.Config(width=24, depth=2, heads=2, patch=8), 1, (16, 16)),
        lambda: unet_encoder.build(unet_encoder.Config(widths=(8, 16)), 1, (16, 16)),
        lambda: SimpleNamespace(pyramid=resenc.build(resenc.Config(), 1, (32, 32)).pyramid[1:], decoded=3),
    ],
)
def test_an_encoder_that_does_not_suit_it_is_refused_by_name(model):
    with pytest.raises(UserError, match=r"finetune\.head: unet needs an encoder with maps from full resolution on"):
        unet.build(unet.Config(), model(), task())
