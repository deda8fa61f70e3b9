"""What tests of comparisons do: made-up experiments in a run store, as `recorder.py` leaves them."""

import json
import re
from io import BytesIO

import numpy as np
from PIL import Image
from support.pages import Page

from premed.reporting.comparison import page as report
from premed.reporting.comparison.compare import compare

TREE = {
    "task": {"name": "chestxray14", "size": 16},
    "encoder": {"name": "vit", "width": 24},
    "training": {"epochs": 4, "lr": 1e-3, "head": {"name": "linear", "pool": "mean"}, "label_fraction": 1.0, "seed": 0},
}
MAE = {"pretext": {"name": "mae", "mask_ratio": 0.75}, "training": {"epochs": 9, "lr": 1e-3, "seed": 0}}
CLASSES = ("heart", "lung")


def xrays(value, seed=0, num=30, patients=10):
    """Rows of a classification that is the better the higher `value`."""
    rng = np.random.default_rng([num, seed])
    rows = []
    for i in range(num):
        row = {"case": f"c{i:03d}", "patient": f"p{i % patients}"}
        for k, name in enumerate(CLASSES):
            y = float((i + k) % 3 == 0)
            row |= {f"y/{name}": y, f"p/{name}": float(1 / (1 + np.exp(-value * y - rng.normal())))}
        rows.append(row)
    return rows


def exclusive(value, seed=0, num=60):
    """Rows of a classification into three classes, of one of which each image is."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(num):
        logits = rng.normal(size=3)
        logits[i % 3] += value
        p = np.exp(logits) / np.exp(logits).sum()
        row = {"case": f"c{i:03d}", "patient": f"p{i % 12}"}
        row |= {f"y/{name}": float(k == i % 3) for k, name in enumerate("abc")}
        rows.append(row | {f"p/{name}": float(p[k]) for k, name in enumerate("abc")})
    return rows


def volumes(value, seed=0, num=8):
    """Rows of a segmentation around a Dice of `value`; the second case has no lung, and its first organ is missed."""
    rng = np.random.default_rng([num, seed])
    rows = []
    for i in range(num):
        row = {"case": f"v{i}", "patient": f"p{i}"}
        for k, name in enumerate(CLASSES):
            state = {(1, 0): "missed", (1, 1): "absent"}.get((i, k), "both")
            score = float(np.clip(value + 0.05 * rng.normal(), 0, 1))
            row |= {f"dice/{name}": {"missed": 0.0, "absent": np.nan}.get(state, score)}
            row |= {f"hd95/{name}": {"missed": 99.0, "absent": np.nan}.get(state, 10 * (1 - score))}
            row[f"state/{name}"] = state
        rows.append(row)
    return rows


def merged(tree, change):
    return {
        name: merged(tree[name], change[name])
        if isinstance(tree.get(name), dict) and isinstance(change.get(name), dict)
        else change.get(name, tree.get(name))
        for name in {**tree, **change}
    }


def add(store, strategy="none", seed=0, rows=None, *, change=None, pretrain=None, pretrain_seed=0, **more):
    """An experiment with its stages; `pretrain`: what to change of its pre-training. The experiment's run id."""
    tree = merged(TREE, {"training": {"seed": seed, "label_fraction": more.get("fraction", 1.0)}})
    tree = merged(tree, change or {})
    task, tested, status = tree["task"]["name"], more.get("tested", True), more.get("status", "FINISHED")
    rows = rows if rows is not None else xrays(1 + (strategy != "none"), seed)
    tags = {"task": task, "strategy": strategy, "seed": str(seed), "score": more.get("score", "mauc")}
    about = {"tags": tags | {"label_fraction": f"{more.get('fraction', 1.0):g}"} | more.get("tags", {})}
    parent = store.start(task, f"{strategy} seed {seed}", digest=f"{strategy} {seed}", kind="experiment", **about)
    stages = {}

    def stage(kind, params, data, **metrics):
        tags = about["tags"] | {"premed.data": data, "compute": more.get("compute", "2 CPU")}
        run_id = store.start(task, kind, digest=kind, kind=kind, parent=parent, tags=tags, params={"stage": params})
        metrics = {"seconds": 60.0, "peak_memory_mb": 512.0} | metrics
        store.log_rows(run_id, [{"step": 0, "time": 0, "metrics": metrics}])
        if kind in ("finetune", "test"):
            store.log_scores(run_id, rows)
        store.finish(run_id)
        stages[f"{kind}_run"] = run_id

    if more.get("shared"):
        stages["pretrain_run"] = more["shared"]
    elif more.get("weights"):
        stage("import", {"pretext": {"name": strategy}, "training": None}, f"weights:{more['weights']}", seconds=1.0)
    elif strategy != "none":
        params = merged(merged(MAE, {"training": {"seed": pretrain_seed}}), pretrain or {})
        stage("pretrain", params, f"images:{more.get('learnt', 'aa')} val:bb", seconds=3600.0)
    stage("finetune", tree, more.get("data", "train:cc val:dd"))
    if tested:
        stage("test", tree, f"test:{more.get('test', 'ee')}", **{"test/constant": 0.5})
    store.set_tags(parent, stages)
    if status != "RUNNING":
        store.finish(parent, status)
    return parent


