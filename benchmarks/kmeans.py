"""Seconds of our spherical k-means against scikit-learn's KMeans on the same unit rows, at equal restarts.

    python -m benchmarks.kmeans

The rows resemble the features of an E-step: noisy directions around K centres. Both run k-means++ and Lloyd with the
same number of restarts, iterations and threads. Both results are scored in the same way: the sum over rows of
1 - cosine to the normalised mean of their cluster. The claim: not slower, at an inertia at most 0.1 % higher.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from benchmarks.measure import conclude, speedup, time_interleaved
from benchmarks.rows import make_rows
from pipeline.clustering.kmeans import spherical_kmeans

INERTIA_SLACK = 1.001  # restarts converge to slightly different optima


def cosine_inertia(rows: Tensor, labels: Tensor, clusters: int) -> float:
    """Sum of 1 - cosine of unit rows to the normalised mean of their cluster."""
    sums = torch.zeros(clusters, rows.shape[1], dtype=torch.float64).index_add_(0, labels.long(), rows.double())
    return len(rows) - float(sums.norm(dim=1).sum())


def compare(rows: Tensor, clusters: int, restarts: int, rounds: int) -> dict[str, Any]:
    """Run both on `rows`, interleaved: ratio of seconds (above 1: ours is faster), inertias and the verdict."""
    array = rows.numpy()
    inertia: dict[str, float] = {}

    def ours() -> None:
        labels = spherical_kmeans(rows, clusters, restarts=restarts).labels
        inertia["ours"] = cosine_inertia(rows, labels, clusters)

    def theirs() -> None:
        fitted = KMeans(clusters, n_init=restarts, max_iter=300, tol=1e-4, random_state=0).fit(array)
        inertia["sklearn"] = cosine_inertia(rows, torch.from_numpy(fitted.labels_), clusters)

    seconds = time_interleaved({"ours": ours, "sklearn": theirs}, rounds)
    ratio = speedup(seconds, of="ours", over="sklearn")
    holds = ratio >= 1 and inertia["ours"] <= INERTIA_SLACK * inertia["sklearn"]
    return {"ratio": ratio, "claim_holds": holds, "inertia": inertia, "seconds": seconds}


def main() -> int:
    """Compare for each K and noise; exit status 1 when the claim fails for any of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--clusters", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--noise", type=float, nargs="+", default=[3.0], help="1 is easy, 3 is hard")
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="a single thread is timed by CPU time")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {"arguments": " ".join(sys.argv[1:]), "threads": args.threads}
    holds = True
    with threadpool_limits(args.threads):
        for clusters, noise in ((k, n) for k in args.clusters for n in args.noise):
            rows = make_rows(args.rows, args.size, clusters, noise)
            result = results[f"K={clusters} noise={noise:g}"] = compare(rows, clusters, args.restarts, args.rounds)
            holds &= result["claim_holds"]
            ours, theirs = result["inertia"]["ours"], result["inertia"]["sklearn"]
            print(
                f"N={args.rows:,} D={args.size} K={clusters} noise={noise:g}: {result['ratio']:.2f} times as fast as "
                f"scikit-learn ({min(result['seconds']['ours']):.2f} s), inertia {ours:,.2f} against {theirs:,.2f}  "
                f"{'PASS' if result['claim_holds'] else 'FAIL'}"
            )
    conclude(results, args.out)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
