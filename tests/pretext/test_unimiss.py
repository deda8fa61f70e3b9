"""pretext/unimiss.py: the paper's terms, its teacher and centre, its turns, and what becomes of it."""

from math import cos, log, pi

import numpy as np
import pytest
import torch
from support.mit import NUMBERS
from support.stages import on_ranks
from support.unimiss import SMALL
from torch import Tensor

from premed.cli import progress as presenter
from premed.config.image_processing import Augmentation
from premed.contracts import Batch, Case, DataSet, Sample
from premed.errors import UserError
from premed.events import CollapseDetected
from premed.models.encoders import mit, vit
from premed.pretext import unimiss
from premed.pretext.unimiss import Config, UniMiSS, swapped_cross_entropy
from premed.rng import sample_keys
from premed.training import evaluate
from premed.training.fit import distributed
from premed.training.optimizer import make_optimizer, set_lr

pytest_plugins = ["support.experiment_fixtures"]


PICTURE, VOLUME = (1, (32, 48)), (1, (32, 48, 4))
TWO = Augmentation(crops=2)


class Images:
    """The little of a task that it asks for; a case's views are drawn from its name."""

    def __init__(self, channels: int, roi: tuple[int, ...], name: str = "images"):
        self.name, self.channels, self.roi, self.dims = name, channels, roi, len(roi)

    def view(self, sample, augment, draw):
        shape = self.channels, *self.roi
        return draw.uniform("image", int(np.prod(shape)), -1, 1).reshape(shape), None


def encoder(*inputs) -> mit.MiT:
    config = mit.Config.model_validate({"size": "tiny", **NUMBERS, "stem_stride": (1, 1, 1)})
    first, *more = inputs
    return mit.build(config, *first, *more)


def objective(*inputs, augment=TWO, **changes) -> UniMiSS:
    torch.manual_seed(0)
    inputs = inputs or (PICTURE, (1, (32, 48, 32)))
    data_sets = [DataSet(Images(*one, name=f"{len(one[1])}d"), "", augment) for one in inputs]  # type: ignore[arg-type]
    return unimiss.build(Config.model_validate(SMALL | changes), encoder(*inputs), data_sets, weight_decay=0.04)


def batch(of, n: int = 2, seed: int = 1, weight: float = 1.0) -> Batch:
    """n images with two views each."""
    channels, roi = of
    image = torch.randn(2 * n, channels, *roi, generator=torch.Generator().manual_seed(seed))
    keys = torch.from_numpy(sample_keys(0, "pretrain", seed, np.arange(2 * n)))
    return Batch(image, keys, ("",) * (2 * n), weight=weight)


BOTH = PICTURE, (1, (32, 48, 32))


def stepped(model: UniMiSS, wrapped, optimizer, of, progress=0.5, seed=1, lr=0.01) -> None:
    """One step of `fit`."""
    set_lr(optimizer, lr)
    loss, _ = wrapped(batch(of, seed=seed), progress)
    loss.backward()
    model.before_step(progress)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.after_step(progress)


# The loss -------------------------------------------------------------------------------------------------------------


def test_each_view_is_compared_with_the_other_view_of_its_image_both_ways():
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0], [4.0, 0.0, 0.0]])  # images a a b b
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])

    def entropy(i, j):  # of view i's logits under view j's target
        total = sum(np.exp(float(x)) for x in logits[i])
        return -sum(float(t) * (float(x) - log(total)) for x, t in zip(logits[i], targets[j], strict=True))

    by_hand = [(entropy(1, 0) + entropy(0, 1)) / 2, (entropy(3, 2) + entropy(2, 3)) / 2]
    assert swapped_cross_entropy(logits, targets).tolist() == pytest.approx(by_hand, rel=1e-5)


def formula(student: Tensor, teacher: Tensor, centre: Tensor) -> Tensor:
    """DINO's, of logits [2B, K]: the mean over images and both ways."""
    target = torch.softmax((teacher - centre) / 0.04, dim=1)
    result = torch.log_softmax(student / 0.1, dim=1)
    losses = []
    for i in range(0, len(student), 2):
        losses += [-(target[i] * result[i + 1]).sum(), -(target[i + 1] * result[i]).sum()]
    return torch.stack(losses).mean()


