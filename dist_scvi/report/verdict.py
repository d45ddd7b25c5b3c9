"""The verdict of a report in plain words, with the numbers behind it and what to do next."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dist_scvi.report.measure import Measurements
from dist_scvi.report.subject import Subject

Level = Literal["good", "weak", "bad"]
_GAIN, _GAP, _SLOPE = 0.02, 0.05, 0.002
_GOOD_SCORE, _WEAK_SCORE = 0.6, 0.45
_STRONG_LEAK = 0.5
_CALIBRATION = 0.1
_WORST_DONOR = 0.5
"""Share of the gain of all cells below which a donor is named."""


@dataclass(frozen=True, slots=True)
class Number:
    """One of the three numbers of the verdict."""

    name: str
    value: str
    explanation: str
    level: Level | None
    """None if it could not be computed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was found, and what to do about it."""

    level: Level
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the report says first."""

    level: Level
    text: str
    numbers: list[Number]
    findings: list[Finding]


def reach_verdict(subject: Subject, found: Measurements) -> Verdict:
    """Judge the measurements of a model."""
    findings = [
        *_of_training(subject, found),
        *_of_latent_space(found),
        *_of_scores(found),
        *_of_labels(found),
        *_of_counts(found),
    ]
    order = {"bad": 0, "weak": 1, "good": 2}
    findings.sort(key=lambda one: order[one.level])
    numbers = [_elbo_number(found), _score_number(found, "integration"), _score_number(found, "conservation")]
    levels = [number.level for number in numbers] + [one.level for one in findings]
    level: Level = "bad" if "bad" in levels else "weak" if "weak" in levels else "good"
    n_weak = sum(one.level != "good" for one in findings)
    text = {
        "good": "This model looks good: it predicts new cells, mixes batches and keeps labels apart.",
        "weak": f"This model can be used, with care: {n_weak} point{'s' * (n_weak != 1)} below should be looked at.",
        "bad": "This model should not be used as it is: see what was found below.",
    }[level]
    if level == "good" and not found.scores:
        text = "This model predicts new cells well; without labels, nothing is known of how it mixes batches."
    return Verdict(level, text, numbers, findings)


def _elbo_number(found: Measurements) -> Number:
    name = "ELBO of training cells" if found.held_out_split == "training" else "Held-out ELBO"
    if found.held_out is None:
        return Number(name, "not known", "the store of the counts cannot be opened", None)
    loss, base = found.held_out.elbo_n.mean(), found.held_out.baseline_n.mean()
    level: Level = "good" if found.held_out.gain > _GAIN else "weak" if found.held_out.gain > 0 else "bad"
    better = "better" if found.held_out.gain > 0 else "worse"
    return Number(
        name,
        f"{loss:,.1f}",
        f"nats per cell, lower is better; {base:,.1f} for a baseline that knows only batch and total count: "
        f"{abs(found.held_out.gain):.1%} {better}",
        level,
    )


def _score_number(found: Measurements, name: str) -> Number:
    title, what = {
        "integration": ("Integration", "how well batches are mixed within labels"),
        "conservation": ("Conservation", "how well labels are kept apart"),
    }[name]
    score = found.scores.get(name)
    if score is None:
        return Number(title, "not known", f"{what}; it needs labels and, for integration, batches", None)
    level: Level = "good" if score.value >= _GOOD_SCORE else "weak" if score.value >= _WEAK_SCORE else "bad"
    return Number(
        title, f"{score.value:.2f}", f"{what}, 0 to 1; 95 % interval {score.low:.2f} to {score.high:.2f}", level
    )


