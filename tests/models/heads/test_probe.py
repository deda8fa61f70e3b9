"""heads/probe.py and closed_form.py: scikit-learn's answers, out of the same stages as any other head's."""

from functools import reduce
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.stages import jobs, outcome, run
from torch.nn import functional as F

from premed.config.compose import merge
from premed.config.plugins import plugin
from premed.contracts import Features, Sample
from premed.data import datamodule
from premed.data.phantoms.writers import write_chestxray14
from premed.errors import UserError
from premed.models.encoders import pixels
from premed.models.heads import probe
from premed.tasks.common.label_maps import patch_means
from premed.tasks.common.segmentation import Regions, Segmentation
from premed.training import closed_form, stage

FINE = 0


def head(num_classes: int, width: int = 5, exclusive: bool = False, labels=(), grid=(1, 1), **config) -> probe.Probe:
    classes = tuple("abcdefgh"[:num_classes])
    task: Any = SimpleNamespace(classes=classes, exclusive=exclusive, labels=labels, name="made")
    return probe.build(probe.Config(**config), SimpleNamespace(width=width, grid=grid), task)  # type: ignore[arg-type]


def features(n: int = 80, width: int = 5) -> np.ndarray:
    """Of very different means and sizes."""
    generator = np.random.default_rng(0)
    return (generator.normal(size=(n, width)) * [0.1, 1, 5, 0.2, 30] + [3, 0, -20, 1, 100]).astype(np.float32)


def findings(x: np.ndarray, num_classes: int = 3) -> np.ndarray:
    generator = np.random.default_rng(1)
    return (StandardScaler().fit_transform(x)[:, :num_classes] + generator.normal(size=(len(x), num_classes)) > 0) * 1.0


def solutions(of: probe.Probe, x: np.ndarray, y: np.ndarray):
    """For each solution: the Solution, and the logits [n, classes] of the same rows, as a network gives them."""
    tokens = torch.from_numpy(x)[:, None]
    for solution in of.solve(torch.from_numpy(x), torch.from_numpy(y)):
        with torch.no_grad():
            yield solution, of(torch.empty(0), Features(tokens=tokens, grid=(1, 1))).double().numpy()


def reference(x: np.ndarray, y: np.ndarray, strength: float, **fit) -> np.ndarray:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    return model.fit(x.astype(float), y, **fit).predict_proba(x.astype(float))


# The answers are scikit-learn's ---------------------------------------------------------------------------------------


def test_each_finding_is_scikit_learns_logistic_regression_on_standardised_features():
    x, y = features(), findings(features())
    for solution, logits in solutions(head(3), x, y):
        expected = np.stack([reference(x, y[:, k], solution.metrics["strength"])[:, 1] for k in range(3)], axis=1)
        np.testing.assert_allclose(expit(logits), expected, atol=1e-6)
        loss = -(y * np.log(expected) + (1 - y) * np.log(1 - expected)).mean()
        assert solution.loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_exclusive_classes_are_scikit_learns_multinomial_regression(num_classes):
    x = features()
    kind = findings(x, 2) @ [1, 2] % num_classes
    for solution, logits in solutions(head(num_classes, exclusive=True), x, np.eye(num_classes)[kind.astype(int)]):
        expected = reference(x, kind, solution.metrics["strength"])
        np.testing.assert_allclose(np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None]), expected, atol=1e-6)


def test_labels_that_are_not_known_count_for_nothing():
    x, y = features(), findings(features())
    y[::3, 1] = np.nan
    known, scaler = ~np.isnan(y[:, 1]), StandardScaler().fit(x.astype(float))
    scaled = scaler.transform(x.astype(float))
    model = LogisticRegression(C=0.1, max_iter=1000).fit(scaled[known], y[known, 1])
    ((_, logits),) = solutions(head(3, strengths=(0.1,)), x, y)
    np.testing.assert_allclose(expit(logits[:, 1]), model.predict_proba(scaled)[:, 1], atol=1e-6)


