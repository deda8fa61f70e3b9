"""Whose turn it is, and on which workers: crews here are stand-ins that work until they are told to be through."""

import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premed import fleet as module
from premed.config.settings import Train
from premed.events import WaitingForResources
from premed.fleet import Fleet, Member, Shortage, fits, workers_of
from premed.presenter import resources_words

TWO = [{"CPU": 2.0}]


class Crew:
    """Works at a job until `through`; says what it was asked to do."""

    def __init__(self, job, said):
        self.train, self.said, self.alive, self.fails = job.train, said, True, None
        self.through = threading.Semaphore(0)

    def suits(self, job):
        return self.alive and self.train == job.train

    def run(self, job, run_id, pause, ruling=None, short=None):
        self.said(run_id, self)
        self.through.acquire()
        if self.fails:
            self.alive = False
            raise self.fails
        return True

    def dismiss(self):
        self.alive = False

    close = dismiss


class Yard:
    """A fleet, and the threads of its experiments."""

    def __init__(self, nodes=TWO):
        self.stopped = threading.Event()
        self.hired, self.begun, self.threads, self.ended = [], [], {}, []
        self.change = threading.Condition()
        self.fleet = Fleet(self.hire, lambda: nodes, lambda: {"CPU": 0.5})
        self.told = []

    def hire(self, job):
        self.hired.append(crew := Crew(job, self.said))
        return crew

    def pause(self, seconds):
        if self.stopped.wait(seconds):
            raise KeyboardInterrupt

    def said(self, run_id, crew):
        with self.change:
            self.begun.append((run_id, crew))
            self.change.notify_all()

    def ask(self, kind, number, workers=2, gpu=False):
        """Experiment `number` wants a stage run, in a thread of its own; back when it stands in line or has a crew."""
        job = SimpleNamespace(train=Train(workers=workers, gpu=gpu), stage=SimpleNamespace(kind=kind))

        def work():
            try:
                self.fleet.run(job, f"{kind} {number}", Member(number, self.pause, tell=self.told.append))
                self.ended.append(f"{kind} {number}")
            except BaseException as error:  # noqa: BLE001
                self.ended.append(error)

        asked = len(self.begun) + len(self.fleet.line)
        self.threads[f"{kind} {number}"] = thread = threading.Thread(target=work, daemon=True)
        thread.start()
        with self.change:
            self.change.wait_for(lambda: len(self.begun) + len(self.fleet.line) > asked, 10)
            while len(self.begun) + len(self.fleet.line) <= asked and thread.is_alive():
                self.change.wait(0.01)
        return thread

    def at(self, num):
        """The first `num` stages that were begun, once they were."""
        with self.change:
            assert self.change.wait_for(lambda: len(self.begun) >= num, 20), self.begun
        return [run_id for run_id, _ in self.begun]

    def through(self, run_id):
        """The stage is done, and its experiment has its result."""
        next(crew for name, crew in self.begun if name == run_id).through.release()
        self.threads[run_id].join(10)

    def end(self, run_id):
        """The stage is done, and its experiment over."""
        self.through(run_id)
        self.fleet.leave(int(run_id.split()[1]))


@pytest.fixture
def yard():
    made = []

    def make(*args):
        made.append(Yard(*args))
        return made[-1]

    yield make
    for each in made:
        each.stopped.set()
        for crew in each.hired:
            crew.through.release(100)
        for thread in each.threads.values():
            thread.join(10)


def test_one_crew_goes_from_stage_to_stage_where_there_is_room_for_no_other(yard):
    yard = yard()
    yard.ask("pretrain", 0)
    yard.at(1)
    yard.ask("finetune", 1)
    yard.through("pretrain 0")
    assert yard.at(2) == ["pretrain 0", "finetune 1"] and len(yard.hired) == 1


def test_as_many_at_once_as_there_is_room_for(yard):
    yard = yard()
    for number in range(3):
        yard.ask("finetune", number, workers=1)
    assert yard.at(2) == ["finetune 0", "finetune 1"] and len(yard.fleet.line) == 1
    yard.end("finetune 1")
    assert yard.at(3)[2] == "finetune 2" and len(yard.hired) == 2


def test_pre_trainings_go_first_then_the_order_of_the_experiments_counts(yard):
    yard = yard()
    yard.ask("finetune", 0)
    yard.at(1)
    for kind, number in (("finetune", 3), ("finetune", 2), ("pretrain", 4), ("pretrain", 1)):
        yard.ask(kind, number)
    for done, run_id in enumerate(["finetune 0", "pretrain 1", "pretrain 4", "finetune 2"], start=1):
        assert yard.at(done)[-1] == run_id
        yard.end(run_id)
    assert yard.at(5)[-1] == "finetune 3"


def test_a_test_comes_right_after_its_fine_tuning(yard):
    yard = yard()
    yard.ask("finetune", 0)
    yard.at(1)
    yard.ask("finetune", 1)
    yard.through("finetune 0")
    assert yard.at(1) == ["finetune 0"]  # the crew waits for it while the fine-tuning is recorded
    yard.ask("test", 0)
    assert yard.at(2)[-1] == "test 0"
    yard.through("test 0")
    assert yard.at(3)[-1] == "finetune 1" and len(yard.hired) == 1


