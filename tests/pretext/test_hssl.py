"""pretext/hssl.py: its levels' losses, the same on any number of ranks; what it sees of several data sets; training."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.hssl import SMALL, Images
from support.stages import on_ranks
from torch import Tensor

from premed.config.image_processing import Augmentation
from premed.contracts import Batch, DataSet
from premed.errors import UserError
from premed.models.encoders import unet, vit
from premed.pretext import hssl
from premed.pretext.common.batch_augment import Jitter, jitter
from premed.pretext.hssl import HSSL, Config
from premed.rng import sample_keys

pytest_plugins = ["support.experiment_fixtures"]


ALONE = {"task": 0, "group": 0, "decoder": 0}


def data_sets(*groups: str, roi=(16, 24)) -> list[DataSet]:
    return [DataSet(Images(roi), group, Augmentation()) for group in groups or ("MRI", "X-ray", "MRI")]  # type: ignore[arg-type]


def objective(*groups: str, roi=(16, 24), **settings) -> HSSL:
    torch.manual_seed(0)
    encoder = unet.build(unet.Config(widths=(8, 16, 24)), 1, roi)
    return hssl.build(Config.model_validate(SMALL | settings), encoder, data_sets(*groups, roi=roi), 0.05)


def keys(n: int, epoch: int = 0) -> Tensor:
    return torch.from_numpy(sample_keys(0, "pretrain", epoch, np.arange(n)))


def batch(n: int = 6, roi=(16, 24), num_domains: int = 3) -> Batch:
    image = torch.randn(n, 1, *roi, generator=torch.Generator().manual_seed(1))
    data_set = torch.arange(n) % num_domains if num_domains > 1 else None
    return Batch(image, keys(n), tuple(map(str, range(n))), data_set=data_set)


def samples(n: int) -> list:
    cases = [SimpleNamespace(name=f"case{i}", patient=f"patient{i}") for i in range(n)]
    return [SimpleNamespace(number=i, case=case, data_set=i * 3 // n) for i, case in enumerate(cases)]


# The levels -----------------------------------------------------------------------------------------------------------


def test_with_its_image_level_alone_it_is_plain_contrastive_learning():
    model, given = objective(levels=ALONE), batch()
    loss, numbers = model(given, 0.0)
    views, seen, mask = model.views(given.image, given.keys)
    assert torch.equal(views, seen) and not mask.any()
    pooled = model.encoder(views).pyramid[-1].flatten(2).mean(dim=2)
    embeddings = [each / each.norm() for each in model.heads["image"](pooled)]
    n, losses = len(given.image), []
    for i, each in enumerate(embeddings):  # the formula of Chen 2020: the first views, then the second ones
        similar = [math.exp(float(each @ other) / 0.1) for other in embeddings]
        losses.append(-math.log(similar[(i + n) % (2 * n)] / (sum(similar) - similar[i])))
    assert float(loss) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert set(numbers) == {"image", "image_spread"} and {name.split(".")[0] for name in model.heads} == {"image"}


@pytest.mark.parametrize("group_loss", ["classes", "contrast"])
def test_the_loss_is_the_weighted_sum_of_the_levels_and_each_is_logged(group_loss):
    weights = {"image": 0.5, "task": 2.0, "group": 3.0, "decoder": 0.25}
    loss, numbers = objective(levels=weights, group_loss=group_loss)(batch(), 0.0)
    assert float(loss) == pytest.approx(sum(weight * float(numbers[level]) for level, weight in weights.items()))
    assert {"task_accuracy", "image_spread"} < set(numbers)
    assert ("group_spread" in numbers, "group_accuracy" in numbers) == (
        group_loss == "contrast",
        group_loss == "classes",
    )


def test_the_task_and_the_group_are_told_from_maps_of_their_own_depth():
    model, given = objective(), batch()
    _, seen, _ = model.views(given.image, given.keys)
    maps = model.encoder(seen).pyramid
    losses = model(given, 0.0)[1]
    for level, at, truth in (("task", -2, [0, 1, 2, 0, 1, 2]), ("group", -1, [0, 1, 0, 0, 1, 0])):
        answer = model.heads[level](maps[at].flatten(2).mean(dim=2)).log_softmax(dim=1)
        expected = -sum(float(answer[i, kind]) for i, kind in enumerate(truth * 2)) / 12
        assert float(losses[level]) == pytest.approx(expected, rel=1e-5)


def test_with_one_data_set_the_task_s_loss_is_zero_and_so_is_its_gradient():
    model = objective("MRI", levels={"image": 0, "task": 1, "group": 0, "decoder": 0})
    loss, numbers = model(batch(num_domains=1), 0.0)
    loss.backward()
    assert float(loss) == 0 == float(numbers["task"]) and float(numbers["task_accuracy"]) == 1
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_the_decoder_gets_a_gradient_from_its_level():
    for weights, trained in (({"image": 0, "task": 0, "group": 0}, True), (ALONE, False)):
        model = objective(levels=weights)
        model(batch(), 0.0)[0].backward()
        assert all((p.grad is not None and bool(p.grad.any())) == trained for p in model.encoder.up.parameters())  # type: ignore[union-attr]
        assert all(p.grad is not None and bool(p.grad.any()) for p in model.encoder.down.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("roi", [(16, 24), (8, 16, 12)])
def test_the_decoder_restores_the_share_of_blocks_that_is_hidden_and_is_asked_for_nothing_else(roi):
    model, given = objective(roi=roi, hidden=0.3), batch(4, roi)
    views, seen, mask = model.views(given.image, given.keys)
    num_blocks = math.prod(n // 4 for n in roi)
    assert mask.flatten(1).sum(dim=1).tolist() == [int(0.3 * num_blocks) * 4 ** len(roi)] * 8
    assert (
        torch.equal(seen.where(~mask, 0), views.where(~mask, 0))
        and len({tuple(m.tolist()) for m in mask.flatten(1)}) == 8
    )
    whole = (model.reconstruct(model.encoder(seen), seen) - hssl.standardise(views)).square()
    errors = [float(error[each].mean()) for error, each in zip(whole, mask, strict=True)]
    assert model.level_outputs(given.image, given.keys)["decoder"].tolist() == pytest.approx(errors, rel=1e-4)


def test_guessing_the_mean_of_a_view_loses_about_one():
    assert float(hssl.standardise(batch(3).image).square().mean()) == pytest.approx(1, abs=1e-4)


# Any number of ranks --------------------------------------------------------------------------------------------------


def part_of_a_step(num: int, group_loss: str, loss: float, gradients: dict[str, np.ndarray]) -> None:
    """What `fit` makes of a step on this rank and the others, against the same step's loss and gradients on one."""
    import torch.distributed as dist

    from premed.contracts import BatchIndices
    from premed.distributed import rank_and_world
    from premed.training.fit import share

    rank, world = rank_and_world()
    mine, whole, model = (
        share(BatchIndices(0, np.arange(num)), rank, world)[0],
        batch(num),
        objective(group_loss=group_loss),
    )
    at = torch.from_numpy(mine.samples)
    assert whole.data_set is not None
    part = Batch(whole.image[at], whole.keys[at], ("",) * len(at), None, mine.weight, whole.data_set[at])
    module = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    own = module(part, 0.0)[0] * part.weight
    own.backward()
    total = own.detach().clone()
    dist.all_reduce(total)
    assert float(total) / world == pytest.approx(loss, rel=1e-5)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("world", "num", "group_loss"),
    [
        (2, 6, "classes"),
        pytest.param(2, 7, "contrast", marks=pytest.mark.slow),
        pytest.param(3, 2, "contrast", marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradients_are_the_same_on_one_rank_and_on_several(world, num, group_loss):
    model = objective(group_loss=group_loss)
    loss, _ = model(batch(num), 0.0)
    loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]
    assert on_ranks(world, part_of_a_step, num, group_loss, loss.item(), gradients) == [0] * world


# Views ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roi", [(16, 24), (8, 16, 12)])
def test_a_view_is_a_function_of_its_image_and_its_key(roi):
    image = batch(4, roi).image
    views = jitter(image, keys(4), Jitter())
    assert views.shape == image.shape and not torch.allclose(views, jitter(image, keys(4, epoch=1), Jitter()))
    for i in range(4):
        torch.testing.assert_close(jitter(image[i : i + 1], keys(4)[i : i + 1], Jitter())[0], views[i])
    same = jitter(image, keys(4), Jitter(area=(1, 1), contrast=0, brightness=0, noise=0))
    torch.testing.assert_close(same, image, rtol=0, atol=1e-4)


def test_a_cut_shows_a_box_inside_the_image():
    ramp = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(64.0), indexing="ij"))[None].expand(
        50, -1, -1, -1
    )
    how = Jitter(area=(0.25, 0.25), contrast=0, brightness=0, noise=0)
    for axis, size in enumerate((32, 64)):
        seen = jitter(ramp, keys(50), how)[:, axis]
        ends = torch.stack([seen.flatten(1).amin(dim=1), seen.flatten(1).amax(dim=1)])
        torch.testing.assert_close(ends[1] - ends[0], torch.full((50,), size / 2 - 0.5), rtol=0, atol=1)
        assert ends.min() >= 0 and ends.max() <= size - 1 and ends[0].max() - ends[0].min() > size / 3


