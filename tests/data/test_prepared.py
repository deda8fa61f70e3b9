"""Prepared images on disk: whatever a disk does to a file, no other grey value is handed out without a word."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.suite import examples

from premed.config.image_processing import Preprocessing
from premed.contracts import Case
from premed.data import cache as module
from premed.data import prepared
from premed.data.cache import Cache
from premed.errors import UserError

nib = pytest.importorskip("nibabel")


@pytest.fixture
def case(tmp_path):
    rng = np.random.default_rng(0)
    for name, values in (("image", rng.normal(100, 30, (9, 8, 7))), ("label", rng.integers(0, 3, (9, 8, 7)))):
        nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / f"{name}.nii.gz")
    return Case("a", "a", (tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz")


@pytest.fixture
def preprocessing():
    return Preprocessing(dims=3, normalise="zscore")


def everything(file):
    labels = {label: file.locations(label) for label in file.counts}
    return [file.image(), file.label(), *labels.values(), file.affine, file.native_affine, np.array(file.counts)]


def forget():
    prepared._head.cache_clear()
    prepared._verified.clear()


@settings(max_examples=examples(60, 2000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_bit_that_turns_is_seen_wherever_it_is(case, preprocessing, tmp_path, data):
    (file,) = Cache(tmp_path / "cache").prepare([case], preprocessing)
    whole, before = file.path.read_bytes(), everything(file)
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    forget()
    content = bytearray(whole)
    content[at] ^= 1 << bit
    file.path.write_bytes(content)
    try:
        if Cache(tmp_path / "cache").open(case, preprocessing) is not None:
            after = everything(file)
            assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    except UserError as error:
        assert str(error).startswith(f"{file.path}: is damaged, and was removed; run the same command again")
        assert not file.path.exists()
    finally:
        forget()
        file.path.parent.mkdir(exist_ok=True)
        file.path.write_bytes(whole)


def test_a_damaged_image_is_prepared_anew(case, preprocessing, tmp_path):
    (file,) = Cache(tmp_path / "cache").prepare([case], preprocessing)
    whole = file.path.read_bytes()
    forget()
    file.path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 255]))
    with pytest.raises(UserError, match="is damaged"):
        everything(file)
    (again,) = Cache(tmp_path / "cache").prepare([case], preprocessing)
    assert again.path.read_bytes() == whole


def test_a_file_without_checksums_from_before_is_used(case, preprocessing, tmp_path, monkeypatch):
    (file,) = Cache(tmp_path / "cache").prepare([case], preprocessing)
    before = everything(file)
    forget()
    with monkeypatch.context() as earlier:
        earlier.setattr(prepared, "with_checksums", lambda facts, arrays: facts)
        file.path.unlink()
        (file,) = Cache(tmp_path / "cache").prepare([case], preprocessing)
    assert all(np.array_equal(one, other) for one, other in zip(before, everything(file), strict=True))


def test_each_array_is_verified_once_in_a_process(case, preprocessing, tmp_path, monkeypatch):
    (file,) = Cache(tmp_path / "cache").prepare([case], preprocessing)
    forget()
    everything(file)
    monkeypatch.setattr(prepared, "checksum", lambda _: pytest.fail("verified again"))
    everything(file)


def test_an_image_that_changes_while_it_is_read_is_not_kept_under_its_old_hash(
    case, preprocessing, tmp_path, monkeypatch
):
    """A file that is still being copied, say."""
    whole, reading = case.image[0].read_bytes(), module.prepare

    def read_and_change(*args):
        result = reading(*args)
        values = nib.load(case.image[0]).get_fdata() + 1
        nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0])), case.image[0])
        return result

    with monkeypatch.context() as patch:
        patch.setattr(module, "prepare", read_and_change)
        with pytest.raises(UserError, match=r"image.nii.gz: changed while it was read; run the same command again"):
            Cache(tmp_path / "cache").prepare([case], preprocessing)
    assert not list((tmp_path / "cache").glob("??/*.safetensors"))
    case.image[0].write_bytes(whole)
    Cache(tmp_path / "cache").prepare([case], preprocessing)
