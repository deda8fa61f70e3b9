"""Renders a card as text: how to prepare an image for the network, step by step, and what the output means."""

from collections.abc import Sequence
from typing import Any

from premed.config.image_processing import Preprocessing

MEANS = {
    "classes": "one logit per class: {how}",
    "labels": "one logit map per label, [batch, classes, *roi]: the voxel's label is the class with the highest",
    "regions": "one logit map per region, [batch, regions, *roi]: a voxel is in a region where its logit is above 0",
    None: "see the task",
}


def preparation_steps(card: dict[str, Any]) -> list[str]:
    """Returns the steps from a file to the network's input and from its output to a prediction, as text."""
    preprocessing, roi = Preprocessing.model_validate(card["preprocessing"]), " × ".join(map(str, card["roi"]))
    steps = picture_steps(preprocessing) if preprocessing.dims == 2 else volume_steps(preprocessing)
    if preprocessing.window:
        steps.append(f"clip to {preprocessing.window[0]:g} … {preprocessing.window[1]:g}")
    if preprocessing.percentiles:
        of = "non-zero voxels" if preprocessing.normalise == "zscore_nonzero" else "values"
        steps.append(
            "clip each channel to the percentiles {:g} and {:g} of its {}".format(*preprocessing.percentiles, of)
        )
    steps.append(
        {
            "grey": f"divide by 255, subtract {preprocessing.mean:g}, divide by {preprocessing.std:g}",
            "window": "scale that window to 0 … 1",
            "zscore": "subtract each channel's mean, divide by its standard deviation (population)",
            "zscore_nonzero": "of each channel's non-zero voxels, subtract the mean and divide by the standard "
            "deviation (population); 0 stays 0",
        }[preprocessing.normalise]
    )
    settings = card["settings"]
    if "overlap" in settings:
        steps.append(
            f"slide a window of {roi} over the image, overlapping by {settings['overlap']:g}, and average the logits "
            "evenly; an image smaller than that is padded equally on both sides with its own air (the lowest value of "
            "the clipped channel; 0 for zscore_nonzero)"
        )
        steps.append("resample the logits to the file's grid, linearly, and predict there; background outside the crop")
    else:
        steps.append(
            f"cut {roi} out of the middle; for an image that contains several such views side by side, take the mean "
            "of their probabilities (8 at most, from the middle out)"
        )
    return steps


def picture_steps(preprocessing: Preprocessing) -> list[str]:
    kind = (
        "8-bit grey"
        if preprocessing.channels == 1
        else "8-bit colours (RGB)"
        if preprocessing.channels == 3
        else "8-bit channels"
    )
    steps = [
        f"read {kind} as [channels, height, width]; DICOM with its display window"
        if preprocessing.as_displayed
        else "read as [channels, height, width]; DICOM in its own units"
    ]
    if preprocessing.equalize:
        steps.append("equalise the histogram of each channel (Pillow's ImageOps.equalize)")
    if preprocessing.size:
        steps.append(
            "resize to {} × {} (height × width), bilinear with antialiasing, as Pillow does".format(*preprocessing.size)
        )
    return steps


def volume_steps(preprocessing: Preprocessing) -> list[str]:
    channel_axis = (
        f"; the {preprocessing.channels} channels are the last axis of one file" if preprocessing.channels > 1 else ""
    )
    steps = [f"read as [channels, x, y, z]{channel_axis}"]
    steps.append(f"flip and permute the axes to {preprocessing.orientation}")
    if preprocessing.spacing:
        steps.append(
            "resample to {:g} × {:g} × {:g} mm, linearly; the first voxel stays (a sheared grid becomes the box around "
            "it, in which its border is repeated)".format(*preprocessing.spacing)
        )
    if preprocessing.crop_foreground:
        low = preprocessing.window[0] if preprocessing.window else 0
        steps.append(f"crop to the bounding box of all voxels above {low:g}")
    return steps


def output_meaning(card: dict[str, Any]) -> str:
    how = "softmax over the classes" if card["settings"].get("exclusive") else "a sigmoid each"
    return MEANS[card["answer"]].format(how=how)


def render(card: dict[str, Any]) -> str:
    """Returns a README of the card, in Markdown."""
    lines = [f"# {card['task']}: {card['kind']} by premed {card['premed']}", ""]
    lines += [f"Run {card['run_id']}, stage {card['digest'][:16]}; format {card['format']}.", ""]
    lines += [
        "## Input",
        "",
        f"float32 [batch, {card['channels']}, {', '.join(map(str, card['roi']))}], prepared as follows:",
        "",
    ]
    lines += [f"{number}. {step}" for number, step in enumerate(card["steps"], start=1)]
    lines += [
        "",
        "## Output",
        "",
        card["meaning"] if card["head"] else "the encoder's features: no head was trained",
        "",
    ]
    named = card["classes"] if card["head"] else ()
    lines += [f"- {number}: {name}{region_labels(card, name)}" for number, name in enumerate(named)]
    if model := card.get("model"):
        lines += ["", "## Score", "", *filter(None, [model["words"], model["warning"]])]
    lines += weights_origin(card.get("weights", ()))
    if card.get("timm"):
        lines += ["", "## In timm", "", "```python", card["timm"]["call"]]
        lines += ['encoder.load_state_dict(safetensors.torch.load_file("encoder.safetensors"), strict=True)', "```"]
    if check := card.get("check"):
        lines += [
            "",
            "## Checked",
            "",
            f"On {check['views']} views of {check['on']}, the largest difference of a logit",
        ]
        lines += [
            f"from torch's is {check['largest_difference']:.2g} (the largest logit is {check['largest_logit']:.3g})."
        ]
    for remark in card.get("remarks", ()):
        lines += ["", remark]
    return "\n".join(lines) + "\n"


def weights_origin(weights: Sequence[dict[str, Any]]) -> list[str]:
    """Returns lines on where the encoder's weights come from, oldest first; none if it started from random ones."""
    lines = ["", "## Weights", ""] if weights else []
    for number, each in enumerate(weights, start=1):
        if each["kind"] != "import":
            doing = each.get("strategy", each["kind"])
            lines.append(f"{number}. {doing} on {each['task']}, stage {each['digest'][:16]}")
            continue
        lines.append(f"{number}. {each['model']}: {each['file']}, SHA-256 {each['sha256']}")
        if "normalise" in each.get("trained_on", {}):  # an encoder of volumes
            how = ", ".join(f"{name} {value}" for name, value in each["trained_on"].items())
            lines.append(f"   From {each['source']}; licence: {each['licence']}.")
            lines.append(f"   Trained on {each['data']}, prepared with {how}.")
        elif "licence" in each:
            mean, std = (", ".join(f"{x:g}" for x in each["trained_on"][name]) for name in ("mean", "std"))
            pixels = f"{each['trained_on']['size']} pixels in [0, 1], less {mean}, divided by {std}"
            lines.append(f"   From {each['source']}; licence: {each['licence']}.")
            lines.append(f"   Trained on {each['data']}, as pictures of about {pixels}:")
            lines.append("   the stem here has that in it, and takes images as prepared above.")
    return lines


def region_labels(card: dict[str, Any], name: str) -> str:
    """Returns the labels that a region unites, in parentheses; empty for classes."""
    if card["answer"] != "regions":
        return ""
    return f" (labels {', '.join(map(str, card['regions'][name]))})"
