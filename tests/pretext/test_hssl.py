"""pretext/hssl.py: its levels' losses, the same on any number of ranks; what it sees of several data sets; training."""

import math
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.stages import jobs, on_ranks, outcome, run
from support.suite import REPOSITORY
from torch import Tensor

from premed.config.loader import load, validate_experiment
from premed.config.settings import Pretrain
from premed.config.transforms import Augmentation
from premed.contracts import Batch, Case, DataSet
from premed.data.loader import PreparedLoader
from premed.data.phantoms.writers import write_chestxray14, write_msd
from premed.data.splits import unlabelled_val
from premed.errors import UserError
from premed.execution import runner
from premed.models.encoders import unet, vit
from premed.pretext import hssl
from premed.pretext.common.slices import SlicedTask
from premed.pretext.common.views import Jitter, jitter
from premed.pretext.hssl import HSSL, Config
from premed.rng import SampleRng, sample_keys
from premed.training.fit import feed

pytest_plugins = ["support.experiment_fixtures"]

SMALL: dict[str, Any] = {"dim": 6, "hidden_width": 12, "block": 4}
ALONE = {"task": 0, "group": 0, "decoder": 0}


class Images:
    """The little of a task that HSSL asks for; a sample's tiles are drawn from its number."""

    dims, channels, name = 2, 1, "images"

    def __init__(self, roi=(16, 24)):
        self.roi = roi

    def tiles(self, sample) -> list[np.ndarray]:
        rng = np.random.default_rng(sample.number)
        return [rng.normal(size=(1, *self.roi)).astype(np.float32) for _ in range(1 + sample.number % 3)]


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


@pytest.mark.parametrize(("world", "num", "group_loss"), [(2, 6, "classes"), (2, 7, "contrast"), (3, 2, "contrast")])
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


# Several data sets ----------------------------------------------------------------------------------------------------


class Volumes:
    """A task whose views say where they are from: value = channel * 100 + slice, moved by the draw."""

    dims, name, channels, preprocessing = 3, "volumes", 4, "preprocessing"
    roi = (8, 16, 5)

    def view(self, sample, augment, draw):
        return self.tiles(sample)[0] + 1000 * int(draw.uniform("x")[0] < 0.5), np.zeros(self.roi, np.uint8)

    def tiles(self, sample):
        numbers = np.arange(self.channels)[:, None, None, None] * 100 + np.arange(self.roi[-1])
        return [np.broadcast_to(numbers, (self.channels, *self.roi)).astype(np.float32)]


def test_a_volume_s_view_is_one_drawn_slice_of_its_own_and_no_label():
    task, sliced = Volumes(), SlicedTask(Volumes(), 4)  # type: ignore[arg-type]
    assert (sliced.dims, sliced.roi, sliced.channels, sliced.preprocessing, sliced.name) == (
        2,
        (8, 16),
        4,
        "preprocessing",
        "volumes",
    )
    seen = Counter()
    for i in range(60):
        view, label = sliced.view(None, Augmentation(), SampleRng(i))  # type: ignore[arg-type]
        whole, _ = task.view(None, None, SampleRng(i))
        number = int(view[0, 0, 0]) % 1000
        assert label is None and np.array_equal(view, whole[..., number])
        seen[number] += 1
    assert set(seen) == set(range(5)) and min(seen.values()) >= 4
    assert np.array_equal(sliced.tiles(None)[0], task.tiles(None)[0][..., 2])  # type: ignore[arg-type]


def test_where_channels_are_too_many_one_is_drawn_and_tiles_show_the_first():
    sliced = SlicedTask(Volumes(), 1)  # type: ignore[arg-type]
    views = [sliced.view(None, Augmentation(), SampleRng(i))[0] for i in range(200)]  # type: ignore[arg-type]
    assert {view.shape for view in views} == {(1, 8, 16)}
    assert {int(view[0, 0, 0]) % 1000 for view in views} == {c * 100 + s for c in range(4) for s in range(5)}
    assert sliced.tiles(None)[0][0, 0, 0] == 2  # type: ignore[arg-type]


def task(dims=2, channels=1, roi=(8, 16), name="some") -> DataSet:
    return DataSet(SimpleNamespace(dims=dims, channels=channels, roi=roi, name=name), name, Augmentation())  # type: ignore[arg-type]


