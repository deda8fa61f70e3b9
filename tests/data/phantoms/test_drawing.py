"""Phantoms drawn in several processes: the same bytes as in one, completely or not at all, and progress is told."""

from functools import partial

import pytest
from support.phantoms import bytes_of

from premed.data.phantoms.abdomen import write_btcv
from premed.data.phantoms.brain import write_brats
from premed.data.phantoms.drawing import draw_missing
from premed.data.phantoms.writers import write_chestxray14

WRITERS = {
    "chestxray14": partial(write_chestxray14, num_patients=6, seed=3, size=16),
    "btcv": partial(write_btcv, num_cases=2, num_unlabelled=1, seed=3, shape=(12, 12, 8)),
    "Task01_BrainTumour": partial(write_brats, num_cases=2, num_unlabelled=1, seed=3, shape=(12, 12, 8)),
}


@pytest.mark.slow
def test_several_processes_write_the_same_bytes_and_tell_how_far_they_are(tmp_path):
    messages = []
    draw_missing(tmp_path / "here", WRITERS, lambda *progress: messages.append(progress))
    for name, write in WRITERS.items():
        alone = write(tmp_path / "alone" / name)
        assert bytes_of(tmp_path / "here" / name) == bytes_of(alone) != {}
    counts = {"chestxray14": 6, "btcv": 3, "Task01_BrainTumour": 3}
    assert messages == [(name, done, count) for name, count in counts.items() for done in range(count + 1)]


@pytest.mark.slow
def test_what_is_there_is_not_drawn_again_and_what_was_left_unfinished_is(tmp_path):
    (tmp_path / "btcv").mkdir()
    (tmp_path / ".chestxray14" / "rest").mkdir(parents=True)
    messages = []
    some = {name: WRITERS[name] for name in ("chestxray14", "btcv")}
    draw_missing(tmp_path, some, lambda name, *_: messages.append(name))
    assert {*messages} == {"chestxray14"} and not [*(tmp_path / "btcv").iterdir()]
    assert not (tmp_path / ".chestxray14").exists() and not (tmp_path / "chestxray14" / "rest").exists()
    draw_missing(tmp_path, some, lambda *_: pytest.fail("nothing is missing"))


def fail(number):
    raise ValueError(f"case {number}")


def write_none(folder, mapper):
    folder.mkdir()
    return [*mapper(fail, range(3))]


@pytest.mark.slow
def test_a_data_set_that_could_not_be_drawn_is_not_left_half_done(tmp_path):
    with pytest.raises(ValueError, match="case 0"):
        draw_missing(tmp_path, {"broken": write_none}, lambda *_: None)
    assert not (tmp_path / "broken").exists()
