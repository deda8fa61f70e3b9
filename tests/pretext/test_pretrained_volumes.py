"""Public encoders of volumes: equal to the reference networks from each project's own format."""

import pytest
import torch
from safetensors.torch import save_file
from support.volume_checkpoints import (
    PRIMUS,
    RESENC,
    nnssl,
    nnssl_primus,
    primus,
    residual_encoder,
    ssl_head,
    suprem,
    swin_unetr,
    swinvit,
    voco,
    voco_training,
    write,
)
from support.volume_encoders import PRIMUS_M, ROI, brought, refused, small

from premed.models.encoders import resenc, vit
from premed.models.public_volumes import PUBLIC_VOLUME_ENCODERS

FORMATS = {  # of Swin UNETR: an entry, whether its network is the second version, what writes the file
    "swinunetr-ssl": ("swinunetr-ssl", False, swinvit),
    "SSLHead": ("swinunetr-ssl", False, ssl_head),
    "voco-b": ("voco-b", True, voco),
    "VoCo's training": ("voco-b", True, voco_training),
    "suprem-swinunetr": ("suprem-swinunetr", False, suprem),
}


# Swin UNETR ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("what", FORMATS)
def test_maps_are_monais_from_each_projects_own_file(what, tmp_path):
    model, v2, how = FORMATS[what]
    network = swin_unetr(v2)
    encoder, report = brought(model, write(how(network), tmp_path), small(v2))
    image = torch.randn(1, 1, *ROI)
    features, maps = encoder(image), network.swinViT(image)
    torch.testing.assert_close(features.tokens, maps[4].flatten(2).transpose(1, 2))
    torch.testing.assert_close(features.pyramid[4], maps[3])
    own = encoder.state_dict()
    assert report["loaded"] + len(report["missing"]) == len(own) and report["changed"] == {}
    if PUBLIC_VOLUME_ENCODERS[model].absent:
        assert report["missing"] == sorted(name for name in own if name.startswith("encoder"))
        return
    assert report["missing"] == []
    for seen, theirs in zip(
        features.pyramid,
        (network.encoder1(image), network.encoder2(maps[0]), network.encoder3(maps[1]), network.encoder4(maps[2])),
        strict=False,
    ):
        torch.testing.assert_close(seen, theirs)
    torch.testing.assert_close(features.pyramid[5], network.encoder10(maps[4]))


def test_model_swinvit_as_the_tests_write_it_is_what_monai_itself_loads():
    network, other = swin_unetr(), swin_unetr()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_from(swinvit(network))
    own = network.swinViT.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in other.swinViT.state_dict().items())


def test_what_belongs_to_no_encoder_is_left_out_and_listed(tmp_path):
    _, report = brought("swinunetr-ssl", write(swinvit(swin_unetr()), tmp_path), small())
    extra = ("contrastive_head", "convTrans3d", "norm", "rotation_head")
    assert report["dropped"] == [f"{name}.{kind}" for name in extra for kind in ("bias", "weight")]
    _, report = brought("suprem-swinunetr", write(suprem(swin_unetr()), tmp_path), small())
    left = {name.removeprefix("backbone.").split(".")[0] for name in report["dropped"]}
    heads = {"organ_embedding", "precls_conv", "GAP", "controller", "text_to_vision"}
    assert left == heads | {f"decoder{i}" for i in range(1, 6)} | {"out"}


def test_what_a_format_never_has_begins_at_initial_values_the_same_each_time(tmp_path):
    file = write(swinvit(swin_unetr()), tmp_path)
    first, second = (brought("swinunetr-ssl", file, small())[0].encoder1.state_dict() for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]) and 0.01 < value.std() < 1


def test_without_skips_their_weights_are_left_out(tmp_path):
    encoder, report = brought("voco-b", write(voco(swin_unetr(v2=True)), tmp_path), small(v2=True, skips=False))
    assert report["dropped"] == sorted(name for name in swin_unetr(True).state_dict() if name.startswith("encoder"))
    assert report["loaded"] == len(encoder.state_dict()) and report["missing"] == []
    _, report = brought("swinunetr-ssl", write(swinvit(swin_unetr()), tmp_path), small(skips=False))
    assert report["missing"] == []


