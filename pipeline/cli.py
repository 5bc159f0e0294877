"""digpro: the command line. Each command parses, calls one function, and says where its results are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from pipeline.cluster import connect
from pipeline.config import ConfigError, load_config, preset_names
from pipeline.data.shards import DataError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
console = Console(highlight=False, soft_wrap=True)

PresetOption = Annotated[str, typer.Option("--preset", "-p", help="a preset's name, or the path of a .yaml file")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="SECTION.KEY=VALUE", help="override a setting; repeatable")
]


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(help="digits, imagefolder:PATH, parquet:PATH, webdataset:PATH, ...")],
    out: Annotated[str, typer.Argument(help="folder or URI for shards and manifest")],
    rows_per_shard: Annotated[int, typer.Option(min=1)] = 5000,
) -> None:
    """Turn images of any common form into Parquet shards with a manifest. A killed ingest goes on when run again."""
    from pipeline.data.ingest import ingest as run_ingest

    connect()
    manifest = run_ingest(source, out, rows_per_shard=rows_per_shard, on_progress=_ingest_progress)
    console.print(
        f"{manifest.num_images:,} images in {len(manifest.shards)} shards, "
        f"{len(manifest.class_names)} classes, {manifest.quarantined_count} images quarantined"
    )
    console.print(f"summary:     {out}/summary.json")


@app.command()
def train(preset: PresetOption = "digits", settings: SetOption = None) -> None:
    """Cluster a data set. The same command goes on where an interrupted run stopped."""
    from pipeline.training.trainer import train as run_training

    config = load_config(preset, settings)
    summary = run_training(config, label=Path(preset).stem, say=console.print)
    _print_result(summary)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="folder of a finished run, as `digpro train` prints it")],
    data: Annotated[str | None, typer.Option(help="folder of shards; the run's own by default")] = None,
    out: Annotated[str | None, typer.Option(help="folder for assignments and summary; in the run's by default")] = None,
) -> None:
    """Assign every image of a data set to its cluster, and score the clusters where classes are known."""
    from pipeline.inference.evaluate import evaluate as run_evaluation

    connect()
    _print_result(run_evaluation(run, data, out))


@app.command()
def presets(name: Annotated[str | None, typer.Argument(help="show this one with all its settings")] = None) -> None:
    """List the presets, or show one in full."""
    if name is None:
        console.print("\n".join(preset_names()))
    else:
        console.print(yaml.safe_dump(load_config(name).model_dump(mode="json"), sort_keys=False))


def _ingest_progress(done: int, total: int, images: int) -> None:
    console.print(f"part {done}/{total}: {images:,} images")


def _print_result(summary: dict[str, Any]) -> None:
    scores = "  ".join(f"{name.upper()} {value:.4f}" for name, value in summary["scores"].items())
    console.print(scores or "no classes are known, so there are no scores")
    for title, place in summary["outputs"].items():
        console.print(f"{title + ':':<13}{place}")


def main() -> None:
    """Entry point: what a user can mend is one message and exit status 2, not a traceback."""
    try:
        app()
    except (ConfigError, DataError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", markup=False)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from the last checkpoint")
        raise SystemExit(130) from None
