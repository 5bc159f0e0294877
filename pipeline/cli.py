"""The command line: each command parses, calls one function, and says where its results are."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import click
import typer
import yaml
from typer.core import TyperGroup

from pipeline.cluster import cluster_address, connect
from pipeline.config.loading import load_config, preset_names
from pipeline.data.shards import SUMMARY
from pipeline.errors import Interrupted, UserError
from pipeline.interrupts import interruptible

OVERVIEW = """Cluster images without labels by DigPro, on one machine or on a Ray cluster.

Start with `digpro train`: it clusters 1,797 handwritten digits in minutes and prints where its pictures are.
For images of your own, run `digpro ingest`, then `digpro train` with a preset and `--set data.path=...`.

Ray runs on this machine, or on the cluster that RAY_ADDRESS names; `digpro submit` sends a command to a cluster.
"""


class Commands(TyperGroup):
    """Our commands, each of which Ctrl-C and SIGTERM end with one message."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that the line names."""
        with interruptible():
            return super().invoke(ctx)


class Place(click.ParamType):
    """A folder, file or URI; in a job it has to mean the same on every node."""

    name = "place"


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=OVERVIEW,
)
PLACE = Place()

PresetOption = Annotated[
    str,
    typer.Option("--preset", "-p", metavar="NAME|FILE", help="A preset (see `digpro presets`), or a .yaml file."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override a setting, as in optim.lr=0.1; may be given several times."
    ),
]
INGEST_SOURCES = """Where the images come from: `digits` (the demo);
`imagefolder:PATH`, image files, whose folders are the classes;
`parquet:PATH`, Parquet files with an image column, as Hugging Face has them;
`webdataset:PATTERN`, tar files; `torchvision:NAME:PATH`, a torchvision data set on disk;
or a plain path, whose kind is detected."""


def echo(text: str, *, error: bool = False) -> None:
    """Print a line as it is: paths and names of others are never markup, and no line is wrapped."""
    print(text, file=sys.stderr if error else sys.stdout, flush=True)


@app.callback()
def digpro(
    show_version: Annotated[bool, typer.Option("--version", help="Show versions and exit.")] = False,
) -> None:
    if show_version:
        names = {"digpro": "digpro-ray", "Ray": "ray", "PyTorch": "torch"}
        versions = [f"{title} {version(name)}" for title, name in names.items()]
        echo(", ".join([*versions, f"Python {platform.python_version()}"]))
        raise typer.Exit
    

@app.command()
def ingest(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=INGEST_SOURCES)],
    out: Annotated[str, typer.Argument(metavar="FOLDER", help="Where shards and manifest go: a folder or URI.")],
    rows_per_shard: Annotated[int, typer.Option(min=1, metavar="N", help="Images in a shard at most.")] = 5000,
    bands: Annotated[
        str | None,
        typer.Option(metavar="R,G,B|N", help="Bands to show as red, green, blue, or one as gray; counted from 1."),
    ] = None,
    range_: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW,HIGH|percentile",
            help="Values shown as black and white, of images with more than 8 bits.",
        ),
    ] = None,
    background: Annotated[
        str, typer.Option(metavar="COLOUR", help="What shows through transparent pixels: a name, or #rrggbb.")
    ] = "white",
    image_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Parquet: the column of images.  [default: detected]")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Parquet: the column of integer labels.  [default: detected]")
    ] = None,
) -> None:
    """Turn images of any common form into shards with a manifest.

    An ingest that was killed is resumed by the same command. Whatever lies in SOURCE becomes an image, is listed with
    the reason in quarantine.jsonl, or is listed with the rule that leaves it out in left_out.jsonl.

    \b
    Example:
      digpro ingest imagefolder:photos data/photos
      digpro ingest imagefolder:sentinel data/sentinel --bands 4,3,2 --range 0,3000
    """
    from pipeline.data.ingest import ingest as run_ingest
    from pipeline.data.pixel_options import parse_pixel_options

    pixels = parse_pixel_options(bands, range_, background)
    connect()
    manifest = run_ingest(
        source,
        out,
        pixels=pixels,
        rows_per_shard=rows_per_shard,
        image_column=image_column,
        label_column=label_column,
        on_progress=_ingest_progress,
    )
    console.print(
        f"{manifest.num_images:,} images in {len(manifest.shards)} shards, "
        f"{len(manifest.class_names)} classes, {manifest.quarantined_count} images quarantined"
    )
    if manifest.balance:
        _plain(str(manifest.balance))
    _plain(f"summary:     {out}/{SUMMARY}")


@app.command()
def train(preset: PresetOption = "digits", settings: SetOption = None) -> None:
    """Cluster a data set.

    The same command goes on where an interrupted run stopped, and shows the result of a finished one.

    \b
    Example:
      digpro train --preset digits --set optim.epochs=20 --set resources.workers=1
    """
    from pipeline.runs.train import train as run_training

    config = load_config(preset, settings)
    summary = run_training(config, label=Path(preset).stem, echo=console.print)
    _print_result(summary)


