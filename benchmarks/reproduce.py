"""One command for each row of docs/results.md: train it, record what it reached, and write the page.

    python -m benchmarks.reproduce digits --seeds 5
    python -m benchmarks.reproduce digits-groups-as-clusters --seeds 3   # a difference, and the row it differs from
    python -m benchmarks.reproduce uc-merced-short uc-merced-short-reference --source uc-merced=FOLDER --minutes 60
    python -m benchmarks.reproduce --list
    python -m benchmarks.reproduce --render                              # the pages, from the records
    python -m benchmarks.reproduce --draw digits-paper digits-paper-reference docs/images/digits-reference-curves.png

With --minutes it stops with a checkpoint, and the same command continues. Finished runs are not repeated; to repeat
one, delete its folder below runs/results. Several rows take turns seed by seed, and share the minutes equally, so that
they can be compared early.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.results.definitions import Definitions, load_definitions
from benchmarks.results.measuring import ROOT, Options, reproduce, row_settings
from benchmarks.results.page import DIFFERENCES, RESULTS, differences_page, results_page
from benchmarks.results.picture import draw_rows
from benchmarks.results.records import read_record
from pipeline.build import settle_images
from pipeline.config.identity import circumstances
from pipeline.config.loading import load_config
from pipeline.errors import ConfigError, Interrupted, UserError
from pipeline.interrupts import interruptible

DOCS = ROOT / "docs"
RECORDS = "results"  # folder below docs, beside the page that is made from it


def main() -> int:
    """Do what the command line asks for; returns the exit status."""
    parser = argument_parser()
    arguments = parser.parse_args()
    definitions = load_definitions()
    if arguments.list:
        print("\n".join(f"{name:30} {row.description}" for name, row in definitions.rows.items()))
    elif arguments.draw:
        draw(arguments.draw, definitions, DOCS / RECORDS)
    elif arguments.render:
        write_pages(definitions, DOCS)
    elif not arguments.rows:
        parser.error("give a row; --list shows them")
    else:
        options = options_of(arguments, definitions)
        with interruptible():
            return reproduce(arguments.rows, definitions, options, lambda: write_pages(definitions, DOCS))
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to measure")
    parser.add_argument("--list", action="store_true", help="print the rows and what they are")
    parser.add_argument("--render", action="store_true", help="write the pages from the records")
    parser.add_argument("--draw", nargs="+", metavar="ROW ... PNG", help="draw the curves of rows into one picture")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N-1 of each row (1)")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop with a checkpoint after M minutes")
    parser.add_argument("--source", action="append", default=[], metavar="DATA=SOURCE", help="where images come from")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--note", default="", help="stands beside the wall time, as in --note 'loaded machine'")
    return parser


def options_of(arguments: argparse.Namespace, definitions: Definitions) -> Options:
    """The options of the runs; ConfigError for a source of unknown images, and for a setting that decides a result."""
    if arguments.seeds < 1:
        raise ConfigError(f"--seeds {arguments.seeds}: give the number of seeds, 1 or more")
    sources = dict(source.partition("=")[::2] for source in arguments.source)
    if unknown := [name for name, source in sources.items() if name not in definitions.data_sets or not source]:
        known = ", ".join(definitions.data_sets)
        raise ConfigError(f"--source {unknown[0]}: give DATA=SOURCE, where DATA is one of: {known}")
    allowed = [key for key in circumstances() if key != "name"]
    if deciding := [setting for setting in arguments.settings if setting.partition("=")[0] not in allowed]:
        raise ConfigError(f"--set {deciding[0]} changes what the row is; make it a row of its own in rows.yaml")
    deadline = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    return Options(arguments.seeds, sources, arguments.settings, deadline, arguments.note, DOCS / RECORDS)


def write_pages(definitions: Definitions, docs: Path) -> None:
    """Write results.md, and the effects into differences.md."""
    for file, text in pages(definitions, docs).items():
        (docs / file).write_text(text)


def pages(definitions: Definitions, docs: Path) -> dict[str, str]:
    """The two pages from the current records, by the name of the file."""
    found = {name: read_record(docs / RECORDS, name) for name in definitions.rows}
    records = {name: record for name, record in found.items() if record}
    configs = {name: load_config(row.preset, row.overrides) for name, row in definitions.rows.items()}
    settings = {
        name: row_settings(settle_images(config)) for name, config in configs.items()
    }  # as the records have them
    return {
        RESULTS: results_page(definitions, records, settings, docs),
        DIFFERENCES: differences_page((docs / DIFFERENCES).read_text(), definitions, records),
    }


def draw(arguments: list[str], definitions: Definitions, folder: Path) -> None:
    """Draw rows into the file that is named last."""
    *names, out = arguments
    if not names or not out.endswith(".png"):
        raise ConfigError(f"--draw {' '.join(arguments)}: give one row or more, then a file that ends in .png")
    records = {name: read_record(folder, name) for name in names if definitions.row(name)}
    if missing := [name for name, record in records.items() if record is None]:
        raise ConfigError(f"{missing[0]} has no record yet; run python -m benchmarks.reproduce {missing[0]}")
    draw_rows(Path(out), [record for record in records.values() if record])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, Interrupted) as error:
        print(f"error: {error}" if isinstance(error, UserError) else error, file=sys.stderr)
        sys.exit(error.exit_status)
