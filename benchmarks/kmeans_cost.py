"""What spherical k-means costs over rows N, clusters K and workers W, on float16 rows in a memory-mapped file.

    python -m benchmarks.kmeans_cost                                          # the curves, a minute
    python -m benchmarks.kmeans_cost --rows 10000000 --clusters 1000 --fit-rows 256000 --workers 1    # beyond memory
    python -m benchmarks.kmeans_cost --features runs/features/... --clusters 1000 3000 --levels 1 2   # real features

Each list of numbers is a curve, along which the others stay at their first value. Every point is run by processes of
its own, so that their peak memory, including the pages of the file that are in memory, is that point's. Seconds of CPU
time are those of the slowest worker: other processes hardly affect them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks.measure import conclude
from pipeline.backbone_features.cache import read_cache, read_part
from pipeline.clustering.hierarchical import hierarchical_kmeans
from pipeline.clustering.kmeans import spherical_kmeans
from pipeline.collectives import row_range
from pipeline.errors import ConfigError
from pipeline.storage import Folder, absolute

SIZE, NOISE = 256, 1.5
BLOCK = 100_000  # rows made at a time


def write_rows(path: Path, count: int, clusters: int) -> None:
    """Float16 unit rows (count, SIZE) around `clusters` directions, in random order."""
    generator = torch.Generator().manual_seed(0)
    centers = F.normalize(torch.randn(clusters, SIZE, generator=generator), dim=1)
    with path.open("wb") as file:
        for start in range(0, count, BLOCK):
            rows = centers[torch.randint(clusters, (min(BLOCK, count - start),), generator=generator)]
            rows += NOISE / SIZE**0.5 * torch.randn(rows.shape, generator=generator)
            F.normalize(rows, dim=1).half().numpy().tofile(file)


def copy_features(path: Path, folder: str) -> tuple[int, int]:
    """Copy the un-augmented features of a cache to a file of float16 rows; returns their number and length."""
    source = Folder(absolute(folder))
    cache = read_cache(source)
    if cache is None:
        raise ConfigError(f"--features {folder} holds no finished cache; make one with `digpro embed`")
    with path.open("wb") as file:
        for part in cache.parts:
            np.ascontiguousarray(read_part(source, part, cache)[:, 0]).tofile(file)
    return cache.num_images, cache.feature_size


def cost(point: dict[str, Any], path: Path) -> dict[str, Any]:
    """Seconds, peak memory and inertia of one point: `rows`, `size`, `clusters`, `workers`, `fit_rows`, `levels`."""
    store = path.with_name("store")
    store.unlink(missing_ok=True)
    context = multiprocessing.get_context("spawn")
    results: SimpleQueue[dict[str, float]] = context.SimpleQueue()
    jobs = [context.Process(target=_worker, args=(r, point, path, store, results)) for r in range(point["workers"])]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
        if job.exitcode:
            raise RuntimeError(f"a worker of {point} ended with exit status {job.exitcode}")
    workers = [results.get() for _ in jobs]
    return point | {name: max(worker[name] for worker in workers) for name in workers[0]}


def _worker(rank: int, point: dict[str, Any], path: Path, store: Path, results: SimpleQueue[dict[str, float]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=point["workers"])
    own, array = row_range(point["rows"]), np.memmap(path, np.float16, "c").reshape(-1, point["size"])
    cluster = hierarchical_kmeans if point["levels"] == 2 else spherical_kmeans
    cpu, wall = time.process_time(), time.perf_counter()
    features = torch.from_numpy(array[own.start : own.stop])
    found = cluster(features, point["clusters"], restarts=1, fit_rows=point["fit_rows"], empty="reseed")
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    results.put({"cpu_seconds": cpu, "seconds": wall, "peak_gib": peak, "mean_distance": found.inertia / own.total})
    dist.destroy_process_group()


def points(args: argparse.Namespace, size: int) -> list[dict[str, Any]]:
    """The first of all lists, then each further value of a list with the first of the others."""
    base = {"rows": args.rows[0], "clusters": args.clusters[0], "workers": args.workers[0]}
    further = [base | {name: value} for name in base for value in getattr(args, name)[1:]]
    same = {"fit_rows": args.fit_rows, "size": size}
    return [p | same | {"levels": levels} for p in [base, *further] for levels in args.levels]


def main() -> int:
    """Print a line per point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 40_000, 80_000])
    parser.add_argument("--clusters", type=int, nargs="+", default=[100, 200, 400])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--fit-rows", type=int, help="fit on a sample of so many, then assign all; default: fit on all")
    parser.add_argument("--levels", type=int, nargs="+", default=[1], choices=[1, 2], help="2: in two levels, for many")
    parser.add_argument("--features", help="a cache of `digpro embed`: its features, in place of synthetic rows")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the file of rows lies")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    results: dict[str, Any] = {"arguments": " ".join(sys.argv[1:]), "points": []}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path, size = Path(folder, "rows"), SIZE
        if args.features:
            rows, size = copy_features(path, args.features)
            args.rows = [rows]
        for point in points(args, size):
            if not args.features:
                write_rows(path, point["rows"], point["clusters"])
            found = cost(point, path)
            results["points"].append(found)
            where = f"N={found['rows']:,} K={found['clusters']:,} W={found['workers']} levels={found['levels']}"
            print(
                f"{where}: {found['cpu_seconds']:.2f} s of CPU, "
                f"{found['seconds']:.1f} s, peak {found['peak_gib']:.2f} GiB a worker, "
                f"mean distance {found['mean_distance']:.4f}",
                flush=True,
            )
    conclude(results, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
