"""Headers drawn at random: what is read is what the standards' formulas, written out here, give; nothing is silent.

Whatever in a header is ignored, converted or decided has its note, and what cannot be decided is refused.
"""

import gzip
import math
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataelem import DataElement
from pydicom.uid import CTImageStorage, generate_uid
from scipy.spatial.transform import Rotation
from support.made_up import dicom, nifti
from support.suite import examples

from premed.data.io.readers import read_file
from premed.errors import UserError

QUIET = [HealthCheck.function_scoped_fixture]
sizes, turns = st.floats(0.25, 6, width=32), st.floats(-0.5, 0.5, width=32)
offsets = st.floats(-300, 300, width=32)

# NIfTI ---------------------------------------------------------------------------------------------------------------

MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
DTYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"]


def by_quaternion(b: float, c: float, d: float, pixdim, offset) -> np.ndarray:
    """nifti1.h, method 2."""
    a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    rotation = [
        [a * a + b * b - c * c - d * d, 2 * b * c - 2 * a * d, 2 * b * d + 2 * a * c],
        [2 * b * c + 2 * a * d, a * a + c * c - b * b - d * d, 2 * c * d - 2 * a * b],
        [2 * b * d - 2 * a * c, 2 * c * d + 2 * a * b, a * a + d * d - c * c - b * b],
    ]
    affine = np.eye(4)
    affine[:3, :3] = np.array(rotation) * [pixdim[1], pixdim[2], pixdim[3] * pixdim[0]]
    affine[:3, 3] = offset
    return affine


@st.composite
def headers(draw) -> dict:
    """Header fields. sform: the qform, or another grid, sheared maybe, or nothing."""
    pixdim = [draw(st.sampled_from([1, -1])), *draw(st.tuples(sizes, sizes, sizes))]
    b, c, d, x, y, z = map(float, draw(st.tuples(turns, turns, turns, offsets, offsets, offsets)))
    qform = by_quaternion(b, c, d, pixdim, (x, y, z))
    other, shear = np.eye(4), np.eye(3)
    shear[0, 1], shear[1, 2] = draw(st.sampled_from([0, 0, 0.2])), draw(st.sampled_from([0, 0.3]))
    turn = Rotation.from_rotvec(draw(st.tuples(turns, turns, turns))).as_matrix()
    other[:3, :3] = turn @ shear * draw(st.tuples(sizes, sizes, sizes))
    other[:3, 3] = draw(st.tuples(offsets, offsets, offsets))
    slope, inter = draw(
        st.sampled_from([(1, 0), (0, 0), (math.nan, math.nan), (2.5, -1024), (0, -1024), (math.nan, 3)])
    )
    return {
        "pixdim": pixdim,
        "sform": draw(st.sampled_from([qform, qform, other])),
        "sform_code": draw(st.sampled_from([0, 1, 2, 4])),
        "qform_code": draw(st.sampled_from([0, 1, 1])),
        **{"quatern_b": b, "quatern_c": c, "quatern_d": d, "qoffset_x": x, "qoffset_y": y, "qoffset_z": z},
        "xyzt_units": draw(st.sampled_from([*MM])) + draw(st.sampled_from([0, 8, 16])),
        "scl_slope": slope,
        "scl_inter": inter,
    }


