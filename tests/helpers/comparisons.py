"""Made-up runs that differ on some images, as the page of a comparison shows them."""

from __future__ import annotations

import numpy as np

from pipeline.clustering.agreement import count_pairs, jaccard_of_best, majority, match_clusters
from pipeline.report.comparison import Comparison, MovedImages
from pipeline.runs.compare import choose_moved, describe_run
from tests.helpers.atlases import colour_pictures

NAMES = [{0: "<script>alert(1)</script>", 1: "dogs"}, {1: "birds & <b>bees</b>"}, {}]


def comparison(count: int = 600, clusters: int = 6, moved: float = 0.2) -> Comparison:
    """Three runs on `count` images; the others number their clusters otherwise, and the last one has one cluster less.

    In both of them about a share `moved` of the images is in the next cluster, and in the last one half of those in the
    one after that.
    """
    generator = np.random.default_rng(0)
    first = (np.arange(count) % clusters).astype(np.int32)
    wanders = generator.random((2, count)) < moved
    other = (first + wanders[0]) % clusters
    third = np.minimum((first + wanders[1] + (wanders[1] & (generator.random(count) < 0.5))) % clusters, clusters - 2)
    labels = np.stack([first, clusters - 1 - other, third]).astype(np.int32)
    tables = [count_pairs(labels[0], run) for run in labels]
    matches = [match_clusters(table) for table in tables]
    matched = np.stack([match[run] for match, run in zip(matches, labels, strict=True)])
    elsewhere = (matched != first).sum(axis=0)
    agreement = majority(matched)[1]
    chosen = choose_moved(first, elsewhere)
    return Comparison(
        runs=[
            describe_run(
                f"k{clusters}/seed-{number} <i>",
                "" if number else "../first%20run/atlas.html",
                NAMES[number],
                table,
                match,
            )
            for number, (table, match) in enumerate(zip(tables, matches, strict=True))
        ],
        ari=np.array([[1, 0.71, 0.58], [0.71, 1, 0.49], [0.58, 0.49, 1]]),
        nmi=np.array([[1, 0.76, 0.66], [0.76, 1, 0.6], [0.66, 0.6, 1]]),
        stability=np.mean([jaccard_of_best(table) for table in tables[1:]], axis=0),
        moved=np.bincount(first[elsewhere > 0], minlength=clusters),
        images=count,
        agreement=float(agreement.mean()),
        sample=MovedImages(
            index=chosen,
            path=[f"photos/<u>{index % 3}</u>/{index:04}.png" for index in chosen],
            clusters=labels[:, chosen],
            elsewhere=elsewhere[chosen],
            agreement=agreement[chosen],
            pictures=colour_pictures(chosen),
        ),
    )
