"""Public encoders, by short names: one entry each, with its licence and with how its images were prepared.

`encoder: {name: timm, model: rad-dino}` builds its network, `pretext: {name: pretrained, model: rad-dino}` takes its
weights. Any name of timm's will do in place of these; then timm says what an entry says here. What was read where, and
how files are read: docs/public-encoders.md. Those of volumes: `models/public_volumes.py`.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

from premed.errors import UserError
from premed.models.public_volumes import PUBLIC_VOLUME_ENCODERS

NOTHING: Mapping[str, Any] = MappingProxyType({})
EVA_X = {"patch_size": 16, "ref_feat_shape": (14, 14)}
"""EVA-X is EVA-02 with patches of 16, on pictures of 224."""

Colours = tuple[float, float, float]


class PublicEncoder(NamedTuple):
    """An entry. None: as timm's configuration of the model says."""

    timm: str
    """timm's name of the network; with a tag (after the dot) where timm offers the weights, too."""
    source: str
    """Where its authors offer it."""
    data: str = "see its page"
    """The images that it was trained on, by its authors: premed cannot see whether a test image is one of them."""
    args: Mapping[str, Any] = NOTHING
    """Arguments of timm's model that differ from its own."""
    licence: str | None = None
    """Of the weights."""
    mean: Colours | None = None
    """Per channel, of the training pixels in [0, 1]."""
    std: Colours | None = None
    size: int | None = None
    """Edge of the pictures that it was trained on last, in pixels."""
    hub: tuple[str, str] | None = None
    """Repository and file on the Hugging Face hub; None: timm's, if it has a tag there, else none."""
    overlapping_tasks: tuple[str, ...] = ()
    """Tasks of premed's whose images were among `data`."""


def grey(value: float) -> Colours:
    """The same for red, green and blue: X-rays are repeated in three channels."""
    return (value, value, value)


def eva_x(size: str) -> PublicEncoder:
    """EVA-X's preparation is its classification/utils/datasets.py; its README says MIT, and its repository has no file
    of it."""
    return PublicEncoder(
        f"eva02_{size}_patch14_224",
        "https://github.com/hustvl/EVA-X",
        "520,000 chest X-rays of public sets, which its repository does not list",
        EVA_X,
        "MIT, by its README",
        grey(0.49185243),
        grey(0.28509309),
        224,
        ("MapleF/eva_x", f"eva_x_{size}_patch16_merged520k_mim.pt"),
        overlapping_tasks=("chestxray14",),
    )


def medical_mae(size: str, data: str) -> PublicEncoder:
    """Medical MAE's preparation is its util/datasets.py, its images are in its PRETRAIN.md."""
    return PublicEncoder(
        f"vit_{size}_patch16_224",
        "https://github.com/lambert-x/medical_mae",
        data,
        NOTHING,
        "none in its repository: ask its authors",
        grey(0.5056),
        grey(0.252),
        224,
        overlapping_tasks=("chestxray14",),
    )


