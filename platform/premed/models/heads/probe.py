"""A linear probe: logistic regression on a frozen encoder's features, solved in seconds, without a learning rate.

Classification: one row per view, the mean of its patch tokens or its class token. Segmentation: one row per patch, and
the patches' logits are interpolated to voxels; a patch with several classes counts for each of them by its share (soft
labels), which is equivalent to giving every voxel its patch's features. Exclusive classes are one multinomial
regression, others (findings, regions) one binary regression each, on the rows with known labels.
"""

import warnings
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from premed.config.spec import Spec
from premed.contracts import Encoder, Features, Head, Solution, Task
from premed.errors import UserError

ITERATIONS = 1000  # scikit-learn's L-BFGS converges far earlier, unless the regularisation is very weak

Strength = Annotated[float, Field(gt=0)]
Prior = Annotated[float, Field(ge=0, le=1)]


class Config(Spec):
    """`strengths`: values of scikit-learn's C; val selects one (of equal ones the first). Features are standardised."""

    name: Literal["probe"] = "probe"
    pool: Literal["mean", "cls"] = "mean"
    """Classification: the mean of the patch tokens, or the class token."""
    strengths: tuple[Strength, ...] = Field((1e-4, 1e-3, 0.01, 0.1, 1.0), min_length=1)
    priors: tuple[Prior, ...] = Field((0.0, 0.5, 0.75, 1.0), min_length=1)
    """Label maps: the share of the classes' log frequency that is subtracted from the logits (1: as if all were equally
    frequent); val selects one, too. At 0, a patch that is half background is predicted as background only."""


def build(config: Config, encoder: Encoder, task: Task) -> "Probe":
    """Builds the head for `task`'s classes. Raises UserError if `pool` does not suit its labels."""
    if task.labels and config.pool == "cls":
        raise UserError("finetune.head.pool: cls is one row per image, and label maps need one per patch; leave it out")
    return Probe(config, encoder, task)


