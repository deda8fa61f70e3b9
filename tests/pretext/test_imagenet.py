"""ImageNet weights: equal to timm's own forward, the rules for grey, four channels and volumes, and what is refused."""

import json
from argparse import Namespace
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from premed.config.image_processing import Preprocessing
from premed.errors import UserError
from premed.models import pretrained
from premed.models.encoders import vit
from premed.pretext import imagenet

HALF = Preprocessing(dims=2, channels=3, normalise="grey", mean=0.5, std=0.5)  # what timm's own ViTs want
PIXELS = Preprocessing(dims=2, normalise="window", window=(0, 255))
SMALL = {"img_size": 64, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
MODEL = "vit_tiny_patch16_224"


def random_vit(**settings) -> VisionTransformer:
    """A timm ViT in evaluation, every weight of it random: norms, biases, positions and the class token too."""
    torch.manual_seed(0)
    network = VisionTransformer(**(SMALL | settings)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture
def saved(tmp_path):
    """Saves a network (or a state) as safetensors: the file."""

    def save(network, name="weights.safetensors"):
        state = network if isinstance(network, dict) else network.state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / name)
        return tmp_path / name

    return save


def task_of(roi, preprocessing) -> SimpleNamespace:
    return SimpleNamespace(
        name="images", channels=preprocessing.channels, dims=len(roi), roi=roi, preprocessing=preprocessing
    )


def brought(file, roi=(64, 64), preprocessing=HALF, patch=16, width=24, depth=2, heads=2, **pretext):
    """The encoder with the file's weights, in evaluation, and the report."""
    encoder = vit.build(vit.Config(width=width, depth=depth, heads=heads, patch=patch), preprocessing.channels, roi)
    config = imagenet.Config(weights=file, **({"model": MODEL} | pretext))
    state, report = imagenet.weights(config, encoder, task_of(roi, preprocessing))
    encoder.load_state_dict(state)
    return encoder.eval(), report


def assert_same(features, timms):
    """Class token and patch tokens of an encoder, and of timm's forward_features."""
    both = torch.cat([features.summary[:, None], features.tokens], dim=1)
    torch.testing.assert_close(both, timms, rtol=0, atol=1e-4)


# Equal to timm -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_features_are_timms_on_three_channels_of_224_in_timms_own_normalisation(saved, size):
    torch.manual_seed(0)
    network = timm.create_model(f"vit_{size}_patch16_224", pretrained=False).eval()
    shape = vit.SIZES[size]
    encoder, report = brought(saved(network), (224, 224), model=f"vit_{size}_patch16_224", **shape)
    image = torch.randn(2, 3, 224, 224)
    assert_same(encoder(image), network.forward_features(image))
    assert report["changed"] == {} and report["dropped"] == ["head.bias", "head.weight"]


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("model", [MODEL, "deit_tiny_patch16_224"])  # mean and std .5; those of ImageNet
def test_a_grey_image_gives_what_timm_gives_for_it_repeated_three_times(saved, channels, model):
    network, about = random_vit(), pretrained.model_info(model)
    preprocessing = PIXELS.model_copy(update={"channels": channels})
    encoder, report = brought(saved(network), preprocessing=preprocessing, model=model)
    pixels = torch.rand(2, 1, 64, 64)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (about.mean, about.std))
    assert_same(encoder(pixels.repeat(1, channels, 1, 1)), network.forward_features((pixels - mean) / std))
    assert report["changed"]["patch_embed.proj.weight"] == f"normalisation folded in, 3 channels to {channels}"


@torch.no_grad()
def test_x_rays_in_our_normalisation_give_what_timm_gives_in_its_own(saved):
    network = random_vit()
    encoder, _ = brought(saved(network), preprocessing=Preprocessing(dims=2, normalise="grey"))  # (pixel - .5) / .225
    pixels = torch.rand(2, 1, 64, 64)
    ours, timms = (pixels - 0.5) / 0.225, (pixels.repeat(1, 3, 1, 1) - 0.5) / 0.5
    assert_same(encoder(ours), network.forward_features(timms))


@torch.no_grad()
def test_a_z_scored_image_is_taken_as_one_with_imagenets_mean_and_deviation(saved):
    network, preprocessing = random_vit(), Preprocessing(dims=2, normalise="zscore")
    encoder, _ = brought(saved(network), preprocessing=preprocessing, model="deit_tiny_patch16_224")
    image = torch.randn(2, 1, 64, 64)
    assert_same(encoder(image), network.forward_features(image.repeat(1, 3, 1, 1)))
    std, mean = (torch.tensor(each).view(3, 1, 1) for each in ([0.229, 0.224, 0.225], [0.485, 0.456, 0.406]))
    pixels = image * std + mean
    assert_same(
        brought(saved(network), preprocessing=preprocessing)[0](image), network.forward_features((pixels - 0.5) / 0.5)
    )


