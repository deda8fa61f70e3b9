"""Brain MRI phantoms in four channels, skull-stripped, with a tumour of nested parts, as in MSD's Task01.

Coordinates are millimetres from the centre of the brain (x to the right, y to the front, z to the head). A *level* or
*depth* is the distance of a point below a surface, in millimetres. The same draws give the same patient at any
resolution.
"""

import json
from collections.abc import Sequence
from functools import partial, reduce
from pathlib import Path

import numpy as np
from nibabel.affines import from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

from premed.data.phantoms.shapes import (
    between,
    blend,
    bump,
    ellipsoid,
    field_of,
    grid,
    noise,
    soft,
    transform_points,
    tube,
)
from premed.data.phantoms.writers import Mapper, create_folder, save_nifti
from premed.rng import SampleRng, key

CHANNELS = ("FLAIR", "T1w", "t1gd", "T2w")
EDEMA, NON_ENHANCING, ENHANCING = 1, 2, 3
FIELD = (240.0, 240.0, 155.0)  # mm, as all of Task01
TISSUES = {  # brightness in each channel
    "white": (0.42, 0.72, 0.62, 0.34),
    "grey": (0.56, 0.54, 0.49, 0.48),
    "fluid": (0.12, 0.20, 0.16, 1.00),
    "edema": (0.95, 0.50, 0.45, 0.80),
    "solid": (0.78, 0.42, 0.38, 0.70),
    "necrosis": (0.45, 0.28, 0.22, 0.95),
    "enhancing": (0.80, 0.48, 1.05, 0.66),
    "vessel": (0.20, 0.45, 1.00, 0.15),
}


