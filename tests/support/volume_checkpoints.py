"""Checkpoints of public encoders of volumes as the projects publish them, small, with random weights.

The names are those of the public repositories, written out here from their code: the inverse of what is tested. Swin
UNETR's networks are MONAI's own; nnssl's are written from premed's residual encoder, whose names and maps are compared
with dynamic-network-architectures' in tests/models/encoders/test_resenc.py.
"""

import re
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from support.public_checkpoints import rename
from torch import Tensor, nn

from premed.models.encoders import resenc, vit
from premed.models.encoders.resenc import ResEnc
from premed.models.encoders.vit import ViT

WIDTH = 12
RESENC: dict[str, Any] = {"widths": (8, 16, 24), "blocks": (1, 2, 1)}
NUM_CLASSES = 3


def randomise(network: nn.Module) -> nn.Module:
    """Every weight random, in evaluation."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


# ---- Swin UNETR


def swin_unetr(v2: bool = False, channels: int = 1) -> SwinUNETR:
    """MONAI's network, small."""
    return randomise(SwinUNETR(channels, NUM_CLASSES, feature_size=WIDTH, use_v2=v2))  # type: ignore[return-value]


def encoder_of(network: nn.Module) -> dict[str, Tensor]:
    names = ("swinViT.", "encoder")
    return {name: value.clone() for name, value in network.state_dict().items() if name.startswith(names)}


def transformer_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in encoder_of(network).items() if name.startswith("swinViT.")}


def swinvit(network: nn.Module) -> dict[str, Any]:
    """model_swinvit.pt, by MONAI's `load_from` and the names that others leave out: no prefix but DDP's, fc1, fc2."""
    state = rename(transformer_of(network), (r"^swinViT\.", ""), (r"\.linear([12])\.", r".fc\1."))
    extra = ("norm", "rotation_head", "contrastive_head", "convTrans3d")
    state |= {f"{name}.{kind}": torch.randn(4) for name in extra for kind in ("weight", "bias")}
    return {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 100}


def ssl_head(network: nn.Module) -> dict[str, Any]:
    """research-contributions' SwinUNETR/Pretrain, of one GPU: `SSLHead`, with its heads and decoder."""
    state = rename(transformer_of(network), (r"^swinViT\.", "swin_vit."))
    extra = ("rotation_head.weight", "contrastive_head.bias", "conv.0.weight", "conv.20.bias")
    return {"global_step": 5, "state_dict": state | {name: torch.randn(4) for name in extra}}


def voco(network: nn.Module) -> dict[str, Any]:
    """VoCo_B_SSL_head.pt: `Swin` of its Self-supervised/models/voco_head.py, without a wrapper."""
    return encoder_of(network)


def voco_training(network: nn.Module) -> dict[str, Any]:
    """A checkpoint of VoCo's training: `VoCoHead` in DDP."""
    state = {f"module.backbone.{name}": value for name, value in encoder_of(network).items()}
    heads = [f"module.{who}.layer{i}.0.weight" for who in ("student", "teacher") for i in (1, 2, 3)]
    return {"global_step": 5, "state_dict": state | {name: torch.randn(4) for name in heads}}


def suprem(network: nn.Module) -> dict[str, Any]:
    """supervised_suprem_swinunetr_2100.pth: `Universal_model` in DDP, its backbone with decoder, and its optimizer."""
    state = {f"module.backbone.{name}": value for name, value in network.state_dict().items()}
    heads = ("organ_embedding", "precls_conv.0.weight", "GAP.3.bias", "controller.weight", "text_to_vision.bias")
    state |= {f"module.{name}": torch.randn(4) for name in heads}
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(2))]).state_dict()
    return {"net": state, "optimizer": optimizer, "scheduler": {"base_lrs": [1e-4], "last_epoch": 5}, "epoch": 5}


# ---- nnssl


def residual_encoder(channels: int = 1, roi: tuple[int, ...] = (16, 16, 16), **settings: Any) -> ResEnc:
    return randomise(resenc.build(resenc.Config(**(RESENC | settings)), channels, roi))  # type: ignore[return-value]


PRIMUS: dict[str, Any] = {"size": "primus-m", "width": 144, "depth": 2, "heads": 2}


def primus(roi: tuple[int, ...] = (24, 24, 24), channels: int = 1) -> ViT:
    return randomise(vit.build(vit.Config.model_validate(PRIMUS), channels, roi))  # type: ignore[return-value]


