"""Manifests without data sets, for tests that read no images."""

from __future__ import annotations

from pipeline.data.shards import ImageStatistics, Manifest, Shard, SourceInfo


def manifest(
    images: int = 100, classes: int = 10, digest: str = "d", groups: tuple[int, ...] | None = None
) -> Manifest:
    """A manifest of one shard, of one row group where no groups are given."""
    statistics = ImageStatistics(
        mean=(0.5, 0.4, 0.3), std=(0.2, 0.1, 0.0), sampled=1, min_width=8, max_width=8, min_height=8, max_height=8
    )
    return Manifest(
        num_images=images,
        class_names=[f"class-{i}" for i in range(classes)],
        statistics=statistics,
        source=SourceInfo(source=f"imagefolder:{digest}", kind="imagefolder", digest=digest),
        shards=[Shard(file="shard-00000.parquet", rows=images, bytes=1, first_index=0, groups=groups or (images,))],
        quarantined_count=0,
        quarantined=[],
    )
