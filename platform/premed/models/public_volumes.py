"""Public encoders of volumes, by short names: one entry each, with its licence and how its images were prepared.

`encoder` is what a YAML says to build an entry's network, and `pretext: {name: pretrained, model: NAME, weights: FILE}`
takes its weights. timm has none of these networks. What was read where, and how files are read:
docs/public-encoders.md.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from premed.config.image_processing import Preprocessing

CT_ABDOMEN = (-175.0, 250.0)  # HU


class Preparation(NamedTuple):
    """How the images were prepared that an encoder was trained on, by the names of `Preprocessing`. One channel."""

    normalise: str
    spacing: tuple[float, float, float] | None
    """mm. None: that of the files."""
    window: tuple[float, float] | None
    """What was clipped; to [0, 1] with `normalise: window`."""
    roi: tuple[int, int, int]
    """Voxels of the crops. Another roi needs no change of the weights."""

    def differences(self, task: Preprocessing) -> Iterator[tuple[str, str, str]]:
        """The fields by which a task prepares images otherwise: name, its value, and the one here, as in a YAML."""
        own = {**self._asdict(), "percentiles": None}
        for field in ("spacing", "normalise", "window", "percentiles"):
            if own[field] != getattr(task, field):
                yield field, in_yaml(getattr(task, field)), in_yaml(own[field])


def in_yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(f'{each:g}' for each in value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


class VolumeEncoder(NamedTuple):
    """An entry."""

    encoder: Mapping[str, Any]
    """The network, as the section `encoder` of a YAML."""
    names: Literal["nnssl", "nnssl_primus", "swinunetr"]
    """How its files name tensors (`models/volume_names.py`)."""
    source: str
    """Where its authors offer it."""
    data: str
    """The images that it was trained on, by its authors: premed cannot see whether a test image is one of them."""
    licence: str
    """Of the weights."""
    preparation: Preparation
    hub: tuple[str, str] | None = None
    """Repository and file on the Hugging Face hub; None: give a file."""
    absent: tuple[str, ...] = ()
    """Beginnings of the names of tensors that its files do not have, and which begin at their initial values."""
    overlapping_tasks: tuple[str, ...] = ()
    """Tasks of premed's whose images were among `data`."""

    def network(self) -> str:
        """`encoder`, as a YAML has it in one line."""
        return f"encoder: {{{', '.join(f'{name}: {in_yaml(value)}' for name, value in self.encoder.items())}}}"


SKIPS = ("encoder1.", "encoder2.", "encoder3.", "encoder4.", "encoder10.")
VOCO_CT = Preparation("window", (1.5, 1.5, 1.5), CT_ABDOMEN, (64, 64, 64))
"""VoCo's of abdomen, head and neck (Self-supervised/utils/data_trans.py); its chests: 1.25 x 1.25 x 5 mm, -1000 to
500 HU."""


def voco(width: int, name: str) -> VolumeEncoder:
    return VolumeEncoder(
        {"name": "swin", "width": width, "v2": True},
        "swinunetr",
        "https://github.com/Luffy03/Large-Scale-Medical",
        "160,000 CT volumes of public sets (PreCT-160K), BTCV's and KiTS' among them",
        "not stated in its repository; see its page on the hub",
        VOCO_CT,
        ("Luffy503/VoCo", f"{name}.pt"),
        overlapping_tasks=("btcv",),
    )


def openmind(encoder: Mapping[str, Any], names: Literal["nnssl", "nnssl_primus"], repository: str) -> VolumeEncoder:
    return VolumeEncoder(
        encoder,
        names,
        f"https://huggingface.co/{repository}",
        "114,000 head MRI of OpenNeuro (OpenMind)",
        "CC BY 4.0",
        Preparation("zscore", (1.0, 1.0, 1.0), None, (160, 160, 160)),
        (repository, "checkpoint_final.pth"),
    )


RESENC_L, PRIMUS_M = {"name": "resenc", "size": "large"}, {"name": "vit", "size": "primus-m", "patch": 8}
PUBLIC_VOLUME_ENCODERS = {
    "openmind-resenc-l": openmind(RESENC_L, "nnssl", "MIC-DKFZ/ResEncL-OpenMind-MAE"),
    "openmind-primus-m": openmind(PRIMUS_M, "nnssl_primus", "MIC-DKFZ/PrimusM-OpenMind-MAE"),
    "swinunetr-ssl": VolumeEncoder(
        {"name": "swin"},
        "swinunetr",
        "https://github.com/Project-MONAI/research-contributions/tree/main/SwinUNETR/Pretrain",
        "5,050 CT volumes of LUNA16, TCIA Covid-19, HNSCC, TCIA CT Colonography and LIDC",
        "not stated with the file; its repository's is Apache 2.0",
        # its training code has spacings of 1.5, 1.5 and 2.0 mm as arguments, and no transform that uses them
        Preparation("window", None, (-1000.0, 1000.0), (96, 96, 96)),
        absent=SKIPS,
    ),
    "voco-b": voco(48, "VoCo_B_SSL_head"),
    "voco-l": voco(96, "VoCo_L_SSL_head"),
    "voco-h": voco(192, "VoCo_H_SSL_head"),
    "suprem-swinunetr": VolumeEncoder(
        {"name": "swin"},
        "swinunetr",
        "https://github.com/MrGiovanni/SuPreM",
        "2,100 CT volumes of abdomens with labels (AbdomenAtlas 1.1), which hold public sets",
        "CC BY-NC-ND 4.0 (MIT in earlier versions of its repository)",
        Preparation("window", (1.5, 1.5, 1.5), CT_ABDOMEN, (96, 96, 96)),
        ("MrGiovanni/SuPreM", "supervised_suprem_swinunetr_2100.pth"),
        overlapping_tasks=("btcv",),
    ),
}


def volume_provenance(model: str) -> dict[str, Any]:
    """What a card says of weights of that model."""
    entry = PUBLIC_VOLUME_ENCODERS[model]
    known = {name: value for name, value in entry.preparation._asdict().items() if value is not None}
    trained_on = {name: in_yaml(value) for name, value in known.items()}
    return {"licence": entry.licence, "source": entry.source, "data": entry.data, "trained_on": trained_on}
