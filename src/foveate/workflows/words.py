"""Scores in words, for the command line and for results in Python."""

from __future__ import annotations

from typing import Any


def describe_scores(metrics: dict[str, Any]) -> str:
    """Describe the scores with their intervals, one line for each score.

    Args:
        metrics: content of ``metrics.json``.
    """
    seen = metrics.get("n_seen_in_training", 0)
    whom = " that training never saw"
    if seen:
        whom = f", {seen} of which training saw, or other images of their patients"
    lines = [f"{metrics['n_images']} images of {metrics['n_patients']} patients{whom}:"]
    for name, score in metrics["metrics"].items():
        lines.append(
            f"  {name:<20} {score['value']:.3f}  (95 % interval {score['lo']:.3f} to "
            f"{score['hi']:.3f})"
        )
    if "folds" in metrics:
        main = next(iter(metrics["metrics"]))
        scores = (fold["metrics"].get(main, {}).get("value") for fold in metrics["folds"])
        listed = " ".join("–" if score is None else f"{score:.3f}" for score in scores)
        lines += [f"  {f'{main} by fold':<20} {listed}", f"  {metrics['pooling']}"]
    return "\n".join(lines)
