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
    """Texts about an answer that a file shows beside the evidence.

    Attributes:
        image_id: id of the image.
        caption: the answer in words; may have several lines.
        texts: label, predicted label and numbers of the answer as texts, by name.
    """

    image_id: str
    caption: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)


class AbstractExport(abc.ABC):
    """A kind of file that shows the evidence of an answer; ``--export`` names it by its module.

    Attributes:
        title: name of the kind of file in messages and reports.
        suffix: suffix of the files, with the dot.
    """

    title: ClassVar[str]
    suffix: ClassVar[str]

    @abc.abstractmethod
    def render(self, image: AbstractImage, evidence: Evidence, about: About) -> bytes:
        """Return the content of the file.

        Args:
            image: the image, open, so that its pixels can be read.
            evidence: boxes that the answer comes from; may be empty.
            about: texts about the answer.

        Raises:
            FoveateError: the image or its evidence cannot be shown in this kind of file.
        """


BASE = AbstractExport
