"""The result of an audit in sentences, for the command line and the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foveate.presentation import read_number, write_count, write_duration, write_percent


def describe_audit(content: Mapping[str, Any]) -> list[str]:
    """Describe the result of an audit, one sentence for each question.

    Args:
        content: content of ``audit.json``.
    """
    lines = [_describe_localisation(content["localisation"])]
    if content["n_images"]:
        stable = _describe_stability(content["stability"])
        lines = [_describe_faithfulness(content), *lines, stable]
    seconds = read_number(content["cost"], "seconds")
    decoded = read_number(content["cost"], "decoded_fraction")
    if seconds is not None:
        lines.append(
            f"cost: a test image took {write_duration(seconds)} on average, and "
            f"{write_percent(decoded)} of its pixels were decoded"
        )
    return lines


def _describe_faithfulness(content: Mapping[str, Any]) -> str:
    stored, unranked = content["faithfulness"], content["unranked"]
    skipped = "; ".join(f"{write_count(n, 'image')} left out: {why}" for why, n in unranked.items())
    if stored is None:
        return (
            f"faithfulness: there is nothing to delete first, because the evidence prefers no box "
            f"({skipped})"
        )
    parts = []
    for name in ("deletion", "insertion"):
        gain = stored[name]["gain"]
        parts.append(f"{gain['value']:+.3f}{_write_interval(gain)} by {name}")
    lows = [stored[name]["gain"]["lo"] for name in ("deletion", "insertion")]
    verdict = "heavy boxes cannot be told from random ones"
    if all(low is not None and low > 0 for low in lows):
        verdict = "heavy boxes count more for the answer than random ones"
    elif any(low is not None and low > 0 for low in lows):
        verdict = "heavy boxes count more than random ones in one of both orders"
    text = (
        f"faithfulness: {verdict}; area between the curves by weight and in random order "
        f"{', '.join(parts)} ({write_count(stored['n'], 'image')})"
    )
    return f"{text}; {skipped}" if skipped else text


def _describe_localisation(stored: Mapping[str, Any] | None) -> str:
    if stored is None:
        return "localisation: not measured, because no test image has a mask and evidence"
    peak, heavy = stored["peak_in_mask"], stored["heaviest_in_mask"]
    weight, precision = stored["weight_in_mask"], stored["average_precision"]
    chance = stored["mask_share"]["value"]
    return (
        f"localisation: the peak lies in the mask in {write_percent(peak['value'])}"
        f"{_write_interval(peak)} of {write_count(stored['n'], 'image')}; in the mask lie "
        f"{write_percent(heavy['value'])} of the heaviest box and "
        f"{write_percent(weight['value'])} of the weight; average precision over the area "
        f"{precision['value']:.3f}{_write_interval(precision)}, at chance {chance:.3f}"
    )


def _describe_stability(stored: Mapping[str, Any] | None) -> str:
    if stored is None:
        return "stability: not measured, because one model answers for the test images"
    evidence, answers = stored["evidence"], stored["answers"]
    parts = []
    if evidence is not None:
        parts.append(f"of evidence {evidence['value']:.2f}{_write_interval(evidence)}")
    if answers is not None:
        parts.append(f"of answers {answers:.2f}")
    if not parts:
        return "stability: there are too few images or regions to rank"
    return (
        f"stability: rank correlation between the models of {stored['n_models']} folds "
        f"{', '.join(parts)} ({write_count(stored['n'], 'image')}, which most of these models were "
        "trained with)"
    )


def _write_interval(score: Mapping[str, Any]) -> str:
    if score["lo"] is None:
        return ""
    return f" (95 % interval {score['lo']:.3f} to {score['hi']:.3f})"
