"""A real Slurm of several nodes on one machine, for tests: Debian's slurmctld and slurmd, each on a machine of its own.

Without root, iproute2 or Slurm tests are skipped by name.
"""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from integration.clusters import BIN, ONLY_OURS, PATIENT, end
from integration.machines import Machine, machines

CONTROL = "control"
JOBS = 2
CONFIGURATION = """\
ClusterName=premed
SlurmctldHost={control.name}({control.address})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=300
FirstJobId={first_job}
"""


@dataclass(frozen=True)
class Slurm:
    """`folder`, which all nodes see, holds configuration, state and logs."""

    folder: Path
    control: Machine

    def ask(self, *words: str, cwd: Path | None = None, **more: str) -> str:
        """What one of Slurm's commands says on the machine that controls the others. more: environment."""
        environment = {name: value for name, value in os.environ.items() if name not in ONLY_OURS}
        environment |= (
            PATIENT | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{BIN}:{os.environ['PATH']}"} | more
        )
        command = [*self.control.inside({Path("/etc/hosts"): self.folder / "hosts"}), *words]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """A job's fields, as Slurm shows them."""
        shown = self.ask("scontrol", "show", "job", number, "--oneliner")
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def wait_for(self, number: str, state: str, seconds: float) -> dict[str, str]:
        """Until a job has that state; its fields."""
        for _ in range(int(seconds / 2)):
            if (job := self.job(number))["JobState"] == state:
                return job
            if job["JobState"] in ("FAILED", "CANCELLED", "TIMEOUT", "COMPLETED"):
                raise RuntimeError(f"job {number} is {job['JobState']} with {job['ExitCode']}")
            self.refuse_held(job)
            time.sleep(2)
        raise TimeoutError(f"job {number} is {job['JobState']} ({job.get('Reason')}), not {state}")

    def refuse_held(self, job: dict[str, str]) -> None:
        """Raises RuntimeError, with what the nodes wrote, if the job did not start and never will."""
        if "held" in job["Reason"]:
            logs = "\n".join(log.read_text()[-1000:] for log in sorted(self.folder.glob("*/slurmd.log")))
            raise RuntimeError(f"job {job['JobId']} is held: {job['Reason']}\n{logs}")


@contextmanager
def slurm(*names: str) -> Iterator[Slurm]:
    """A controller and a node of one CPU per name, up and idle; for `JOBS` jobs."""
    if absent := [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(name)]:
        pytest.skip(f"{', '.join(absent)}: not installed: apt-get install slurmctld slurmd slurm-client munge")
    with machines(CONTROL, *names) as (control, *nodes), ExitStack() as stack:
        # short, not pytest's: with more than 108 letters slurmd makes no socket for a job, which is then held for ever
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="slurm-", dir="/tmp")))
        jobs = range(first_job := 1000 + secrets.randbelow(2**20), first_job + JOBS)
        for job in jobs:  # where premed.sbatch has Ray's files, which no two nodes share
            Path(f"/tmp/premed-{job}").mkdir()
            stack.callback(shutil.rmtree, f"/tmp/premed-{job}", ignore_errors=True)
        found = Slurm(folder, control)
        configure(found, nodes, first_job)

        def daemon(machine: Machine, disks: dict[Path, Path], *command: str | Path) -> None:
            own = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]  # ray stop ends what its node runs
            own += ["sh", "-c", '"$@" & wait', "sh"]  # and a shell buries the orphans, for which Slurm would wait
            environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
            with (folder / f"{machine.name}-{Path(command[0]).name}.log").open("w") as log:
                started = subprocess.Popen(
                    [*machine.inside(disks | {Path("/etc/hosts"): folder / "hosts"}), *own, *command],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            stack.callback(end, started)

        munge = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("key-file", "pid-file", "seed-file")]
        munge += [f"--socket={folder}/munge.socket", f"--log-file={folder}/munge.log", "--force", "--foreground"]
        daemon(control, {}, "munged", *munge)
        until_there(folder / "munge.socket")
        daemon(control, {}, "slurmctld", "-D")
        for node in nodes:
            own = {Path(f"/tmp/premed-{job}"): folder / node.name / f"ray-{job}" for job in jobs}
            for path in own.values():
                path.mkdir(parents=True)
            daemon(node, own, "slurmd", "-D")
        wait_idle(found, len(nodes))
        yield found


def configure(slurm: Slurm, nodes: list[Machine], first_job: int) -> None:
    """Writes slurm.conf, the nodes' /etc/hosts and munge's key."""
    folder = slurm.folder
    (folder / "state").mkdir()
    lines = [CONFIGURATION.format(folder=folder, control=slurm.control, first_job=first_job)]
    lines += [f"NodeName={node.name} NodeAddr={node.address} CPUs=1 State=UNKNOWN\n" for node in nodes]
    lines += ["PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"]
    (folder / "slurm.conf").write_text("".join(lines))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    known = [f"{machine.address} {machine.name}\n" for machine in (slurm.control, *nodes)]
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(known))
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o400)


def until_there(path: Path) -> None:
    for _ in range(100):
        if path.exists():
            return
        time.sleep(0.1)
    raise TimeoutError(f"{path} did not come")


def wait_idle(slurm: Slurm, number: int) -> None:
    """Until so many nodes are idle."""
    answer = ""
    for _ in range(60):
        try:
            answer = slurm.ask("sinfo", "--noheader", "--Node", "--format=%N %T")
        except AssertionError as error:
            answer = str(error)
        if answer.split().count("idle") == number:
            return
        time.sleep(1)
    logs = [*slurm.folder.glob("*.log"), *slurm.folder.glob("*/*.log")]
    raise TimeoutError("\n".join([answer, *(f"{log}:\n{log.read_text()[-3000:]}" for log in logs)]))
