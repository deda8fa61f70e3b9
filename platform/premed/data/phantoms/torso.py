"""The trunk of CT phantoms: skin, fat, muscles, lungs, bones and bowel around the organs; and the scanner.

Coordinates are millimetres of a standard patient, with 0 in front of the second lumbar vertebra (x to the right, y to
the front, z to the head), scaled to each patient's build. A *level* is the depth of a point below a surface, in
millimetres. The same draws give the same patient at any resolution.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from premed.data.phantoms.shapes import between, blend, bump, ellipsoid, field_of, noise, soft, tube
from premed.rng import SampleRng

WALL, CAVITY = (146, 98), (128, 84)  # half axes of the muscles' outside and inside, in a standard patient
FAT, LUNG = -104.0, -840.0  # Hounsfield units


@dataclass
class Body:
    """A trunk that is being drawn, organ by organ."""

    draw: SampleRng
    axes: list[np.ndarray]  # standard millimetres along each axis
    warp: np.ndarray  # [3, *S] mm: displacement of the tissue
    image: np.ndarray  # [*S] Hounsfield units
    label: np.ndarray  # [*S]
    edge: float  # mm: partial volume
    contrast: float  # 0 none, 1 a strong portal venous phase

    def box(self, low: Sequence[float], high: Sequence[float]) -> tuple[slice, ...]:
        """The voxels between two corners given in standard millimetres."""
        ends = [np.searchsorted(axis, (a, b)) for axis, a, b in zip(self.axes, low, high, strict=True)]
        return tuple(slice(int(a), int(b)) for a, b in ends)

    def points(self, box: tuple[slice, ...]) -> np.ndarray:
        """The undisplaced coordinates of the tissue in the box: [3, *box]."""
        mesh = np.meshgrid(*(axis[part] for axis, part in zip(self.axes, box, strict=True)), indexing="ij")
        return np.stack(mesh).astype(np.float32) + self.warp[:, *box]

    def paint(self, box: tuple[slice, ...], level: np.ndarray, value: np.ndarray | float, label: int = 0) -> None:
        """Paints `value` and `label` where `level` is positive."""
        self.image[box] = blend(self.image[box], value, soft(level, self.edge))
        if label:
            self.label[box][level > 0] = label
        else:
            self.label[box][level > self.edge] = 0

    def organ(self, label: int, value: np.ndarray | float, level: Callable[[np.ndarray], np.ndarray]) -> None:
        """Paints an organ with the given `level(points)`, in its bounding box, which a coarse grid finds first."""
        coarse = tuple(slice(None, None, max(1, n // 40)) for n in self.image.shape)
        hits = np.argwhere(level(self.points(coarse)) > -12)
        if not len(hits):
            return
        low, high = hits.min(axis=0) - 1, hits.max(axis=0) + 2
        box = tuple(slice(max(0, int(a * c.step)), int(b * c.step)) for a, b, c in zip(low, high, coarse, strict=True))
        self.paint(box, level(self.points(box)), value, label)

    def enhanced(self, name: str, plain: float, gain: float) -> float:
        """An organ's density in this patient and contrast phase."""
        return (
            plain
            + gain * self.contrast * between(self.draw, f"{name} gain", 0.85, 1.15)
            + between(self.draw, f"{name} density", -6, 6)
        )

    def place(self, name: str, centre: Sequence[float], most: float) -> np.ndarray:
        """An organ's centre, moved by up to `most` mm along each axis."""
        return np.array(centre) + self.draw.uniform(f"{name} place", 3, -most, most)


def blob(points: np.ndarray, centre, radii, power: float = 2.0) -> np.ndarray:
    """The level of an ellipsoid, about in mm."""
    return ellipsoid(points, centre, radii, power) * (min(radii) / 2)


def ring(points: np.ndarray, half: Sequence[float] | np.ndarray) -> np.ndarray:
    """The level of an elliptical cylinder along z, flattened posteriorly."""
    x, y, _ = points
    y = np.where(y < 0, y * 1.06, y * 0.98)
    return (1 - (abs(x / half[0]) ** 2.3 + abs(y / half[1]) ** 2.3) ** (1 / 2.3)) * half[1]


def dome(points: np.ndarray) -> np.ndarray:
    """The level below the diaphragm."""
    x, y, z = points
    return 112 + 7 * np.tanh(x / 45) - 70 * (x / 150) ** 2 - 55 * ((y - 14) / 100) ** 2 - z


def trunk(patient: Body, flesh: float, field: np.ndarray) -> None:
    """Draws skin, fat, muscles, lungs, heart, spine and ribs."""
    draw, everywhere = patient.draw, (slice(None),) * 3
    points = patient.points(everywhere)
    x, y, z = points
    muscle = 54 + 8 * patient.contrast + 7 * field_of(draw, "muscle", x.shape, field, 7)
    fat = FAT + 5 * field_of(draw, "strands", x.shape, field, 8)
    skin = ring(points, np.add(WALL, flesh))
    patient.paint(everywhere, skin, blend(40.0, fat, soft(skin - 2.5, 1.0)))
    wall, inner = ring(points, WALL), ring(points, CAVITY)
    patient.paint(everywhere, wall - 6 * soft(-z - 20, 30) * bump(y - 60, 40), muscle)
    patient.paint(everywhere, inner, fat + 3)
    below = dome(points)
    patient.paint(everywhere, np.minimum(inner + 7, -below), LUNG + 25 * field_of(draw, "lung", x.shape, field, 6))
    heart = blob(points, (-28, 42, 132), (62, 44, 46))
    patient.paint(everywhere, np.minimum(heart, 4 - below), 45 + 90 * patient.contrast)
    for side in (-1, 1):
        psoas = tube(points, [(24 * side, -22, 10), (38 * side, -14, -50), (52 * side, 0, -130)], [9, 17, 22])
        back = blob(points, (34 * side, -72, -20), (32, 22, 400))
        patient.paint(everywhere, np.maximum(psoas, back), muscle)
        crus = tube(points, [(9 * side, -18, -5), (13 * side, -8, 60), (22 * side, 0, 100)], [3.5, 4.5, 3.0])
        patient.paint(everywhere, crus, muscle)
    _bones(patient, points)