@torch.no_grad()
def test_an_image_repeated_in_all_channels_has_the_response_of_the_original(tmp_path):
    network = swin_unetr(v2=True)
    encoder, report = brought("voco-b", write(voco(network), tmp_path), small(v2=True), channels=3)
    image = torch.randn(1, 1, *ROI)
    features = encoder(image.expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(features.pyramid[0], network.encoder1(image), rtol=1e-4, atol=1e-5)
    expected = network.swinViT(image)[4].flatten(2).transpose(1, 2)
    torch.testing.assert_close(features.tokens, expected, rtol=1e-4, atol=1e-5)
    see = ("encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight", "swinViT.patch_embed.proj.weight")
    assert report["changed"] == dict.fromkeys(see, "1 channel to 3")


@torch.no_grad()
def test_weights_that_were_trained_on_the_tasks_number_of_channels_stay_as_they_are(tmp_path):
    network = swin_unetr(channels=4)
    encoder, report = brought("suprem-swinunetr", write(suprem(network), tmp_path), small(), channels=4)
    image = torch.randn(1, 4, *ROI)
    torch.testing.assert_close(encoder(image).pyramid[0], network.encoder1(image))
    assert report["changed"] == {}


# nnssl ---------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 0, 2), (1, 2, 0)])
def test_maps_are_those_of_nnssls_encoder_on_its_own_arrays(transpose, tmp_path):
    """Its readers give z, y, x, and its plan exchanges axes after that; premed's volumes are x, y, z."""
    network = residual_encoder(roi=(16, 24, 32))
    file = write(nnssl(network, transpose=transpose), tmp_path)
    encoder, report = brought("openmind-resenc-l", file, resenc.Config(**RESENC), roi=(16, 24, 32), module=resenc)
    image = torch.randn(2, 1, 16, 24, 32)
    order = [2 + (2, 1, 0)[axis] for axis in transpose]  # of premed's axes, in nnssl's arrays
    theirs = network(image.permute(0, 1, *order)).pyramid
    back = [2 + order.index(axis) for axis in (2, 3, 4)]
    for seen, expected in zip(encoder(image).pyramid, theirs, strict=True):
        torch.testing.assert_close(seen, expected.permute(0, 1, *back), rtol=1e-4, atol=1e-5)
    assert report["loaded"] == len(network.state_dict()) and report["missing"] == []


def test_every_tensor_of_an_nnssl_file_is_accounted_for(tmp_path):
    network = residual_encoder()
    encoder, report = brought(
        "openmind-resenc-l", write(nnssl(network), tmp_path), resenc.Config(**RESENC), module=resenc
    )
    decoder = ("seg_layers.0.weight", "stages.0.convs.0.all_modules.0.weight", "stages.0.convs.0.conv.weight")
    assert report["dropped"] == sorted(f"decoder.{name}" for name in (*decoder, "transpconvs.0.weight"))
    kernels = {name for name, value in encoder.state_dict().items() if value.ndim == 5 and value.shape[2] == 3}
    assert report["changed"] == dict.fromkeys(kernels, "axes exchanged")
    assert report["kept"] == len(network.state_dict()) - len(kernels) and report["licence"] == "CC BY 4.0"
    assert report["trained_on"] == {
        "normalise": "zscore",
        "spacing": "[1,1,1]",
        "roi": "[160,160,160]",
    }


def test_its_plan_says_where_the_encoder_is(tmp_path):
    """As of a strategy that wraps the network: nnssl's plans name it."""
    network = residual_encoder()
    content = nnssl(network, prefix="model.encoder.")
    content["network_weights"] = {f"model.{name}": value for name, value in content["network_weights"].items()}
    _, report = brought("openmind-resenc-l", write(content, tmp_path), resenc.Config(**RESENC), module=resenc)
    assert report["loaded"] == len(network.state_dict())


def test_an_nnssl_file_without_a_plan_or_as_safetensors_is_taken_at_its_usual_names(tmp_path):
    network, config = residual_encoder(), resenc.Config(**RESENC)
    state = nnssl(network)["network_weights"]
    _, report = brought("openmind-resenc-l", write({"network_weights": state}, tmp_path), config, module=resenc)
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "x.safetensors")
    _, other = brought("openmind-resenc-l", tmp_path / "x.safetensors", config, module=resenc)
    assert report["loaded"] == other["loaded"] == len(network.state_dict())


def test_four_channels_share_nnssls_stem(tmp_path):
    file = write(nnssl(residual_encoder()), tmp_path)
    encoder, report = brought("openmind-resenc-l", file, resenc.Config(**RESENC), channels=4, module=resenc)
    assert report["changed"]["stem.convs.0.conv.weight"] == "axes exchanged, 1 channel to 4"
    kernel = encoder.stem.convs[0].conv.weight
    assert torch.equal(kernel[:, 0], kernel[:, 3])


