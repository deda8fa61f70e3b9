"""Names of tensors in the checkpoints of public encoders, as timm (or its own converter of the model) knows them.

Values stay as they are; queries, keys and values that a file keeps apart become one matrix, as the networks here have
them. What timm converts itself is left to it: DINOv2's and DINOv3's own names, EVA's, registers. Encoders of volumes:
`models/volume_names.py`.
"""

import re

import torch
from torch import Tensor

from premed.errors import UserError

DROPPED = ("head.", "head_dist.", "fc.", "pre_logits.", "mask_token", "decoder", "lm_head.", "dino_head.", "ibot_head.")
"""Beginnings of the names of tensors that belong to no encoder."""
HUGGING_FACE = (  # of transformers' Dinov2Model, Dinov2WithRegistersModel and DINOv3ViTModel, in this order
    (r"^(dinov2|dinov2_with_registers|dinov3|model)\.", ""),
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^(encoder\.)?layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.|\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
TRAINING = ((r"^backbone\.", ""), (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."))
"""Of checkpoints of DINOv2's own training: the teacher's prefix, and blocks in chunks."""


def without_wrappers(state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The state by the names of the project that published it, without Hugging Face's and training's wrappings.

    where: the file, for a UserError where queries, keys and values cannot be joined.
    """
    rules = HUGGING_FACE if any("patch_embeddings." in name for name in state) else TRAINING
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        for old, new in rules:
            name = re.sub(old, new, name)
        renamed[name] = value
    if "register_tokens" in renamed and "pos_embed" not in renamed:  # DINOv3, which calls them so
        renamed["storage_tokens"] = renamed.pop("register_tokens")
    return joined_queries(renamed, where)


def joined_queries(state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """`attn.query`, `attn.key` and `attn.value` as `attn.qkv`; a bias that keys have not is zeros."""
    joined = {name: value for name, value in state.items() if not re.search(r"\.attn\.(query|key|value)\.", name)}
    for name, query in state.items():
        if ".attn.query." not in name:
            continue
        parts = [state.get(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        if name.endswith(".bias"):
            parts = [torch.zeros_like(query) if part is None else part for part in parts]
        if any(part is None for part in parts):
            raise UserError(f"{where}: has {name} without its keys or values; take a complete file")
        joined[name.replace(".query.", ".qkv.")] = torch.cat([part for part in parts if part is not None])
    return joined


def without_biases_of_keys(state: dict[str, Tensor], own: set[str], where: str) -> dict[str, Tensor]:
    """DINOv3's biases of queries, keys and values, of which timm's network has two or none, which timm's converter
    does not look at: those that the network lacks must be zero or masked. `own`: the network's names.
    """
    kept = dict(state)
    theirs = [name for name in state if name.endswith(".attn.qkv.bias") and name not in own]
    for name in theirs if "storage_tokens" in state else ():
        mask = kept.pop(f"{name}_mask", None)
        bias = kept[name] if mask is None else kept[name] * mask.nan_to_num(0)
        query, key, value = bias.chunk(3)
        separate = name.replace("qkv.bias", "q_bias") in own
        if key.any() or (not separate and (query.any() or value.any())):
            raise UserError(
                f"{where}: {name} is not zero, and the encoder has no such bias; take encoder.model with _qkvb "
                "(dinov3-s, dinov3-b), or another file"
            )
        kept.pop(name)
        if separate:
            kept |= {name.replace("qkv.bias", part): value for part, value in (("q_bias", query), ("v_bias", value))}
    return kept
