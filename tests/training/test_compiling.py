"""`train.compile`: what is compiled, that a training remains what it is, and what is said where it cannot be."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load
from support.experiments import command
from support.stages import jobs, outcome, run
from torch import nn

from premed.config.settings import Train
from premed.data.phantoms.writers import write_chestxray14
from premed.errors import UserError
from premed.models.encoders import resenc, unet, vit
from premed.models.heads import unet as unet_decoder
from premed.models.heads import unetr
from premed.training import compiling, setup
from premed.training.compiling import blocks_of, refuse_unable

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile on CPUs: there is no C++ compiler (g++)"
)
KILLED, FINE = -9, 0


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled") / "chest"
    write_chestxray14(folder, num_patients=16, seed=1, size=32, prevalence=0.6)
    return folder


@pytest.fixture(autouse=True)
def own_cache(shared, monkeypatch):
    """Not the user's, and one for all: a second process finds what the first has compiled."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(shared("compiled", lambda folder: None)))


def names(module):
    of = {each: name for name, each in module.named_modules()}
    return [of[block] for block in blocks_of(module)]


class Answers:
    channels, classes, roi, labels = 1, ("a", "b"), (16, 16, 16), True


def test_blocks_of_transformers_and_of_convolutional_networks_and_their_heads_are_compiled():
    transformer = vit.build(vit.Config(width=48, depth=4, heads=3, patch=16), 1, (16, 16, 16))
    assert names(transformer) == [f"blocks.{i}" for i in range(4)]
    head = unetr.build(unetr.Config(feature_size=4), transformer, Answers())
    assert names(nn.ModuleList([head])) == [
        *(f"0.encoder{i}" for i in range(1, 5)),
        *(f"0.decoder{i}" for i in range(2, 6)),
        "0.out",
    ]
    residual = resenc.build(resenc.Config(widths=(8, 16), blocks=(1, 2)), 1, (16, 16, 16))
    assert names(residual) == ["stages.0.blocks.0", "stages.1.blocks.0", "stages.1.blocks.1"]
    assert names(unet_decoder.build(unet_decoder.Config(), residual, Answers())) == ["stages.0"]
    assert names(unet.build(unet.Config(widths=(8, 16)), 1, (16, 16))) == ["down.0", "down.1", "up.0"]


def test_without_the_field_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda *_, **__: pytest.fail("compiled"))
    encoder = vit.build(vit.Config(width=48, depth=1, heads=3, patch=8), 1, (16, 16))
    with compiling.compiling(encoder, Train().compile) as plainly:
        assert plainly(blocks_of) is blocks_of


def test_where_nothing_can_be_compiled_one_line_names_the_field_and_the_mend(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(UserError) as found:
        refuse_unable(torch.device("cpu"))
    line = "train.compile: torch.compile does not work here (RuntimeError: No working C++ compiler found); "
    assert str(found.value) == line + compiling.MEND and "train.compile=false" in compiling.MEND


def test_it_is_refused_before_a_training_is_set_up(chest, tmp_path, monkeypatch):
    def fail(device):
        raise UserError("train.compile: does not work")

    monkeypatch.setattr(setup, "refuse_unable", fail)
    monkeypatch.setattr(setup, "training_samples", lambda *_: pytest.fail("prepared images"))
    job = jobs(chest, tmp_path, train={"compile": True})["pretrain"]
    with pytest.raises(UserError, match="train.compile: does not work"):
        setup.set_up(job, lambda config: pytest.fail("built a task"))


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_fails_in_a_step_is_one_line_and_blocks_are_as_they_were(monkeypatch):
    """A block that inductor cannot compile: its own code raises there."""
    from torch._inductor import compile_fx

    def fail(*_, **__):
        raise NotImplementedError("of this operator\nand more")

    monkeypatch.setattr(compile_fx, "_compile_fx_inner", fail)
    encoder = vit.build(vit.Config(width=48, depth=2, heads=3, patch=8), 1, (16, 16))
    with (
        pytest.raises(
            UserError, match=r"^train.compile: torch.compile failed \(NotImplementedError: of this operator\); "
        ),
        compiling.compiling(encoder, True) as plainly,
    ):
        plainly(encoder)(torch.zeros(1, 1, 16, 16))  # compiles nothing
        encoder(torch.zeros(1, 1, 16, 16))
    encoder(torch.zeros(1, 1, 16, 16))


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "changes"), [("pretrain", {}), ("finetune", {"pretext": {"name": "none"}})])
def test_a_killed_training_goes_on_as_if_nothing_had_been_and_its_weights_have_their_names(
    kind, changes, chest, tmp_path
):
    """10 steps of 8 images: a killed process has seen the last batch of an epoch, which is smaller, the next begins
    with another."""
    plain, whole, killed = (jobs(chest, tmp_path / name, **changes, train=how)[kind] for name, how in (
        ("plain", {}), ("whole", {"compile": True}), ("killed", {"compile": True})
    ))  # fmt: skip
    assert (run(plain), run(whole), run(killed, kill="row 6"), run(killed)) == ([FINE], [FINE], [KILLED], [FINE])
    assert outcome(killed) == outcome(whole)
    compiled, usual = outcome(whole), outcome(plain)
    parts = [name for name in usual if name.startswith("parts/")]
    assert [{*load(compiled[name])} for name in parts] == [{*load(usual[name])} for name in parts]
    assert whole.stage_storage.get_json("result.json")["compiled"] is True
    assert plain.stage_storage.get_json("result.json")["compiled"] is False
    for (step, numbers), (_, others) in zip(compiled["curve"], usual["curve"], strict=True):
        for name in ("train/loss", "val/loss"):
            if name in others:
                assert numbers[name] == pytest.approx(others[name], rel=1e-3), step


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_premed_run_without_a_compiler_ends_with_one_line_before_it_trains(chest, tmp_path, monkeypatch):
    for name, value in (("CXX", "no-such-compiler"), ("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "empty"))):
        monkeypatch.setenv(name, value)
    process = command(tmp_path, tmp_path / "home", chest, {"train": {"compile": True}})
    out, err = process.communicate()
    assert process.returncode == 2 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("premed: train.compile: torch.compile does not work here (")
    assert "loss" not in err  # of a step