@torch.no_grad()
@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 2, 0)])
@pytest.mark.parametrize("trainer", ["BaseEvaMAETrainer_BS8", "SimMIMEvaTrainer_BS8"])
def test_primus_tokens_are_those_of_nnssls_network_on_its_own_arrays(trainer, transpose, tmp_path):
    network = primus()
    file = write(nnssl_primus(network, trainer, transpose=transpose), tmp_path)
    encoder, report = brought("openmind-primus-m", file, PRIMUS_M, roi=(24, 24, 24), module=vit)
    image = torch.randn(2, 1, 24, 24, 24)
    arrays = [(2, 1, 0)[axis] for axis in transpose]  # of premed's axes, in nnssl's arrays
    order = arrays if trainer.startswith("SimMIM") else [arrays[1], arrays[0], arrays[2]]  # and of its tokens
    theirs = network(image.permute(0, 1, *(2 + axis for axis in order))).tokens
    back = [1 + order.index(axis) for axis in (0, 1, 2)]
    expected = theirs.unflatten(1, (3, 3, 3)).permute(0, *back, 4).flatten(1, 3)
    torch.testing.assert_close(encoder(image).tokens, expected, rtol=1e-3, atol=1e-4)
    assert report["loaded"] == len(network.state_dict()) and report["missing"] == []
    extra = ("decoder.blocks.0.norm1.weight", "decoder.pos_embed", "mask_token", "up_projection.decode.0.0.weight")
    assert report["dropped"] == [*extra]


def test_primus_positions_are_resized_to_the_tasks_grid(tmp_path):
    network = primus()
    network.pos_embed.data = torch.arange(3.0).repeat_interleave(9)[None, :, None].expand(1, 27, 144).clone()
    file = write(nnssl_primus(network), tmp_path)  # along the first axis of its tokens: y
    encoder, report = brought("openmind-primus-m", file, PRIMUS_M, roi=(24, 48, 16), module=vit)
    seen = encoder.pos_embed.detach().unflatten(1, (3, 6, 2))
    torch.testing.assert_close(seen, seen[:, :1, :, :1].expand_as(seen))
    torch.testing.assert_close(seen[0, 0, :, 0, 0], torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.0]))
    assert report["changed"]["pos_embed"] == "axes exchanged, 3x3x3 to 3x6x2"


def test_a_file_of_primus_of_another_width_is_refused(tmp_path):
    content = nnssl_primus(primus())
    for name, value in content["network_weights"].items():
        content["network_weights"][name] = value[:-1] if ".q_proj." in name else value
    file = write(content, tmp_path)
    refused("is not of openmind-primus-m: 4 of", "openmind-primus-m", file, PRIMUS_M, roi=(24, 24, 24), module=vit)


def test_four_channels_share_primus_patches(tmp_path):
    file = write(nnssl_primus(primus()), tmp_path)
    encoder, report = brought("openmind-primus-m", file, PRIMUS_M, channels=4, roi=(24, 24, 24), module=vit)
    assert report["changed"]["patch_embed.proj.weight"] == "axes exchanged, 1 channel to 4"
    kernel = encoder.patch_embed.proj.weight
    assert torch.equal(kernel[:, 0], kernel[:, 3])


@pytest.mark.parametrize("change", [{"rotary": False}, {"position": "sincos"}, {"heads": 4}, {"class_token": True}])
def test_a_vit_that_computes_otherwise_than_primus_is_refused(change, tmp_path):
    file, config = write(nnssl_primus(primus()), tmp_path), vit.Config.model_validate(PRIMUS | change)
    words = r"set encoder: \{name: vit, size: primus-m, patch: 8\}|cls_token is missing"
    refused(words, "openmind-primus-m", file, config, roi=(24, 24, 24), module=vit)


def test_the_published_network_is_size_large():
    """nnssl's `get_res_enc_l`: 6 stages, and 102 million parameters with its decoder."""
    with torch.device("meta"):
        encoder = resenc.build(resenc.Config.model_validate({"size": "large"}), 1, (160, 160, 160))
    assert [scale.channels for scale in encoder.pyramid] == [32, 64, 128, 256, 320, 320]
    assert encoder.counts == (1, 3, 4, 6, 6, 6) and encoder.grid == (5, 5, 5)
