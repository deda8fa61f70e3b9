"""Checkpoints as the projects publish them, of small timm networks with random weights.

The names are those of the public repositories, written out here from their code: the inverse of what is tested.
"""

import re
from argparse import Namespace

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from premed.models.public_encoders import PUBLIC_ENCODERS

NARROW = {"embed_dim": 24, "depth": 2, "num_heads": 2}
SHALLOW = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
CLASSES = 5


def arguments(name: str) -> dict:
    """`encoder.args` of a small version."""
    return SHALLOW if "convnext" in name else NARROW


def side(name: str) -> int:
    """A picture of 4 × 4 patches (ConvNeXt: 2 × 2)."""
    return 56 if "patch14" in PUBLIC_ENCODERS[name].timm and not name.startswith("eva-x") else 64


def random_network(name: str, classes: int = CLASSES, size: int | None = None, **more) -> nn.Module:
    """A public encoder's network as timm makes it, small, in evaluation; every weight of it random."""
    entry = PUBLIC_ENCODERS[name]
    sized = {} if "convnext" in name else {"img_size": size or side(name)}
    torch.manual_seed(0)
    network = timm.create_model(entry.timm, num_classes=classes, **sized, **entry.args, **arguments(name), **more)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def rename(state: dict[str, Tensor], *rules: tuple[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        for old, new in rules:
            name = re.sub(old, new, name)
        renamed[name] = value
    return renamed


def without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("head.")}


def dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """facebookresearch/dinov2: positions have a row for the class token; registers are `register_tokens`."""
    state = without_head(state) | {"mask_token": torch.randn(1, 24)}
    if "reg_token" in state:
        row = torch.randn(1, 1, 24)
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([row, state["pos_embed"]], dim=1)
        state["cls_token"] = state["cls_token"] - row
    return state


def dinov3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """facebookresearch/dinov3: one bias of queries, keys (masked) and values, buffers of the rotary positions."""
    state = rename(without_head(state), ("reg_token", "storage_tokens"), (r"gamma_(\d)", r"ls\1.gamma"))
    for i in range(2):
        query, value = (state.pop(f"blocks.{i}.attn.{part}_bias") for part in "qv")
        state[f"blocks.{i}.attn.qkv.bias"] = torch.cat([query, torch.randn_like(query), value])
        mask = torch.ones(72)
        mask[24:48] = 0
        state[f"blocks.{i}.attn.qkv.bias_mask"] = mask
    return state | {"mask_token": torch.randn(1, 24), "rope_embed.periods": torch.randn(3)}


def hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """microsoft/rad-dino, as transformers' Dinov2Model has it."""
    theirs = {"embeddings.mask_token": torch.randn(1, 24)}
    for name, value in without_head(state).items():
        if ".attn.qkv." in name:
            start, _, kind = name.replace("blocks.", "encoder.layer.").partition("attn.qkv")
            for part, chunk in zip(("query", "key", "value"), value.chunk(3), strict=True):
                theirs[f"{start}attention.attention.{part}{kind}"] = chunk.contiguous()
        else:
            theirs[name] = value
    return rename(
        theirs,
        (r"^cls_token", "embeddings.cls_token"),
        (r"^pos_embed", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        (r"^norm\.", "layernorm."),
        (r"^blocks\.", "encoder.layer."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.ls(\d)\.gamma", r".layer_scale\1.lambda1"),
    )


def eva_x(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """hustvl/EVA-X: EVA-02's names, the last norm by its name in pre-training, and what pre-training alone needs."""
    state = rename(
        without_head(state),
        (r"mlp\.fc1_g", "mlp.w1"),
        (r"mlp\.fc1_x", "mlp.w2"),
        (r"mlp\.fc1", "mlp.w12"),
        (r"mlp\.fc2", "mlp.w3"),
        (r"mlp\.norm", "mlp.ffn_ln"),
        (r"([qv])_proj\.bias", r"\1_bias"),
        (r"^fc_norm", "norm"),
    )
    extra = ("mask_token", "lm_head.weight", "lm_head.bias", "rope.freqs_cos", "blocks.0.attn.rope.freqs_sin")
    return state | {name: torch.randn(1, 24) for name in extra}


def medical_mae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """lambert-x/medical_mae: MAE's encoder and decoder."""
    extra = ("mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight")
    return without_head(state) | {name: torch.randn(1, 1, 12) for name in (*extra, "decoder_pred.bias")}


def convnext(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """facebookresearch/ConvNeXt."""
    return rename(
        state,
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"\.blocks\.", "."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm", "norm"),
        (r"^head\.fc", "head"),
    )


FORMATS = {  # by the beginning of a public encoder's name: names, and what the file holds
    "dinov2": (dinov2, lambda state: state),
    "dinov3": (dinov3, lambda state: state),
    "rad-dino": (hugging_face, None),
    "eva-x": (eva_x, lambda state: {"module": state}),
    "medical-mae": (medical_mae, lambda state: {"model": state, "epoch": 800, "args": Namespace(blr=1.5e-4)}),
    "imagenet-vit": (lambda state: state, None),
    "imagenet-convnext": (convnext, lambda state: {"model": state}),
}


def publish(name: str, network: nn.Module, folder, change=lambda state: state):
    """Writes a network as its project does (safetensors, or a torch checkpoint): the file. change: of its tensors."""
    theirs, wrapped = next(how for start, how in FORMATS.items() if name.startswith(start))
    state = change(theirs({key: value.detach().clone() for key, value in network.state_dict().items()}))
    file = folder / (f"{name}.safetensors" if wrapped is None else f"{name}.pth")
    if wrapped is None:
        save_file({key: value.contiguous() for key, value in state.items()}, file)
    else:
        torch.save(wrapped(state), file)
    return file