def slice_by_slice(network, image: Tensor) -> Tensor:
    """Logits of each depth slice on its own, averaged."""
    with torch.no_grad():
        return torch.stack(
            [network.projection(network.summary(image[..., z], None)) for z in range(image.shape[-1])]
        ).mean(dim=0)


def test_a_volume_is_compared_in_all_four_ways_with_its_slices_logits_averaged_over_depth():
    model = objective(*BOTH, drop_path=0.0)
    model.centre.copy_(torch.linspace(-0.2, 0.3, 10))
    for parameter in model.teacher.parameters():  # another network than the student
        parameter.add_(0.02 * torch.randn_like(parameter))
    one = batch(BOTH[1])
    with torch.no_grad():
        loss, numbers = model(one, 0.5)
        result = {"volume": model.student.projection(model.student.summary(one.image, None))}
        heard = {"volume": model.teacher.projection(model.teacher.summary(one.image, None))}
    result["slices"], heard["slices"] = (
        slice_by_slice(model.student, one.image),
        slice_by_slice(model.teacher, one.image),
    )
    terms = {f"{s}_{t}": formula(result[s], heard[t], model.centre) for s in result for t in heard}
    assert len(terms) == 4 and len({round(float(term), 4) for term in terms.values()}) == 4
    for name, term in terms.items():
        torch.testing.assert_close(numbers[name], term, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, sum(terms.values()), rtol=1e-4, atol=1e-5)


def test_a_picture_is_one_term_and_so_is_a_volume_without_slices():
    for model, of, name in (
        (objective(), PICTURE, "picture_picture"),
        (objective(slices=False), BOTH[1], "volume_volume"),
        (objective((2, (32, 48, 32)), slices=False), (2, (32, 48, 32)), "volume_volume"),
    ):
        loss, numbers = model(batch(of), 0.5)
        assert set(numbers) == {name, "entropy", "centre_spread"}
        assert loss.item() == pytest.approx(numbers[name].item())


def test_drop_path_acts_on_the_student_alone_by_the_views_keys():
    model, one = objective(drop_path=0.9).train(), batch(BOTH[1])
    other = Batch(one.image, one.keys + 1, one.names)
    logits = [model.student.branch_logits(each.image, each.keys, True) for each in (one, one, other)]
    for name in ("volume", "slices"):
        assert torch.equal(logits[0][name], logits[1][name]) and not torch.equal(logits[0][name], logits[2][name])
    heard = [model.pair_losses(each.image, each.keys)[1]["slices"] for each in (one, other)]
    assert torch.equal(*heard)


def test_prototypes_count_by_their_direction_alone():
    model = objective().student.projection
    x = torch.randn(3, 8)
    before = model(x)
    with torch.no_grad():
        model.prototypes.mul_(7)
    torch.testing.assert_close(model(x), before)
    assert before.abs().max() <= 1 + 1e-6


def test_the_paper_s_projection_has_its_sizes():
    with torch.device("meta"):
        projection = unimiss.Projection(Config(), 48)
    shapes = [tuple(layer.weight.shape) for layer in projection.mlp[::2]]
    assert shapes == [(2048, 48), (2048, 2048), (256, 2048)] and tuple(projection.prototypes.shape) == (65536, 256)


# A step ---------------------------------------------------------------------------------------------------------------


def of_volumes(model: UniMiSS) -> dict[str, Tensor]:
    found = {name: p for name, p in model.student.named_parameters() if "3d" in name.split(".")}
    assert len(found) > 20
    return found


def test_a_step_on_pictures_leaves_every_parameter_for_volumes_without_gradient_and_where_it_is():
    model = objective()
    optimizer = make_optimizer(model, (0.9, 0.999))
    stepped(model, model, optimizer, BOTH[1])  # now there is momentum
    before = {name: p.clone() for name, p in model.student.named_parameters()}
    loss, _ = model(batch(PICTURE), 0.5)
    loss.backward()
    assert all(p.grad is None for p in of_volumes(model).values())
    optimizer.zero_grad(set_to_none=True)
    stepped(model, model, optimizer, PICTURE)
    moved = {name for name, p in model.student.named_parameters() if not torch.equal(p, before[name])}
    assert not moved & of_volumes(model).keys()
    assert moved == before.keys() - of_volumes(model).keys()


