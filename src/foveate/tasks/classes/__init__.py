"""What tasks over classes share: the order of classes, probabilities, their scores and figures."""

from __future__ import annotations

from foveate.tasks.classes.task import ClassTask

__all__ = ["ClassTask"]