def _bones(patient: Body, points: np.ndarray) -> None:
    draw, everywhere = patient.draw, (slice(None),) * 3
    x, y, z = points
    period = between(draw, "vertebra", 33, 38)
    phase = abs((z + between(draw, "level", 0, 30)) % period - period / 2)  # 0 at the centre of a vertebra
    bone = between(draw, "bone", 110, 210) + 20 * patient.contrast
    waist = 1.5 * np.cos(phase / period * 2 * np.pi)
    body = np.minimum(blob(points, (0, -38, 0), (23, 18, 500), 2.4) - waist, period / 2 - 3 - phase)
    disc = blob(points, (0, -38, 0), (22, 17, 500), 2.4)
    arch = np.maximum(6 - abs(np.hypot(x / 1.15, y + 64) - 15), 4.5 - np.hypot(x, np.clip(abs(y + 86) - 10, 0, None)))
    sides = 5 - np.hypot(np.clip(abs(abs(x) - 26) - 14, 0, None), y + 60 + 0.2 * abs(x))
    arch = np.minimum(np.maximum(arch, sides), 10 - phase)
    canal = 9.5 - np.hypot(x / 1.25, y + 63)
    patient.paint(everywhere, disc, 85.0)
    for part in (body, arch):
        patient.paint(everywhere, part, blend(bone + 330, bone, soft(part - 2.2, 1.2)))
    patient.paint(everywhere, canal, 25.0)
    slope = z + 0.62 * (y + 70) + 0.1 * abs(x)  # ribs descend anteriorly
    rib_phase = (slope - between(draw, "ribs", 0, 25)) % 25 - 12.5
    across = (ring(points, CAVITY) + 6.5) / 3.8
    rib = (1 - (rib_phase / 5.5) ** 2 - across**2) * 3
    rib = np.minimum(rib, (slope - between(draw, "last rib", 8, 26)) / 3)
    rib = np.minimum(rib, abs(x) - 24)
    patient.paint(everywhere, rib, blend(bone + 420, bone + 60, soft(rib - 1.7, 0.8)))


def bowel(patient: Body, field: np.ndarray) -> None:
    """Draws small bowel, and the colon around it, with stool and gas."""
    draw, everywhere = patient.draw, (slice(None),) * 3
    points = patient.points(everywhere)
    _, y, z = points
    inner = ring(points, CAVITY)
    loops = 9 * field_of(draw, "loops", y.shape, field, 9) - 2.5 + np.clip(-z / 18, -14, 5) - 9 * soft(-y - 12, 10)
    loops = np.minimum(loops, np.minimum(inner, dome(points)) - 5)
    lumen = between(draw, "lumen", 5, 45) + 12 * field_of(draw, "chyme", y.shape, field, 6)
    if draw.chance("oral contrast", 0.3):
        lumen = lumen + between(draw, "oral", 60, 220)
    wall = 35 + 50 * patient.contrast
    patient.paint(everywhere, loops, blend(wall, lumen, soft(loops - 3.5, 1.5)))
    gas = field_of(draw, "gas", y.shape, field, 10) - 1.2 + y / 90
    patient.paint(everywhere, np.minimum(loops - 4.5, 8 * gas), -900.0)
    right, left = (98.0, -4.0), (-104.0, -14.0)
    colon = [(*right, -150), (*right, -60), (84, 22, -32), (30, 64, -48), (-40, 66, -30), (-96, 16, 22)]
    path = [np.array(node) + draw.uniform(f"colon {i}", 3, -8, 8) for i, node in enumerate([*colon, (*left, -150)])]
    radius = between(draw, "colon", 17, 24)
    level = tube(points, path, [radius] * len(path)) - 2.5 * np.sin(points.sum(axis=0) / 5.5)
    level = np.minimum(level, np.minimum(inner, dome(points)) - 2)
    stool = 25 - 120 * np.clip(field_of(draw, "stool", y.shape, field, 6) - 0.3, 0, 1)
    patient.paint(everywhere, level, blend(wall, stool, soft(level - 3, 1)))
    air = np.minimum(level - 3.5, 4 * (field_of(draw, "air", y.shape, field, 22) - 0.3 + y / 60))
    patient.paint(everywhere, air, -920.0)


def scan(patient: Body, spacing: np.ndarray) -> np.ndarray:
    """Simulates the scanner: blur, correlated noise, integers from -1024 on."""
    draw = patient.draw
    blur = between(draw, "blur", 0.5, 1.0)  # mm
    image = ndimage.gaussian_filter(patient.image, blur / spacing)
    grain = noise(draw, "grain", image.shape, np.maximum(0.6 / spacing, 0.3))
    image += between(draw, "noise", 6, 16) * grain
    return np.rint(np.clip(image, -1024, 3071)).astype(np.int16)