@app.command()
def tune(
    space: Annotated[
        str, typer.Option(metavar="FILE", help="What to search: a Python file such as tune_spaces/digpro.py.")
    ],
    preset: PresetOption = "digits",
    trials: Annotated[int, typer.Option(min=1, metavar="N", help="Trainings in all.")] = 16,
    scheduler: Annotated[
        str,
        typer.Option(
            metavar="asha|pbt|none", help="Stop poor trials early; let them take over from good ones; or neither."
        ),
    ] = "asha",
    concurrent: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Trials at a time.  [default: as many as fit]")
    ] = None,
    settings: SetOption = None,
) -> None:
    """Search for better settings, with labels or without.

    Each trial is a training of its own, with the resources of --set. The same command goes on where a killed search
    stopped, and shows the result of a finished one. The best settings are written as a preset.

    \b
    Example:
      digpro tune --space tune_spaces/digpro.py --preset digits --trials 16 --set resources.workers=1
    """
    from pipeline.tuning.search import search
    from pipeline.tuning.space import format_point, load_space

    config = load_config(preset, settings)
    summary = search(
        config,
        load_space(space),
        label=Path(preset).stem,
        trials=trials,
        scheduler=scheduler,
        concurrent=concurrent,
        echo=_plain,
    )
    best = summary["best"]
    _plain(f"best of {len(summary['trials'])} trials: trial {best['number']}  {format_point(best['point'])}")
    _print_result(summary)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run, the one that holds its summary.json.")],
    data: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Shards to assign.  [default: those of the run]")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where the results go.  [default: RUN/evaluation]")
    ] = None,
) -> None:
    """Assign every image of a data set to its cluster.

    The newest checkpoint of the run is used. Where classes are known, the clusters are scored against them.

    \b
    Example:
      digpro evaluate runs/digits-0123abcd --data data/other-digits
    """
    from pipeline.runs.evaluate import evaluate as run_evaluation

    _print_result(run_evaluation(run, data, out))


@app.command()
def doctor(preset: PresetOption = "digits", settings: SetOption = None) -> None:
    """Look on every node for what could go wrong with a run.

    \b
    Example:
      digpro doctor --preset cifar10 --set storage=s3://bucket/runs --set tracking.uri=http://mlflow:5000
    """
    from pipeline.checks.doctor import examine
    from pipeline.runs.train import resolve_paths_and_name

    config = resolve_paths_and_name(load_config(preset, settings), Path(preset).stem)
    connect()
    findings = examine(config)
    for finding in findings:
        console.print(f"{'MEND' if finding.remedy else 'ok':<5} {finding.what}: {finding.found}", markup=False)
        if finding.remedy:
            console.print(f"      -> {finding.remedy}", markup=False)
    if any(finding.remedy for finding in findings):
        raise typer.Exit(1)


AddressOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The cluster's dashboard.  [default: RAY_ADDRESS, or this machine's]"),
]


@app.command(context_settings={"allow_extra_args": True, "allow_interspersed_args": False})
def submit(
    context: typer.Context,
    verb: Annotated[
        str, typer.Argument(metavar="VERB ...", help="ingest, train, tune or evaluate, with its own options.")
    ],
    address: AddressOption = None,
    working_dir: Annotated[str, typer.Option(metavar="FOLDER", help="What travels: the project's folder.")] = ".",
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the job's end.")] = False,
) -> None:
    """Run a command as a job on a Ray cluster.

    Settings, paths and size are checked before anything is sent; the log is shown until the job ends.

    \b
    Example:
      digpro submit --address http://127.0.0.1:8265 train --preset digits \\
          --set data.path=/mnt/data/digits --set storage=/mnt/runs
    """
    from pipeline.submission import submit as run_submission

    run_submission(verb, context.args, address=address, folder=working_dir, follow=not detach, say=_plain)


@app.command()
def stop(
    job: Annotated[str, typer.Argument(metavar="JOB", help="What `digpro submit` printed.")],
    address: AddressOption = None,
) -> None:
    """Stop a job that was submitted.

    A training run goes on when it is submitted again.
    """
    from pipeline.submission import stop as stop_job

    stop_job(job, address=address)
    console.print(f"job {job} is being stopped")


@app.command()
def presets(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="Show this one with all its settings.")
    ] = None,
) -> None:
    """List the presets, or show one in full."""
    if name is None:
        console.print("\n".join(preset_names()))
    else:
        console.print(yaml.safe_dump(load_config(name).model_dump(mode="json"), sort_keys=False), end="", markup=False)


def _ingest_progress(done: int, total: int, images: int) -> None:
    console.print(f"part {done}/{total}: {images:,} images")


def _print_result(summary: dict[str, Any]) -> None:
    scores = "  ".join(f"{name.upper()} {value:.4f}" for name, value in summary["scores"].items())
    console.print(scores or "no classes are known, so there are no scores")
    for title, place in summary["outputs"].items():
        console.print(f"{title + ':':<13}{place}")


def _plain(text: str) -> None:
    console.print(text, markup=False)


def main(verb: str | None = None) -> None:
    """Entry point: what a user can mend is one message and exit status 2, not a traceback.

    `verb` is the command that a script of `jobs/` stands for; its arguments are the command line's.
    """
    try:
        app([verb, *sys.argv[1:]] if verb else None, prog_name="digpro")
    except (ConfigError, DataError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", markup=False)
        raise SystemExit(2) from None
    except RunFailed as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", markup=False)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; the same command goes on where this one stopped")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