def the_affine(fields: dict, shape: tuple[int, ...]) -> tuple[np.ndarray, set[str]]:
    """The affine in mm, and what is to be noted of it."""
    scale, notes = MM[fields["xyzt_units"] % 8], set()
    in_mm = np.diag([scale, scale, scale, 1])
    qform = by_quaternion(
        *(fields[f"quatern_{name}"] for name in "bcd"), fields["pixdim"], [fields[f"qoffset_{name}"] for name in "xyz"]
    )
    sform, qform = in_mm @ fields["sform"], in_mm @ qform
    if scale != 1:
        notes.add("its unit of length is the " + ("metre" if scale > 1 else "micron"))
    if fields["sform_code"] == fields["qform_code"] == 0:
        notes.add("it has neither sform nor qform, so that left and right are not known")
        middle = (np.array(shape[:3]) - 1) / 2
        axes = np.array([-1, 1, 1]) * fields["pixdim"][1:] * scale
        return np.vstack([np.column_stack([np.diag(axes), -axes * middle]), [0, 0, 0, 1]]), notes
    if fields["sform_code"] == 0:
        return qform, notes
    lengths = np.linalg.norm(sform[:3, :3], axis=0)
    limit = min(0.25, lengths.min() / 4)
    if fields["qform_code"]:
        corners = [np.array([*corner, 1]) for corner in product(*((0, n) for n in shape[:3]))]
        if max(np.linalg.norm((sform @ corner - qform @ corner)[:3]) for corner in corners) > limit:
            codes = f"sform (code {fields['sform_code']}) and qform (code {fields['qform_code']})"
            notes.add(f"{codes} contradict each other")
    elif (np.abs(lengths - np.array(fields["pixdim"][1:]) * scale) * shape[:3]).max() > limit:
        notes.add("sform and pixdim contradict each other")
    return sform, notes


