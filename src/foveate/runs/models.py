"""The trained models that answer together: the models of all folds, or a single one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveate.errors import CheckpointError
from foveate.files.digest import file_sha256
from foveate.files.run_layout import ModelLayout
from foveate.images.likeness import TrainedOn
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import Model, load_model
from foveate.runs.folder import model_folders
from foveate.tasks.base import AbstractTask


@dataclass(frozen=True, repr=False)
class Ensemble:
    """Models whose answers are averaged; a single model is an ensemble of one.

    Attributes:
        members: at least one model; all have the same task and read images the same way.
        folders: folders that the members were loaded from, in the same order; empty for models
            that exist in memory only.

    Raises:
        CheckpointError: the models differ in what they predict or in how they read images.
    """

    members: tuple[Model, ...]
    folders: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if not self.members:
            raise CheckpointError(
                "an ensemble needs at least one model: give the folder of a model"
            )
        first = _common_properties(self.members[0])
        for i, member in enumerate(self.members):
            for key, value in _common_properties(member).items():
                if value != first[key]:
                    raise CheckpointError(
                        f"{self._name(i)} cannot answer together with {self._name(0)}: its {key} "
                        f"is {value}, not {first[key]}. Give the folder of one model"
                    )

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        n = "one model" if len(self) == 1 else f"{len(self)} models that answer together"
        return (
            f"{n}: method {self.card.method}, encoder {self.card.encoder}, {self.task.describe()}"
        )

    @property
    def card(self) -> ModelCard:
        """Card of the first member; its task and view are those of all members."""
        return self.members[0].card

    @property
    def trained_on(self) -> TrainedOn | None:
        """Facts about the images of the run, with the colours of the images of all members."""
        facts = [member.card.trained_on for member in self.members]
        if facts[0] is None:
            return None
        colours = [() if fact is None else fact.colours for fact in facts]
        union = sorted({name for names in colours for name in names}) if all(colours) else ()
        return replace(facts[0], colours=tuple(union))

    @property
    def task(self) -> AbstractTask:
        """Task of the first member; it decodes the answers of all members."""
        return self.members[0].task

    @property
    def point(self) -> dict[str, float | None]:
        """Mean of the members' results of calibration, such as the threshold."""
        return self.task.pool([member.card.provenance for member in self.members])

    def describe(self) -> str:
        """Describe in one sentence which models answer."""
        if len(self) > 1:
            return (
                f"{len(self)} models answer together, one of each fold: {self.task.averaged} and "
                "evidence are averaged"
            )
        provenance = self.card.provenance
        if provenance.get("refit"):
            return f"one model answers, refitted on all {provenance['n_train']} images of the run"
        return f"one model answers: {self._name(0)}"

    def record(self) -> dict[str, Any]:
        """Return the content of ``answer.json``: which models answered, and how."""
        return {
            "models": len(self),
            "how": f"mean of the models' {self.task.averaged}" if len(self) > 1 else "one model",
            "refit": bool(self.card.provenance.get("refit")),
            **self.point,
            "members": [
                {
                    "folder": str(self.folders[i]) if self.folders else None,
                    "fold": member.card.provenance.get("fold"),
                    **member.task.pool([member.card.provenance]),
                    "split_hash": member.card.provenance.get("split_hash"),
                }
                for i, member in enumerate(self.members)
            ],
        }

    def digests(self) -> list[str]:
        """Return hashes that identify the card and the weights of each member with a folder."""
        return [file_sha256(ModelLayout(folder).card)[:16] for folder in self.folders]

    def _name(self, i: int) -> str:
        return str(self.folders[i]) if self.folders else f"model {i + 1}"


def find_models(run: Path | str) -> Ensemble:
    """Load the models that answer for a run, or the single model of a fold or model folder.

    For a run, these are the models of all folds, or the refitted model where the run has one.

    Raises:
        CheckpointError: there is no trained model, one is missing or damaged, or the models do
            not fit each other.

    Example:
        >>> foveate.load_model("runs/first")
        one model: method …, encoder …, classes normal, tumour (in this order)
    """
    return load_models(model_folders(Path(run)))


def load_models(folders: Sequence[Path]) -> Ensemble:
    """Load the models of these folders, to answer together.

    Raises:
        CheckpointError: a model is missing or damaged, or they do not fit each other.
    """
    return Ensemble(tuple(load_model(folder) for folder in folders), tuple(folders))


def _common_properties(model: Model) -> dict[str, Any]:
    """Return the properties that models which answer together must have in common."""
    card = model.card
    return {
        "task": card.task,
        **model.task.common,
        "view": card.view,
        "readers": card.readers,
        "assumed spacing": card.assume_spacing_um,
        "bag": card.bag,
        "split": card.provenance.get("split_hash"),
    }