def test_a_finding_with_one_kind_of_label_answers_its_frequency_and_is_named():
    x, y = features(), findings(features())
    y[:, 1], y[:, 2], y[10:, 2] = 0, 1, np.nan
    ((solution, logits),) = solutions(head(3, strengths=(0.1,)), x, y)
    np.testing.assert_allclose(logits[:, 1], logit(0.5 / 81), rtol=1e-5)
    np.testing.assert_allclose(logits[:, 2], logit(10.5 / 11), rtol=1e-5)
    assert [text.split(" has ")[0] for text in solution.warnings] == ["probe: b", "probe: c"]
    assert np.isfinite(solution.loss)


def test_an_exclusive_class_without_a_case_is_rarer_than_one_case_and_is_named():
    x = features()
    kind = 2 * findings(x, 1)[:, 0].astype(int)
    ((solution, logits),) = solutions(head(3, exclusive=True, strengths=(0.1,)), x, np.eye(3)[kind])
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
    assert 0 < shares[:, 1].max() < 1 / 80
    np.testing.assert_allclose(shares[:, 2] / (shares[:, 0] + shares[:, 2]), reference(x, kind, 0.1)[:, 1], atol=1e-6)
    assert solution.warnings == ["probe: b is in no training case: it is predicted with the frequency of half a case"]


def test_a_feature_that_never_varies_changes_nothing():
    x, y = features(), findings(features())
    x[:, 4] = 7
    ((_, logits),) = solutions(head(3, strengths=(0.1,)), x, y)
    ((_, without),) = solutions(head(3, width=4, strengths=(0.1,)), x[:, :4], y)
    np.testing.assert_allclose(logits, without, atol=1e-4)


def test_rows_of_unknown_exclusive_classes_count_for_nothing():
    x = features()
    kind = findings(x, 2) @ [1, 2] % 3
    y, known = np.eye(3)[kind.astype(int)], np.arange(len(x)) % 4 > 0
    y[~known] = np.nan
    scaled = StandardScaler().fit_transform(x.astype(float))
    model = LogisticRegression(C=0.1, max_iter=1000).fit(scaled[known], kind[known])
    ((solution, logits),) = solutions(head(3, exclusive=True, strengths=(0.1,)), x, y)
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
    np.testing.assert_allclose(shares, model.predict_proba(scaled), atol=1e-6)
    assert solution.loss == pytest.approx(-np.log(shares[known][y[known] == 1]).mean(), rel=1e-5)
    assert solution.warnings == []


# Label maps -----------------------------------------------------------------------------------------------------------


class Volumes(Segmentation):
    roi, classes = (4, 4, 2), ("background", "a", "b")


class Parts(Regions):
    roi, classes, regions = (4, 4, 2), ("whole", "core"), {"whole": (1, 2), "core": (2,)}  # type: ignore[assignment]
    labels = (0, 1, 2)  # type: ignore[assignment]


def made() -> Any:
    """Half of the first patch is 1, all of the last one 2."""
    label = np.zeros((4, 4, 2), np.uint8)
    label[0, :2], label[2:, 2:] = 1, 2
    return Sample(None, SimpleNamespace(shape=label.shape, label=lambda start, roi: label))  # type: ignore[arg-type]


def test_a_patch_has_the_classes_shares():
    (shares,) = Volumes().label_fractions(made(), (2, 2, 2))
    assert shares[:, :, :, 0].tolist() == [[[0.5, 1], [1, 0]], [[0.5, 0], [0, 0]], [[0, 0], [0, 1]]]
    (shares,) = Parts().label_fractions(made(), (2, 2, 2))
    assert shares[:, :, :, 0].tolist() == [[[0.5, 0], [0, 1]], [[0, 0], [0, 1]]]


def test_patches_in_raster_order_match_the_tokens_of_the_encoder():
    from premed.models.patches import patchify

    mask = np.random.default_rng(0).random((4, 6, 2)) > 0.5
    expected = patchify(torch.from_numpy(mask)[None, None].float(), (2, 3, 1)).mean(dim=2)[0]
    np.testing.assert_allclose(patch_means(mask, (2, 3, 1)).flatten(), expected, atol=1e-7)


