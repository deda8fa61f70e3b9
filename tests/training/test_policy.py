"""policy.py: what each `finetune.policy` trains and leaves; LoRA's sum; stages that are killed, or on two ranks."""

from typing import Any

import pytest
import torch
from safetensors.torch import load
from support.stages import jobs, outcome, run
from torch import nn
from training.test_supervised import IMAGES, batch

from premed.config.policy import Full, HeadOnly, LastN, LoRA, WarmupThenFull
from premed.data.phantoms.writers import write_chestxray14
from premed.errors import UserError
from premed.events import TrainingStarted
from premed.models.encoders import mit, pixels, resenc, timm, unet, vit
from premed.models.heads import linear
from premed.models.network import Network
from premed.training.optimizer import make_optimizer, set_lr
from premed.training.policy import INSIDE, choose_trained, merge, plain_state, trained_words
from premed.training.supervised import Supervised

KILLED, FINE = -9, 0
MEAN = linear.Config(pool="mean")
ENCODERS = {
    "vit": (vit, vit.Config(width=24, depth=3, heads=2, patch=8), 16),
    "resenc": (resenc, resenc.Config(widths=(8, 16, 16)), 32),
    "unet": (unet, unet.Config(widths=(8, 16, 24)), 16),
    "mit": (
        mit,
        mit.Config.model_validate(
            {
                "size": "tiny",
                "stem_stride": (1, 1, 1),
                "stem_width": 8,
                "widths": (8, 16, 16, 32),
                "heads": (1, 1, 1, 1),
            }
            | {"decoder_heads": (1, 1, 1), "reductions": (2, 2, 1, 1)}
        ),
        32,
    ),
    "timm": (
        timm,
        timm.Config(model="dinov3-s", args={"embed_dim": 24, "depth": 3, "num_heads": 2, "patch_size": 8}),
        16,
    ),
    "convnext": (timm, timm.Config(model="convnext_atto", args={"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16)}), 32),
}


def make(policy: Any, encoder: str = "vit", **settings: Any) -> Supervised:
    module, its, size = ENCODERS[encoder]
    torch.manual_seed(0)
    of = module.build(its, 1, (size, size))
    network = Network(of, linear.build(MEAN, of, IMAGES))
    return Supervised(network, IMAGES, weight_decay=0.05, policy=policy, **settings)  # type: ignore[arg-type]


def images(objective: Supervised) -> Any:
    """A batch on the encoder's grid."""
    some, size = batch(), objective.network.encoder.grid[0] * objective.network.encoder.patch[0]
    some.image = torch.randn(4, 1, size, size, generator=torch.Generator().manual_seed(2))
    return some


def train(objective: Supervised, num_steps: int = 3, of: int = 10) -> Any:
    """The first steps, as `fit` takes them; returns the optimizer."""
    objective.train()
    optimizer, some = make_optimizer(objective, (0.9, 0.999)), images(objective)
    set_lr(optimizer, 0.01)
    for step in range(num_steps):
        objective(some, step / of)[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return optimizer


def state(objective: Supervised) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in objective.network.named_parameters()}


def changed(policy: Any, encoder: str = "vit", num_steps: int = 3) -> tuple[Supervised, set[str]]:
    """The objective after some steps, and the names of the parameters that differ from those before, in any bit."""
    objective = make(policy, encoder)
    before = state(objective)
    train(objective, num_steps)
    after = state(objective)
    return objective, {name for name in after if not torch.equal(before[name], after[name])}


# What is trained ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
def test_last_n_trains_what_is_as_deep_as_the_last_blocks_and_leaves_the_rest_to_the_last_bit(encoder):
    objective, moved = changed(LastN(blocks=2), encoder)
    of = objective.network.encoder
    deep = {f"encoder.{name}" for name, _ in of.named_parameters() if of.layer(name) >= of.depth - 1}
    _, learns = changed(Full(), encoder)  # without a decoder that classification does not use
    assert moved == {name for name in learns if name in deep or name.startswith("head.")}
    assert len(deep) < len(list(of.parameters()))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_head_trains_the_head_alone(encoder):
    objective, moved = changed(HeadOnly(), encoder)
    assert moved == {"head.fc.weight", "head.fc.bias"}
    groups = objective.param_groups()
    assert sum(len(group["params"]) for group in groups) == 2


def test_full_is_what_was_trained_before_there_were_policies():
    objective, moved = changed(Full())
    assert moved == {name for name, _ in objective.network.named_parameters()}
    assert sum(len(group["params"]) for group in objective.param_groups()) == len(moved)


def test_frozen_parts_compute_as_in_prediction_and_the_others_as_in_training():
    """Drop path of a frozen block, and a batch norm's statistics, would change what the trained part learns from."""
    objective = make(LastN(blocks=1), drop_path=0.9).train()
    encoder, some = objective.network.encoder, images(objective)
    with torch.no_grad():
        dropped = encoder(some.image, taps=(0, 1, 2), keys=some.keys).taps
        plain = encoder.eval()(some.image, taps=(0, 1, 2)).taps
    assert torch.equal(dropped[1], plain[1]) and not torch.equal(dropped[2], plain[2])

    objective = make(HeadOnly())
    norm = objective.network.encoder.norm = nn.BatchNorm1d(3)  # type: ignore[assignment]
    beside = objective.network.head.norm = nn.BatchNorm1d(3)  # type: ignore[assignment]
    norm.requires_grad_(False)
    objective.train()
    assert not norm.training and not objective.network.encoder.training and beside.training
    assert make(Full(), drop_path=0.9).train().network.encoder.training


def test_warmup_then_full_trains_the_encoder_from_its_step_on_and_not_before():
    policy = WarmupThenFull(share=0.25)
    objective = make(policy, drop_path=0.5)
    before, encoder = state(objective), objective.network.encoder
    optimizer = train(objective, num_steps=3)  # of 10: progress 0, 0.1, 0.2
    after = state(objective)
    assert {name for name in after if not torch.equal(before[name], after[name])} == {"head.fc.weight", "head.fc.bias"}
    assert len(optimizer.state) == 2 and not encoder.training  # what had no gradient has no state, nor is it decayed
    objective, moved = changed(policy, num_steps=4)
    assert objective.network.encoder.training and moved == before.keys()
    words = trained_words(policy, objective.network, 10)
    assert words.startswith("all ") and words.endswith(" parameters trained, the encoder's from step 3 on")


def test_layer_decay_is_that_of_the_depth_for_every_policy():
    for policy in (LastN(blocks=2), LoRA(rank=2)):
        objective = make(policy, layer_decay=0.5)
        of = {id(p): group["lr_scale"] for group in objective.param_groups() for p in group["params"]}
        for name, parameter in objective.network.named_parameters():
            if parameter.requires_grad:
                layer = int(name.split(".")[2]) + 1 if name.startswith("encoder.blocks.") else 4
                assert of[id(parameter)] == 0.5 ** (4 - layer)


# LoRA -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
def test_lora_starts_from_the_network_and_is_merged_into_one_with_the_same_answers_to_the_last_bit(encoder):
    objective, plain = make(LoRA(rank=2), encoder), make(Full(), encoder).eval()
    some, names = images(objective), plain.network.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(objective.eval().network(some.image), plain.network(some.image))
        with torch.enable_grad():
            train(objective)
        adapted = objective.eval().network(some.image)
        assert not torch.allclose(adapted, plain.network(some.image), atol=1e-4)
        saved = plain_state(objective.network)
        assert saved.keys() == names
        plain.network.load_state_dict(saved)
        assert torch.equal(plain.network(some.image), adapted)
        merge(objective)
        assert objective.network.state_dict().keys() == names
        assert torch.equal(objective.network(some.image), adapted)


def test_lora_is_the_weight_plus_alpha_over_rank_b_a_and_trains_these_and_the_head_alone():
    objective, moved = changed(LoRA(rank=4, alpha=6.0))
    arrays = dict(objective.network.named_parameters())
    assert moved == {name for name in arrays if name.startswith("head.") or name.endswith((".a", ".b"))}
    blocks = [
        f"encoder.blocks.{i}.{each}" for i in range(3) for each in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    assert {name.partition(INSIDE)[0] for name in arrays if INSIDE in name} == set(blocks)
    for name in blocks:
        weight, a, b = (arrays[f"{name}{INSIDE}{each}"] for each in ("original", "0.a", "0.b"))
        assert a.shape == (4, weight.shape[1]) and b.shape == (weight.shape[0], 4)
        expected = weight.double() + 6 / 4 * b.double() @ a.double()
        torch.testing.assert_close(objective.network.get_submodule(name).weight.double(), expected)


def test_lora_is_added_in_float32_under_autocast_too():
    objective = make(LoRA(rank=4))
    train(objective)
    layer: Any = objective.network.encoder.get_submodule("blocks.0.mlp.fc1")
    weight, (a, b) = (
        layer.parametrizations.weight.original,
        (getattr(layer.parametrizations.weight[0], each) for each in "ab"),
    )
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = layer.weight
    torch.testing.assert_close(found, weight + 4 * b @ a, rtol=0, atol=1e-6)  # bfloat16 is off by 1e-4 here


# What is refused ------------------------------------------------------------------------------------------------------


def test_what_has_no_effect_is_refused_by_name():
    for policy, encoder, message in (
        (LastN(blocks=4), "vit", "finetune.policy.blocks: is 4, and this encoder has 3; choose fewer"),
        (LoRA(rank=24), "vit", "finetune.policy.rank: 24 is no lower rank for any matrix"),
    ):
        with pytest.raises(UserError, match=message):
            make(policy, encoder)
    solved = make(Full()).network
    solved.head.num_solutions = 5
    with pytest.raises(UserError, match="finetune.policy: this head is solved on a frozen encoder"):
        choose_trained(HeadOnly(), solved)
    of = pixels.build(pixels.Config(), 1, (16, 16))
    network = Network(of, linear.build(MEAN, of, IMAGES))
    with pytest.raises(UserError, match="finetune.policy: this encoder has no weights"):
        Supervised(network, IMAGES, weight_decay=0.0, policy=HeadOnly())  # type: ignore[arg-type]


# Stages ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def chest(shared):
    return shared("x-rays for policies", lambda to: write_chestxray14(to / "chest", 16, 1, 32, 0.6)) / "chest"


def scratch(policy: Any) -> dict[str, Any]:
    return {"pretext": {"name": "none"}, "finetune": {"policy": policy, "lr": 0.3}}


LORA, LATER = {"name": "lora", "rank": 4}, {"name": "warmup_then_full", "share": 0.5}


@pytest.mark.parametrize(
    "policy", [LORA, *(pytest.param(each, marks=pytest.mark.slow) for each in ("head", "last_n", LATER))], ids=str
)
def test_a_killed_training_goes_on_to_the_last_bit_under_every_policy(policy, chest, tmp_path):
    whole, killed = (jobs(chest, tmp_path / name, **scratch(policy))["finetune"] for name in ("whole", "killed"))
    assert run(whole) == [FINE]
    assert [run(killed, kill=kill) for kill in ("saved 4", "row 8")] == [
        [KILLED]
    ] * 2  # and the encoder is trained from 5 on
    assert run(killed) == [FINE]
    assert outcome(killed) == outcome(whole)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["head", "last_n", LORA, LATER], ids=str)
def test_two_ranks_train_what_one_trains(policy, chest, tmp_path):
    found = []
    for world in (1, 2):
        job = jobs(chest, tmp_path / str(world), **scratch(policy))["finetune"]
        assert run(job, world) == [FINE] * world
        found.append(load(outcome(job)["parts/encoder.safetensors"]))
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-3, atol=1e-4)


def test_lora_s_stage_saves_the_plain_network_whose_test_has_the_scores_of_its_validation(chest, tmp_path):
    from premed.training.stage import run_stage

    stages, events = jobs(chest, tmp_path, **scratch("lora")), []
    run_stage(stages["finetune"], events.append, lambda numbers: None)
    job = stages["finetune"]
    (started,) = (event for event in events if isinstance(event, TrainingStarted))
    assert started.trained == "6,494 of 22,982 parameters trained"
    encoder = load(job.stage_storage.get("parts/encoder.safetensors"))
    assert encoder.keys() == vit.build(vit.Config(width=24, depth=2, heads=2, patch=8), 1, (32, 32)).state_dict().keys()
    run_stage(stages["test"], events.append, lambda numbers: None)
    assert stages["test"].stage_storage.get_json("result.json")["loaded"]["encoder"]["missing"] == []