class Probe(Head):
    """Logits [B, classes], or [B, classes, *S] if labels are maps."""

    def __init__(self, config: Config, encoder: Encoder, task: Task):
        super().__init__()
        self.classes, self.exclusive = task.classes, task.exclusive
        self.grid = encoder.grid if task.labels else None
        self.pool, self.strengths = config.pool, config.strengths
        self.priors = config.priors if task.labels else (0.0,)
        self.num_solutions = len(self.strengths) * len(self.priors)
        self.fc = nn.Linear(encoder.width, len(task.classes))
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def rows(self, features: Features) -> Tensor:
        if self.grid is not None:
            return features.tokens.float()
        if self.pool == "mean":
            return features.tokens.float().mean(dim=1, keepdim=True)
        if features.summary is None:
            raise UserError("finetune.head.pool: this encoder has no class token; use pool: mean")
        return features.summary.float()[:, None]

    def forward(self, image: Tensor, features: Features) -> Tensor:
        logits = self.linear(self.rows(features)).float()  # [B, N, classes]
        if self.grid is None:
            return logits[:, 0]
        maps = logits.transpose(1, 2).unflatten(2, self.grid)
        mode = "bilinear" if len(self.grid) == 2 else "trilinear"
        return F.interpolate(maps, size=image.shape[2:], mode=mode, align_corners=False)

    def linear(self, rows: Tensor) -> Tensor:
        # float64, which autocast does not change: large terms cancel, since the weights include the standardisation
        return F.linear(rows.double(), self.fc.weight.double(), self.fc.bias.double())

    def solve(self, rows: Tensor, shares: Tensor) -> Iterator[Solution]:
        from sklearn.preprocessing import StandardScaler

        scaler, y = StandardScaler(), shares.double().numpy()
        x = scaler.fit_transform(rows.double().numpy())
        for strength in self.strengths:
            weight, bias, frequency, messages = (self.fit_multinomial if self.exclusive else self.fit_binary)(
                x, y, strength
            )
            weight = (weight / scaler.scale_).astype(np.float32)  # rounded as stored: the bias below compensates for it
            for prior in self.priors:
                with torch.no_grad():
                    self.fc.weight.copy_(torch.from_numpy(weight))
                    self.fc.bias.copy_(torch.from_numpy(bias - weight @ np.asarray(scaler.mean_) - prior * frequency))
                    loss = self.loss(self.linear(rows.to(self.fc.weight.device)).cpu(), shares.double())
                yield Solution(loss, {"strength": strength} | ({"prior": prior} if self.grid else {}), messages)

    def fit_multinomial(self, x: np.ndarray, y: np.ndarray, strength: float) -> "Regression":
        """Fits one softmax to standardised rows `x` [n, D] and shares `y` [n, classes], where these are known."""
        known = ~np.isnan(y).any(axis=1)
        weight, bias, frequency, ended = fit_regression(x[known], y[known], strength)
        absent = [name for name, total in zip(self.classes, y[known].sum(axis=0), strict=True) if not total]
        message = "is in no training case: it is predicted with the frequency of half a case"
        messages = [f"probe: {name} {message}" for name in absent]
        return Regression(
            weight, bias, frequency, messages + ([] if ended else [not_converged("the regression", strength)])
        )

    def fit_binary(self, x: np.ndarray, y: np.ndarray, strength: float) -> "Regression":
        """Fits one sigmoid per class, to the rows in which the class is known."""
        fits, messages = [], []
        for name, share in zip(self.classes, y.T, strict=True):
            known = ~np.isnan(share)
            pair = np.stack([1 - share[known], share[known]], axis=1)
            *both, ended = fit_regression(x[known], pair, strength)
            fits.append([yes - no for no, yes in both])
            if not pair.any(axis=0).all():
                message = "has only one kind of label in training: it is predicted with its frequency there"
                messages.append(f"probe: {name} {message}")
            if not ended:
                messages.append(not_converged(name, strength))
        weight, bias, frequency = map(np.stack, zip(*fits, strict=True))
        return Regression(weight, bias, frequency, messages)

    def loss(self, logits: Tensor, shares: Tensor) -> float:
        """The cross-entropy of the (known) classes, mean over the rows, without the regularisation."""
        known = ~shares.isnan()
        if self.exclusive:
            rows = known.all(dim=1)
            return float(F.cross_entropy(logits[rows], shares[rows])) if rows.any() else 0.0
        return float(F.binary_cross_entropy_with_logits(logits[known], shares[known])) if known.any() else 0.0


class Regression(NamedTuple):
    """A regression on standardised rows."""

    weight: np.ndarray  # [classes, D]
    bias: np.ndarray  # [classes]
    frequency: np.ndarray  # [classes]: the classes' log frequencies, or log odds; 0 if there was nothing to fit
    messages: list[str]


def fit_regression(
    x: np.ndarray, shares: np.ndarray, strength: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Fits a softmax to rows `x` [n, D] and shares [n, K].

    Returns weights [K, D], biases [K], log frequencies [K], and whether it converged. A class without any share gets
    weights of 0 and a bias that yields its frequency at the mean row, with half a row added to each class; so do all
    classes if fewer than two have a share.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    totals = shares.sum(axis=0)
    weight, bias = np.zeros((len(totals), x.shape[1])), np.log((totals + 0.5) / (totals.sum() + len(totals) / 2))
    frequency, present = np.zeros(len(totals)), totals > 0
    if present.sum() < 2:
        return weight, bias, frequency, True
    at, which = np.nonzero(shares)
    model = LogisticRegression(C=strength, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x[at], which, sample_weight=shares[at, which])
    weights, biases = model.coef_, model.intercept_
    if present.sum() == 2:  # scikit-learn gives the second class's logit against the first's
        weights, biases = np.concatenate([-weights, weights]) / 2, np.concatenate([-biases, biases]) / 2
    weight[present] = weights
    bias[~present] += np.logaddexp.reduce(biases)
    bias[present] = biases
    frequency[present] = np.log(totals[present] / totals.sum())
    return weight, bias, frequency, bool((model.n_iter_ < ITERATIONS).all())


def not_converged(what: str, strength: float) -> str:
    """The warning for a regression that did not converge."""
    return f"probe: {what} did not converge at strength {strength:g}; leave it out of finetune.head.strengths"