def soft(num_classes: int) -> np.ndarray:
    shares = np.random.default_rng(2).dirichlet([0.2] * num_classes, size=80)
    return np.where(shares < 0.05, 0, shares) / np.where(shares < 0.05, 0, shares).sum(axis=1, keepdims=True)


def test_a_share_weighs_as_if_every_voxel_had_its_patchs_features():
    """Patches of 20 voxels with one label each, written out voxel by voxel, weigh a twentieth each."""
    x, counts = features(), np.random.default_rng(2).multinomial(20, [0.8, 0.15, 0.05], size=80)
    scaled = StandardScaler().fit_transform(x.astype(float))
    voxels = np.repeat(scaled, 20, axis=0)
    labels = np.concatenate([np.repeat(np.arange(3), some) for some in counts])
    model = LogisticRegression(C=0.1 / 20, max_iter=1000, tol=1e-8).fit(voxels, labels)
    of = head(3, exclusive=True, labels=(0, 1, 2), grid=(80, 1), strengths=(0.1,), priors=(0.0,))
    next(of.solve(torch.from_numpy(x), torch.from_numpy(counts / 20)))
    ours = of.linear(torch.from_numpy(x)).softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(ours, model.predict_proba(scaled), atol=1e-3)


@pytest.mark.parametrize("grid", [(2, 3), (2, 3, 2)])
def test_the_logits_of_patches_are_interpolated_to_voxels(grid):
    of = head(3, labels=(0, 1, 2), grid=grid)
    torch.nn.init.normal_(of.fc.weight)
    tokens, size = torch.randn(2, int(np.prod(grid)), 5), tuple(4 * n for n in grid)
    answer = of(torch.empty(2, 1, *size), Features(tokens=tokens, grid=grid))
    maps = of.linear(tokens).float().transpose(1, 2).reshape(2, 3, *grid)
    expected = F.interpolate(maps, size=size, mode="bilinear" if len(grid) == 2 else "trilinear")
    torch.testing.assert_close(answer, expected)


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_prior_that_is_taken_off_shifts_the_logits_by_the_classes_frequencies(exclusive):
    x, y = features(), soft(3)
    of = head(3, exclusive=exclusive, labels=(0, 1, 2), grid=(80, 1), strengths=(0.1,), priors=(0.0, 0.5, 1.0))
    found = [
        of.linear(torch.from_numpy(x)).detach().numpy() for _ in of.solve(torch.from_numpy(x), torch.from_numpy(y))
    ]
    shift = np.log(y.mean(axis=0)) if exclusive else logit(y.mean(axis=0))
    for prior, logits in zip((0.0, 0.5, 1.0), found, strict=True):
        np.testing.assert_allclose(found[0] - logits, np.broadcast_to(prior * shift, (80, 3)), atol=1e-4)


def test_the_class_token_of_label_maps_is_refused_by_name():
    with pytest.raises(UserError, match=r"finetune\.head\.pool: cls .* leave it out"):
        head(3, labels=(0, 1, 2), pool="cls")


# Stages ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "chest"
    return write_chestxray14(folder, num_patients=24, seed=1, size=32, prevalence=0.6)


PROBE = {"pretext": {"name": "none"}, "finetune": {"head": {"name": "probe", "strengths": [0.001, 0.1, 0.01]}}}


def together(*trees):
    return reduce(merge, trees)


def staged(job):
    stage.run_stage(job, lambda event: None, lambda numbers: None)
    assert job.stage_storage.get_json("failure.json") is None, job.stage_storage.get_json("failure.json")
    return job.stage_storage.get_json("result.json")