def test_volumes_become_slices_for_a_network_for_pictures_and_others_stay_as_they_are():
    picture, volume = task(), task(3, 4, (8, 16, 5))
    found = hssl.transform_data_sets(unet.Config(dims=2), [picture, volume])
    assert found[0] is picture and found[1].group == volume.group
    assert (found[1].task.dims, found[1].task.channels, found[1].task.roi) == (2, 1, (8, 16))
    assert (
        hssl.transform_data_sets(unet.Config(dims=3), [volume, volume])
        == [volume, volume]
        == hssl.transform_data_sets(unet.Config(), [volume] * 2)
    )


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        (
            {"dims": 3},
            [task(3, 1, (8, 16, 5)), task(name="chests")],
            r"encoder\.dims: a 3D network cannot take the pictures of chests",
        ),
        ({}, [task(3, 1, (8, 16, 5)), task(name="chests")], r"encoder\.dims: .* set encoder\.dims: 2"),
        ({"dims": 2}, [task(channels=2), task(channels=4)], r"pretrain\.sources: the data sets have \[2, 4\] channels"),
        (
            {"dims": 2},
            [task(roi=(8, 8), name="a"), task(3, 1, (8, 16, 5), "b")],
            r"of one size \(a \[8, 8\], b \[8, 16\]\)",
        ),
    ],
)
def test_data_sets_that_do_not_go_together_are_refused_in_one_line(settings, given, message):
    with pytest.raises(UserError, match=message):
        hssl.transform_data_sets(unet.Config(**settings), given)


def test_a_data_set_with_ten_times_the_images_does_not_dominate():
    class Numbered(Images):
        def view(self, sample, augment, draw):
            return self.tiles(sample)[0], None

    some = [SimpleNamespace(number=0, data_set=int(i >= 100), case=SimpleNamespace(name=str(i))) for i in range(110)]
    given = [DataSet(Numbered((4, 4)), name, Augmentation()) for name in "ab"]  # type: ignore[arg-type]
    settings = Pretrain(epochs=1, steps=50, batch=7, lr=1)
    plan = hssl.plan(Config(), settings, (100, 10), "pretrain")
    source = PreparedLoader(given, some, seed=0, stage="pretrain", device=torch.device("cpu"))  # type: ignore[arg-type]
    counts, images = Counter(), Counter()
    for _, (one,) in feed(plan, source, 0, 1):
        assert one.label is None
        counts.update(one.data_set.tolist())
        images.update(one.names)
    assert counts == {0: 175, 1: 175}
    small = [images[str(i)] for i in range(100, 110)]
    assert min(small) == 17 and max(small) == 18 and max(images[str(i)] for i in range(100)) == 2


class Listed:
    """Images, and parts: a number of cases, or why there are none."""

    def __init__(self, images: int, **parts: int | str):
        self.parts, self.cases = parts, [Case(f"case{i}", "patient", (), (1.0,)) for i in range(images)]

    def images(self):
        return self.cases

    def split(self, part):
        if isinstance(found := self.parts[part], str):
            raise UserError(found)
        return self.cases[:found]


def test_a_data_set_of_which_no_image_has_a_label_is_pre_trained_on_and_not_validated_on():
    assert unlabelled_val(Listed(3, train="no label", val="no label")) == []  # type: ignore[arg-type]
    assert [case.label for case in unlabelled_val(Listed(3, train=2, val=1))] == [None]  # type: ignore[arg-type]
    for fault in (Listed(3, train=3, val="none left"), Listed(3, train="x", val="y"), Listed(0, train="x", val="x")):
        with pytest.raises(UserError):
            unlabelled_val(fault)  # type: ignore[arg-type]


@pytest.mark.parametrize("more", [(), ("small",)])
def test_the_experiments_of_two_tasks_share_one_joint_pre_training_and_none_of_their_own(more):
    def digest(task: str, *files: str) -> str:
        folder = REPOSITORY / "experiments" / task
        return next(load([folder / f"{file}.yaml" for file in files]).stages(lambda kind: kind)).digest()

    joint = {digest(task, "hssl", *more) for task in ("hippocampus", "chestxray14")}
    own = {digest(task, "hssl", *more, "own") for task in ("hippocampus", "chestxray14")}
    assert (len(joint), len(own), len(joint | own)) == (1, 2, 3)


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


# From folders to test scores, in this process -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(shared):
    chests = shared("few chests", lambda folder: write_chestxray14(folder / "chest", 20, 0, size=32)) / "chest"
    write = partial(write_msd, num_cases=8, seed=0, shape=(24, 30, 16))
    return {"chest": chests, "hippocampus": shared("few volumes", lambda it: write(it / "hippocampus")) / "hippocampus"}


