"""docs/results.md from the records, and the effects in docs/differences.md."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks.results.definitions import DataSet, Definitions, Published, Row
from benchmarks.results.effects import Effect, effect_of
from benchmarks.results.records import SCORES, Record, SeedResult, Spread, changed_settings, furthest, spread

RESULTS, DIFFERENCES = "results.md", "differences.md"
EFFECT = re.compile(r"<!-- effect: ([\w -]+) -->.*?<!-- end -->")
NOT_MEASURED = "not yet measured"
COMMIT = 9  # characters of a commit

INTRODUCTION = """# Results

Each row is made by the one command beside it, which stores what it found in a file of the row's name in
[results](results) and writes this page. With `--minutes M` it stops after M minutes, and the same command continues; a
row that is not finished says how many epochs it has. Rows that failed stay. The rows are defined in
`benchmarks/results/rows.yaml`.

Scores are those of the last epoch, mean ± standard deviation over the seeds; labels are used for nothing else. The
floor is what the same images give without training. Wall time is that of one seed, with the start of Ray. Numbers in
italics are other people's. `python -m benchmarks.reproduce --list` says what the rows are that have no numbers yet.
"""
Records = dict[str, Record]
Settings = dict[str, dict[str, object]]


def results_page(definitions: Definitions, records: Records, settings: Settings, pictures: Path) -> str:
    """All of results.md; `settings` are each row's current settings, `pictures` the folder that pictures lie below."""
    sections = [INTRODUCTION]
    for name, images in definitions.data_sets.items():
        rows = {key: row for key, row in definitions.rows.items() if row.data == name}
        if rows:
            sections += data_set_section(images, rows, records, settings, pictures)
    effects = [effect for row in definitions.rows if (effect := effect_of(row, records, definitions))]
    return "\n".join([*sections, *effects_section(effects, definitions)])


def data_set_section(
    images: DataSet, rows: dict[str, Row], records: Records, settings: Settings, pictures: Path
) -> list[str]:
    """The scores on one data set, how they were made, what went wrong, and what is missing."""
    done = {name: records[name] for name in rows if name in records}
    return [
        f"## {images.title}\n",
        *table(
            ("", "epochs", "seeds", "NMI", "ACC", "ARI", "floor: NMI / ACC / ARI", "wall time", "images/s"),
            [*(score_cells(name, record) for name, record in done.items()), *map(published_cells, images.published)],
        ),
        *table(
            ("row", "what it is", "command", "hardware", "commit"),
            [making_cells(name, rows[name], record) for name, record in done.items()],
        ),
        *bullets(line for name, record in done.items() for line in remarks(record, settings[name])),
        *(line for file, shown in images.pictures.items() for line in picture(file, shown, pictures)),
        *missing_rows([name for name in rows if name not in done]),
    ]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A Markdown table and an empty line; nothing without rows."""
    lines = [head, ("---",) * len(head), *rows]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""] if rows else []


def bullets(lines: Iterable[str]) -> list[str]:
    """A Markdown list and an empty line; nothing without lines."""
    found = [f"- {line}" for line in lines]
    return [*found, ""] if found else []


def score_cells(name: str, record: Record) -> tuple[str, ...]:
    """How far a row came, and with which scores."""
    seeds = furthest(record)
    all_seeds = list(record.seeds.values())
    epochs = f"{max(s.epochs for s in seeds or all_seeds):,} / {max(s.planned for s in all_seeds):,}"
    rates = [seed.images_per_second for seed in seeds if seed.images_per_second]
    return (
        f"`{name}`",
        epochs,
        seeds_cell(record, seeds),
        *(plus_minus(spread([seed.scores[score] for seed in seeds])) if seeds else "none" for score in SCORES),
        floor_cell(record),
        time_cell(seeds or all_seeds),
        f"{spread(rates).mean:,.0f}" if rates else "",
    )


def seeds_cell(record: Record, seeds: list[SeedResult]) -> str:
    """How many seeds are in the scores, out of how many, and how many failed."""
    failed = sum(seed.status == "failed" for seed in record.seeds.values())
    count = str(len(seeds)) if len(seeds) == len(record.seeds) else f"{len(seeds)} of {len(record.seeds)}"
    return f"{count}; {failed} failed" if failed else count


def plus_minus(value: Spread, form: str = ".3f") -> str:
    """Mean ± standard deviation; a single value alone."""
    return f"{value.mean:{form}} ± {value.std:.3f}" if value.size > 1 else f"{value.mean:{form}}"


def floor_cell(record: Record) -> str:
    """The floor's scores and what it is."""
    if record.floor is None:
        return ""
    return " / ".join(f"{record.floor.scores[score][0]:.3f}" for score in SCORES) + f" ({record.floor.what})"


