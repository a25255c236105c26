"""Sections and defaults of the options of the commands, defined once.

The command line, the Python functions, the workflows and the config read them here. This module
imports nothing heavy, because ``foveate --help`` shows them.
"""

from __future__ import annotations

from typing import Final, Literal

Device = Literal["auto", "cpu", "cuda", "mps"]
"""Names of devices; ``auto`` takes a GPU when there is one."""

SECTIONS: Final = ("table", "view", "split", "train")
"""Sections of the config whose keys are fixed."""
PARTS: Final = ("method", "encoder", "task")
"""Keys of the config that name a part; the options of a part are a section too."""

METHOD: Final = "glimpse"
METHOD_OF_FEATURES: Final = "abmil"
"""The method that is trained on files of features where none is named."""
COMPARED_METHODS: Final = ("glimpse", "abmil", "downsampled")
"""Methods that `compare` trains where none are named."""
ENCODER: Final = "auto"
ENCODER_BY_AXES: Final = {2: "lite0", 3: "slices"}
"""The encoder that ``auto`` stands for, by number of image axes."""
TASK: Final = "auto"

Bag = Literal["image", "patient"]
"""Whose images answer together: one image alone, or all images of a patient."""
BAG: Final[Bag] = "image"

FOLDS: Final = 1
SEED: Final = 0
DEVICE: Final = "auto"
TRAINING_PROCESSES: Final = 1
WORKERS: Final = 0
"""Number of further processes that predict; with 0, the calling process predicts."""

EXPORT: Final = ("png", "geojson")
"""Kinds of pictures."""
TRAIN_HEATMAPS: Final = 40
"""Number of images of the test part that get pictures."""
PREDICT_HEATMAPS: Final = 1000
EVALUATE_HEATMAPS: Final = 0
"""Numbers of images of a table or folder, from the first on, that get pictures."""

DEMO_FOLDER: Final = "foveate-demo"
