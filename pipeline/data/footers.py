"""What the footer of a Parquet file says about its row groups, without reading their data."""

from __future__ import annotations

import pyarrow.parquet as pq


def row_group_rows(file: pq.ParquetFile) -> tuple[int, ...]:
    """Rows of each row group of a file."""
    return tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))


def column_statistics(file: pq.ParquetFile, group: int, name: str) -> pq.Statistics | None:
    """Statistics of the column `name` in a row group; None if the writer left out the statistics or their limits."""
    row_group = file.metadata.row_group(group)
    chunks = (row_group.column(i) for i in range(row_group.num_columns))
    statistics = next(chunk.statistics for chunk in chunks if chunk.path_in_schema == name)
    return statistics if statistics is not None and statistics.has_min_max else None


def is_range(statistics: pq.Statistics | None, first: int, rows: int) -> bool:
    """Whether statistics show `rows` values, none of them null, from `first` to `first + rows - 1`."""
    if statistics is None or not statistics.has_null_count:
        return False
    found = statistics.min, statistics.max, statistics.num_values, statistics.null_count
    return found == (first, first + rows - 1, rows, 0)