LVD_142M, LVD_1689M = (f"pictures of the web without labels ({name})" for name in ("LVD-142M", "LVD-1689M"))
IMAGENET = "ImageNet-1k with its labels"
DINOV2 = "https://github.com/facebookresearch/dinov2"
DINOV3 = "https://github.com/facebookresearch/dinov3"
TIMM = "https://github.com/huggingface/pytorch-image-models"
PUBLIC_ENCODERS = {
    "dinov2-s": PublicEncoder("vit_small_patch14_dinov2.lvd142m", DINOV2, LVD_142M),
    "dinov2-b": PublicEncoder("vit_base_patch14_dinov2.lvd142m", DINOV2, LVD_142M),
    "dinov2-reg-s": PublicEncoder("vit_small_patch14_reg4_dinov2.lvd142m", DINOV2, LVD_142M),
    "dinov2-reg-b": PublicEncoder("vit_base_patch14_reg4_dinov2.lvd142m", DINOV2, LVD_142M),
    # with biases of queries and values (qkvb): what they are in the file counts, be it zeros; the class token sums up,
    # as DINOv3's own code has it
    "dinov3-s": PublicEncoder("vit_small_patch16_dinov3_qkvb.lvd1689m", DINOV3, LVD_1689M, {"global_pool": "token"}),
    "dinov3-b": PublicEncoder("vit_base_patch16_dinov3_qkvb.lvd1689m", DINOV3, LVD_1689M, {"global_pool": "token"}),
    "rad-dino": PublicEncoder(
        "vit_base_patch14_dinov2",
        "https://huggingface.co/microsoft/rad-dino",
        "chest X-rays of public sets, listed in training_images.csv beside the weights",
        licence="MIT (MSRLA in earlier versions of its page), for research",
        mean=grey(0.5307),
        std=grey(0.2583),
        size=518,
        hub=("microsoft/rad-dino", "model.safetensors"),
        overlapping_tasks=("chestxray14",),
    ),
    "eva-x-ti": eva_x("tiny"),
    "eva-x-s": eva_x("small"),
    "eva-x-b": eva_x("base"),
    "medical-mae-s": medical_mae("small", "CheXpert and ChestX-ray14"),
    "medical-mae-b": medical_mae("base", "CheXpert, ChestX-ray14 and MIMIC-CXR"),
    "imagenet-vit-s": PublicEncoder("vit_small_patch16_224.augreg_in1k", TIMM, IMAGENET),
    "imagenet-vit-b": PublicEncoder("vit_base_patch16_224.augreg_in1k", TIMM, IMAGENET),
    "imagenet-convnext-t": PublicEncoder("convnext_tiny.fb_in1k", TIMM, IMAGENET),
    "imagenet-convnext-b": PublicEncoder("convnext_base.fb_in1k", TIMM, IMAGENET),
}


def named_encoder(model: str, field: str) -> PublicEncoder:
    """The entry of that name, or one for a model of timm's. Raises UserError, which names the `field`, if neither."""
    if model in PUBLIC_ENCODERS:
        return PUBLIC_ENCODERS[model]
    if (volumes := PUBLIC_VOLUME_ENCODERS.get(model)) is not None:
        raise UserError(f"{field}: {model} is for volumes; set {volumes.network()}")
    import timm  # takes seconds, for which a name of the table should not wait
    from timm.models import get_pretrained_cfg

    known = timm.is_model(model)
    if known:
        try:
            get_pretrained_cfg(model)
        except RuntimeError:  # the tag after the dot is unknown
            known = False
    if not known:
        names = (*PUBLIC_ENCODERS, *PUBLIC_VOLUME_ENCODERS, *timm.list_models(), *timm.list_models(pretrained=True))
        close = get_close_matches(model, names, 3, 0.5)
        remedy = f"did you mean {', '.join(close)}?" if close else f"it may be one of {', '.join(PUBLIC_ENCODERS)}"
        raise UserError(f"{field}: neither premed nor timm has {model!r}; {remedy}")
    return PublicEncoder(model, f"https://huggingface.co/timm/{model}")


class Origin(NamedTuple):
    """An entry with what timm says of it filled in."""

    model: str
    licence: str
    mean: Colours
    std: Colours
    size: int
    source: str
    hub: tuple[str, str] | None
    data: str


@cache
def origin(model: str, field: str = "pretext.model") -> Origin:
    """Where a public encoder comes from, and how its images were prepared. UserError: see `named_encoder`."""
    from timm.models import get_pretrained_cfg

    entry = named_encoder(model, field)
    timms = get_pretrained_cfg(entry.timm)
    assert timms is not None, "named_encoder asked for it"
    hub = entry.hub or ((timms.hf_hub_id, "model.safetensors") if timms.hf_hub_id and "." in entry.timm else None)
    return Origin(
        model,
        entry.licence or timms.license or "not stated by timm",
        entry.mean or tuple(timms.mean),  # type: ignore[arg-type]
        entry.std or tuple(timms.std),  # type: ignore[arg-type]
        entry.size or timms.input_size[-1],
        entry.source,
        hub,
        entry.data,
    )


def provenance(model: str, mean_std: tuple[tuple[float, ...], tuple[float, ...]]) -> dict[str, Any]:
    """What a card says of weights of that model. mean_std: of the pixels that they were trained on."""
    about = origin(model)
    trained_on = {"mean": list(mean_std[0]), "std": list(mean_std[1]), "size": about.size}
    return {"licence": about.licence, "source": about.source, "data": about.data, "trained_on": trained_on}
