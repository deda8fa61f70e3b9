"""What this machine has for premed: CPUs, memory and GPUs, as far as a container lets it; folders, and what keeps from
writing to them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from premed.data.io.memory import memory, num_cpus
from premed.errors import Finding, UserError
from premed.paths import obstacle

PACKAGES = ("premed", "torch", "ray", "mlflow", "optuna")
DRIVERS = {
    11: 450,
    12: 525,
    13: 580,
}  # NVIDIA's least driver by CUDA's major version ("CUDA minor version compatibility")
DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # there is a GPU, with or without its tools
SECONDS = 10  # for nvidia-smi and for torch
SILENT = f"does not answer in {SECONDS} s; restart the driver or the machine"
SLOW = f"was not loaded in {SECONDS} s, so whether it can use this machine's GPU is not known; ask again"
LEAST_SHARED, LEAST_DISK, FULL = 1.0, 1.0, 0.95  # GB, GB, and the share from which on Ray ends tasks


def versions() -> dict[str, str]:
    """Of Python and PACKAGES, without importing them; `absent` for those that are not installed."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


# ---- CPUs and memory


def hardware() -> tuple[dict[str, Any], list[Finding]]:
    """CPUs, memory and shared memory."""
    total, free = memory()
    has: dict[str, Any] = {"cpus": round(num_cpus(), 2), "memory_gb": total, "memory_free_gb": free}
    findings = []
    if free < (1 - FULL) * total:
        what = f"{free:.1f} of {total:.1f} GB are free: Ray ends workers from {FULL:.0%} on; end other programs"
        findings.append(Finding("error", "memory", what))
    shared = Path("/dev/shm")
    if shared.is_dir():
        usage = shutil.disk_usage(shared)
        has |= {"shared_memory_gb": usage.total / 1e9, "shared_memory_free_gb": usage.free / 1e9}
        if usage.free < LEAST_SHARED * 1e9:
            what = (
                f"has {size(usage.free)} free, and Ray's objects and train.loaders go there; start the container with "
            )
            what += "--shm-size=8g (Kubernetes: an emptyDir of medium Memory), or set train.loaders=0"
            findings.append(Finding("note", str(shared), what))
    return has, findings


# ---- GPUs


def gpus() -> tuple[list[dict[str, Any]], list[Finding]]:
    """Each GPU (name, memory_gb, memory_free_gb, driver), by nvidia-smi; by torch where that is missing."""
    if not (tool := shutil.which("nvidia-smi")):
        if any(Path(device).exists() for device in DEVICES):
            return gpus_of_torch()
        return [], []
    fields = "name,memory.total,memory.free,driver_version"
    try:
        command = [tool, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
        output = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return [], [Finding("error", "nvidia-smi", SILENT)]
    except OSError as error:
        return [], [Finding("error", "nvidia-smi", f"{tool} cannot be run ({error.strerror}); reinstall the driver")]
    if output.returncode:
        reason = next(
            iter((output.stdout + output.stderr).strip().splitlines()), f"exit code {output.returncode}"
        ).rstrip(". ")
        return [], [Finding("error", "nvidia-smi", f"{reason}; install or restart NVIDIA's driver")]
    found = []
    for line in output.stdout.splitlines():
        cells = [each.strip() for each in line.split(",")]
        if len(cells) == len(fields.split(",")):  # else a warning
            sizes = [float(each) * 2**20 / 1e9 if each.isdecimal() else None for each in cells[1:3]]  # MIG: [N/A]
            found.append({"name": cells[0], "memory_gb": sizes[0], "memory_free_gb": sizes[1], "driver": cells[3]})
    return found, list(torch_and_driver(found))


def or_silent(answer: Any) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The answer of `gpus`; where none has come (None), or the question failed (an Answer), a finding in its place."""
    if isinstance(answer, tuple):
        return answer
    tool = shutil.which("nvidia-smi")
    if answer is not None:
        return [], [Finding("note", "GPUs", f"could not be asked ({answer.problem}); run nvidia-smi, or ask again")]
    return [], [Finding("error", "nvidia-smi", SILENT) if tool else Finding("note", "torch", SLOW)]


def torch_and_driver(found: list[dict[str, Any]]) -> Iterator[Finding]:
    """Whether the installed torch can use NVIDIA's GPUs, by the CUDA that it was built for."""
    if not found:
        return
    cuda, driver = torch_cuda(), found[0]["driver"].partition(".")[0]
    if cuda == "":
        yield Finding("error", "torch", "was built without CUDA and cannot use the GPUs; install PyPI's torch")
    elif cuda and driver.isdecimal() and int(driver) < (least := DRIVERS.get(int(cuda.partition(".")[0]), 0)):
        what = (
            f"was built for CUDA {cuda}, which needs a driver from {least} on, and this one is {found[0]['driver']}; "
        )
        yield Finding("error", "torch", what + "update the driver, or install a torch for an older CUDA")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield Finding("note", "CUDA_VISIBLE_DEVICES", "hides all GPUs; unset it to use them")


def torch_cuda() -> str | None:
    """The CUDA that torch was built for, from its file version.py; empty if for none, None if there is no such file."""
    spec = find_spec("torch")
    with suppress(OSError, TypeError):
        text = (Path(spec.origin).parent / "version.py").read_text()  # type: ignore[union-attr, arg-type]
        found = re.search(r"^cuda\b[^=]*= *'([^']+)'", text, re.M)
        return found[1] if found else ""
    return None


def gpus_of_torch() -> tuple[list[dict[str, Any]], list[Finding]]:
    """The same, as torch sees them, in a process of its own: some seconds."""
    code = "import torch\nfor i in range(torch.cuda.device_count()):\n  free, total = torch.cuda.mem_get_info(i)\n"
    code += "  print(torch.cuda.get_device_name(i), total, free, sep='\\t')"
    try:
        output = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return [], [Finding("note", "torch", SLOW)]
    rows = [line.split("\t") for line in output.stdout.splitlines()]
    if rows:
        return [
            {"name": a, "memory_gb": int(b) / 1e9, "memory_free_gb": int(c) / 1e9, "driver": ""} for a, b, c in rows
        ], []
    what = "this machine has a GPU and torch cannot use it: install its driver, or start the container with --gpus all"
    return [], [Finding("error", "torch", what)]


# ---- folders


def look_at(name: str, folder: Path) -> tuple[dict[str, Any], list[Finding]]:
    """A folder of state: where it is, the room on its disk; `name` is the variable or field that says where."""
    facts: dict[str, Any] = {"name": name, "path": str(folder), "exists": os.path.isdir(folder)}
    above = folder
    while not os.path.isdir(above) and above != above.parent:
        above = above.parent
    usage = shutil.disk_usage(above)
    facts |= {"free_gb": usage.free / 1e9, "total_gb": usage.total / 1e9}
    if reason := obstacle(folder):
        return facts, [Finding("error", name, f"{folder} {reason}; name a folder that you may write to")]
    if usage.free < LEAST_DISK * 1e9:
        what = f"{folder} has {size(usage.free)} free on its disk; make room, or name a folder elsewhere"
        return facts, [Finding("error", name, what)]
    return facts, []


def refuse_full_disk(name: str, folder: Path, needed: float, what: str) -> None:
    """Raises UserError if a folder's disk has less room than `needed` bytes. name: the field that says where it is."""
    above = folder
    while not os.path.isdir(above) and above != above.parent:
        above = above.parent
    if needed > (free := shutil.disk_usage(above).free):
        raise UserError(
            f"{name}: {folder} has {size(free)} free on its disk, and {what} need {size(needed)}; make room, or name a "
            "folder elsewhere"
        )


def size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