@pytest.mark.parametrize("area", [(0.0, 1.0), (0.6, 0.5), (0.5, 1.2)])
def test_shares_that_are_none_are_refused(area):
    with pytest.raises(ValidationError, match="are not shares of the area"):
        Jitter(area=area)


# What is measured -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_loss", ["classes", "contrast"])
def test_validation_gives_each_level_s_numbers_however_the_cases_are_dealt_out(group_loss):
    model, cases = objective(group_loss=group_loss).eval(), samples(40)
    rows = model.measure(cases)  # type: ignore[arg-type]
    dealt = [{}] * 40
    dealt[::2], dealt[1::2] = model.measure(cases[::2]), model.measure(cases[1::2])  # type: ignore[arg-type]
    for row, other in zip(rows, dealt, strict=True):
        assert row.keys() == other.keys() and row["case"] == other["case"]
        np.testing.assert_allclose(row["z/image"], other["z/image"], rtol=1e-3, atol=1e-4)
    numbers, others = model.summary(rows), model.summary(dealt)
    assert numbers == pytest.approx(others, rel=1e-3)
    assert numbers["loss"] == pytest.approx(sum(numbers[level] * weight for level, weight in model.weights.items()))


def test_data_sets_count_alike_on_val_and_a_collapse_is_seen():
    model = objective()
    row = {
        "case": "a",
        "patient": "a",
        "task_accuracy": 0.0,
        "task": 1.0,
        "group": 1.0,
        "group_accuracy": 1.0,
        "decoder": 1.0,
    }
    rows = [row | {"domain": 0, "z/image": [[1.0] * 6] * 2} for _ in range(9)]
    rows += [row | {"domain": 1, "task_accuracy": 1.0, "z/image": [[1.0] * 6] * 2}]
    numbers = model.summary(rows)
    assert numbers["task_accuracy"] == 0.5 and numbers["image_spread"] == pytest.approx(0, abs=1e-3)
    assert numbers["image"] == pytest.approx(math.log(2 * 10 - 1), rel=1e-4)  # nobody can be told from anybody


