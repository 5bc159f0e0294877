"""How many of an image's nearest neighbours are of its class, by the weight of the un-augmented view among its views.

    digpro embed data/photos runs/features
    python -m benchmarks.compared_views runs/features/photos-* data/photos

The images need known classes. Weight 1 compares the un-augmented views alone, 0 the augmented ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import conclude
from pipeline.backbone_features.cache import FeatureCache, read_cache
from pipeline.backbone_features.neighbours import UNAUGMENTED, exact_neighbours
from pipeline.data.read import read_labels
from pipeline.storage import Folder

COUNT = 10
Labels = np.ndarray[Any, np.dtype[np.int64]]
WEIGHTS = (0.0, 0.2, 0.35, 0.5, UNAUGMENTED, 0.8, 1.0)


def share_of_class(folder: Folder, cache: FeatureCache, labels: Labels, weight: float) -> float:
    """The share of the nearest neighbours that are of the image's class."""
    found = exact_neighbours(folder, cache, COUNT, weight)
    return float((labels[found] == labels[:, None]).mean())


def main() -> None:
    """Print the share for each weight."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", help="folder of the features")
    parser.add_argument("data", help="folder of the shards")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if (labels := read_labels(args.data)) is None:
        raise SystemExit(f"{args.data} has no classes; give images with known classes")
    folder = Folder(args.cache)
    if (cache := read_cache(folder)) is None:
        raise SystemExit(f"{folder.path} holds no complete cache; make it with `digpro embed`")
    shares = {f"{weight:.2f}": share_of_class(folder, cache, labels, weight) for weight in WEIGHTS}
    for weight, share in shares.items():
        print(f"weight {weight}: {share:.3f}")
    conclude({"shares": shares}, args.out)


if __name__ == "__main__":
    main()
