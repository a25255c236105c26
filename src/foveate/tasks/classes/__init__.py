"""The common base of tasks over classes: order of classes, probabilities, scores and figures."""

from __future__ import annotations

from foveate.tasks.classes.task import ClassTask

__all__ = ["ClassTask"]
