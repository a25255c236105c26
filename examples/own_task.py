"""A task of your own is one file: here, several classes with the focal loss.

    python examples/own_task.py labels.csv out/

The command line takes it, too, from a folder my_parts/ that holds tasks/own_task.py:

    foveate train labels.csv --out run --plugins my_parts --task own_task --task.focus 1
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor
from torch.nn import functional

import foveate
from foveate.parts.options import Within
from foveate.tasks.multiclass import MulticlassTask


class FocalTask(MulticlassTask):
    """Several classes, of which the images that are answered well already count little.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Args:
        classes: the labels.
        focus: the exponent of the paper; 0 is the cross-entropy.
    """

    preference = -1  # taken where it is named, never by itself

    def __init__(
        self, *, classes: Sequence[str], focus: Annotated[float, Within(0, 5)] = 2.0
    ) -> None:
        super().__init__(classes=classes, smoothing=0.0)
        self.focus = focus

    def each_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every row, ``(m,)``."""
        surprise = functional.cross_entropy(logits.float(), target.long(), reduction="none")
        return (1 - surprise.neg().exp()) ** self.focus * surprise


def main(table: Path, out: Path, **options: Any) -> None:
    """Put this file into a folder of parts, and train with it."""
    tasks = out / "my_parts" / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    shutil.copy(__file__, tasks)
    foveate.add_plugin_folder(tasks.parent)
    run = foveate.train(table, out / "run", task="own_task", task__focus=1.0, **options)
    print(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