def sections(folders, name: str) -> dict[str, Any]:
    """An experiment on one of two data sets, which a joint pre-training sees both of."""
    chest = {"name": "chestxray14", "root": str(folders["chest"]), "size": 32, "stored": 32}
    volumes = {"name": "msd", "root": str(folders["hippocampus"]), "roi": [32, 32, 4]}
    own, head = {"chest": (chest, {"name": "linear", "pool": "cls"}), "hippocampus": (volumes, {"name": "conv"})}[name]
    steps = {"epochs": 1, "warmup_epochs": 0.1, "batch": 6, "lr": 0.03, "validations": 2}
    sources = [{"task": chest, "group": "X-ray"}, {"task": {**volumes, "roi": [32, 32, 1]}, "group": "MRI"}]
    return {
        "task": own,
        "encoder": {"name": "unet", "widths": [8, 16, 24], "dims": 2},
        "pretext": {"name": "hssl", **SMALL},
        "pretrain": {**steps, "steps": 6, "sources": sources},
        "finetune": {**steps, "steps": 4, "head": head},
        "train": {"workers": 0, "log_steps": 2, "save_minutes": 0, "precision": "fp32"},
    }


@pytest.mark.whole
def test_one_pre_training_on_pictures_and_volumes_serves_both_tasks_and_sees_no_label(folders, home, monkeypatch):
    seen, forward = Counter(), HSSL.forward

    def watched(self, batch, progress):
        assert batch.label is None and batch.image.shape[1:] == (1, 32, 32)
        seen.update(batch.data_set.tolist())
        return forward(self, batch, progress)

    monkeypatch.setattr(HSSL, "forward", watched)
    first, second = (runner.run(validate_experiment(sections(folders, name)), lambda event: None) for name in folders)
    assert seen == {0: 18, 1: 18}
    kinds = [stage["kind"] for stage in first["stages"]]
    assert kinds == ["pretrain", "finetune", "test"] == [stage["kind"] for stage in second["stages"]]
    assert first["stages"][0]["digest"] == second["stages"][0]["digest"]
    levels = {"image", "task", "group", "decoder", "task_accuracy", "group_accuracy", "image_spread", "loss"}
    assert {f"val/{name}" for name in levels} == set(first["stages"][0]["summary"])
    for each in (first, second):
        loaded = each["stages"][1]["loaded"]["encoder"]
        assert (loaded["missing"], loaded["dropped"], loaded["resized"]) == ([], [], [])


def test_it_pre_trains_on_the_task_s_own_images_too(folders, home):
    tree = sections(folders, "hippocampus")
    del tree["pretrain"]["sources"]
    stage = runner.run(validate_experiment(tree | {"test": False}), lambda event: None)["stages"][0]
    assert stage["summary"]["val/task"] == 0 == stage["summary"]["val/group"]


def test_micro_batches_are_refused_by_name_for_they_would_be_another_loss(folders, home):
    tree = sections(folders, "chest")
    tree["train"]["accumulate"] = 2
    with pytest.raises(UserError, match=r"train\.accumulate: .* all of a step's images together; set it to 1"):
        runner.run(validate_experiment(tree), lambda event: None)


# Again, and on several ranks ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(folders, shared):
    def fill(folder):
        assert run(pretraining(folders, folder), world=2) == [0, 0]

    return outcome(pretraining(folders, shared("undisturbed hssl", fill)))


def pretraining(folders, home) -> Any:
    tree = sections(folders, "chest")
    tree["pretrain"]["steps"] = 10
    return jobs(folders["chest"], home, **tree)["pretrain"]


@pytest.mark.parametrize("kill", ["row 5", "saved 4"])
def test_killed_on_two_ranks_it_goes_on_exactly(kill, folders, tmp_path, undisturbed):
    job = pretraining(folders, tmp_path)
    assert run(job, world=2, kill=kill) != [0, 0]
    assert run(job, world=2) == [0, 0]
    assert outcome(job) == undisturbed


def test_on_one_rank_it_draws_the_same_curve_as_on_two(folders, tmp_path, undisturbed):
    job = pretraining(folders, tmp_path)
    assert run(job) == [0]
    for (step, alone), (other, shared) in zip(outcome(job)["curve"], undisturbed["curve"], strict=True):
        assert step == other and alone == pytest.approx(shared, rel=0.02, abs=1e-3)
