"""Train on a table of images, read the scores, predict, and see where the model looked.

    python examples/quickstart.py labels.csv out/

The table has a column of paths and one of labels. Without one of your own, `foveate demo` writes
one into foveate-demo/cohort.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

import foveate


def main(table: Path, out: Path, **options: Any) -> None:
    """Train in `out`, and write where the model looked in one image of the table."""
    classifier = foveate.Classifier("glimpse", out=out / "run", **options).fit(table)
    auroc = classifier.metrics_["auroc"]
    print(f"AUROC {auroc['value']:.2f} ({auroc['lo']:.2f} to {auroc['hi']:.2f})")

    images = [table.parent / path for path in pd.read_csv(table)["path"][:3]]
    print(classifier.classes_, classifier.predict_proba(images).round(3))
    print(classifier.predict(images))

    explanation = classifier.explain(images[0])
    print(explanation)
    print(explanation.to_frame().head(3))
    explanation.to_geojson(out / "first.geojson")  # for QuPath
    explanation.to_png(out / "first.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