def on_each_rank(folder) -> None:
    model = objective()
    wrapped = distributed(model)
    optimizer = make_optimizer(model, (0.9, 0.999))
    rank = torch.distributed.get_rank()
    for step, of in enumerate((BOTH[1], PICTURE, PICTURE, BOTH[1], PICTURE)):
        before = {name: p.clone() for name, p in of_volumes(model).items()}
        stepped(model, wrapped, optimizer, of, seed=10 * step + rank)
        still = [name for name, p in of_volumes(model).items() if torch.equal(p, before[name])]
        assert len(still) == (len(before) if of is PICTURE else 0)
    torch.save({"centre": model.centre, **model.teacher.state_dict()}, folder / f"{rank}.pt")


@pytest.mark.slow
def test_on_two_ranks_too_and_their_teachers_and_centres_are_the_same_to_the_last_bit(tmp_path):
    assert on_ranks(2, on_each_rank, tmp_path) == [0, 0]
    ours, theirs = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_teacher_follows_by_a_momentum_that_rises_to_one_by_half_a_cosine():
    model = objective()
    for progress in (0.0, 0.3, 1.0):
        momentum = 1 - 0.004 * (cos(pi * progress) + 1) / 2
        with torch.no_grad():
            for parameter in model.student.parameters():
                parameter.add_(1.0)
        before = [p.clone() for p in model.teacher.parameters()]
        model.after_step(progress)
        for theirs, old, ours in zip(model.teacher.parameters(), before, model.student.parameters(), strict=True):
            torch.testing.assert_close(theirs, momentum * old + (1 - momentum) * ours)
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_one_centre_follows_the_mean_of_all_that_the_teacher_says_in_a_step():
    model = objective()
    heard = model.pair_losses(batch(BOTH[1]).image)[1]
    model(batch(BOTH[1], weight=0.5), 0.5)
    model(batch(PICTURE, weight=0.5), 0.5)  # as micro-batches of one step
    assert not model.centre.any()  # the same for all of a step
    pictures = model.pair_losses(batch(PICTURE).image)[1]["picture"].mean(dim=0)
    mean = 0.5 * torch.cat([heard["volume"], heard["slices"]]).mean(dim=0) + 0.5 * pictures
    model.after_step(0.5)
    torch.testing.assert_close(model.centre, 0.1 * mean)
    model.after_step(0.5)
    torch.testing.assert_close(model.centre, 0.9 * 0.1 * mean)


def test_prototypes_rest_for_their_share_of_the_training():
    model = objective(resting=0.25)
    optimizer = make_optimizer(model, (0.9, 0.999))
    for progress, rests in ((0.0, True), (0.24, True), (0.25, False)):
        before = model.student.projection.prototypes.clone()
        stepped(model, model, optimizer, PICTURE, progress)
        assert torch.equal(model.student.projection.prototypes, before) is rests


def test_each_gradient_is_clipped_by_itself():
    model = objective(clip_each=0.3, resting=0.0)
    for i, parameter in enumerate(model.student.parameters()):
        parameter.grad = torch.full_like(parameter, 5.0 if i % 2 else 1e-6)
    model.before_step(0.5)
    for i, parameter in enumerate(model.student.parameters()):
        norm = 0.3 if i % 2 else 1e-6 * parameter.numel() ** 0.5
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-3)


def test_weight_decay_goes_from_first_to_last_and_leaves_vectors_alone():
    matrices, vectors = objective().param_groups()
    assert (matrices["decay"], vectors["weight_decay"], "decay" in vectors) == ((0.04, 0.4), 0.0, False)
    assert all(p.ndim > 1 for p in matrices["params"]) and all(p.ndim <= 1 for p in vectors["params"])
    model = objective()
    learnt = {id(p) for group in model.param_groups() for p in group["params"]}
    assert learnt == {id(p) for p in model.student.parameters()}
    assert "decay" not in objective(weight_decay_end=None).param_groups()[0]


