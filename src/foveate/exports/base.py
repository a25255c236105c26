"""The contract of an export: an image and the evidence of an answer in, a file out."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from foveate.images.evidence import Evidence
from foveate.images.image import AbstractImage


@dataclass(frozen=True)
class About:
    """What is known of an answer besides its evidence.

    Attributes:
        image_id: of the image.
        caption: the answer in words; may have several lines.
        numbers: label, answer and its numbers as texts, by name.
    """

    image_id: str
    caption: str = ""
    numbers: Mapping[str, str] = field(default_factory=dict)


class AbstractExport(abc.ABC):
    """A kind of file. Its module carries its name and holds this one class.

    Attributes:
        title: what people call it.
        suffix: of its files, with the dot.
    """

    title: ClassVar[str]
    suffix: ClassVar[str]

    @abc.abstractmethod
    def render(self, image: AbstractImage, evidence: Evidence, about: About) -> bytes:
        """Return the content of the file.

        Args:
            image: open; its pixels may be read.
            evidence: where the model looked; may be empty.
            about: what else is known of the answer.

        Raises:
            FoveateError: the image or its evidence cannot be shown so.
        """


BASE = AbstractExport