def time_cell(seeds: list[SeedResult]) -> str:
    """Wall time of one seed, with the notes on it."""
    notes = dict.fromkeys(call.note for seed in seeds for call in seed.calls if call.note)
    return duration(spread([seed.seconds for seed in seeds]).mean) + (f" ({', '.join(notes)})" if notes else "")


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as a reader would say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def published_cells(published: Published) -> tuple[str, ...]:
    """Another's result, in italics, with its source."""
    scores = (getattr(published, score) for score in SCORES)
    cells = ("" if value is None else f"*{value:.3f}*" for value in scores)
    return (f"*{published.what}* ({published.source})", "", "", *cells, "", "", "")


def making_cells(name: str, row: Row, record: Record) -> tuple[str, ...]:
    """What a row is, and all it takes to make it again."""
    calls = [call for seed in record.seeds.values() for call in seed.calls]
    commits = dict.fromkeys(short(call.commit) for call in calls)
    hardware = calls[-1].hardware if calls else "unknown"
    return (f"`{name}`", row.description, f"`{record.command}`", hardware, ", ".join(commits) or "unknown")


def short(commit: str | None) -> str:
    """A commit as it is shown; a mark stays for code that was not committed."""
    if commit is None:
        return "unknown"
    return f"`{commit[:COMMIT]}`" + (" with changes" if commit.endswith("-dirty") else "")


def remarks(record: Record, settings: dict[str, object]) -> Iterable[str]:
    """What a reader has to know about a row: runs that failed, and settings that have changed since."""
    for seed, result in record.seeds.items():
        if result.status == "failed":
            yield f"`{record.row}`, seed {seed}, failed after {result.epochs:,} epochs: {result.reason}"
    if changed := changed_settings(record, settings):
        keys = ", ".join(f"`{key}`" for key in changed)
        yield f"`{record.row}` was measured with other settings than it has now: {keys}."


def missing_rows(names: list[str]) -> list[str]:
    """The rows that have no record yet."""
    return [f"{NOT_MEASURED.capitalize()}: {', '.join(f'`{name}`' for name in names)}.\n"] if names else []


def picture(file: str, rows: list[str], pictures: Path) -> list[str]:
    """A picture of curves and the command that draws it, where it was drawn."""
    if not (pictures / file).is_file():
        return []
    command = f"python -m benchmarks.reproduce --draw {' '.join(rows)} docs/{file}"
    return [f"![{' and '.join(rows)} over epochs]({file})\n", f"Drawn by `{command}`.\n"]


def effects_section(effects: list[Effect], definitions: Definitions) -> list[str]:
    """What single differences change."""
    if not effects:
        return []
    return [
        "## Effects\n",
        "Scores of a row minus those of the row that it is like: mean ± standard deviation over the seeds of both.\n",
        *table(
            ("row", "differs from", "by", "epochs", "seeds", "NMI", "ACC", "ARI", "ACC of each seed"),
            [effect_cells(effect, definitions.rows[effect.row]) for effect in effects],
        ),
    ]


def effect_cells(effect: Effect, row: Row) -> tuple[str, ...]:
    """One difference, with its effect on each seed."""
    return (
        f"`{effect.row}`",
        f"`{effect.against}`",
        row.difference,
        f"{effect.epoch:,} / {effect.planned:,}",
        str(effect.spread("acc").size),
        *(plus_minus(effect.spread(score), "+.3f") for score in SCORES),
        ", ".join(f"{value:+.3f}" for value in effect.differences["acc"].values()),
    )


def differences_page(text: str, definitions: Definitions, records: Records) -> str:
    """differences.md with the current effects at each `<!-- effect: ROW ROW -->`."""

    def cell(found: re.Match[str]) -> str:
        effects = [(row, effect_of(row, records, definitions)) for row in found[1].split()]
        measured = "; ".join(effect_text(effect) for _, effect in effects if effect)
        return f"<!-- effect: {found[1]} -->{measured or NOT_MEASURED}<!-- end -->"

    return EFFECT.sub(cell, text)


def effect_text(effect: Effect) -> str:
    """An effect in a cell of differences.md."""
    acc, nmi = effect.spread("acc"), effect.spread("nmi")
    seeds = f"{acc.size} seed{'s' if acc.size > 1 else ''}"
    epochs = "" if effect.epoch == effect.planned else f", after {effect.epoch:,} of {effect.planned:,} epochs"
    return (
        f"ACC {plus_minus(acc, '+.3f')}, NMI {plus_minus(nmi, '+.3f')} "
        f"([`{effect.row}`](results.md#effects), {seeds}{epochs})"
    )


def marked_rows(text: str) -> list[str]:
    """The rows whose effects a page shows."""
    return [row for found in EFFECT.finditer(text) for row in found[1].split()]