@torch.no_grad()
def test_mean_and_std_in_the_yaml_win_over_the_models(saved):
    network = random_vit()
    encoder, _ = brought(saved(network), preprocessing=PIXELS, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    pixels, mean = torch.rand(2, 1, 64, 64), torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    assert_same(encoder(pixels), network.forward_features((pixels - mean) / torch.tensor([1, 2, 3]).view(1, 3, 1, 1)))


@torch.no_grad()
@pytest.mark.parametrize(("patch", "roi"), [(8, (64, 64)), (32, (64, 128)), (16, (96, 64))])
def test_another_patch_or_grid_is_resampled_as_timm_does(saved, patch, roi):
    network = random_vit()
    other = VisionTransformer(**(SMALL | {"img_size": roi, "patch_size": patch})).eval()
    other.load_state_dict(checkpoint_filter_fn(network.state_dict(), other))
    encoder, report = brought(saved(network), roi, patch=patch)
    image = torch.randn(2, 3, *roi)
    assert_same(encoder(image), other.forward_features(image))
    grid = f"{roi[0] // patch}x{roi[1] // patch}"
    assert report["changed"].get("pos_embed") == (None if grid == "4x4" else f"4x4 to {grid}")


# Volumes -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("patch", [16, (16, 16, 4), (8, 8, 8), (8, 16, 4)])
def test_a_volume_that_is_constant_along_its_third_axis_gives_the_response_of_its_slices(saved, patch):
    file, roi, preprocessing = (
        saved(random_vit()),
        (32, 48, 32),
        Preprocessing(dims=3, normalise="window", window=(0, 1)),
    )
    volumes, _ = brought(file, roi, preprocessing, patch)
    edges = volumes.patch
    pictures, _ = brought(file, roi[:2], PIXELS, edges[:2])
    slices = torch.rand(2, 1, *roi[:2])
    there = volumes.patch_embed(slices[..., None].expand(-1, -1, -1, -1, roi[2])).unflatten(1, volumes.grid)
    expected = pictures.patch_embed(slices).unflatten(1, pictures.grid)[:, :, :, None].expand_as(there)
    torch.testing.assert_close(there, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_grey_volume_in_all_four_channels_gives_the_response_of_one(saved):
    file, roi = saved(random_vit()), (32, 32, 32)
    one, four = (brought(file, roi, Preprocessing(dims=3, channels=c, normalise="zscore"))[0] for c in (1, 4))
    volume = torch.randn(2, 1, *roi)
    torch.testing.assert_close(four.patch_embed(volume.repeat(1, 4, 1, 1, 1)), one.patch_embed(volume))


@torch.no_grad()
def test_positions_of_a_volume_are_the_pictures_on_average_and_differ_by_depth(saved):
    file, preprocessing = saved(random_vit()), Preprocessing(dims=3, normalise="zscore")
    volumes, report = brought(file, (32, 48, 64), preprocessing, patch=8)
    pictures, _ = brought(file, (32, 48), PIXELS, patch=8)
    flat, deep = pictures.pos_embed[0], volumes.pos_embed[0]
    assert torch.equal(deep[0], flat[0]) and report["changed"]["pos_embed"] == "4x4 to 4x6x8"
    places = deep[1:].unflatten(0, (24, 8))  # [in plane, depth, D]
    torch.testing.assert_close(places.mean(dim=1), flat[1:])
    offsets = places - flat[1:, None]
    torch.testing.assert_close(offsets, offsets[:1].expand_as(offsets), rtol=0, atol=1e-5)
    plane = flat[1:] - flat[1:].mean(dim=0)
    torch.testing.assert_close(offsets[0].square().mean(), plane.square().mean())
    assert torch.cdist(offsets[0], offsets[0]).add(torch.eye(8) * 9).min() > 0.1 * offsets[0].norm(dim=1).mean()


def test_a_volume_one_patch_deep_has_the_positions_of_a_picture(saved):
    file = saved(random_vit())
    volumes, _ = brought(file, (64, 64, 16), Preprocessing(dims=3, normalise="zscore"))
    assert torch.equal(volumes.pos_embed, brought(file)[0].pos_embed)


# Files ---------------------------------------------------------------------------------------------------------------

WRAPPED = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3, "args": Namespace(lr=1e-3)},
    "state_dict": lambda state: {"state_dict": {f"module.{name}": w for name, w in state.items()}, "arch": "vit"},
    "average": lambda state: {"state_dict": {name: w * 0 for name, w in state.items()}, "state_dict_ema": state},
    "compiled": lambda state: {f"module._orig_mod.{name}": w for name, w in state.items()},
    "half": lambda state: {name: w.half() for name, w in state.items()},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_a_torch_checkpoint_gives_what_safetensors_give_however_it_is_wrapped(saved, tmp_path, how):
    network = random_vit()
    if how == "half":
        network = network.half().float()
    torch.save(WRAPPED[how](network.state_dict()), tmp_path / "checkpoint.pth.tar")
    (ours, report), (safe, _) = brought(tmp_path / "checkpoint.pth.tar"), brought(saved(network))
    assert all(torch.equal(w, safe.state_dict()[name]) for name, w in ours.state_dict().items())
    assert (report["file"], report["kept"], report["model"]) == ("checkpoint.pth.tar", len(safe.state_dict()), MODEL)


def test_what_belongs_to_no_encoder_is_left_out_and_named(saved):
    extra = {name: torch.zeros(2) for name in ("fc.weight", "pre_logits.fc.bias", "head_dist.weight", "mask_token")}
    _, report = brought(saved(random_vit().state_dict() | extra))
    assert report["dropped"] == sorted([*extra, "head.bias", "head.weight"])
    json.dumps(report)


@torch.no_grad()
def test_a_stem_that_was_trained_on_the_tasks_own_channels_is_left_alone(saved):
    network = random_vit(in_chans=1)
    encoder, report = brought(saved(network), preprocessing=Preprocessing(dims=2, normalise="grey"))
    image = torch.randn(2, 1, 64, 64)
    assert_same(encoder(image), network.forward_features(image))
    assert report["changed"] == {}


def test_content_is_the_files_whatever_it_is_called(saved):
    network = random_vit()
    contents = [imagenet.content(imagenet.Config(weights=saved(network, name))) for name in ("a.bin", "b")]
    assert contents[0] == contents[1]
    network.norm.bias.data += 1
    assert imagenet.content(imagenet.Config(weights=saved(network, "b"))) != contents[0]


# Refused in one line -------------------------------------------------------------------------------------------------


def refused(match, file, **settings):
    with pytest.raises(UserError, match=match) as caught:
        brought(file, **settings)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


VIT = {
    "distilled": ({"dist_token": 1}, "is distilled"),
    "registers": ({"reg_token": 1}, "has register tokens: reg_token"),
    "layer scale": ({"blocks.0.ls1.gamma": 1}, "scales its layers"),
    "mean pooling": ({"fc_norm.weight": 1}, "classifies by the mean of its tokens"),
    "CLIP": ({"norm_pre.weight": 1}, "normalises before its blocks"),
    "something else": ({"blocks.0.attn.novel": 1}, r"is not a plain ViT \(unknown: blocks.0.attn.novel\)"),
    "no class token": ({"cls_token": None}, "has no class token"),
    "a missing tensor": ({"blocks.1.norm2.bias": None}, r"\(missing: blocks.1.norm2.bias\)"),
    "another MLP": ({"blocks.1.mlp.fc1.bias": 1}, r"\(of another shape: blocks.1.mlp.fc1.bias\)"),
    "no ViT": ({"cls_token": None, "pos_embed": None}, "contains no vision transformer with timm's names"),
}


@pytest.mark.parametrize("what", VIT)
def test_another_kind_of_network_is_refused_by_name(saved, what):
    change, words = VIT[what]
    state = random_vit().state_dict() | {name: torch.ones(size) for name, size in change.items() if size}
    file = saved({name: w for name, w in state.items() if change.get(name, 1)})
    refused(rf"^pretext\.weights: .*weights\.safetensors: .*{words}", file)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 48}, r"has width 24 and the encoder 48; set encoder\.width=24, or name weights of the"),
        ({"depth": 3}, "has depth 2 and the encoder 3; set encoder.depth=2"),
        (
            {"preprocessing": HALF.model_copy(update={"channels": 4}), "in_chans": 2},
            "has 2 input channels and images has 4",
        ),
        ({"no_embed_class": True}, "its 16 positions are not a class token and a square"),
    ],
)
def test_weights_of_another_shape_are_refused_by_field(saved, settings, words):
    timms = {name: settings[name] for name in ("in_chans", "no_embed_class") if name in settings}
    file = saved(random_vit(**timms))
    refused(words, file, **{name: value for name, value in settings.items() if name not in timms})