# Refusals -------------------------------------------------------------------------------------------------------------


def test_a_strategy_that_would_learn_nothing_is_refused():
    with pytest.raises(ValidationError, match="levels: all weights are 0"):
        Config.model_validate({"levels": {"image": 0, "task": 0, "group": 0, "decoder": 0}})


def test_an_encoder_without_a_decoder_is_refused_by_name():
    encoder = vit.build(vit.Config(width=24, depth=2, heads=2, patch=8), 1, (16, 24))
    with pytest.raises(UserError, match="encoder: hssl needs an encoder with a decoder; use unet"):
        hssl.build(Config(), encoder, data_sets(), 0.05)


@pytest.mark.parametrize(("settings", "roi"), [({"block": 5}, (16, 24)), ({"block": 8, "hidden": 0.1}, (16, 24))])
def test_blocks_that_do_not_fit_are_refused_by_name(settings, roi):
    with pytest.raises(UserError, match=r"pretext\.block: "):
        objective(roi=roi, **settings)
    objective(roi=roi, levels={"decoder": 0}, **settings)


def test_crops_of_one_image_are_refused_for_they_would_be_contrasted():
    given = [each._replace(augment=Augmentation(crops=2)) for each in data_sets()]
    with pytest.raises(UserError, match=r"pretrain\.augment\.crops: hssl makes two views"):
        hssl.build(Config(block=4), unet.build(unet.Config(widths=(8, 16)), 1, (16, 24)), given, 0.05)