# Did it collapse ------------------------------------------------------------------------------------------------------


def rows(model: UniMiSS, heard: Tensor, data_set=0) -> list[dict]:
    """Rows of cases to which the teacher says `heard` [N, K]."""
    numbers = zip(model.entropy(heard).tolist(), model.log_probabilities(heard).argmax(dim=1).tolist(), strict=True)
    return [{"domain": data_set, "loss": 1.0, "entropy": entropy, "top": top} for entropy, top in numbers]


def test_teachers_that_say_one_thing_or_nothing_are_known():
    model = objective()
    eye = torch.eye(10)

    def found(*some):
        return evaluate.collapsed(model.summary([row for each in some for row in each]))

    one, uniform, healthy = rows(model, eye[[3] * 10]), rows(model, torch.zeros(10, 10)), rows(model, eye)
    assert found(one)["into"] == "one" and found(one)["same"] == 1
    assert found(uniform)["into"] == "uniform" and found(uniform)["entropy"] == pytest.approx(1)
    assert found(healthy) is None
    assert found(healthy, rows(model, eye[[3] * 10], data_set=1))["into"] == "one"  # of one data set alone
    assert evaluate.collapsed({"loss": 1.0, "gate": 2.0}) is None


def test_the_centre_counts_when_it_is_asked_what_the_teacher_says():
    model = objective()
    model.centre.copy_(torch.eye(10)[3])
    assert rows(model, torch.eye(10)[[3] * 4])[0]["entropy"] == pytest.approx(1)


def test_a_collapse_is_told_in_one_line(capsys):
    show = presenter.ProgressPrinter()
    for into, words in (("one", "the same output"), ("uniform", "a uniform output")):
        show(CollapseDetected(into, entropy=0.01, same=1.0))
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("WARNING: the pre-training collapsed") and words in line


def samples(num: int, data_set: int) -> list[Sample]:
    return [Sample(Case(f"case{i}", f"patient{i}", ()), None, data_set) for i in range(num)]  # type: ignore[arg-type]


def test_a_row_is_the_same_at_every_validation_and_whoever_is_beside_it(monkeypatch):
    model = objective().eval()
    val = [*samples(3, 0), *samples(2, 1)]
    found = model.measure(val)
    assert [(row["case"], row["domain"]) for row in found] == [
        (f"case{i}", data_set) for data_set, n in ((0, 3), (1, 2)) for i in range(n)
    ]
    monkeypatch.setattr(unimiss, "CHUNK", 1)
    for row, alone in zip(found, model.measure(val), strict=True):
        assert row == alone | {name: pytest.approx(alone[name], rel=1e-4) for name in ("loss", "entropy")}
    assert model.summary(found).keys() == {"loss", "entropy", "same", "centre_spread"}


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "changes", "message"),
    [
        (
            BOTH,
            {"augment": Augmentation()},
            r"^pretrain\.augment\.crops: unimiss compares two views .* 2d has 1; make it 2",
        ),
        (BOTH[1:], {}, r"^pretext\.slices: .* add a data set of pictures"),
        (((3, (32, 48)), BOTH[1]), {}, r"^pretext\.slices: slices of 3d have 1 channels and pictures of 2d 3"),
        ((PICTURE, (1, (16, 16, 32))), {}, r"^encoder\.(stem_stride|reductions): "),
    ],
)
def test_data_sets_that_do_not_suit_are_refused_by_name(inputs, changes, message):
    with pytest.raises(UserError, match=message):
        objective(*inputs, **changes)


def test_pictures_alone_may_go_through_another_transformer():
    flat = vit.build(vit.Config(width=24, depth=1, heads=2, patch=16), *PICTURE)
    data_sets = [DataSet(Images(*PICTURE), "", TWO)]  # type: ignore[arg-type]
    model = unimiss.build(Config.model_validate(SMALL), flat, data_sets, 0.04)
    assert torch.isfinite(model(batch(PICTURE), 0.5)[0])
