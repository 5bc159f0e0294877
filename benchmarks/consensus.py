"""Whether several seeds together give a better answer than one: three kinds of consensus, against the members.

    python -m benchmarks.quality --preset photos --set data.path=data/photos    # five seeds
    python -m benchmarks.consensus runs/photos-seeds-*/trials/*

The runs are on the same images with known classes. Five answers need no classes: the run with the highest label_free,
and that with the highest silhouette; what `digpro combine` makes of the runs; the cluster that most runs give to an
image (clusters matched to those of the first run); and average linkage of the co-association matrix (the share of runs
in which two images are together; up to 10,000 images, Fred and Jain 2005).
The table of shares shows how much more often an image is right if more runs agree on it.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from benchmarks.measure import conclude
from pipeline.clustering.agreement import count_pairs, majority, match_clusters, matched_to_first
from pipeline.clustering.scores import clustering_scores
from pipeline.data.read import read_labels
from pipeline.inference.run_features import clusters_of_images
from pipeline.runs.combine import consensus_centers, joint_features
from pipeline.runs.compare import same_images
from pipeline.storage import Folder, absolute
from pipeline.training.checkpoint import newest_in

LARGEST_MATRIX = 10_000  # images
Array = np.ndarray[Any, Any]


def main() -> None:
    """Score the members and the three answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="finished runs on the same images")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    folders = [Folder(absolute(run)) for run in arguments.runs]
    config, manifest = same_images(folders)
    classes = read_labels(config.data.path)
    if classes is None:
        parser.error(f"the images of {config.data.path} have no known classes, so nothing can be scored")
    clusters = np.stack([clusters_of_images(folder, manifest.num_images) for folder in folders])
    results = consensus(classes, clusters, folders)
    print_results(results)
    conclude(results, arguments.out)


def history_of(run: Folder) -> dict[str, float]:
    """Metrics of a run's last epoch."""
    values = newest_in(run.path)
    assert values is not None
    metrics: dict[str, float] = values["history"][-1]
    return metrics


def consensus(classes: Array, clusters: Array, runs: list[Folder]) -> dict[str, Any]:
    """Scores of the members (R, N) and of the answers, and the accuracy of images by the share of runs that agree."""
    voted, share = majority(matched_to_first(clusters))
    histories = [history_of(run) for run in runs]
    judged = {name: [metrics[name] for metrics in histories] for name in ("label_free", "silhouette")}
    answers = {f"highest {name}": clusters[int(np.argmax(values))] for name, values in judged.items()}
    answers |= {"combined": combined(runs, voted), "votes": voted}
    if clusters.shape[1] <= LARGEST_MATRIX:
        answers["co-association"] = average_linkage(clusters, int(clusters.max()) + 1)
    return {
        **judged,
        "members": [clustering_scores(classes, found) for found in clusters],
        "answers": {name: clustering_scores(classes, found) for name, found in answers.items()},
        "shares": accuracy_by_share(classes, voted, share),
    }


def combined(runs: list[Folder], voted: Array) -> Array:
    """Clusters (N,) of the consensus of runs, as `digpro combine` finds them from the cluster (N,) of most runs."""
    centers = consensus_centers(joint_features(runs, len(voted)), voted, int(voted.max()) + 1)
    return np.concatenate([(rows @ centers.T).argmax(dim=1).numpy() for rows in joint_features(runs, len(voted))])


def average_linkage(clusters: Array, count: int) -> Array:
    """`count` clusters (N,) of the co-association of clusterings (R, N)."""
    apart = np.mean([found[:, None] != found for found in clusters], axis=0, dtype=np.float32)
    return fcluster(linkage(squareform(apart, checks=False), "average"), count, "maxclust")


def accuracy_by_share(classes: Array, voted: Array, share: Array) -> dict[str, dict[str, float]]:
    """Images, and the share of them in the class of their cluster, for each share of runs that agree."""
    classes, voted, share = (values[classes >= 0] for values in (classes, voted, share))
    of_class = match_clusters(count_pairs(classes, voted))
    right = of_class[voted] == classes
    return {
        f"{value:.2f}": {"images": int((share == value).sum()), "accuracy": float(right[share == value].mean())}
        for value in np.unique(share)[::-1]
    }


def print_results(results: dict[str, Any]) -> None:
    """A line for the members' mean and spread, one for each answer, and one for each share of agreement."""
    for name in ("acc", "nmi", "ari"):
        values = [member[name] for member in results["members"]]
        answers = "  ".join(f"{answer} {scores[name]:.4f}" for answer, scores in results["answers"].items())
        spread = statistics.pstdev(values)
        print(f"{name}: members {statistics.mean(values):.4f} +- {spread:.4f}, best {max(values):.4f};  {answers}")
    for share, found in results["shares"].items():
        print(f"{share} of the runs agree: {found['images']:>7,} images, {found['accuracy']:.4f} of them right")


if __name__ == "__main__":
    main()
