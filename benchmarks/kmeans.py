"""CPU seconds and inertia of our spherical k-means, of faiss's and of scikit-learn's KMeans, on the same unit rows.

    python -m benchmarks.kmeans

The rows resemble the features of an E-step: noisy directions around K centres. All have the same number of starts and
threads; faiss runs its 25 iterations on all rows, scikit-learn and ours stop by themselves. `sampled` is ours with the
centres fitted on 10,000 rows, or 30 per cluster if that is more. All results are scored in the same way: the sum over
rows of 1 - cosine to the normalised mean of their cluster. The claims, at an inertia at most 0.1 % higher: `sampled` is
not slower than faiss, and `ours` not slower than scikit-learn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from benchmarks.measure import conclude, speedup, time_interleaved
from benchmarks.rows import make_rows
from pipeline.clustering.kmeans import spherical_kmeans

INERTIA_SLACK = 1.001  # restarts converge to slightly different optima
FIT_ROWS, FIT_ROWS_PER_CLUSTER = 10_000, 30  # that `sampled` is fitted on, at least
CLAIMS = {"sampled": "faiss", "ours": "sklearn"}


def cosine_inertia(rows: Tensor, labels: Tensor, clusters: int) -> float:
    """Sum of 1 - cosine of unit rows to the normalised mean of their cluster."""
    sums = torch.zeros(clusters, rows.shape[1], dtype=torch.float64).index_add_(0, labels.long(), rows.double())
    return len(rows) - float(sums.norm(dim=1).sum())


def compare(rows: Tensor, clusters: int, restarts: int, rounds: int) -> dict[str, Any]:
    """Run all on `rows`, interleaved: seconds, inertias, and of each claim the ratio (above 1: ours is faster)."""
    array, labels = rows.numpy(), dict[str, Tensor]()

    def faiss_labels() -> Tensor:
        settings = {"niter": 25, "nredo": restarts, "spherical": True, "max_points_per_centroid": len(rows)}
        fitted = faiss.Kmeans(rows.shape[1], clusters, **settings)
        fitted.train(array)
        return torch.from_numpy(fitted.index.search(array, 1)[1][:, 0])

    fit_rows = max(FIT_ROWS, FIT_ROWS_PER_CLUSTER * clusters)
    runs: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: spherical_kmeans(rows, clusters, restarts=restarts).labels,
        "sampled": lambda: spherical_kmeans(rows, clusters, restarts=restarts, fit_rows=fit_rows).labels,
        "faiss": faiss_labels,
        "sklearn": lambda: torch.from_numpy(KMeans(clusters, n_init=restarts, random_state=0).fit(array).labels_),
    }
    blocks = {name: (lambda name=name, run=run: labels.update({name: run()})) for name, run in runs.items()}
    seconds = time_interleaved(blocks, rounds)
    inertia = {name: cosine_inertia(rows, found, clusters) for name, found in labels.items()}
    ratios = {f"{of} over {over}": speedup(seconds, of, over) for of, over in CLAIMS.items()}
    equal = all(inertia[of] <= INERTIA_SLACK * inertia[over] for of, over in CLAIMS.items())
    return {
        "ratios": ratios,
        "claim_holds": equal and min(ratios.values()) >= 1,
        "inertia": inertia,
        "seconds": seconds,
    }


def main() -> int:
    """Compare for each K and noise; exit status 1 when a claim fails for any of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--clusters", type=int, nargs="+", default=[10, 200, 1000])
    parser.add_argument("--noise", type=float, nargs="+", default=[1.5], help="1 is easy, 3 is hard")
    parser.add_argument("--restarts", type=int, help="default: 10, and 1 from 100 clusters on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="a single thread is timed by CPU time")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    results: dict[str, Any] = {"arguments": " ".join(sys.argv[1:]), "threads": args.threads}
    holds = True
    with threadpool_limits(args.threads):
        for clusters, noise in ((k, n) for k in args.clusters for n in args.noise):
            rows = make_rows(args.rows, args.size, clusters, noise)
            restarts = args.restarts or (10 if clusters < 100 else 1)
            result = results[f"K={clusters} noise={noise:g}"] = compare(rows, clusters, restarts, args.rounds)
            holds &= result["claim_holds"]
            print(f"N={args.rows:,} D={args.size} K={clusters} noise={noise:g}, {restarts} starts")
            for name, inertia in result["inertia"].items():
                print(f"  {name:8} {min(result['seconds'][name]):7.2f} s  inertia {inertia:,.1f}")
            ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in result["ratios"].items())
            print(f"  speed: {ratios}  {'PASS' if result['claim_holds'] else 'FAIL'}", flush=True)
    conclude(results, args.out)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
