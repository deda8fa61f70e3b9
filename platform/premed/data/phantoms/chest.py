"""Frontal chest X-ray phantoms: a patient's anatomy, some of the 14 NIH findings, an exposure.

They simulate the attenuation along each ray (soft tissue and bone, minus the air of the lungs), then a tone curve.
Patient coordinates run from -1 to 1 over the picture, y downwards; an array [2, H, W] holds the lung at the picture's
left (the patient's right) and the one at its right. `out` is the lateral distance from the midline.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from premed.data.phantoms.shapes import between, blend, bump, ellipsoid, grid, noise, soft, transform_points
from premed.rng import SampleRng

COMMON = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumothorax", "Consolidation")
FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)


@dataclass
class _Thorax:
    """The anatomy of a chest, which the findings alter."""

    points: np.ndarray  # [2, H, W]: y, x in the patient's coordinates
    out: np.ndarray  # [2, H, W]
    level: np.ndarray  # [2, H, W]: 1 in the middle of a lung, 0 at its edge
    height: np.ndarray  # [2, H, W]: above the diaphragm, 0 on its dome
    air: np.ndarray  # [2, H, W]: 0 none, 1 a clear lung
    vessels: np.ndarray  # [2, H, W]
    heart: np.ndarray  # [H, W]
    pixel: float

    def spot(self, draw: SampleRng, low: float, high: float) -> tuple[int, np.ndarray]:
        """Draws a side and a point in its clear lung, between two heights above the diaphragm.

        Returns the side and the distance [H, W] from the point.
        """
        side = draw.integer("side", 2)
        fits = (self.air[side] > 0.6) & (self.height[side] > low) & (self.height[side] < high)
        place = np.flatnonzero(fits if fits.any() else self.level[side] == self.level[side].max())
        y, x = (axis.flat[place[draw.integer("place", len(place))]] for axis in self.points)
        return side, np.hypot(self.points[0] - y, self.points[1] - x)

    def cloud(self, draw: SampleRng, fine: float) -> np.ndarray:
        """An uneven opacity [H, W], 0 to 1; `fine` is the size of its lumps."""
        return soft(noise(draw, "cloud", self.heart.shape, fine / self.pixel) + 0.4, 1.5)


def chest(
    draw: SampleRng, size: int, *, patient: SampleRng | None = None, prevalence: float = 0.15
) -> tuple[np.ndarray, dict[str, bool]]:
    """Draws a chest X-ray: uint8 [size, size], and which of the 14 FINDINGS (in NIH's order) it shows.

    patient: draws the anatomy, so that follow-ups of one patient look alike; by default each picture is a new one.
    prevalence: of the COMMON findings; the others are half as frequent. A third of the patients have none. Sizes and
    contrasts reach down to the invisible, so no reader is always right.
    """
    patient = patient or draw
    sick = patient.chance("sick", 0.65)
    present = {
        name: sick and draw.chance(name, min(prevalence * (1 if name in COMMON else 0.5) / 0.65, 1))
        for name in FINDINGS
    }
    thorax = _thorax(patient, draw, size, present)
    for name, alter in _ALTERS.items():
        if present[name]:
            alter(thorax, draw.child(name))
    return _expose(thorax, patient, draw), present


def _thorax(patient: SampleRng, draw: SampleRng, size: int, present: dict[str, bool]) -> _Thorax:
    """The chest before the functions of _ALTERS: pose, lungs, heart, and the findings that move organs."""
    pixel = 2 / size
    angle = np.deg2rad(between(draw, "turn", -9, 9))
    scale = between(patient, "stature", 1.0, 1.3) * between(draw, "distance", 0.95, 1.05)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (
        transform_points(grid((size, size), (pixel, pixel)), rotation, draw.uniform("shift", 2, -0.24, 0.24)) / scale
    )
    y, x = points
    out = np.stack([-x, x])

    def sides(name: str, low: float, high: float) -> np.ndarray:
        return patient.uniform(name, 2, low, high).reshape(2, 1, 1)

    trapped = between(draw, "trapped", 0.1, 1.0) * present["Emphysema"]
    width = sides("lung width", 0.27, 0.33) + between(patient, "build", -0.03, 0.03)
    apart = 0.37 + sides("lung place", -0.02, 0.02)
    middle = apart + 0.09 * y  # the rib cage widens downwards
    tall = between(patient, "lung height", 0.68, 0.84)
    level = ellipsoid(np.stack([out - middle, 0 * out + y]), (0, 0.08), (width, tall), 2.6)
    breath = between(draw, "breath", 0.36, 0.6) + 0.1 * trapped  # position of the diaphragm
    dome = np.array([-0.05, 0.0]).reshape(2, 1, 1) + sides("dome", -0.03, 0.03) + breath
    loss = between(draw, "volume loss", 0.0, 0.14) * present["Atelectasis"]
    dome[draw.child("Atelectasis").integer("side", 2)] -= loss
    arch = (between(patient, "arch", 0.11, 0.18) - 0.09 * trapped) * (1 - ((out - middle + 0.07) / width) ** 2)
    height = dome - arch - y

    # the cardiothoracic ratio: above one half the heart is enlarged, but the two ranges overlap
    ratio = between(patient, "heart", 0.54, 0.68) if present["Cardiomegaly"] else between(patient, "heart", 0.38, 0.55)
    reach = ratio * float(np.mean(apart + width)) * (1 - 0.1 * trapped)
    tilt = -np.deg2rad(between(patient, "heart axis", 25, 50))
    axis = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    base = float(np.mean(dome)) - 0.06
    body = transform_points(
        points, axis, (base - 0.55 * reach, 0.36 * reach + between(patient, "heart place", -0.03, 0.03))
    )
    heart = soft(ellipsoid(body, (0, 0), (0.72 * reach, 1.16 * reach)), 0.3)
    knob = soft(ellipsoid(points, (-0.28, 0.11), (0.1, between(patient, "aorta", 0.06, 0.13))), 0.5)
    stem = soft(between(patient, "mediastinum", 0.11, 0.16) - abs(x) + 0.1 * y, 0.05)
    centre = 1 - (1 - 0.86 * heart) * (1 - 0.8 * knob) * (1 - 0.97 * stem)
    air = np.clip(level * 2.2, 0, 1) ** 0.7 * soft(height, 0.025 + pixel / 2) * (1 - centre)
    return _Thorax(points, out, level, height, air, _vessels(patient, y, out), heart, pixel)


def _vessels(patient: SampleRng, y: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Vessels that branch outwards from each hilum, ever thinner and fainter."""
    n = 9
    fan = np.linspace(-1.25, 1.35, n)[:, None, None, None] + patient.uniform("fan", 2 * n, -0.14, 0.14).reshape(
        n, 2, 1, 1
    )
    curl = patient.uniform("curl", 2 * n, -0.5, 0.5).reshape(n, 2, 1, 1)
    across, down = out - 0.13, y + 0.02
    far = np.hypot(across, down)
    aside = far * np.sin(np.clip(np.arctan2(down, across) - fan - curl * far, -1.5, 1.5))
    branches = bump(aside, 0.008 + 0.016 * np.exp(-far / 0.2)).max(0) * np.exp(-far / 0.3)
    return 0.8 * branches + 0.7 * bump(far, 0.07)


def _expose(thorax: _Thorax, patient: SampleRng, draw: SampleRng) -> np.ndarray:
    """Simulates the exposure: attenuation, tone curve, blur and noise. Returns [size, size] uint8."""
    y, x = thorax.points
    stout = between(patient, "stout", 0.9, 1.12)
    out = thorax.out.max(0)
    waist = 0.84 * stout + 0.5 * soft(-0.42 - y, 0.2) + 0.06 * np.clip(y - 0.3, 0, None) - out
    shoulders = y + 0.8 + 0.8 * soft(0.2 - out, 0.1) + 0.12 * bump(out, 0.3) - 0.1 * out - 0.15 * out**2
    flesh = 0.6 * np.sqrt(np.clip(3.5 * waist, 0, 1) * np.clip(4 * shoulders, 0, 1))
    flesh += 0.16 * soft(-thorax.height.min(0), 0.08) * np.clip(4 * waist, 0, 1)  # the abdomen is dense
    if patient.chance("female", 0.5):
        breast = ellipsoid(np.stack([thorax.out, 0 * thorax.out + y]), (0.45, 0.3), (0.3, 0.27))
        flesh += between(patient, "breast", 0.05, 0.12) * np.sqrt(np.clip(breast, 0, 1)).max(0)
    if draw.chance("stomach", 0.6):
        gas = ellipsoid(thorax.points, (0.66, 0.36), (0.06, between(draw, "gas", 0.06, 0.15)))
        flesh -= 0.16 * soft(gas, 0.6) * soft(-thorax.height[1], 0.05)
    trachea = bump(x, 0.035) * soft(-0.22 - y, 0.08)
    dense = 0.08 * thorax.heart - 0.13 * trachea + _bones(thorax, patient)
    depth = between(patient, "lung depth", 0.33, 0.44)
    lungs = (thorax.air * depth - 0.17 * thorax.vessels * np.clip(thorax.air, 0, 1)).sum(0)
    rays = flesh - lungs + dense * (flesh > 0)

    exposure = between(draw, "exposure", 0.75, 1.15)
    value = np.clip(1.12 * (1 - np.exp(-1.9 * exposure * np.clip(rays, 0, None))), 0, 1)
    value = value ** between(draw, "gamma", 0.9, 1.5)
    value = value * between(draw, "gain", 0.85, 1.05) + between(draw, "haze", 0.0, 0.08)
    value = ndimage.gaussian_filter(value, between(draw, "blur", 0.35, 0.6) * max(1.0, len(y) / 160))
    value += between(draw, "noise", 0.004, 0.014) * np.sqrt(value) * noise(draw, "grain", value.shape, 0.4)
    if draw.chance("shutter", 0.3):  # the collimator's edge, aligned with the picture, not the patient
        frame = grid(value.shape, (thorax.pixel, thorax.pixel))[draw.integer("edge", 2)]
        value *= soft(between(draw, "opening", 0.85, 0.97) - frame * (1 if draw.chance("end", 0.5) else -1), 0.02)
    return np.round(255 * np.clip(value, 0, 1)).astype(np.uint8)


def _bones(thorax: _Thorax, patient: SampleRng) -> np.ndarray:
    y, (out, x) = thorax.points[0], (thorax.out.max(0), thorax.points[1])
    step = between(patient, "rib step", 0.145, 0.175)
    cage = soft(ellipsoid(np.stack([out - 0.05 * y, y]), (0, 0.02), (0.74, 0.86), 3.0), 0.25) * soft(out - 0.08, 0.06)

    def ribs(course: np.ndarray, width: float) -> np.ndarray:
        phase = (y - course) / step + float(patient.uniform("rib phase")[0])
        return bump(phase - np.round(phase), width)

    bones = 0.075 * ribs(-0.35 * out + 1.0 * out**2, 0.2) * cage  # posterior ribs
    bones += 0.045 * ribs(0.65 * (0.8 - out), 0.2) * cage * soft(out - 0.22, 0.1) * soft(y + 0.45, 0.2)  # anterior ribs
    collar = y + 0.66 + between(patient, "collar", -0.05, 0.05) + 0.22 * (out - 0.1) - 0.16 * np.sin(5 * (out - 0.1))
    bones += 0.15 * bump(collar, 0.03) * soft(out - 0.08, 0.03) * soft(0.72 - out, 0.05)
    vertebrae = 0.75 + 0.25 * np.cos(2 * np.pi * y / (step * 0.85))
    bones += 0.13 * soft(0.085 - abs(x), 0.03) * vertebrae
    upper_arm = ellipsoid(np.stack([out, y]), (0.9, -0.5), (0.13, 0.14))
    return bones + 0.12 * np.sqrt(np.clip(upper_arm, 0, 1))


def _effusion(t: _Thorax, draw: SampleRng) -> None:
    side = draw.integer("side", 2)
    depth = between(draw, "depth", 0.03, 1.0) ** 2 * 0.6 + 0.05  # a blunted angle is more frequent than half a lung
    floor = np.where(t.air[side] > 0.2, t.points[0], -1).max()
    meniscus = floor - depth - 0.5 * np.clip(t.out[side] - 0.35, 0, None) * min(depth * 4, 1)
    t.air[side] *= 1 - 0.9 * soft(t.points[0] - meniscus, 0.06)


def _pneumothorax(t: _Thorax, draw: SampleRng) -> None:
    side = draw.integer("side", 2)
    lateral = np.clip(t.out[side] - 0.25, 0, None) + np.clip(-0.2 - t.points[0], 0, None) * 1.3
    gap = t.level[side] - between(draw, "gap", 0.3, 0.75)
    rim = soft(-gap, 0.05) * soft(lateral - 0.1, 0.06) * soft(t.height[side], 0.1)
    t.vessels[side] *= 1 - rim
    t.air[side] *= 1 + between(draw, "black", 0.05, 0.35) * rim
    t.air[side] *= 1 - 0.25 * bump(gap, 0.06) * soft(lateral - 0.1, 0.06)  # the pleura's thin white line


def _mass(t: _Thorax, draw: SampleRng) -> None:
    side, far = t.spot(draw, 0.05, 2)
    lumps = 1 + 0.12 * noise(draw, "outline", far.shape, 0.08 / t.pixel)
    t.air[side] *= 1 - between(draw, "contrast", 0.25, 0.85) * soft(
        between(draw, "radius", 0.07, 0.16) - far * lumps, 0.035
    )


def _nodule(t: _Thorax, draw: SampleRng) -> None:
    side, far = t.spot(draw, 0.05, 2)
    t.air[side] *= 1 - between(draw, "contrast", 0.3, 0.9) * soft(between(draw, "radius", 0.03, 0.06) - far, 0.02)


def _filling(t: _Thorax, draw: SampleRng, low: float, high: float, radius: tuple[float, float], lumps: float) -> None:
    """Fluid in the air spaces of a lung; the findings that draw it differ in place, size and density."""
    side, far = t.spot(draw, 0.0, high)
    extent = soft(
        between(draw, "radius", *radius) - far + 0.05 * noise(draw, "outline", far.shape, 0.1 / t.pixel), 0.12
    )
    t.air[side] *= 1 - between(draw, "contrast", low, 0.9) * extent * t.cloud(draw, lumps)


def _consolidation(t: _Thorax, draw: SampleRng) -> None:
    _filling(t, draw, 0.55, 2.0, (0.2, 0.36), 0.2)


def _pneumonia(t: _Thorax, draw: SampleRng) -> None:
    _filling(t, draw, 0.45, 0.45, (0.18, 0.3), 0.1)


def _infiltration(t: _Thorax, draw: SampleRng) -> None:
    for part in range(2):
        _filling(t, draw.child(part), 0.3, 2.0, (0.15, 0.3), 0.035)


def _atelectasis(t: _Thorax, draw: SampleRng) -> None:
    side = draw.integer("side", 2)
    slope, density = between(draw, "slope", -0.3, 0.3), between(draw, "contrast", 0.25, 0.75)
    plate = t.height[side] - between(draw, "height", 0.06, 0.25) - slope * (t.out[side] - 0.35)
    t.air[side] *= 1 - density * bump(plate, between(draw, "width", 0.025, 0.06)) * soft(t.level[side] - 0.1, 0.2)


def _edema(t: _Thorax, draw: SampleRng) -> None:
    wings = bump(np.hypot(t.out - 0.2, (t.points[0] - 0.05) * 0.7), between(draw, "reach", 0.14, 0.24))
    t.air *= 1 - between(draw, "contrast", 0.2, 0.7) * wings * (0.4 + 0.6 * t.cloud(draw, 0.06))
    t.vessels *= 1.4


def _emphysema(t: _Thorax, draw: SampleRng) -> None:
    t.air *= between(draw, "dark", 1.0, 1.15)
    t.vessels *= between(draw, "vessels", 0.4, 0.9)


def _fibrosis(t: _Thorax, draw: SampleRng) -> None:
    net = np.exp(-np.abs(noise(draw, "net", t.heart.shape, 0.035 / t.pixel)) / 0.35)
    where = bump(t.height, between(draw, "reach", 0.15, 0.4)) * soft(t.out - 0.3, 0.2)
    t.air *= 1 - between(draw, "contrast", 0.35, 0.9) * net * where


def _pleural_thickening(t: _Thorax, draw: SampleRng) -> None:
    side = draw.integer("side", 2)
    rind = between(draw, "width", 0.2, 0.5) - t.level[side] + 0.08 * noise(draw, "rind", t.heart.shape, 0.1 / t.pixel)
    t.air[side] *= 1 - between(draw, "contrast", 0.55, 0.95) * soft(rind, 0.1) * soft(t.out[side] - 0.38, 0.08)


def _hernia(t: _Thorax, draw: SampleRng) -> None:
    radius = between(draw, "radius", 0.1, 0.2)
    centre = (float(t.points[0][t.heart > 0.5].max(initial=0.2)) - radius, between(draw, "place", -0.12, 0.16))
    sac = ellipsoid(t.points, centre, (radius, radius))
    t.heart = blend(t.heart, 1.3, soft(sac, 0.2)) - between(draw, "gas", 0.6, 1.8) * soft(sac - 0.45, 0.2)
    t.air *= 1 - 0.8 * soft(sac, 0.2)


_ALTERS = {
    "Effusion": _effusion,
    "Pneumothorax": _pneumothorax,
    "Mass": _mass,
    "Nodule": _nodule,
    "Consolidation": _consolidation,
    "Pneumonia": _pneumonia,
    "Infiltration": _infiltration,
    "Atelectasis": _atelectasis,
    "Edema": _edema,
    "Emphysema": _emphysema,
    "Fibrosis": _fibrosis,
    "Pleural_Thickening": _pleural_thickening,
    "Hernia": _hernia,
}