def in_order(store):
    """Makes the store give the newest run first within a millisecond, too; a list that takes the ids of all to come."""
    ids, start, search = [], store.start, store.search
    store.start = lambda *names, **more: ids.append(start(*names, **more)) or ids[-1]
    store.search = lambda tags: sorted(search(tags), key=lambda run: -ids.index(run.run_id))
    return ids


def variety(store):
    """Of nearly everything that a comparison tells, one example."""
    for seed in range(3):
        for fraction in (0.1, 1.0):
            add(store, "none", seed, fraction=fraction)
            add(store, "mae", seed, xrays(2.5 if fraction == 1 else 1.1, 10 * seed), fraction=fraction)
        add(store, "unimiss", seed + 4, xrays(1.2, seed), pretrain_seed=seed, compute="1 GPU")
        add(store, "none", seed, change={"encoder": {"name": "pixels", "width": None}})
        add(store, "none", seed, volumes(0.5, seed), change={"task": {"name": "btcv"}}, score="dice")
        add(store, "mae", seed, volumes(0.8, seed + 7), change={"task": {"name": "btcv"}}, score="dice")
        add(store, "mae", 0, volumes(0.5, 3), change={"task": {"name": "brats"}}, score="hd95", pretrain_seed=seed)
        add(store, "none", 0, [{"case": c, "patient": "p", "y/x": 0.0, "p/x": 0.2} for c in "ab"], tested=False,
            change={"task": {"name": "tiny"}, "training": {"seed": seed}})  # fmt: skip
    shared = next(run.run_id for run in store.search({}) if run.tags["premed.kind"] == "pretrain")
    for strategy in ("none", "mae"):
        add(store, strategy, 0, xrays(1.4, 2), change={"training": {"head": {"name": "probe"}}}, shared=shared)
    add(store, "mae", 3, xrays(0.2, 5), shared=shared, weights="aaa")
    add(store, "mae", 0, tested=False)
    add(store, "mae", 0, status="RUNNING")


# ---- what a comparison holds


def block_of(result, number=0):
    (task,) = result.tasks
    return task.blocks[number]


def arm_of(result, label="mae", number=0, fraction=1.0):
    (arm,) = [arm for arm in block_of(result, number).rows if (arm.label, arm.label_fraction) == (label, fraction)]
    return arm


def score_of(result, label="mae", **more):
    return arm_of(result, label, **more).scores[result.tasks[0].score]


def difference_of(result, label="mae", **more):
    return score_of(result, label, **more).difference


# ---- its page


def png(width=40, height=20) -> bytes:
    Image.new("RGB", (width, height)).save(file := BytesIO(), "PNG")
    return file.getvalue()


def leave(store, run_id, folder, losses=(), gate=None, pictures=(), result=None, time=0, more=()):
    """Gives a stage's run a curve, pictures and, if there is one, a result. time: of the curve's points, in ms.

    more: what each point has besides.
    """
    folder.mkdir(parents=True)
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
        store.log_files(run_id, folder / "result.json")
    points = [
        {"step": 10 * i, "time": time, "metrics": {"val/loss": loss} | ({"val/gate": gate} if gate else {})}
        for i, loss in enumerate(losses, start=1)
    ]
    for point, numbers in zip(points, more, strict=False):
        point["metrics"] |= numbers
    (folder / "curve.jsonl").write_text("\n".join(map(json.dumps, points)))
    store.log_files(run_id, folder / "curve.jsonl")
    for name, content in pictures:
        (folder / name).write_bytes(content)
        store.log_files(run_id, folder / name, "pictures")


def stages(store, strategy, seed=0, fraction=1.0):
    (arm,) = (
        arm
        for arm in compare(store).tasks[0].blocks[0].rows
        if (arm.strategy, arm.label_fraction) == (strategy, fraction)
    )
    return next(run.stages for run in arm.runs if run.seed == str(seed))


def built(store, **more) -> Page:
    page = Page(report.page(compare(store), store, **more))
    assert page.open == [] and "script" not in page.tags and "link" not in page.tags
    assert all(re.match("data:image/(png|svg[+]xml);base64,", each) for each in page.loads)
    return page
