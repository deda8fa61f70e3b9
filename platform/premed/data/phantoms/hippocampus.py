"""Phantoms of T1-weighted brain MRI: blocks around one hippocampus, as in MSD's Task04."""

from collections.abc import Sequence

import numpy as np
from nibabel.affines import from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

from premed.data.phantoms.shapes import between, blend, bump, ellipsoid, grid, noise, soft, transform_points
from premed.rng import SampleRng

FLUID, GREY, WHITE = 0.06, 0.42, 0.80  # brightness of the tissues in a T1-weighted MRI


def hippocampus(draw: SampleRng, shape: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws a block of T1-weighted MRI around one hippocampus.

    Returns the image [X, Y, Z] float32 in RAS order on an arbitrary scale, the label [X, Y, Z] uint8 (1 anterior,
    2 posterior) and the affine [4, 4] in millimetres. `shape`: by default about 35 × 50 × 36 voxels.
    """
    shape = tuple(shape or np.array([31, 45, 32]) + [draw.integer(f"size {i}", n) for i, n in enumerate((9, 11, 9))])
    spacing = draw.uniform("spacing", 3, 0.92, 1.08)
    place = grid(shape, spacing)
    side = 1 if draw.chance("side", 0.5) else -1  # left or right: the mirror image
    pitch, roll, yaw = (between(draw, name, -18, 18) for name in ("pitch", "roll", "yaw"))
    rotation = Rotation.from_euler("xyz", [pitch - 32, roll, yaw - 12], degrees=True).as_matrix()
    shift = draw.uniform("shift", 3, -1, 1) * (4.5, 6.5, 5)
    mirrored = place * np.array([side, 1, 1], np.float32).reshape(3, 1, 1, 1)
    warp = np.stack([noise(draw, f"warp {axis}", shape, 5.0) for axis in range(3)])
    points = transform_points(mirrored, rotation, shift) + 1.1 * warp

    depth, along, above, head = _body(draw, points)
    brain = _surroundings(draw, points, depth, along, above)
    inner = GREY + 0.05 * noise(draw, "subfields", shape, 1.6)
    brain = blend(brain, inner, soft(depth, 0.7))
    cut = np.average(place[1], weights=(depth > 0) * bump(along - head, 1.0) + 1e-9)  # a coronal plane, as raters cut
    label = np.where(depth > 0, np.where(place[1] > cut, 1, 2), 0).astype(np.uint8)
    return _scan(draw, brain), label, from_matvec(np.diag(spacing), -np.array(shape) / 2 * spacing)


def _body(draw: SampleRng, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """A curved tube with a thick anterior head and a thin posterior tail, in mm.

    Returns the depth below its surface, the position along it, the height above its axis, and where the head begins.
    """
    out, along, up = points
    half = between(draw, "length", 17, 22)
    t = along / half
    bend, hook = between(draw, "bend", 1.0, 5.0), between(draw, "hook", -1.0, 5.0)
    above = up - bend * (np.clip(-t, 0, 1.4) ** 2) + between(draw, "dip", 0.0, 2.5) * np.clip(t, 0, 1.4) ** 2
    aside = out + hook * (t**2 - 0.3)
    head, tail = between(draw, "head", 6.6, 8.6), between(draw, "tail", 4.2, 5.8)
    start = between(draw, "head start", -0.05, 0.25)
    radius = blend(tail, head, soft(t - start, 0.35)) * np.sqrt(np.clip(1 - abs(t) ** 3, 1e-4, 1))
    across = np.hypot(aside, above / between(draw, "flatness", 0.62, 0.82))
    depth = (radius - across) * 0.85 - 3 * np.clip(abs(t) - 1, 0, None)
    return depth, along, above, start * half


def _surroundings(
    draw: SampleRng, points: np.ndarray, depth: np.ndarray, along: np.ndarray, above: np.ndarray
) -> np.ndarray:
    """Brightness [X, Y, Z] of folded cortex below, white matter above, and the ventricle's horn over the head."""
    shape = depth.shape
    out, _, up = points
    # the folded cortex: alternating sheets of fluid, grey and white matter; above it only white matter
    folds = 2.6 * noise(draw, "folds", shape, between(draw, "fold size", 3.4, 4.6)) + 0.25 * up
    wave = np.sin(folds)
    brain = FLUID + (GREY - FLUID) * soft(wave + 0.88, 0.2) + (WHITE - GREY) * soft(wave - 0.15, 0.35)
    roof = up - between(draw, "roof", 3, 9) - 0.2 * out + 2 * np.cos(folds / 2)
    brain = blend(brain, WHITE - 0.05, soft(roof, 2.5))
    brain = brain + 0.03 * noise(draw, "tracts", shape, (1.2, 2.5, 1.2))

    wall = between(draw, "sheath", 1.5, 3.0)  # white matter beneath and beside, with gaps
    beneath = bump(depth + wall, 0.6 * wall) * soft(1.5 - above, 2) * soft(noise(draw, "gaps", shape, 4) + 0.9, 0.6)
    brain = blend(brain, WHITE, 0.9 * beneath)
    amygdala = ellipsoid(points, draw.uniform("amygdala", 3, -1, 1) * 2 + (-1, 21, 4), (7, 6, 6))  # as grey as the head
    brain = blend(brain, GREY + 0.03 + 0.03 * folds / 2.6, soft(amygdala, 0.4))
    horn = (
        bump(depth + 1.3, between(draw, "horn", 0.4, 1.1))
        * soft(above, 1.5)
        * soft(along - between(draw, "horn end", -9, 4), 3)
    )
    brain = blend(brain, FLUID, np.clip(1.1 * horn, 0, 1))
    cistern = out - between(draw, "midline", 12, 18) - 1.5 * noise(draw, "cistern", shape, 5)
    brain = blend(brain, FLUID + 0.05, soft(cistern, 1.2) * soft(3 - cistern, 1.2))
    return blend(brain, WHITE, soft(cistern - 3.5, 1.2))  # the brain stem beyond it


def _scan(draw: SampleRng, brain: np.ndarray) -> np.ndarray:
    """Simulates the scanner: blur, coil bias field, noise, arbitrary intensity scale."""
    image = ndimage.gaussian_filter(brain, between(draw, "blur", 0.4, 0.6))
    image = image * (1 + between(draw, "coil", 0.02, 0.1) * noise(draw, "bias", image.shape, 14))
    image = image + between(draw, "noise", 0.012, 0.035) * noise(draw, "grain", image.shape, 0.35)
    return (np.clip(image, 0, None) * np.exp(between(draw, "scale", np.log(90), np.log(3000)))).astype(np.float32)