def brain(draw: SampleRng, shape: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws a brain.

    Returns image [X, Y, Z, 4] float32 (channels as CHANNELS; 0 outside the brain), label [X, Y, Z] uint8 and affine
    [4, 4] mm, in RAS order. Label 1 is edema, 2 non-enhancing and 3 enhancing tumour; one patient in eight has no
    label 3. `shape` covers about 240 × 240 × 155 mm; None: voxels of 1 mm.
    """
    if shape is None:
        shape, spacing = tuple(int(mm) for mm in FIELD), np.ones(3)
    else:
        shape = tuple(shape)
        spacing = np.divide(FIELD, shape) * draw.uniform("spacing", 3, 0.96, 1.04)
    room = np.multiply(shape, spacing)
    tilt = Rotation.from_euler("xyz", draw.uniform("tilt", 3, -7, 7), degrees=True).as_matrix()
    size = draw.uniform("size", 3, 0.92, 1.07).reshape(3, 1, 1, 1)
    place = transform_points(grid(shape, spacing), tilt, draw.uniform("shift", 3, -4, 4) + (0, 0, -2)) / size
    place += 2.0 * np.stack([field_of(draw, f"warp {axis}", shape, room, 22) for axis in range(3)])

    centre, radius = _site(draw)
    lean = Rotation.from_rotvec(draw.uniform("tumour axes", 3, -2, 2)).as_matrix()
    across = transform_points(place, lean, centre)
    away = np.sqrt(((across / draw.uniform("tumour shape", 3, 0.75, 1.3).reshape(3, 1, 1, 1)) ** 2).sum(axis=0)) + 1e-3
    push = between(draw, "mass effect", 0.05, 0.3) * radius * bump(away - 0.5 * radius, 0.9 * radius) / away
    hull = _hull(place)
    pushed = place - push * (place - centre.reshape(3, 1, 1, 1)) * soft(hull - 6, 6)
    edge = 0.6 * float(np.cbrt(np.prod(spacing)))
    share, deep = _tissue(draw, pushed, room, edge)
    label, parts = _tumour(draw, away, radius, room, share["fluid"], np.minimum(hull, deep), edge)
    image = _scan(draw, share, parts, hull > 0, spacing)
    return image, label * (hull > 0), from_matvec(np.diag(spacing), -(np.array(shape) - 1) / 2 * spacing)


def _site(draw: SampleRng) -> tuple[np.ndarray, float]:
    """The centre of a tumour, and the radius of its edema, in mm."""
    side = 1 if draw.chance("tumour side", 0.5) else -1
    x, y, z = draw.uniform("tumour place", 3, -1, 1)
    return np.array((side * (33 + 12 * x), 2 + 42 * y, 18 + 20 * z), np.float32), between(draw, "tumour", 17, 36)


def _ball(points: np.ndarray, centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """The level of an ellipsoid, about in mm."""
    return ellipsoid(points, centre, radii) * (min(radii) / 2)


def _hull(points: np.ndarray) -> np.ndarray:
    """The depth of points below the surface of the brain."""
    both = np.stack([abs(points[0]), points[1], points[2]])
    cerebrum = np.minimum(_ball(points, (0, 2, 8), (67, 85, 62)), points[2] + 26)
    temporal = _ball(both, (42, 8, -22), (25, 44, 24))
    return reduce(np.maximum, [cerebrum, temporal, _cerebellum(points), _stem(points)])


def _cerebellum(points: np.ndarray) -> np.ndarray:
    both = np.stack([abs(points[0]), points[1], points[2]])
    return np.maximum(_ball(both, (24, -52, -40), (29, 29, 24)), _ball(points, (0, -50, -38), (16, 22, 22)))


def _stem(points: np.ndarray) -> np.ndarray:
    path = [(0, -16, -8), (0, -14, -26), (0, -20, -46), (0, -24, -60)]
    return tube(points, path, [11, 15, 11, 8])


def _tissue(
    draw: SampleRng, points: np.ndarray, room: np.ndarray, edge: float
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Each voxel's fractions of grey and white matter, fluid and vessel, and its depth in white matter, in mm."""
    shape = points.shape[1:]
    x, y, z = points
    hull, atrophy = _hull(points), between(draw, "atrophy", 0.3, 1.5)
    folds = [field_of(draw, f"folds {i}", shape, room, between(draw, f"gyri {i}", 5.5, 7.5)) for i in range(2)]
    sulcus = np.minimum(9 * abs(folds[0]), 10 * abs(folds[1])) + 0.6 * np.clip(hull - 17, 0, None)
    loop = 1 - (y / 52) ** 2 - ((z - 8) / 26) ** 2  # the corpus callosum and the structures below it bridge the midline
    fissure = abs(x + 1.5 * folds[0]) + np.clip(14 * loop, 0, None) + 30 * soft(-z - 18, 4)
    outside = reduce(np.minimum, [hull, sulcus, fissure])
    depth = outside - 0.8 * atrophy
    ripple = np.sin((z + 0.35 * y + 3 * folds[1]) * 1.5)  # folia
    small = np.minimum(_cerebellum(points), 3.2 + 2.2 * ripple + 0.55 * np.clip(_cerebellum(points) - 9, 0, None))
    depth = np.where(_cerebellum(points) > -1.5, small + 0.5, np.where(_stem(points) > 0, _stem(points) + 2, depth))

    both = np.stack([abs(x), y, z])
    nuclei = [_ball(both, (13, -14, 7), (10, 14, 10)), _ball(both, (27, 4, 3), (7, 17, 12))]
    nuclei = reduce(np.maximum, [*nuclei, _ball(both, (13, 20, 11), (5, 11, 10))])
    cortex = soft(depth, edge) * soft(3.2 - depth, max(edge, 0.8))
    grey = np.maximum(cortex, 0.8 * soft(nuclei, max(edge, 0.8)))
    wide = between(draw, "ventricles", 0.6, 1.4) * (0.8 + 0.25 * atrophy)
    horns = [(8, 34, 9), (10, 14, 19), (13, -14, 21), (22, -36, 13), (20, -62, 5)]
    ventricle = tube(both, horns, np.array([4.5, 6.5, 6.0, 8.5, 2.0]) * wide)
    ventricle = np.maximum(
        ventricle, tube(both, [horns[3], (33, -26, -10), (34, -4, -17)], np.array([5, 2.6, 1.6]) * wide)
    )
    third = np.minimum(1.2 * wide - abs(x), _ball(points, (0, -4, 0), (9, 16, 12)))
    fluid = np.maximum(soft(-depth, edge), soft(reduce(np.maximum, [ventricle, third]), edge))
    lines = abs(field_of(draw, "vessels", shape, room, 6)) + abs(field_of(draw, "vessels 2", shape, room, 6))
    vessel = soft(-depth - 0.2, edge) * soft(0.16 - lines, 0.08)
    grey = grey * (1 - fluid)
    deep = np.minimum(depth - 2.0, -ventricle)
    return {"white": np.clip(1 - grey - fluid, 0, 1), "grey": grey, "fluid": fluid, "vessel": vessel}, deep


def _tumour(
    draw: SampleRng,
    away: np.ndarray,
    radius: float,
    room: np.ndarray,
    fluid: np.ndarray,
    inside: np.ndarray,
    edge: float,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The label map, and the fraction of each voxel that each part of the tumour covers, outermost first."""
    shape = away.shape
    lumps = field_of(draw, "lumps", shape, room, 0.32 * radius)
    fingers = field_of(draw, "fingers", shape, room, 6)
    core = between(draw, "core", 0.4, 0.72) * radius - away + 0.2 * radius * lumps
    halo = radius - away + 0.2 * radius * lumps + 1.5 * fingers
    swollen = np.maximum(np.minimum(halo, 2.5 * inside + 2), core)  # edema spreads along white matter
    swollen = np.minimum(
        swollen, 8 * (0.5 - fluid) + 12 * soft(core - 1, 1)
    )  # but not into fluid, except where the core fills it
    swollen, core = np.minimum(swollen, inside + 6), np.minimum(core, inside + 6)
    rim = between(draw, "rim", 2.5, 7.0) * (1 + 0.45 * field_of(draw, "rim", shape, room, 8))
    ring = np.minimum(core, rim - core)
    if draw.chance("solid", 0.3):
        ring = np.minimum(core, 4 * (field_of(draw, "nodules", shape, room, 6) + between(draw, "uptake", -0.3, 0.8)))
    if draw.chance("no uptake", 0.12):
        ring = np.full_like(core, -9)
    label = np.zeros(shape, np.uint8)
    for number, level in ((EDEMA, swollen), (NON_ENHANCING, core), (ENHANCING, ring)):
        label[level > 0] = number
    dead = np.minimum(core - 3, 4 * (field_of(draw, "necrosis", shape, room, 7) + between(draw, "dead", -0.6, 1.2)))
    levels = {"edema": swollen, "solid": core, "necrosis": dead, "enhancing": ring}
    return label, {name: soft(level, max(edge, 0.7)) for name, level in levels.items()}


def _scan(
    draw: SampleRng, share: dict[str, np.ndarray], parts: dict[str, np.ndarray], inside: np.ndarray, spacing: np.ndarray
) -> np.ndarray:
    """Simulates the scanner, per channel: blur (thick slices), coil bias field, noise, arbitrary intensity scale."""
    shape, room = inside.shape, np.multiply(inside.shape, spacing)
    image = np.zeros((*shape, len(CHANNELS)), np.float32)
    strength = {name: between(draw, f"{name} strength", 0.75, 1.15) for name in parts}
    texture = field_of(draw, "texture", shape, room, 6)
    for number, name in enumerate(CHANNELS):
        own = draw.child(name)
        tone = {tissue: values[number] * between(own, tissue, 0.94, 1.06) for tissue, values in TISSUES.items()}
        normal = reduce(np.add, [tone[tissue] * share[tissue] for tissue in ("white", "grey", "fluid")])
        normal = blend(normal, tone["vessel"], share["vessel"])
        values = normal
        for part, cover in parts.items():
            sick = tone["white"] + (tone[part] - tone["white"]) * strength[part]
            values = blend(values, sick * (1 + 0.05 * texture), cover)
        blur = np.full(3, between(own, "blur", 0.3, 0.7))
        if own.chance("thick slices", 0.4):
            blur[own.integer("slice axis", 3)] = between(own, "slice", 1.0, 2.0)
        values = ndimage.gaussian_filter(values, blur / spacing)
        values *= 1 + between(own, "coil", 0.02, 0.1) * field_of(own, "bias", shape, room, 40)
        values += between(own, "noise", 0.01, 0.03) * noise(own, "grain", shape, 0.4)
        scale = np.exp(between(own, "scale", np.log(150), np.log(2000)))
        image[..., number] = np.where(inside, np.clip(scale * values, 1, None), 0)
    return image


def write_brats(
    folder: Path | str,
    num_cases: int,
    seed: int,
    num_unlabelled: int = 0,
    shape: Sequence[int] | None = None,
    mapper: Mapper = map,
) -> Path:
    """Writes brains in the layout of MSD's Task01: `num_cases` with a label, then `num_unlabelled` test images without.

    The files are in several orientations, as float32 or int16.
    """
    folder = create_folder(folder, "dataset.json", "num_cases", num_cases + num_unlabelled, 1, seed)
    for part in ("imagesTr", "labelsTr", *["imagesTs"] * (num_unlabelled > 0)):
        (folder / part).mkdir(exist_ok=True)
    drawn = mapper(partial(_draw_brain, folder, seed, shape, num_cases), range(num_cases + num_unlabelled))
    entries = [entry for entries in drawn for entry in entries]
    training, test = [each for each in entries if "label" in each], [each["image"] for each in entries[num_cases:]]
    about = {"name": "BRATS", "description": f"Made-up brains of premed, seed {seed}", "reference": "premed"}
    about |= {"licence": "none needed", "release": "1.0", "tensorImageSize": "4D"}
    about |= {"modality": {str(number): name for number, name in enumerate(CHANNELS)}}
    labels = ("background", "edema", "non-enhancing tumor", "enhancing tumour")
    about |= {"labels": {str(number): name for number, name in enumerate(labels)}}
    about |= {"numTraining": len(training), "numTest": len(test), "training": training, "test": test}
    (folder / "dataset.json").write_text(json.dumps(about, indent=1) + "\n")
    return folder


def _draw_brain(folder: Path, seed: int, shape: Sequence[int] | None, num_cases: int, number: int) -> list:
    """Writes one MRI; those after the first `num_cases` have no label. Returns its entry of dataset.json."""
    draw = SampleRng(key(seed, "brain", number))
    image, label, affine = brain(draw, shape)
    name, part = f"BRATS_{number + 1:03d}.nii.gz", "Tr" if number < num_cases else "Ts"
    axes = ("RAS", "RAS", "LPS", "ASR")[draw.integer("orientation", 4)]
    if draw.chance("whole numbers", 0.5):
        image = np.rint(image).astype(np.int16)
    save_nifti(image, affine, axes, folder / f"images{part}" / name)
    if part == "Ts":
        return [{"image": f"./imagesTs/{name}"}]
    save_nifti(label, affine, axes, folder / "labelsTr" / name)
    return [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"}]
