"""The header of a predicted label map: it lies where its image lies, and holds nothing else of the image's header."""

import gzip
from itertools import product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.nifti1 import Nifti1Extension
from scipy.spatial.transform import Rotation
from support.geometries import affines
from support.made_up import ct_series
from support.suite import examples

from premed.data.io.geometry import shear
from premed.data.io.readers import read_image
from premed.inference import predict

NAME = b"DOE^JANE"
TEXTS = ("db_name", "aux_file", "descrip", "intent_name", "data_type")  # NIfTI-2 has not all of them
QFORM = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
SFORM = ("sform_code", "srow_x", "srow_y", "srow_z")
OWN = ("dim", "datatype", "bitpix", "scl_slope", "scl_inter", "intent_code", "descrip", "vox_offset", "magic")


def written(folder, source, affine, shape) -> nib.Nifti1Image:
    """The label map that is written for a file or a folder of DICOM, as others read it."""
    voxels = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    path = folder / "map.nii.gz"
    predict.LabelMaps(None, lambda image: image, folder, "0" * 40, masks=False).write(path, voxels, source, affine)
    made = nib.load(path)
    assert np.array_equal(np.asarray(made.dataobj), voxels) and made.get_data_dtype() == np.uint8
    return made


def apart(affine, other, shape) -> float:
    """The largest distance between the places of a corner, in mm."""
    corners = [np.array([*corner, 1]) for corner in product(*((0, n - 1) for n in shape))]
    return max(float(np.linalg.norm(((affine - other) @ corner)[:3])) for corner in corners)


@st.composite
def headers(draw):
    """A header full of names and odd numbers, with any codes, units and geometry; qform and sform may contradict."""
    kind = draw(st.sampled_from([nib.Nifti1Header, nib.Nifti2Header]))
    header = kind(endianness=draw(st.sampled_from("<>")))
    shape = draw(st.sampled_from([(5, 4, 3), (40, 300, 20), (5, 4, 3, 2)]))
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    sform = draw(affines(sheared=draw(st.booleans())))
    qform = draw(st.one_of(st.just(sform), affines()))
    header.set_qform(qform, draw(st.integers(0, 5)))
    header.set_sform(sform, draw(st.integers(0, 5)))
    header["xyzt_units"] = (unit := draw(st.integers(0, 3))) + draw(st.sampled_from([0, 8, 16]))
    scale = {1: 1e-3, 3: 1e3}.get(unit, 1.0)  # the same grid in metres or microns
    for name in ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"):
        header[name] = header[name] * scale
    header["pixdim"][1:4] *= scale
    for text in TEXTS:
        if text in header:
            header[text] = NAME
    header["cal_max"], header["cal_min"], header["toffset"], header["slice_duration"] = 900, 3, 7.5, 1961
    header["intent_p1"], header["intent_code"], header["slice_code"], header["dim_info"] = 42, 3, 1, 57
    header.set_slope_inter(2, -1024)
    return header


@settings(max_examples=examples(60), deadline=None)
@given(headers(), st.booleans(), st.booleans())
def test_what_a_label_map_has_of_its_image_s_header_is_the_grid_alone(tmp_path_factory, header, zipped, named):
    folder = tmp_path_factory.mktemp("case")
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(np.zeros(header.get_data_shape(), np.int16), None, header)
    image.header.extensions.append(Nifti1Extension("comment", NAME))
    content, source = image.to_bytes(), folder / ("image.nii.gz" if named else "image.nii")
    assert NAME in content
    source.write_bytes(gzip.compress(content) if zipped else content)
    own, shape = image.header, header.get_data_shape()[:3]
    affine = own.get_best_affine()

    made = written(folder, source, np.eye(4), shape)
    assert made.shape == shape and isinstance(made, kind)
    assert np.array_equal(made.affine, affine)
    for name in (*QFORM, *SFORM, "xyzt_units"):
        assert np.array_equal(made.header[name], own[name]), name
    assert np.array_equal(made.header["pixdim"][:4], own["pixdim"][:4])
    assert made.header["qform_code"] == (0 if shear(affine) > 1e-6 else own["qform_code"])
    assert NAME not in gzip.decompress((folder / "map.nii.gz").read_bytes()) and not made.header.extensions
    fresh = made.header.__class__()
    for name in set(fresh) - {*OWN, *QFORM, *SFORM, "qform_code", "pixdim", "xyzt_units"}:
        assert np.array_equal(made.header[name], fresh[name]), name
    assert made.header.get_intent()[0] == "label" and bytes(made.header["descrip"]).startswith(b"premed 0000")


# DICOM ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=examples(60), deadline=None)
@given(affines(), affines(sheared=True), st.floats(-1, 1), st.sampled_from(["x", "y", "z"]))
def test_a_series_qform_is_where_its_sform_is_or_has_code_0(tmp_path_factory, affine, sheared, degrees, axis):
    folder, shape, turned = tmp_path_factory.mktemp("series"), (64, 48, 30), affine.copy()
    # almost turned by 180 degrees, which float32 quaternions hold badly
    turned[:3, :3] = Rotation.from_euler(axis, 180 + degrees * abs(degrees), degrees=True).as_matrix() * 0.8
    for grid in (affine, sheared, turned):
        header = written(folder, folder, grid, shape).header
        assert header["sform_code"] == 1 and apart(header.get_sform(), grid, shape) < 1e-3
        assert header.get_zooms() == pytest.approx(np.linalg.norm(grid[:3, :3], axis=0))
        if grid is sheared:
            assert header["qform_code"] == 0
        elif header["qform_code"]:
            edge = np.linalg.norm(grid[:3, :3], axis=0).min()
            assert header["qform_code"] == 1 and apart(header.get_qform(), grid, shape) <= 0.01 * edge
        assert header.get_xyzt_units()[0] == "mm"


def test_a_series_of_a_tilted_gantry_has_an_sform_alone(tmp_path):
    """20 slices, 5 mm apart along z and by 20 degrees off the normal: 1.82 mm of y per slice."""
    values = np.random.default_rng(0).integers(-900, 900, (24, 30, 20)).astype(np.int16)
    straight = ct_series(tmp_path / "straight", values, spacing=(2.0, 2.0, 5.0))
    tilted = ct_series(tmp_path / "tilted", values, spacing=(2.0, 2.0, 5.0), tilt=5 * np.tan(np.deg2rad(20)))
    affines = {folder: read_image(folder)[1] for folder in (straight, tilted)}
    assert affines[tilted][1, 2] == pytest.approx(-1.82, abs=0.01)
    made = {folder: written(tmp_path, folder, affine, values.shape).header for folder, affine in affines.items()}
    assert [int(made[straight][code]) for code in ("qform_code", "sform_code")] == [1, 1]
    assert [int(made[tilted][code]) for code in ("qform_code", "sform_code")] == [0, 1]
    assert apart(made[straight].get_qform(), affines[straight], values.shape) < 1e-3
    assert apart(made[tilted].get_best_affine(), affines[tilted], values.shape) < 1e-3
    assert apart(made[tilted].get_qform(), affines[tilted], values.shape) > 5  # what the qform would have said
