"""AdrenalMNIST3D as a folder of NIfTI files with a table of labels, for `foveate train`.

    python benchmarks/adrenal_nifti.py ct_adrenal64/train_val.npz OUT [--most 0]
    foveate train OUT/labels.csv --encoder slices --out RUN

Volumes are masks of glands, 64³ voxels of 1 mm; the arrays and labels are those of MedMNIST
(Yang et al., "MedMNIST v2", Scientific Data 2023). ``labels.csv`` has the columns path, label
(``normal`` or ``hyperplasia``) and split (``train`` or ``val``, as published).
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import nibabel
import numpy as np

LABELS = ("normal", "hyperplasia")
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Affine that makes the axes z, y, x of the array those of foveate."""


def main() -> None:
    """Write the NIfTI files and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arrays", type=Path, help="the .npz file")
    parser.add_argument("out", type=Path)
    parser.add_argument("--most", type=int, default=0, help="volumes of each split, 0 for all")
    options = parser.parse_args()
    (options.out / "volumes").mkdir(parents=True, exist_ok=True)
    rows = []
    with np.load(options.arrays) as arrays:
        for split in ("train", "val"):
            volumes, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel()
            for i in range(min(options.most or len(volumes), len(volumes))):
                name = f"volumes/{split}_{i:04d}.nii.gz"
                laid = volumes[i].transpose(2, 1, 0)
                volume = nibabel.Nifti1Image(laid, AFFINE)
                volume.header.set_xyzt_units("mm")
                nibabel.save(volume, options.out / name)
                rows.append((name, LABELS[int(labels[i])], split))
    with (options.out / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        writer.writerows(rows)
    print(f"{options.out}: {len(rows)} volumes")


if __name__ == "__main__":
    main()