def _of_training(subject: Subject, found: Measurements) -> Iterator[Finding]:
    if found.held_out is not None and found.held_out.gain <= 0:
        yield Finding(
            "bad",
            "The model predicts cells worse than a baseline without a latent space.",
            "Train for more epochs, lower train.lr, and look at the counts with 'dist-scvi inspect'.",
        )
    if found.held_out is not None and found.trained_on is not None and found.held_out is not found.trained_on:
        gap = found.held_out.elbo_n.mean() / found.trained_on.elbo_n.mean() - 1
        if gap > _GAP:
            yield Finding(
                "weak",
                f"Held-out cells are predicted {gap:.1%} worse than training cells: the model has learnt them by "
                "heart.",
                "Stop earlier (train.early_stopping=true), use fewer hidden units (model.n_hidden), or more cells.",
            )
    curve = subject.history.get("elbo_validation", subject.history.get("elbo_train"))
    if curve is None or len(curve) < 5:
        return
    value = curve.iloc[:, 0].to_numpy(dtype=np.float64)
    tail = max(2, len(value) // 10)
    slope = (value[-2 * tail : -tail].mean() - value[-tail:].mean()) / abs(value[-1])
    if slope > _SLOPE:
        yield Finding(
            "weak",
            f"The loss still fell by {slope:.2%} over the last {tail} epochs: training ended early.",
            "Continue it: dist-scvi resume RUN train.max_epochs=N.",
        )


def _of_latent_space(found: Measurements) -> Iterator[Finding]:
    collapsed, k = found.use.collapsed, len(found.use.kl_k)
    if not collapsed:
        yield Finding("good", f"All {k} latent dimensions are used.")
        return
    named = ", ".join(map(str, collapsed))
    level: Level = "weak" if len(collapsed) > k / 2 else "good"
    yield Finding(
        level,
        f"{len(collapsed)} of {k} latent dimensions are not used ({named}).",
        f"They do no harm; model.n_latent={max(1, k - len(collapsed))} would be enough.",
    )


def _of_scores(found: Measurements) -> Iterator[Finding]:
    integration, conservation = found.scores.get("integration"), found.scores.get("conservation")
    if integration is not None and integration.value < _GOOD_SCORE:
        yield Finding(
            "weak" if integration.value >= _WEAK_SCORE else "bad",
            f"Batches are mixed only in part (integration {integration.value:.2f}).",
            "Check data.batch_key, add further sources of variation as categorical_covariate_keys, or use genes that "
            "vary within batches (dist-scvi pack --hvg N --batch-key COLUMN).",
        )
    if conservation is not None and conservation.value < _GOOD_SCORE:
        yield Finding(
            "weak" if conservation.value >= _WEAK_SCORE else "bad",
            f"Labels are kept apart only in part (conservation {conservation.value:.2f}).",
            "Train SCANVI on the labels (model.model_name=SCANVI), try more latent dimensions, or check the labels.",
        )
    leaky = [leak for leak in found.leaks if leak.leak > _STRONG_LEAK]
    if leaky:
        named = ", ".join(f"{leak.label} ({leak.leak:.2f})" for leak in sorted(leaky, key=lambda one: -one.leak)[:5])
        yield Finding(
            "weak",
            f"Within {len(leaky)} of {len(found.leaks)} labels the batch can be told from the latent space: {named}.",
            "If these batches differ by more than technique (tissue, disease), that is expected; else as above.",
        )
    elif found.leaks:
        worst = max(found.leaks, key=lambda one: one.leak)
        yield Finding(
            "good", f"Within labels the batch can hardly be told from the latent space (at most {worst.leak:.2f} of 1)."
        )


def _of_labels(found: Measurements) -> Iterator[Finding]:
    labels = found.labels
    if labels is None:
        return
    if labels.calibration_error > _CALIBRATION:
        yield Finding(
            "weak",
            f"Confidences of predicted labels are off by {labels.calibration_error:.2f} on average.",
            "Do not read them as probabilities: use the abstention curve to choose a threshold.",
        )
    yield Finding(
        "good" if labels.accuracy >= 0.8 else "weak",
        f"Labels of held-out cells are predicted with an accuracy of {labels.accuracy:.1%}.",
    )


def _of_counts(found: Measurements) -> Iterator[Finding]:
    if found.counts is None:
        return
    squared = found.counts.cv_cell.pearson**2
    if not found.counts.generated_counts_are_usable:
        yield Finding(
            "weak",
            f"Drawn counts do not vary between cells as observed ones do (squared correlation {squared:.2f}, below "
            "0.4).",
            "Do not use generated counts; the latent space may still be good.",
        )
    for name in worst_donors(found)[:3]:
        yield Finding(
            "weak", f"Donor {name} is predicted much worse than all others.", "Look at its quality, or hold it out."
        )


def worst_donors(found: Measurements) -> list[str]:
    """Return the donors for which the model gains less than half of what it gains for all cells, the worst first."""
    if not found.donors or found.held_out is None or found.held_out.gain <= 0:
        return []
    limit = _WORST_DONOR * found.held_out.gain
    return [one.donor for one in sorted(found.donors, key=lambda one: one.gain) if one.gain < limit]