def nnssl_primus(network: ViT, trainer: str = "BaseEvaMAETrainer_BS8", **plan: Any) -> dict[str, Any]:
    """What is written of an `EvaMAE`, or of SimMIM's `EvaSimMIM`: encoder, decoder, mask token.

    network: on its tokens' order of axes. EvaMAE makes tokens of its arrays' axes 1, 0, 2 (`b (h w d) c` of
    `b c w h d`), so that the kernels of patches, which are in the arrays' order, have the first two exchanged.
    """
    state = {f"eva.{name}": value.clone() for name, value in network.state_dict().items() if name[:5] != "patch"}
    kernel = network.patch_embed.proj.weight.detach()
    state["down_projection.proj.weight"] = kernel if trainer.startswith("SimMIM") else kernel.transpose(2, 3).clone()
    state["down_projection.proj.bias"] = network.patch_embed.proj.bias.detach().clone()
    extra = ("mask_token", "up_projection.decode.0.0.weight", "decoder.blocks.0.norm1.weight", "decoder.pos_embed")
    state |= {name: torch.randn(4) for name in extra}
    about = adaptation_plan("PrimusM", **plan) | {"key_to_encoder": "eva", "key_to_stem": "down_projection"}
    about |= {"keys_to_in_proj": ["down_projection.proj"], "key_to_lpe": "eva.pos_embed"}
    return {"network_weights": state, "trainer_name": trainer, "nnssl_adaptation_plan": about}


def adaptation_plan(kind: str = "ResEncL", transpose: tuple[int, ...] = (0, 1, 2), prefix: str = "encoder.") -> dict:
    """As `AdaptationPlan.serialize` writes it."""
    configuration = {
        "data_identifier": "nnsslPlans_onemmiso",
        "spacing_style": "onemmiso",
        "spacing": [1, 1, 1],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "patch_size": [160, 160, 160],
    }
    return {
        "architecture_plans": {"arch_class_name": kind, "arch_kwargs": None, "arch_kwargs_requiring_import": None},
        "pretrain_plan": {
            "dataset_name": "Dataset745_OpenMind",
            "transpose_forward": list(transpose),
            "configurations": {"onemmiso": configuration},
        },
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": [160, 160, 160],
        "key_to_encoder": f"{prefix}stages",
        "key_to_stem": f"{prefix}stem",
        "keys_to_in_proj": [f"{prefix}stem.convs.0.conv", f"{prefix}stem.convs.0.all_modules.0"],
        "key_to_lpe": None,
    }


def doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """dynamic-network-architectures' `ConvDropoutNormReLU` has its convolution and norm in `all_modules`, too."""
    both = {}
    for name, value in state.items():
        both[name] = value
        both[re.sub(r"\.(conv|norm)\.(\w+)$", lambda m: f".all_modules.{int(m[1] == 'norm')}.{m[2]}", name)] = value
    return both


def nnssl(network: ResEnc, **plan: Any) -> dict[str, Any]:
    """What `AbstractBaseTrainer.save_checkpoint` writes of a `ResidualEncoderUNet`: its decoder holds the encoder, too.

    network: with kernels in the order of nnssl's arrays.
    """
    encoder = doubled({name: value.clone() for name, value in network.state_dict().items()})
    state = {f"{start}{name}": value for start in ("encoder.", "decoder.encoder.") for name, value in encoder.items()}
    decoder = ("stages.0.convs.0.conv.weight", "stages.0.convs.0.all_modules.0.weight", "transpconvs.0.weight")
    state |= {f"decoder.{name}": torch.randn(4) for name in (*decoder, "seg_layers.0.weight")}
    return {
        "network_weights": state,
        "optimizer_state": torch.optim.SGD([nn.Parameter(torch.zeros(2))], 0.1, momentum=0.9).state_dict(),
        "grad_scaler_state": None,
        "logging": {"train_losses": [0.5], "val_losses": [0.4]},
        "_best_ema": 0.4,
        "current_epoch": 1000,
        "init_args": {"configuration_name": "onemmiso", "fold": 0},
        "trainer_name": "BaseMAETrainer_BS8",
        "nnssl_adaptation_plan": adaptation_plan(**plan),
    }


def write(content: Any, folder: Path, name: str = "checkpoint_final.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name
