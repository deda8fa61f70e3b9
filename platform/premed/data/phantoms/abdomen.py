"""Abdominal CT phantoms in Hounsfield units with BTCV's 13 organs, each of random position, size, shape and contrast.

`torso.py` draws the body around them and defines the coordinates.
"""

from collections.abc import Sequence
from functools import partial, reduce
from pathlib import Path

import numpy as np
from nibabel.affines import from_matvec

from premed.data.phantoms.shapes import between, field_of, tube
from premed.data.phantoms.torso import CAVITY, FAT, WALL, Body, blob, bowel, dome, ring, scan, trunk
from premed.data.phantoms.writers import Mapper, create_folder, save_nifti
from premed.rng import SampleRng, key

SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, GALLBLADDER, ESOPHAGUS, LIVER, STOMACH, AORTA = range(1, 9)
CAVA, PORTAL, PANCREAS, RIGHT_ADRENAL, LEFT_ADRENAL = range(9, 14)
# BTCV's 30 training case numbers: three of TransUNet's training cases, two of its test cases, and so on
NUMBERS = (
    *(5, 6, 1, 7, 2, 9, 10, 3, 21, 4, 23, 24, 8, 26, 22),
    *(27, 28, 25, 30, 29, 31, 33, 32, 34, 35, 37, 39, 36, 40, 38),
)


