"""Which stage runs next, and on which worker group: groups here are stand-ins that work until they are released."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premed.cli.messages import resources_words
from premed.config.settings import Train
from premed.events import WaitingForResources
from premed.execution import scheduler as module
from premed.execution.cluster import fits, workers_of
from premed.execution.scheduler import Scheduler, ShortageNotice, Ticket

TWO = [{"CPU": 2.0}]


class Group:
    """Works at a job until `finish`; notes what it was asked to do."""

    def __init__(self, job, note):
        self.train, self.note, self.alive, self.fails = job.train, note, True, None
        self.finish = threading.Semaphore(0)

    def suits(self, job):
        return self.alive and self.train == job.train

    def run(self, job, events, report, pause, shortage=None):
        self.note(job.name, self)
        self.finish.acquire()
        if self.fails:
            self.alive = False
            raise self.fails
        return True

    def dismiss(self):
        self.alive = False

    close = dismiss


class Command:
    """A scheduler, and the threads of the experiments."""

    def __init__(self, nodes=TWO):
        self.stopped = threading.Event()
        self.groups, self.begun, self.threads, self.ended = [], [], {}, []
        self.change = threading.Condition()
        self.scheduler = Scheduler(self.start_group, lambda: nodes, lambda: {"CPU": 0.5})
        self.events = []

    def start_group(self, job):
        self.groups.append(group := Group(job, self.noted))
        return group

    def pause(self, seconds):
        if self.stopped.wait(seconds):
            raise KeyboardInterrupt

    def noted(self, name, group):
        with self.change:
            self.begun.append((name, group))
            self.change.notify_all()

    def ask(self, kind, number, workers=2, gpu=False):
        """Experiment `number` runs a stage, in a thread of its own. Returns when that is queued or has a group."""
        train, name = Train(workers=workers, gpu=gpu), f"{kind} {number}"
        job = SimpleNamespace(train=train, stage=SimpleNamespace(kind=kind), name=name)

        def work():
            try:
                self.scheduler.run(job, self.events.append, None, Ticket(number, self.pause))
                self.ended.append(name)
            except BaseException as error:  # noqa: BLE001
                self.ended.append(error)

        asked = len(self.begun) + len(self.scheduler.line)
        self.threads[name] = thread = threading.Thread(target=work, daemon=True)
        thread.start()
        with self.change:
            self.change.wait_for(lambda: len(self.begun) + len(self.scheduler.line) > asked, 10)
            while len(self.begun) + len(self.scheduler.line) <= asked and thread.is_alive():
                self.change.wait(0.01)
        return thread

    def at(self, num):
        """The first `num` stages that were begun, once they were."""
        with self.change:
            assert self.change.wait_for(lambda: len(self.begun) >= num, 20), self.begun
        return [name for name, _ in self.begun]

    def finish(self, stage):
        """The stage is done, and its experiment has its result."""
        next(group for name, group in self.begun if name == stage).finish.release()
        self.threads[stage].join(10)

    def end(self, stage):
        """The stage is done, and its experiment over."""
        self.finish(stage)
        self.scheduler.release(int(stage.split()[1]))


@pytest.fixture
def command():
    made = []

    def make(*args):
        made.append(Command(*args))
        return made[-1]

    yield make
    for each in made:
        each.stopped.set()
        for group in each.groups:
            group.finish.release(100)
        for thread in each.threads.values():
            thread.join(10)


def test_one_group_goes_from_stage_to_stage_where_there_is_room_for_no_other(command):
    command = command()
    command.ask("pretrain", 0)
    command.at(1)
    command.ask("finetune", 1)
    command.finish("pretrain 0")
    assert command.at(2) == ["pretrain 0", "finetune 1"] and len(command.groups) == 1


def test_as_many_at_once_as_there_is_room_for(command):
    command = command()
    for number in range(3):
        command.ask("finetune", number, workers=1)
    assert command.at(2) == ["finetune 0", "finetune 1"] and len(command.scheduler.line) == 1
    command.end("finetune 1")
    assert command.at(3)[2] == "finetune 2" and len(command.groups) == 2


def test_pre_trainings_go_first_then_the_order_of_the_experiments_counts(command):
    command = command()
    command.ask("finetune", 0)
    command.at(1)
    for kind, number in (("finetune", 3), ("finetune", 2), ("pretrain", 4), ("pretrain", 1)):
        command.ask(kind, number)
    for done, stage in enumerate(["finetune 0", "pretrain 1", "pretrain 4", "finetune 2"], start=1):
        assert command.at(done)[-1] == stage
        command.end(stage)
    assert command.at(5)[-1] == "finetune 3"


def test_a_test_comes_right_after_its_fine_tuning(command):
    command = command()
    command.ask("finetune", 0)
    command.at(1)
    command.ask("finetune", 1)
    command.finish("finetune 0")
    assert command.at(1) == ["finetune 0"]  # the group waits for it while the fine-tuning is recorded
    command.ask("test", 0)
    assert command.at(2)[-1] == "test 0"
    command.finish("test 0")
    assert command.at(3)[-1] == "finetune 1" and len(command.groups) == 1


def test_an_experiment_that_waits_holds_no_group(command):
    command = command()
    command.ask("finetune", 0)
    command.at(1)
    command.ask("finetune", 1)
    command.finish("finetune 0")
    command.scheduler.release(0)
    assert command.at(2)[-1] == "finetune 1"


def test_an_idle_group_that_does_not_suit_makes_room(command):
    command = command()
    command.ask("pretrain", 0, workers=2)
    command.at(1)
    command.finish("pretrain 0")
    command.ask("finetune", 1, workers=1)
    assert command.at(2)[-1] == "finetune 1"
    assert [group.alive for group in command.groups] == [False, True]


def test_a_large_stage_does_not_starve_behind_small_ones(command):
    command = command()
    command.ask("finetune", 0, workers=1)
    command.at(1)
    command.ask("finetune", 1, workers=2)
    command.ask("finetune", 2, workers=1)
    command.end("finetune 0")
    assert command.at(2)[-1] == "finetune 1"


def test_workers_that_end_stop_no_other_experiment(command):
    command = command()
    command.ask("finetune", 0)
    command.at(1)
    command.ask("finetune", 1)
    command.groups[0].fails = RuntimeError("out of memory")
    command.finish("finetune 0")
    assert command.at(2)[-1] == "finetune 1" and len(command.groups) == 2
    assert [str(error) for error in command.ended] == ["out of memory"]


def test_a_queued_stage_ends_when_the_command_is_stopped(command):
    command = command()
    command.ask("finetune", 0)
    command.at(1)
    waiting = command.ask("finetune", 1)
    command.stopped.set()
    waiting.join(10)
    assert [type(error) for error in command.ended] == [KeyboardInterrupt] and command.scheduler.line == []


# ---- room


def test_a_stage_that_waits_for_room_says_what_it_needs_and_what_there_is(command):
    job = SimpleNamespace(train=Train(workers=2), stage=SimpleNamespace(kind="finetune"))
    notice = command().scheduler.shortage(job)
    assert isinstance(notice, WaitingForResources) and notice.kind == "finetune"
    assert resources_words(notice) == "2 workers of 1 CPU; the cluster has 0.5 of 2 CPUs free"
    enough = replace(notice, free={"CPU": 2.0})
    assert resources_words(enough).endswith("the cluster has 2 of 2 CPUs free: others start or end just now")


def test_a_stage_that_waits_for_others_of_its_own_command_says_nothing(command, monkeypatch):
    monkeypatch.setattr(module, "SHORTAGE_NOTICE", -1)
    monkeypatch.setattr(module, "SHORTAGE_POLL", 0)
    command = command()
    command.ask("pretrain", 0)
    command.at(1)
    command.ask("finetune", 1)
    command.finish("pretrain 0")
    command.at(2)
    assert command.events == []


def test_a_gpu_that_is_waited_for_is_named(command):
    job = SimpleNamespace(train=Train(workers=1, cpus=8, gpu=True), stage=SimpleNamespace(kind="pretrain"))
    notice = command([{"CPU": 8.0, "GPU": 1.0}]).scheduler.shortage(job)
    assert resources_words(notice) == "1 worker of 8 CPUs and a GPU; the cluster has 0.5 of 8 CPUs and 0 of 1 GPUs free"


def test_a_shortage_is_reported_after_a_while_and_again_only_after_it_was_over(monkeypatch):
    now, notices = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    short = ShortageNotice(lambda: notices.append(now[0]))
    for lacking, seconds in ((True, 100), (False, 10), (True, 30), (False, 10), (True, 60)):
        for _ in range(seconds):
            now[0] += 1
            short(lambda lacking=lacking: lacking)
    assert notices == [35, 185]


def test_a_group_of_changing_size_is_started_where_the_fewest_find_room(command):
    command = command([{"CPU": 4.0}])
    command.ask("finetune", 0, workers=2)
    command.ask("finetune", 1, workers=(2, 8))
    assert command.at(2) == ["finetune 0", "finetune 1"] and command.scheduler.held() == 10
    command.ask("finetune", 2, workers=1)
    assert len(command.scheduler.line) == 1  # it may want all that is left


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