def test_the_encoder_stays_bit_for_bit_what_it_was(chest, tmp_path):
    job = jobs(chest, tmp_path, **PROBE)["finetune"]
    before = stage.make_objective(job, datamodule.stage_data_sets(job.stage))[0].parts["encoder"].state_dict()
    staged(job)
    after = load(job.stage_storage.get("parts/encoder.safetensors"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert load(job.stage_storage.get("parts/head.safetensors"))["fc.weight"].abs().max() > 0


def test_val_picks_one_of_all_strengths_and_the_test_part_is_scored_with_it(chest, tmp_path):
    chain = jobs(chest, tmp_path, **PROBE)
    result = staged(chain["finetune"])
    rows = [metrics for _, metrics in outcome(chain["finetune"])["curve"]]
    scores = {row["train/strength"]: row for row in rows if "train/strength" in row}
    assert list(scores) == [0.001, 0.1, 0.01] and result["num_steps"] == 3
    val = [row["val/mauc"] for row in rows if "val/mauc" in row]
    assert result["best_step"] == 1 + int(np.argmax(val)) and result["summary"]["val/mauc"] == max(val)
    assert staged(chain["test"])["loaded"]["head"] == {"loaded": 2, "missing": []}


def test_the_constant_answers_rows_lie_beside_the_scores(chest, tmp_path):
    chain = jobs(chest, tmp_path, **PROBE)
    staged(chain["finetune"])
    result = staged(chain["test"])
    task = plugin("tasks", chain["test"].stage.task).build(chain["test"].stage.task)
    rows, scores = (chain["test"].stage_storage.get_json(name) for name in ("constant.json", "scores.json"))
    assert [row["case"] for row in rows] == [row["case"] for row in scores]
    assert task.summary(rows)[task.score] == result["constant"]


@pytest.mark.slow
def test_two_ranks_solve_to_the_same_weights_as_one(chest, tmp_path):
    found = []
    for world in (1, 2):
        job = jobs(chest, tmp_path / f"{world}", **PROBE)["finetune"]
        assert run(job, world) == [FINE] * world
        found.append(outcome(job))
    assert found[0].keys() == found[1].keys()
    assert all(found[0][name] == found[1][name] for name in found[0] if name.startswith("parts/"))
    assert found[0]["summary"] == pytest.approx(found[1]["summary"])


@pytest.mark.slow
def test_a_killed_probe_goes_on_to_the_same_end(chest, tmp_path):
    settings = {**PROBE, "train": {"log_steps": 1}}
    job, other = (jobs(chest, tmp_path / name, **settings)["finetune"] for name in ("killed", "undisturbed"))
    assert run(job, kill="saved 2") == [-9]
    assert run(job) == run(other) == [FINE]
    assert outcome(job) == outcome(other)


def test_few_labels_are_those_that_fine_tuning_would_see(chest, tmp_path):
    for share in (0.3, 1.0):
        job = jobs(chest, tmp_path, **together(PROBE, {"finetune": {"label_fraction": share}}))["finetune"]
        task = plugin("tasks", job.stage.task).build(job.stage.task)
        assert staged(job)["num_cases"] == len(
            datamodule.label_subset(task.split("train"), share, job.stage.training.seed)
        )


def test_features_that_are_not_finite_are_refused_by_the_image_s_name(chest, tmp_path, monkeypatch):
    job = jobs(chest, tmp_path, **PROBE)["finetune"]
    with monkeypatch.context() as patched:
        patched.setattr(probe.Probe, "rows", lambda self, features: features.tokens[:, :1] * float("nan"))
        stage.run_stage(job, lambda event: None, lambda numbers: None)
    failure = job.stage_storage.get_json("failure.json")
    assert failure["kind"] == "UserError" and ".png: its features are not finite" in failure["message"]


def test_each_warning_of_a_head_is_emitted_once(chest, tmp_path):
    job, events = jobs(chest, tmp_path, **PROBE)["finetune"], []
    solve = probe.Probe.solve
    task = plugin("tasks", job.stage.task).build(job.stage.task)
    objective, _ = stage.make_objective(job, datamodule.stage_data_sets(job.stage))
    train, _ = (stage.prepared(job, task, part) for part in datamodule.stage_cases(job.stage, task))

    class Warned(probe.Probe):
        def solve(self, rows, shares):
            shares[:, 0] = 0
            return solve(self, rows, shares)

    objective.network.head.__class__ = Warned  # type: ignore[union-attr]
    closed_form.solve(objective, train, lambda *_: None, on_event=events.append)  # type: ignore[arg-type]
    name = task.classes[0]
    messages = [event.text for event in events if name in event.text]
    assert messages == [
        f"probe: {name} has only one kind of label in training: it is predicted with its frequency there"
    ]


# Pixels ---------------------------------------------------------------------------------------------------------------

PIXELS = {**PROBE, "encoder": {"name": "pixels", "edge": 8}}


def test_pixels_and_the_probe_are_logistic_regression_on_the_averaged_pixels(chest, tmp_path):
    job = jobs(chest, tmp_path, **PIXELS)["finetune"]
    result = staged(job)
    task = plugin("tasks", job.stage.task).build(job.stage.task)
    train, val = (stage.prepared(job, task, part) for part in datamodule.stage_cases(job.stage, task))

    def averaged(samples):
        return np.stack([task.tiles(s)[0].reshape(8, 4, 8, 4).mean(axis=(1, 3)).ravel() for s in samples]).astype(float)

    strength = PROBE["finetune"]["head"]["strengths"][result["best_step"] - 1]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    labels, rows = np.array([sample.case.label for sample in train]), job.stage_storage.get_json("scores.json")
    compared = 0
    for k, name in enumerate(task.classes):
        if len(set(labels[:, k])) == 2:
            expected = model.fit(averaged(train), labels[:, k]).predict_proba(averaged(val))[:, 1]
            np.testing.assert_allclose([row[f"p/{name}"] for row in rows], expected, atol=1e-5)
            compared += 1
    assert compared > 3


def test_pixels_go_through_all_stages_with_any_head(chest, tmp_path):
    for name in ("probe", "linear"):
        chain = jobs(chest, tmp_path, **together(PIXELS, {"finetune": {"head": {"name": name}, "steps": 1}}))
        assert staged(chain["finetune"])["num_steps"] and staged(chain["test"])["loaded"]["encoder"]["loaded"] == 0


@pytest.mark.parametrize("dims", [2, 3])
def test_pixels_are_averages_at_the_edge_or_the_image_itself_where_it_is_smaller(dims):
    roi = (64, 96, 8)[:dims]
    encoder = pixels.build(pixels.Config(), 2, roi)
    image = torch.randn(3, 2, *roi)
    seen = encoder(image)
    edge = (32, 16)[dims - 2]
    assert encoder.size == tuple(min(edge, n) for n in roi)
    assert seen.tokens.shape == (3, 1, encoder.width) and seen.summary is not None
    torch.testing.assert_close(seen.summary.mean(dim=1), image.flatten(1).mean(dim=1), atol=1e-5, rtol=1e-4)
    small = pixels.build(pixels.Config(edge=96), 2, roi)
    torch.testing.assert_close(small(image).summary, image.flatten(1))


def test_a_strategy_that_hides_patches_is_refused_by_name_for_pixels(chest, tmp_path):
    job = jobs(chest, tmp_path, encoder={"name": "pixels"}, pretext={"mask_ratio": 0.5})["pretrain"]
    with pytest.raises(UserError, match=r"encoder: mae needs|pretext\.mask_ratio"):
        stage.make_objective(job, datamodule.stage_data_sets(job.stage))
    with pytest.raises(UserError, match="encoder: pixels takes no masked images"):
        pixels.build(pixels.Config(), 1, (8, 8))(torch.empty(1, 1, 8, 8), keep=torch.zeros(1, 1, dtype=torch.int64))


def test_the_probes_weights_are_float32_as_the_registry_of_models_wants_them():
    assert {weight.dtype for weight in head(3).parameters()} == {torch.float32}