def test_an_experiment_that_waits_holds_no_crew(yard):
    yard = yard()
    yard.ask("finetune", 0)
    yard.at(1)
    yard.ask("finetune", 1)
    yard.through("finetune 0")
    yard.fleet.leave(0)
    assert yard.at(2)[-1] == "finetune 1"


def test_an_idle_crew_that_does_not_suit_makes_room(yard):
    yard = yard()
    yard.ask("pretrain", 0, workers=2)
    yard.at(1)
    yard.through("pretrain 0")
    yard.ask("finetune", 1, workers=1)
    assert yard.at(2)[-1] == "finetune 1"
    assert [crew.alive for crew in yard.hired] == [False, True]


def test_a_large_stage_does_not_starve_behind_small_ones(yard):
    yard = yard()
    yard.ask("finetune", 0, workers=1)
    yard.at(1)
    yard.ask("finetune", 1, workers=2)
    yard.ask("finetune", 2, workers=1)
    yard.end("finetune 0")
    assert yard.at(2)[-1] == "finetune 1"


def test_workers_that_end_take_no_other_experiment_along(yard):
    yard = yard()
    yard.ask("finetune", 0)
    yard.at(1)
    yard.ask("finetune", 1)
    yard.hired[0].fails = RuntimeError("out of memory")
    yard.through("finetune 0")
    assert yard.at(2)[-1] == "finetune 1" and len(yard.hired) == 2
    assert [str(error) for error in yard.ended] == ["out of memory"]


def test_what_stands_in_line_ends_when_the_command_is_stopped(yard):
    yard = yard()
    yard.ask("finetune", 0)
    yard.at(1)
    waiting = yard.ask("finetune", 1)
    yard.stopped.set()
    waiting.join(10)
    assert [type(error) for error in yard.ended] == [KeyboardInterrupt] and yard.fleet.line == []


# ---- room


def test_a_stage_that_waits_for_room_says_what_it_needs_and_what_there_is(yard, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", -1)
    monkeypatch.setattr(module, "GLANCE", 0)
    yard = yard()
    yard.ask("pretrain", 0)
    yard.at(1)
    yard.ask("finetune", 1)
    yard.through("pretrain 0")
    yard.at(2)
    (told,) = yard.told
    assert isinstance(told, WaitingForResources) and told.kind == "finetune"
    assert resources_words(told) == "2 workers of 1 CPU; the cluster has 0.5 of 2 CPUs free"


def test_a_gpu_that_is_waited_for_is_named(yard):
    job = SimpleNamespace(train=Train(workers=1, cpus=8, gpu=True), stage=SimpleNamespace(kind="pretrain"))
    told = yard([{"CPU": 8.0, "GPU": 1.0}]).fleet.shortage(job)
    assert resources_words(told) == "1 worker of 8 CPUs and a GPU; the cluster has 0.5 of 8 CPUs and 0 of 1 GPUs free"


def test_a_lack_is_told_after_a_while_and_again_only_after_it_was_over(monkeypatch):
    now, said = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    short = Shortage(lambda: said.append(now[0]))
    for lacking, seconds in ((True, 100), (False, 10), (True, 30), (False, 10), (True, 60)):
        for _ in range(seconds):
            now[0] += 1
            short(lambda lacking=lacking: lacking)
    assert said == [35, 185]


def test_a_crew_of_changing_size_is_hired_where_the_fewest_find_room(yard):
    yard = yard([{"CPU": 4.0}])
    yard.ask("finetune", 0, workers=2)
    yard.ask("finetune", 1, workers=(2, 8))
    assert yard.at(2) == ["finetune 0", "finetune 1"] and yard.fleet.held() == 10
    yard.ask("finetune", 2, workers=1)
    assert len(yard.fleet.line) == 1  # it may want all that is left


@pytest.mark.parametrize(
    ("nodes", "train", "num", "room"),
    [
        ([{"CPU": 2}], Train(workers=2), 1, True),
        ([{"CPU": 2}], Train(workers=2), 2, False),
        ([{"CPU": 3}, {"CPU": 3}], Train(workers=1, cpus=2), 2, True),
        ([{"CPU": 3}, {"CPU": 3}], Train(workers=1, cpus=2), 3, False),  # six CPUs, and no two together are left
        ([{"CPU": 8, "GPU": 1}, {"CPU": 8}], Train(workers=1, gpu=True), 2, False),
        ([{"CPU": 8, "GPU": 4}], Train(workers=2, gpu=True), 2, True),
        ([{}, {"CPU": 0.4}], Train(workers=4, cpus=0.1), 1, True),
    ],
)
def test_workers_find_a_place_on_nodes_or_do_not(nodes, train, num, room):
    assert fits(nodes, workers_of(train, train.workers) * num) == room


@given(st.lists(st.integers(0, 4), max_size=4), st.lists(st.integers(1, 3), max_size=5))
def test_what_has_a_place_never_needs_more_than_there_is(nodes, workers):
    if fits([{"CPU": n} for n in nodes], [{"CPU": w, "GPU": 0} for w in workers]):
        assert sum(workers) <= sum(nodes)
