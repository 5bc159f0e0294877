"""Size of an atlas, and how long a browser takes to open it.

    python -m benchmarks.atlas                                    # 60,000 images in 1,000 clusters

The clustering is synthetic: features around random centres, and pictures with the detail of photographs, so that their
sheets take as many bytes. The page is opened from disk in headless Chromium; the time is from navigation until the
first view is drawn and its pictures are decoded.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from benchmarks.measure import conclude
from pipeline.clustering.neighbours import nearest_rows
from pipeline.method.losses import unit
from pipeline.report.atlas import atlas_page
from pipeline.report.choice import Assignments, count_images
from pipeline.report.compose import Clustering, compose
from pipeline.report.layout import Layout, principal_plane
from pipeline.report.mapped_images import NEIGHBOURS, MappedImages
from pipeline.report.sprites import Pictures, tile_side

MOST_BYTES, MOST_SECONDS = 30_000_000, 3.0
MAPPED = 10_000  # images with features: more than the page has on its map
Array = np.ndarray[Any, Any]


def make_clustering(count: int, clusters: int, size: int = 128) -> Clustering:
    """A clustering of `count` images with classes, and paths as long as ImageNet's on disk."""
    generator = torch.Generator().manual_seed(0)
    centers = unit(torch.randn(clusters, size, generator=generator))
    own = torch.randint(clusters, (count,), generator=generator)
    features = unit(centers[own] + 0.6 / size**0.5 * torch.randn(count, size, generator=generator))
    top = (features @ centers.T).topk(2, dim=1)
    nearest, cosines = top.indices.numpy(), top.values.numpy()
    images = Assignments(
        path=[f"imagenet/train/n{10**7 + int(c):08}/n{10**7 + int(c):08}_{i:06}.JPEG" for i, c in enumerate(own)],
        cluster=nearest[:, 0],
        runner_up=nearest[:, 1],
        similarity=cosines[:, 0],
        margin=cosines[:, 0] - cosines[:, 1],
        outlier=np.random.default_rng(0).normal(size=count).astype(np.float32),
        label=(own % 100).numpy(),
    )
    history = [{"epoch": epoch, "loss": 1 / (1 + epoch), "acc": 0.5, "seconds_step": 9.0} for epoch in range(200)]
    names = [f"class {number}" for number in range(100)]
    totals, shown = count_images(images, clusters), _mapped(features[:MAPPED])
    return Clustering("benchmark", images, totals, centers, shown, {}, names, history, [])


def _mapped(features: torch.Tensor) -> MappedImages:
    """Map and neighbours; the map by PCA, because the kind of map does not change the page's size or speed."""
    ids, cosines = nearest_rows(features, 0, len(features), NEIGHBOURS)
    return MappedImages(features, Layout(principal_plane(features), "PCA"), ids.numpy(), cosines.numpy())


def photographs(chosen: Array) -> Pictures:
    """A picture of 4:3 for each image: random fields of several scales, with about the detail of a photograph."""
    side, rng = tile_side(len(chosen)), np.random.default_rng(0)
    pictures = np.empty((len(chosen), side, side, 3), np.uint8)
    for place in range(len(chosen)):
        fields = [(4, 90), (12, 45), (side, 12)]
        scales = [_field(rng, cells, side) * weight for cells, weight in fields]
        pictures[place] = np.clip(128 + sum(scales), 0, 255)
    return Pictures(pictures, np.full(len(chosen), 4 / 3, np.float32))


def _field(rng: np.random.Generator, cells: int, side: int) -> Array:
    """Smooth noise (side, side, 3) in [-1, 1] with `cells` blobs across."""
    noise = Image.fromarray(rng.integers(256, size=(cells, cells, 3), dtype=np.uint8))
    return np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1


def seconds_to_open(file: Path, rounds: int) -> list[float]:
    """Seconds from navigation until the page is ready, each time in a browser that is warm but has not seen it."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    seconds = []
    try:
        for _ in range(rounds):
            driver.get("about:blank")
            driver.get(file.as_uri())
            ready = WebDriverWait(driver, 60, 0.02).until(lambda d: d.execute_script(READY))
            seconds.append(int(ready) / 1000)
    finally:
        driver.quit()
    return seconds


READY = "return document.documentElement.dataset.ready"


def main() -> int:
    """Make the page and open it; exit status 1 when it is too large or too slow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--clusters", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="also leave the page here")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    start = time.perf_counter()
    clustering = make_clustering(args.images, args.clusters)
    made = time.perf_counter()
    atlas = compose(clustering, photographs)
    page = atlas_page(atlas)
    written = time.perf_counter()
    with TemporaryDirectory() as folder:
        file = Path(folder, "atlas.html")
        file.write_text(page, encoding="utf-8")
        size, opened = file.stat().st_size, seconds_to_open(file, args.rounds)
        if args.keep:
            shutil.copy(file, args.keep)
    holds = size <= MOST_BYTES and statistics.median(opened) <= MOST_SECONDS
    print(
        f"{args.images:,} images, {args.clusters:,} clusters: {size / 1e6:.1f} MB, {len(atlas.pictures):,} pictures, "
        f"ready after {statistics.median(opened):.2f} s ({min(opened):.2f} to {max(opened):.2f})  "
        f"{'PASS' if holds else 'FAIL'}"
    )
    print(f"clustering made in {made - start:.0f} s, its page in {written - made:.0f} s")
    conclude({"bytes": size, "seconds": opened, "claim_holds": holds}, args.out)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