def test_another_number_of_heads_is_refused_where_the_model_tells_it(saved):
    file = saved(timm.create_model(MODEL, pretrained=False))
    refused("has heads 3 and the encoder 6; set encoder.heads=3", file, width=192, depth=12, heads=6)


FILES = {
    "missing": (None, r"cannot be read \(No such file or directory\); check the path"),
    "empty": (b"", "is neither safetensors nor a torch checkpoint"),
    "text": (b"these are no weights", "is neither safetensors nor a torch checkpoint"),
    "cut": (b"\x08\x00\x00\x00\x00\x00\x00\x00{", "is damaged"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_holds_no_weights_is_named(tmp_path, what):
    content, words = FILES[what]
    if content is not None:
        (tmp_path / "w.bin").write_bytes(content)
    refused(rf"^pretext\.weights: .*w\.bin {words}", tmp_path / "w.bin")


def test_a_pickled_network_is_never_unpickled(tmp_path):
    torch.save(random_vit(), tmp_path / "whole.pth")
    refused("weights only; save the network's state_dict as safetensors", tmp_path / "whole.pth")


def test_a_checkpoint_without_a_state_dict_is_refused(tmp_path):
    torch.save({"epoch": 3, "loss": torch.zeros(1)}, tmp_path / "odd.pth")
    refused("holds no state_dict", tmp_path / "odd.pth")
    torch.save({1: torch.zeros(1), ("a", 2): torch.zeros(1)}, tmp_path / "numbered.pth")
    refused("holds no state_dict", tmp_path / "numbered.pth")


def test_a_few_bytes_that_stand_for_terabytes_of_numbers_are_refused(tmp_path):
    torch.save({"head.weight": torch.zeros(1, dtype=torch.half).expand(10**13)}, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").stat().st_size < 5000
    refused("head.weight repeats its numbers", tmp_path / "w.pth")


KINDS = {
    "quantised": lambda w: (100 * w).to(torch.int8),
    "quantised ": lambda w: torch.quantize_per_tensor(w, 0.01, 0, torch.qint8),
    "sparse": lambda w: w.to_sparse(),
    "complex": lambda w: w.to(torch.complex64),
    "empty": lambda w: w.to("meta"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_no_plain_numbers_are_refused(tmp_path, kind):
    """int8 without its scale had been read as weights of up to 127."""
    state = random_vit().state_dict()
    torch.save(state | {"head.weight": KINDS[kind](state["head.weight"])}, tmp_path / "w.pth")
    refused(rf"head.weight is {kind.strip()}", tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("vit_bas_patch16_224", r"timm has no 'vit_bas_patch16_224'; did you mean vit_base_patch16_224"),
        ("vit_base_patch16_224.augreg_in1", "did you mean vit_base_patch16_224.augreg_in1k"),
        ("qqq", r"timm\.list_models"),
        ("resnet50", "is no vision transformer"),
    ],
)
def test_a_name_that_is_no_vits_is_refused(model, words):
    refused(rf"^pretext\.model: .*{words}", None, model=model)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("deit_tiny_distilled_patch16_224", "is distilled"),
        ("vit_small_patch14_dinov2", "scales its layers"),
        (
            "vit_base_patch16_224.augreg_in1k",
            "has width 768, depth 12, heads 12 and the encoder 24, 2, 2; set encoder.w",
        ),
    ],
)
def test_what_can_be_refused_by_its_name_is_not_fetched(monkeypatch, model, words):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args: pytest.fail("it was fetched"))
    refused(rf"^pretext\.model: {model}: .*{words}", None, model=model)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No way to the hub; the folder in which what was fetched before lies."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_offline_and_without_a_file_one_line_says_so(offline):
    with pytest.raises(
        UserError, match=r"^pretext\.model: .* is not on this machine .*; go online, or .*weights=FILE$"
    ):
        imagenet.content(imagenet.Config())


def test_weights_that_an_earlier_call_fetched_serve_offline(offline, saved):
    model = f"{MODEL}.augreg_in21k_ft_in1k"
    fetched = offline / f"models--timm--{model}"
    (fetched / "refs").mkdir(parents=True)
    (fetched / "refs" / "main").write_text("0" * 40)
    (fetched / "snapshots" / ("0" * 40)).mkdir(parents=True)
    file = saved(random_vit(depth=12, embed_dim=192, num_heads=3))
    file.rename(fetched / "snapshots" / ("0" * 40) / "model.safetensors")
    _, report = brought(None, width=192, depth=12, heads=3, model=model)
    assert (report["file"], report["model"]) == ("model.safetensors", model)


def test_an_encoder_that_is_no_vit_is_refused():
    with pytest.raises(UserError, match="^encoder: imagenet's weights are a vision transformer's; use vit"):
        imagenet.weights(imagenet.Config(), torch.nn.Identity(), task_of((64, 64), HALF))  # type: ignore[arg-type]