def abdomen(draw: SampleRng, shape: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws a CT of the upper abdomen.

    Returns image [X, Y, Z] int16 in Hounsfield units, label [X, Y, Z] uint8 and affine [4, 4] mm, in RAS order. `shape`
    covers a field of view of about 400 × 400 × 280 mm (BTCV: 512 × 512 × 85 to 198 voxels); None: about 128 × 128 × 70.
    """
    shape = tuple(shape or (128, 128, 60 + draw.integer("slices", 24)))
    build = np.array([between(draw, "width", 0.88, 1.12), between(draw, "depth", 0.86, 1.14), 1.0])
    build *= between(draw, "stature", 0.93, 1.07)
    flesh = between(draw, "fat", 10, 34)  # mm of subcutaneous fat
    field = np.array([2 * (max(WALL) + flesh) * build[0] * between(draw, "field", 1.04, 1.16)] * 2 + [0.0])
    low, high = between(draw, "lowest", -165, -72), between(draw, "highest", 118, 178)  # standard mm
    field[2] = (high - low) * build[2]
    spacing = field / shape
    middle = np.array([*draw.uniform("middle", 2, -8, 8), (low + high) / 2 * build[2]])
    axes = [
        ((np.arange(n) - (n - 1) / 2) * step + m) / s
        for n, step, m, s in zip(shape, spacing, middle, build, strict=True)
    ]
    warp = np.stack([6.0 * field_of(draw, f"warp {axis}", shape, field, 30) for axis in range(3)])
    image, label = np.full(shape, -1000, np.float32), np.zeros(shape, np.uint8)
    contrast = between(draw, "contrast", 0.55, 1.0) if draw.chance("enhanced", 0.85) else 0.05
    edge = 0.6 * float(np.cbrt(np.prod(spacing)))
    patient = Body(draw, axes, warp, image, label, edge, contrast)
    trunk(patient, flesh, field)
    bowel(patient, field)
    for part in (_liver, _stomach, _spleen, _kidneys, _vessels, _pancreas, _small_organs):
        part(patient)
    origin = middle - (np.array(shape) - 1) / 2 * spacing
    return scan(patient, spacing), patient.label, from_matvec(np.diag(spacing), origin)


def _liver(patient: Body) -> None:
    draw = patient.draw
    centre, size = patient.place("liver", (68, 2, 50), 10), between(draw, "liver", 0.78, 1.04)
    left = patient.place("left lobe", (-2, 44, 70), 12)
    reach = between(draw, "left lobe", 55, 85)
    tip = between(draw, "liver tip", 70, 90)

    def level(points: np.ndarray) -> np.ndarray:
        lobe = blob(points, centre, np.array((72, 82, tip)) * size, 2.5)
        both = np.maximum(lobe, blob(points, left, (reach, 38, 34)))
        hilum = np.sqrt(
            (((points - np.reshape((22, 2, 10), (3, 1, 1, 1))) / np.reshape((1, 1, 1.1), (3, 1, 1, 1))) ** 2).sum(
                axis=0
            )
        )
        return reduce(np.minimum, [both, hilum - 40, dome(points) - 3, ring(points, CAVITY) + 1])

    value = patient.enhanced("liver", 54, 52)
    patient.organ(LIVER, value, level)
    branches = [((28, 6, 92), (60, -20, 60), (92, -40, 20)), ((28, 6, 92), (54, 40, 60)), ((26, 10, 92), (2, 44, 70))]
    branches += [
        ((46, 12, 52), (76, 20, 40), (98, 10, 10)),
        ((46, 12, 52), (64, -24, 28)),
        ((46, 12, 52), (14, 42, 64)),
    ]
    for number, branch in enumerate(branches):  # hepatic veins from the cava, portal branches from the hilum
        path = [np.array(node) + draw.uniform(f"branch {number} {i}", 3, -7, 7) for i, node in enumerate(branch)]
        inside = value + 45 * patient.contrast - 12 * (1 - patient.contrast)
        radii = [3.6, 2.6, 1.4][: len(path)]
        patient.organ(
            LIVER, inside, lambda points, path=path, radii=radii: np.minimum(tube(points, path, radii), level(points))
        )


def _stomach(patient: Body) -> None:
    draw = patient.draw
    fill = between(draw, "stomach", 0.65, 1.15)
    nodes = [(-52, -2, 96), (-68, 16, 72), (-66, 36, 40), (-40, 54, 16), (2, 46, 10), (24, 34, 18)]
    path = [np.array(node) + draw.uniform(f"stomach {i}", 3, -10, 10) for i, node in enumerate(nodes)]
    radii = np.array([26, 33, 28, 22, 16, 11]) * fill
    surface = float(path[2][1] + between(draw, "meal", -8, 26))  # the patient is supine: gas is anterior

    def level(points: np.ndarray) -> np.ndarray:
        return reduce(np.minimum, [tube(points, path, radii), dome(points) - 2, ring(points, CAVITY)])

    meal = between(draw, "food", 5, 60) + (between(draw, "oral", 60, 200) if draw.chance("oral contrast", 0.3) else 0)
    patient.organ(STOMACH, patient.enhanced("stomach", 38, 45), level)
    patient.organ(STOMACH, meal, lambda points: level(points) - 4.5)
    patient.organ(STOMACH, -930.0, lambda points: np.minimum(level(points) - 4.5, points[1] - surface))


def _spleen(patient: Body) -> None:
    draw = patient.draw
    centre, size = patient.place("spleen", (-98, -22, 58), 12), between(draw, "spleen", 0.7, 1.25)
    hilum = centre + (34, 22, -4)

    def level(points: np.ndarray) -> np.ndarray:
        x, y, z = points
        lean = np.stack([x - 0.25 * (z - centre[2]) + 0.35 * (y - centre[1]), y, z + 0.4 * (y - centre[1])])
        body = blob(lean, centre, np.array((27, 44, 50)) * size, 2.2)
        hollow = np.sqrt(((points - hilum.reshape(3, 1, 1, 1)) ** 2).sum(axis=0)) - 26
        return reduce(np.minimum, [body, hollow, dome(points) - 3, ring(points, CAVITY)])

    patient.organ(SPLEEN, patient.enhanced("spleen", 48, 68), level)


def _kidneys(patient: Body) -> None:
    draw = patient.draw
    cortex = patient.enhanced("kidney", 32, 150)
    medulla = cortex - 45 * patient.contrast
    for label, name, side, height in ((RIGHT_KIDNEY, "right", 1, -8.0), (LEFT_KIDNEY, "left", -1, 6.0)):
        centre = patient.place(f"{name} kidney", (side * 61, -34, height), 11)
        radii = np.array((28, 25, 54)) * between(draw, f"{name} kidney", 0.8, 1.16)

        def level(points: np.ndarray, centre=centre, radii=radii, side=side) -> np.ndarray:
            x, y, z = points - centre.reshape(3, 1, 1, 1)
            tilted = np.stack(
                [x + side * 0.22 * z, y - 0.2 * z + side * 0.4 * x, z]
            )  # the upper pole is medial and posterior
            bean = blob(tilted, (0, 0, 0), radii, 2.3)
            return np.minimum(
                bean, np.sqrt((tilted[0] + side * 32) ** 2 + (tilted[1] - 9) ** 2 + (tilted[2] / 1.6) ** 2) - 17
            )

        def sinus(points: np.ndarray, level=level, centre=centre, side=side) -> np.ndarray:
            inside = blob(points - centre.reshape(3, 1, 1, 1), (-side * 10, 4, 0), (15, 8, 24))
            return np.minimum(inside, level(points) - 5)

        patient.organ(label, cortex, level)
        patient.organ(label, medulla, lambda points, level=level: level(points) - 5.5)
        patient.organ(0, FAT + 30, sinus)


def _vessels(patient: Body) -> None:
    draw = patient.draw
    bend = between(draw, "aorta bend", -6, 6)
    aorta = [(-11, -14, 200), (-12, -12, 90), (-12 + bend, -7, 20), (-9 + bend, -5, -60), (-3, -6, -92)]
    wide = between(draw, "aorta", 9, 13)
    patient.organ(
        AORTA, patient.enhanced("aorta", 42, 110), lambda points: tube(points, aorta, [wide] * 4 + [wide - 1])
    )
    cava = [(24, 14, 125), (27, 8, 95), (25, 2, 50), (20, -3, 0), (17, -6, -60), (13, -8, -100)]
    flat = between(draw, "cava", 0.65, 1.0)

    def vein(points: np.ndarray) -> np.ndarray:
        squeezed = np.stack([points[0], points[1] / flat, points[2]])
        return tube(squeezed, [(x, y / flat, z) for x, y, z in cava], [13, 13, 12, 11, 10, 9])

    patient.organ(CAVA, patient.enhanced("cava", 40, 78), vein)


def _pancreas(patient: Body) -> None:
    """Pancreas, splenic vein along its posterior surface, and portal vein up to the liver."""
    draw = patient.draw
    nodes = [(31, 18, -14), (32, 20, 4), (10, 27, 18), (-24, 22, 30), (-58, 2, 42), (-76, -10, 50)]
    path = [np.array(node) + draw.uniform(f"pancreas {i}", 3, -6, 6) for i, node in enumerate(nodes)]
    radii = np.array([9, 13.5, 9.5, 9, 8.5, 7]) * between(draw, "pancreas", 0.8, 1.15)
    lobes = between(draw, "lobes", 0.8, 2.0)

    def level(points: np.ndarray) -> np.ndarray:
        ripple = np.sin(points[0] / 2.9) * np.sin(points[1] / 3.3 + 1) * np.sin(points[2] / 3.7 + 2)
        return tube(points, path, radii) + lobes * ripple

    patient.organ(PANCREAS, patient.enhanced("pancreas", 40, 52), level)
    behind = [path[5] + (-12, 2, 4), path[4] + (4, -9, 2), path[3] + (2, -10, 0), path[2] + (2, -12, 0)]
    splenic = [4.5, 4.8, 5.4, 6.5]
    portal = [behind[3], np.array((30, 12, 42)), np.array((48, 12, 60))]
    thick = between(draw, "portal", 6.0, 7.5)

    def veins(points: np.ndarray) -> np.ndarray:
        return np.maximum(tube(points, behind, splenic), tube(points, portal, [thick, thick, thick - 2]))

    patient.organ(PORTAL, patient.enhanced("portal", 42, 112), veins)


def _small_organs(patient: Body) -> None:
    """Gallbladder, oesophagus, adrenal glands."""
    draw = patient.draw
    neck = patient.place("gallbladder", (44, 26, 22), 9)
    length, wide = between(draw, "gallbladder length", 22, 40), between(draw, "gallbladder", 9, 17)
    sack = [neck, neck + np.array((6, 0.6 * length, -0.5 * length)), neck + np.array((8, length, -0.9 * length))]
    patient.organ(
        GALLBLADDER, between(draw, "bile", 2, 18), lambda points: tube(points, sack, [0.5 * wide, wide, wide])
    )
    gullet = [(-6, -4, 200), (-10, 2, 118), (-26, 4, 100), (-42, 4, 94)]
    width = between(draw, "esophagus", 7.0, 9.5)
    pipe = patient.enhanced("esophagus", 34, 28)
    patient.organ(ESOPHAGUS, pipe, lambda points: tube(points, gullet, [width, width, width, width + 1]))
    if draw.chance("swallowed air", 0.4):
        patient.organ(ESOPHAGUS, -600.0, lambda points: tube(points, gullet, [width - 5] * 4))
    for label, name, side, centre in (
        (RIGHT_ADRENAL, "right", 1, (27, -16, 56)),
        (LEFT_ADRENAL, "left", -1, (-31, -9, 46)),
    ):
        middle = patient.place(f"{name} adrenal", centre, 5)
        thick = between(draw, f"{name} adrenal", 3.2, 4.6)
        limbs = [(9 * side, -15, -10), (-2 * side, -17, -8), (0, 8, 13)]  # lateral, medial, anterior
        ends = [middle + np.array(limb) for limb in limbs]

        def gland(points: np.ndarray, middle=middle, ends=ends, thick=thick) -> np.ndarray:
            tall = points.copy()
            tall[2] = middle[2] + (points[2] - middle[2]) * 0.6  # sheets rather than rods
            return reduce(np.maximum, [tube(tall, [middle, end], [thick, 0.7 * thick]) for end in ends])

        patient.organ(label, patient.enhanced(f"{name} adrenal", 30, 45), gland)


def write_btcv(
    folder: Path | str,
    num_cases: int,
    seed: int,
    num_unlabelled: int = 0,
    shape: Sequence[int] | None = None,
    mapper: Mapper = map,
) -> Path:
    """Writes CTs in BTCV's layout as downloaded: `Training/img` and `Training/label`, and `Testing/img` without labels.

    The first 30 cases have BTCV's own numbers, ordered so that a few cover all parts of TransUNet's split; further
    cases are 111, 112, …. The files are in several orientations.
    """
    folder = create_folder(folder, "Training", "num_cases", num_cases + num_unlabelled, 1, seed)
    for part in ("Training/img", "Training/label", *["Testing/img"] * (num_unlabelled > 0)):
        (folder / part).mkdir(parents=True, exist_ok=True)
    list(mapper(partial(_draw_abdomen, folder, seed, shape, num_cases), range(num_cases + num_unlabelled)))
    return folder


def _draw_abdomen(folder: Path, seed: int, shape: Sequence[int] | None, num_cases: int, number: int) -> list:
    """Writes one CT; those after the first `num_cases` have no label."""
    draw = SampleRng(key(seed, "abdomen", number))
    image, label, affine = abdomen(draw, shape)
    axes = ("LAS", "LAS", "LPS", "RAS", "LPI")[draw.integer("orientation", 5)]
    labelled = number < num_cases
    name = (*NUMBERS, *range(111, 111 + num_cases))[number] if labelled else 61 + number - num_cases
    part = folder / ("Training" if labelled else "Testing")
    for kind, voxels in (("img", image), ("label", label))[: 2 if labelled else 1]:
        save_nifti(voxels, affine, axes, part / kind / f"{kind}{name:04d}.nii.gz")
    return []
