"""Classify images far larger than a GPU's memory, from image-level labels alone.

The names below are imported when they are first used, so that ``import foveate`` is light.

Example:
    >>> import foveate
    >>> classifier = foveate.Classifier("glimpse", folds=5, patches=32).fit("labels.csv")
    >>> classifier.predict_proba(["new/S1.svs", "new/S2.svs"]).shape
    (2, 2)
    >>> collection = classifier.explain("new/S1.svs").to_geojson("S1.geojson")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foveate._version import __version__ as __version__

if TYPE_CHECKING:
    from foveate.api.classifier import Classifier, NotFitted
    from foveate.api.commands import (
        audit,
        check,
        compare,
        demo,
        doctor,
        init,
        list_methods,
        report,
        train,
    )
    from foveate.api.explanation import Explanation
    from foveate.checks.options import CheckOptions
    from foveate.errors import FoveateError
    from foveate.evaluation.options import AuditOptions
    from foveate.messages.display import ProgressUpdate
    from foveate.parts import add_plugin_folder
    from foveate.prediction.options import EvaluateOptions, PredictOptions
    from foveate.prediction.predict import predict_one
    from foveate.readers import open_image
    from foveate.runs.models import find_models as load_model
    from foveate.runs.options import RunOptions
    from foveate.workflows.catalogue import describe_method
    from foveate.workflows.feature_options import FeatureOptions
    from foveate.workflows.features import extract_features
    from foveate.workflows.predict import evaluate, predict

_WHERE = {
    "AuditOptions": "foveate.evaluation.options",
    "CheckOptions": "foveate.checks.options",
    "Classifier": "foveate.api.classifier",
    "EvaluateOptions": "foveate.prediction.options",
    "Explanation": "foveate.api.explanation",
    "FoveateError": "foveate.errors",
    "NotFitted": "foveate.api.classifier",
    "PredictOptions": "foveate.prediction.options",
    "FeatureOptions": "foveate.workflows.feature_options",
    "ProgressUpdate": "foveate.messages.display",
    "RunOptions": "foveate.runs.options",
    "add_plugin_folder": "foveate.parts",
    "audit": "foveate.api.commands",
    "check": "foveate.api.commands",
    "compare": "foveate.api.commands",
    "demo": "foveate.api.commands",
    "describe_method": "foveate.workflows.catalogue",
    "doctor": "foveate.api.commands",
    "evaluate": "foveate.workflows.predict",
    "extract_features": "foveate.workflows.features",
    "init": "foveate.api.commands",
    "list_methods": "foveate.api.commands",
    "load_model": "foveate.runs.models",
    "open_image": "foveate.readers",
    "predict": "foveate.workflows.predict",
    "predict_one": "foveate.prediction.predict",
    "report": "foveate.api.commands",
    "train": "foveate.api.commands",
}
_RENAMED = {"load_model": "find_models"}

__all__ = [
    "AuditOptions",
    "CheckOptions",
    "Classifier",
    "EvaluateOptions",
    "Explanation",
    "FeatureOptions",
    "FoveateError",
    "NotFitted",
    "PredictOptions",
    "ProgressUpdate",
    "RunOptions",
    "add_plugin_folder",
    "audit",
    "check",
    "compare",
    "demo",
    "describe_method",
    "doctor",
    "evaluate",
    "extract_features",
    "init",
    "list_methods",
    "load_model",
    "open_image",
    "predict",
    "predict_one",
    "report",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module 'foveate' has no attribute '{name}'")
    value = getattr(import_module(_WHERE[name]), _RENAMED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
