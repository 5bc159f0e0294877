"""How a difference changes the scores: a row against the one that it is like, seed by seed."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.results.definitions import Definitions
from benchmarks.results.records import SCORES, Record, SeedResult, Spread, spread

Pair = tuple[SeedResult, SeedResult]


@dataclass(frozen=True)
class Effect:
    """Scores with a difference minus scores without it.

    Attributes
    ----------
    row, against : str
        The two rows.
    epoch, planned : int
        The epoch after which both are scored, and how many were planned.
    differences : dict of dict
        By score and seed.
    """

    row: str
    against: str
    epoch: int
    planned: int
    differences: dict[str, dict[int, float]]

    def spread(self, score: str) -> Spread:
        """Mean and standard deviation over the seeds."""
        return spread(list(self.differences[score].values()))


def effect_of(row: str, records: dict[str, Record], definitions: Definitions) -> Effect | None:
    """The effect of a difference; None for other rows, and if the two have no scored seed in common.

    Stopped runs count up to the last epoch that both have done, and only the seeds that came furthest count.
    """
    definition = definitions.rows[row]
    if not definition.difference or definition.like not in records or row not in records:
        return None
    mine, other = records[row].seeds, records[definition.like].seeds
    pairs = {seed: (mine[seed], other[seed]) for seed in mine.keys() & other.keys()}
    pairs = {seed: pair for seed, pair in sorted(pairs.items()) if all(result.scores for result in pair)}
    if not pairs:
        return None
    epoch = max(_common_epoch(pair) for pair in pairs.values())
    pairs = {seed: pair for seed, pair in pairs.items() if _common_epoch(pair) == epoch}
    planned = max(result.planned for pair in pairs.values() for result in pair)
    return Effect(row, definition.like, epoch, planned, {name: _differences(pairs, epoch, name) for name in SCORES})


def _common_epoch(pair: Pair) -> int:
    return min(result.epochs for result in pair)


def _differences(pairs: dict[int, Pair], epoch: int, name: str) -> dict[int, float]:
    """The first of each pair minus the second, after an epoch."""
    scores = {seed: (pair[0].score_at(epoch, name), pair[1].score_at(epoch, name)) for seed, pair in pairs.items()}
    return {seed: a - b for seed, (a, b) in scores.items() if a is not None and b is not None}