@settings(max_examples=examples(300), suppress_health_check=QUIET)
@given(headers(), st.sampled_from(DTYPES), st.sampled_from("<>"), st.sampled_from([1, 1, 2]), st.booleans(), st.data())
def test_any_nifti_is_read_by_the_formulas_of_nifti1_h(tmp_path, fields, dtype, order, version, zipped, data):
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=3, max_size=4)))
    stored = np.random.default_rng(data.draw(st.integers(0, 99))).normal(60, 20, shape).astype(dtype)
    path = nifti(tmp_path / "a.nii", stored, order, version, **fields)
    if zipped:
        path.write_bytes(gzip.compress(path.read_bytes(), 1))
    values, affine, padding, notes = read_file(path)
    expected, result = the_affine(fields, shape)
    slope, inter = fields["scl_slope"], fields["scl_inter"]
    scaled = stored.astype(np.float64)
    if slope and not math.isnan(slope):
        scaled = scaled * slope + inter
    elif inter and not math.isnan(inter):
        result.add(f"its scl_slope is {slope:g}")
    np.testing.assert_allclose(values, scaled, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(affine, expected, rtol=1e-4, atol=1e-4 * MM[fields["xyzt_units"] % 8])
    assert {note.text.partition(":")[0] for note in notes} == result and padding is None


# DICOM ---------------------------------------------------------------------------------------------------------------

ORIENTATIONS = [
    np.eye(3)[:, [i, j]] * signs for i, j in ((0, 1), (1, 2), (2, 0)) for signs in product((1, -1), repeat=2)
]


@st.composite
def series(draw) -> dict:
    """A series: its slices' stored values [X, Y, Z], their places [Z, 3], tags, and what is wrong with it."""
    along, down = (draw(st.sampled_from(ORIENTATIONS))).T
    rounded = draw(st.booleans())  # to tenths of a millimetre, along an axis
    if not rounded and draw(st.booleans()):
        along, down = Rotation.from_rotvec(draw(st.tuples(turns, turns, turns))).apply([along, down]).round(6)
    num, signed = draw(st.integers(3, 8)), draw(st.booleans())
    step = np.cross(along, down) * draw(st.sampled_from([0.68] if rounded else [0.625, 1.25, 3.0]))
    if not rounded:
        step += down * draw(st.sampled_from([0, 0.4]))  # a tilted gantry
    places = (np.array([-101.34, 44.13, 7.72]) + np.arange(num)[:, None] * step).round(1 if rounded else 6)
    slope, inter = draw(
        st.sampled_from([(1, -1024), (2, 10), (None, -1024), (2, None), (None, None), ("", -7), (0.5, "")])
    )
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    stored = generator.integers(0, 900, (draw(st.integers(2, 5)), draw(st.integers(2, 5)), num))
    padding = draw(st.sampled_from([None, (-2000, None), (-2000, -1100)] if signed else [None, (65535, None)]))
    if padding:
        stored[generator.random(stored.shape) < 0.3] = padding[0]
        stored[0, 0, 0] = padding[1] or padding[0]
        stored[1, 1, 1] = 5
    return {
        "axes": (along, down),
        "sizes": draw(st.tuples(*[st.sampled_from([0.5, 0.7, 1.25])] * 2)),  # of a row, of a column
        "places": places,
        "rounded": rounded,
        "stored": stored.astype(np.int16 if signed else np.uint16),
        "slope": slope,
        "inter": inter,
        "padding": padding,
        "other sign": draw(st.booleans()),  # than that of the pixels, in the padding's tags
        "names": draw(st.permutations(range(num))),
        "fault": draw(st.sampled_from([None, None, None, "missing", "twice"])),
    }


def written(folder: Path, made: dict) -> list[int]:
    """Writes the slices; returns the numbers of those that are there."""
    shutil.rmtree(folder, ignore_errors=True)
    num, tags = made["stored"].shape[2], {}
    for name, value in (("RescaleSlope", made["slope"]), ("RescaleIntercept", made["inter"])):
        if value is not None:
            tags[name] = value or None  # "": there and empty
    if made["padding"]:
        signed = (made["stored"].dtype.kind == "i") != made["other sign"]
        for tag, value in zip((0x00280120, 0x00280121), made["padding"], strict=True):
            if value is not None:
                spelt = (value + 2**15) % 2**16 - 2**15 if signed else value % 2**16
                tags[f"x{tag}"] = DataElement(tag, "SS" if signed else "US", spelt)
    there = [k for k in range(num) if made["fault"] != "missing" or k != num // 2]
    uid = generate_uid(entropy_srcs=["series"])
    for k in [*there, *([1] if made["fault"] == "twice" else [])]:
        name = f"IM{made['names'][k]}"
        dicom(
            folder / (name if not (folder / name).exists() else "copy"),
            np.ascontiguousarray(made["stored"][..., k].T),
            CTImageStorage,
            SeriesInstanceUID=uid,
            ImagePositionPatient=made["places"][k].tolist(),
            ImageOrientationPatient=np.concatenate(made["axes"]).tolist(),
            PixelSpacing=list(made["sizes"]),
            BitsStored=16,
            HighBit=15,
            **tags,
        )
    return there


@settings(max_examples=examples(150), suppress_health_check=QUIET)
@given(series())
def test_any_series_is_read_by_the_formulas_of_dicom_ps3_3(tmp_path, made):
    there = written(tmp_path / "s", made)
    if made["fault"]:
        words = "is missing or out of place" if made["fault"] == "missing" else "lies where"
        if len(there) == 2:  # of two slices, nobody knows
            return
        with pytest.raises(UserError, match=words):
            read_file(tmp_path / "s")
        return
    values, affine, padding, notes = read_file(tmp_path / "s")
    (along, down), (height, width), places = made["axes"], made["sizes"], made["places"]
    x, y, k = (axis.ravel()[:, None] for axis in np.indices(values.shape))
    expected = (places[k[:, 0]] + along * width * x + down * height * y) * [-1, -1, 1]  # C.7.6.2.1.1; LPS to RAS
    found = np.hstack([x, y, k]) @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_allclose(found, expected, atol=0.11 if made["rounded"] else 1e-4)  # these become even
    stored = made["stored"].astype(np.int64)
    slope, inter = (
        default if value in (None, "") else value for value, default in ((made["slope"], 1), (made["inter"], 0))
    )
    hidden = np.zeros(stored.shape, bool)
    if made["padding"]:
        low, high = made["padding"][0], made["padding"][1] or made["padding"][0]
        hidden = (stored >= low) & (stored <= high)
    measured = stored * slope + inter  # C.11.1.1.2
    measured[hidden] = measured[~hidden].min()
    np.testing.assert_array_equal(values, measured.astype(np.float32))
    np.testing.assert_array_equal(padding if padding is not None else np.zeros(stored.shape, bool), hidden)
    half = (made["slope"] in (None, "")) != (made["inter"] in (None, ""))
    assert len(notes) == half and all("is absent or empty" in note.text for note in notes)
