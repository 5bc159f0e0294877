"""The command line: each command parses its arguments, calls one function, and prints where its results are."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from typer.core import TyperGroup

from pipeline.checks.machine import machine_findings
from pipeline.cluster import cluster_address, connect
from pipeline.config.loading import load_config, preset_names
from pipeline.data.shards import SUMMARY
from pipeline.errors import ConfigError, Interrupted, UserError
from pipeline.interrupts import interruptible
from pipeline.provenance import versions
from pipeline.storage import join, storage_fault
from pipeline.submission import VERBS, ImageSource, Location, ModelReference, job_script
from pipeline.submission import stop as stop_job
from pipeline.submission import submit as run_submission

OVERVIEW = """Cluster images without labels with DigPro, on one machine or on a Ray cluster.

Start with `digpro train`: it clusters 1,797 handwritten digits in minutes and prints the paths of its results.
For your own images, run `digpro ingest`, then `digpro train` with a preset and `--set data.path=...`.

Commands run on this machine, or on the Ray cluster at RAY_ADDRESS. `digpro submit` runs one as a job on a cluster.
"""


class Commands(TyperGroup):
    """The commands; Ctrl-C and SIGTERM end each of them with one message."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with interruptible():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=OVERVIEW,
)

SHOWN_CLUSTERS = 12
PROFILE_SETTINGS = ["profile.steps=20"]  # for `--profile`; --set can override the number
EXTRA_ARGUMENTS = {"allow_extra_args": True}  # refused by `_check_one_source`, with a remedy

PresetOption = Annotated[
    str,
    typer.Option("--preset", "-p", metavar="NAME|FILE", help="Use this preset (see `digpro presets`) or .yaml file."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a setting, such as optim.lr=0.1; can be repeated."),
]
INGEST_SOURCES = """Images to ingest: `digits` (the demo);
`imagefolder:PATH`, a folder of image files, whose subfolders are the classes; also one image,
a .txt file with one path per line, or a quoted pattern such as "photos/*.jpg";
`parquet:PATH`, Parquet files with an image column, in the Hugging Face layout;
`webdataset:PATTERN`, tar files; `torchvision:NAME:PATH`, a torchvision data set on disk;
or a plain path, whose kind is detected."""
OutArgument = Annotated[str, typer.Argument(metavar="FOLDER", parser=Location, help="Write to this folder or URI.")]


def echo(text: str, *, error: bool = False) -> None:
    """Print a line as it is: paths and names are never read as markup, and no line is wrapped."""
    print(text, file=sys.stderr if error else sys.stdout, flush=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        found = versions()
        echo(f"digpro {found['digpro-ray']} (Python {found['python']}, torch {found['torch']}, ray {found['ray']})")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """Define the options that come before the command."""


@app.command(context_settings=EXTRA_ARGUMENTS)
def ingest(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", parser=ImageSource, help=INGEST_SOURCES)],
    out: OutArgument,
    rows_per_shard: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum number of images per shard.")] = 5000,
    bands: Annotated[
        str | None,
        typer.Option(metavar="R,G,B|N", help="Bands to use as red, green and blue, or one as gray; counted from 1."),
    ] = None,
    range_: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW,HIGH|percentile",
            help="Values to show as black and white in images with more than 8 bits; `percentile` measures them.",
        ),
    ] = None,
    background: Annotated[
        str, typer.Option(metavar="COLOUR", help="Replace transparent pixels with this colour: a name or #rrggbb.")
    ] = "white",
    image_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Read images from this Parquet column.  [default: detected]")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Read labels from this Parquet column.  [default: detected]")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Ingest only these classes: a built-in list such as imagenet-10, or a text file with one class per "
            "line.  [default: all]",
        ),
    ] = None,
) -> None:
    """Convert images of any common format to shards with a manifest.

    The same command resumes an interrupted ingest. Everything in SOURCE becomes an image or is listed with the reason:
    in quarantine.jsonl if an image may be lost, in left_out.jsonl if a rule leaves it out.

    \b
    Example:
      digpro ingest imagefolder:photos data/photos
      digpro ingest imagefolder:sentinel data/sentinel --bands 4,3,2 --range 0,3000
      digpro ingest imagefolder:imagenet/train data/imagenet-10 --classes imagenet-10
    """
    _check_one_source(context)
    from pipeline.data.class_lists import load_class_list
    from pipeline.data.ingest import ingest as run_ingest
    from pipeline.data.pixel_options import parse_pixel_options

    pixels = parse_pixel_options(bands, range_, background)
    listed = load_class_list(classes) if classes is not None else None
    connect()
    manifest = run_ingest(
        source,
        out,
        pixels=pixels,
        rows_per_shard=rows_per_shard,
        image_column=image_column,
        label_column=label_column,
        classes=listed,
        on_progress=_ingest_progress,
    )
    echo(
        f"{manifest.num_images:,} images in {len(manifest.shards)} shards, "
        f"{len(manifest.class_names)} classes, {manifest.quarantined_count} images quarantined"
    )
    if manifest.balance:
        echo(str(manifest.balance))
    if manifest.count_warning:
        echo(f"warning: {manifest.counts}", error=True)
    elif manifest.counts:
        echo(f"classes:     {manifest.counts}")
    echo(f"summary:     {join(out, SUMMARY)}")


@app.command()
def embed(
    data: Annotated[str, typer.Argument(metavar="DATA", parser=Location, help="Folder or URI of the shards.")],
    out: Annotated[
        str, typer.Argument(metavar="FOLDER", parser=Location, help="Write the cache below this folder or URI.")
    ],
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Use this backbone: torchvision:NAME, timm:NAME or python:MODULE:FUNCTION.  [default: the preset's]",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|default",
            help="Load this state dict, or the library's own weights.  [default: the library's own]",
        ),
    ] = None,
    views: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Augmented views per image.  [default: the preset's]")
    ] = None,
    preset: PresetOption = "photos",
    settings: SetOption = None,
) -> None:
    """Cache the features of a frozen backbone.

    `digpro train` with model.freeze=true does this by itself. Run it separately to share a cache between runs: give
    them the same settings and data.features=FOLDER. The same command resumes an interrupted one.

    \b
    Example:
      digpro embed data/photos runs/features --encoder timm:vit_small_patch14_dinov2.lvd142m --set views.size=224
    """
    from pipeline.runs.embed import make_cache

    given = [*(settings or []), f"data.path={data}", f"data.features={out}"]
    if encoder is not None:
        own = encoder.startswith("python:") and weights is None
        given += [f"model.encoder={encoder}", f"model.weights={'null' if own else weights or 'default'}"]
    if views is not None:
        given.append(f"views.cached={views}")
    folder, cache = make_cache(load_config(preset, given), echo)
    echo(f"{cache.num_images:,} images, {cache.views} views, {cache.feature_size} features each")
    echo(f"features:    {folder.path}")


@app.command()
def train(
    context: typer.Context,
    preset: PresetOption = "digits",
    settings: SetOption = None,
    start_from: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN", parser=Location, help="Start from the weights and settings of this run."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Record where time is spent, in the run's folder and in MLflow.")
    ] = False,
) -> None:
    """Cluster a data set.

    The same command resumes an interrupted run, or shows the result of a finished one.

    \b
    Example:
      digpro train --preset digits --set optim.epochs=20 --set resources.workers=1
    """
    _check_preset_or_run(context)
    from pipeline.runs.start_from import settings_of
    from pipeline.runs.train import train as run_training

    given = [*(PROFILE_SETTINGS if profile else []), *(settings or [])]
    config, label = settings_of(start_from, given) if start_from else (load_config(preset, given), Path(preset).stem)
    _print_result(run_training(config, label=label, echo=echo))


@app.command()
def tune(
    space: Annotated[
        str, typer.Option(metavar="FILE", help="Search the space in this Python file, such as tune_spaces/digpro.py.")
    ],
    preset: PresetOption = "digits",
    trials: Annotated[int, typer.Option(min=1, metavar="N", help="Total number of trials.")] = 16,
    scheduler: Annotated[
        str, typer.Option(metavar="asha|none", help="Stop poor trials early (asha), or run all to the end (none).")
    ] = "asha",
    concurrent: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Trials to run at a time.  [default: as many as fit]")
    ] = None,
    settings: SetOption = None,
) -> None:
    """Search for better settings, with labels or without.

    Each trial is a separate training run, with the resources given by --set. The same command resumes an interrupted
    search, or shows the result of a finished one. The best settings are written as a preset.

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
        echo=echo,
    )
    best = summary["best"]
    echo(f"best of {len(summary['trials'])} trials: trial {best['number']}  {format_point(best['point'])}")
    _print_result(summary)


RunArgument = Annotated[str, typer.Argument(metavar="RUN", parser=Location, help="Folder or URI of the run.")]
ModelArgument = Annotated[
    str,
    typer.Argument(metavar="RUN", parser=ModelReference, help="Run folder, MLflow run ID, or model NAME/VERSION."),
]


GpusOption = Annotated[
    bool | None,
    typer.Option(
        "--gpus/--no-gpus",
        help="Request GPUs, or only CPUs, from a cluster that grows on demand.  [default: GPUs that are there]",
    ),
]


@app.command(context_settings=EXTRA_ARGUMENTS)
def assign(
    context: typer.Context,
    run: ModelArgument,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", parser=ImageSource, help="Shards, or any source for `digpro ingest`.")
    ],
    out: OutArgument,
    features: Annotated[bool, typer.Option("--features", help="Add the column `feature` (float16).")] = False,
    classes: Annotated[bool, typer.Option("--classes", help="Add the column `label` (class number).")] = False,
    gpus: GpusOption = None,
) -> None:
    """Assign any images to the clusters of a trained model.

    Uses the newest checkpoint of the run. Images need not be ingested. The same command resumes an interrupted one.

    \b
    Example:
      digpro assign runs/photos-0123abcd imagefolder:more-photos assigned
    """
    _check_one_source(context)
    from pipeline.runs.assign import assign_images

    _print_assignment(assign_images(run, source, out, features=features, classes=classes, gpus=gpus, echo=echo))


@app.command()
def sort(
    run: Annotated[
        str, typer.Argument(metavar="RUN|ASSIGNED", parser=Location, help="Finished run, or output of `digpro assign`.")
    ],
    out: Annotated[
        str, typer.Argument(metavar="FOLDER", parser=Location, help="Write images to this new folder or URI.")
    ],
    top: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most N images per folder: the most typical ones.")
    ] = None,
    min_margin: Annotated[
        float, typer.Option(metavar="M", help="Leave out images with a smaller margin than this.")
    ] = 0.0,
    outliers: Annotated[
        str, typer.Option(metavar="among|apart", help="Keep outliers among the other images, or put them apart.")
    ] = "among",
    links: Annotated[bool, typer.Option("--links", help="Link to the original files instead of copying.")] = False,
    table: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="csv|label-studio|fiftyone|coco-classification",
            help="Format of the list of images; images.csv is always written.",
        ),
    ] = "csv",
    source: Annotated[
        str | None, typer.Option(metavar="SOURCE", parser=ImageSource, help="Read images from here if they have moved.")
    ] = None,
) -> None:
    """Sort images into one folder per cluster.

    Clusters with the same name share a folder. `images.csv` lists every file with its cluster, similarity and margin.

    \b
    Example:
      digpro sort runs/photos-0123abcd sorted --top 100 --outliers apart
    """
    from pipeline.runs.sort import Choice, sort_images

    choice = Choice(top, min_margin, outliers)
    summary = sort_images(run, out, choice, source=source, links=links, table=table, echo=echo)
    for folder, images in summary["folders"].items():
        echo(f"{images:>9,}  {folder}")
    for place in summary["outputs"]["tables"]:
        echo(f"table: {place}")


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN ...", parser=Location, help="Finished runs on the same images.")
    ],
    out: Annotated[str, typer.Option(metavar="FOLDER", parser=Location, help="Write to this folder or URI.")],
) -> None:
    """Compare runs on the same images, cluster by cluster.

    Shows which clusters every run finds, and which images change cluster. Runs that differ only in their seed show,
    without labels, how far to trust the clusters.

    \b
    Example:
      digpro compare runs/seed-0 runs/seed-1 runs/seed-2 --out comparison
    """
    from pipeline.runs.compare import compare as compare_runs

    summary = compare_runs(runs, out)
    echo(f"{summary['moved']:,} of {summary['images']:,} images are in another cluster in at least one other run")
    for run, ari, nmi in zip(summary["runs"][1:], summary["ari"][0][1:], summary["nmi"][0][1:], strict=True):
        echo(f"  ARI {ari:.3f}  NMI {nmi:.3f}  {run}")
    for cluster in sorted(summary["clusters"], key=lambda cluster: cluster["stability"])[:SHOWN_CLUSTERS]:
        echo(f"  stability {cluster['stability']:.2f}  {cluster['images']:>7,} images  {cluster['name']}")
    echo(f"on average {summary['agreement']:.1%} of the runs agree on an image")
    for title, place in summary["outputs"].items():
        echo(f"{title + ':':<11}{place}")


@app.command()
def combine(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN ...", parser=Location, help="Finished runs on the same images.")
    ],
    out: Annotated[
        str, typer.Option(metavar="FOLDER", parser=Location, help="Folder or URI of the new run, such as runs/both.")
    ],
) -> None:
    """Combine runs on the same images into one, their consensus.

    Usually of runs that differ only in their seed. The result is a run: `digpro assign`, `export`, `sort` and all other
    commands take it. Its assignments say which share of the runs agrees on each image.

    \b
    Example:
      digpro combine runs/seed-0 runs/seed-1 runs/seed-2 --out runs/consensus
    """
    from pipeline.runs.combine import combine as combine_runs

    summary = combine_runs(runs, out, echo=echo)
    metrics = summary["metrics"]
    echo(f"on average {metrics['agreement']:.1%} of the runs agree on an image")
    echo(f"ARI between two of the runs: {metrics['ari_of_members']:.3f} on average")
    _print_result(summary)


@app.command()
def evaluate(
    run: RunArgument,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            parser=ImageSource,
            help="Score these images: shards or another source.  [default: the run's shards]",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", parser=Location, help="Write results here.  [default: RUN/evaluation]"),
    ] = None,
    gpus: GpusOption = None,
) -> None:
    """Assign images, and score the clusters against the classes.

    \b
    Example:
      digpro evaluate runs/digits-0123abcd --data data/other-digits
    """
    from pipeline.runs.evaluate import evaluate as run_evaluation

    _print_assignment(run_evaluation(run, data, out, gpus=gpus, echo=echo))


@app.command()
def export(
    run: ModelArgument,
    format_name: Annotated[str, typer.Option("--format", metavar="onnx|pt2|safetensors", help="Write this format.")],
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", parser=Location, help="Write results here.  [default: RUN/export]")
    ] = None,
) -> None:
    """Write a trained model as ONNX, pt2 or safetensors.

    Also writes model.json, which describes the preprocessing, the clusters and their names. Checks an ONNX file against
    PyTorch.

    \b
    Example:
      digpro export runs/photos-0123abcd --format onnx
    """
    from pipeline.runs.export import export as run_export

    _print_places(run_export(run, format_name, out))


@app.command()
def label(
    run: RunArgument,
    names: Annotated[
        list[str],
        typer.Argument(metavar="CLUSTER=NAME|FILE ...", help="Names, or YAML files of `cluster: name` lines."),
    ],
) -> None:
    """Give names to clusters.

    Names appear in the atlas, in the output of `digpro assign` and in exported models. Clusters with the same name
    count as one. An empty name, as in `3=`, removes the name.

    \b
    Example:
      digpro label runs/photos-0123abcd 3=truck 7=truck 12="sports car"
    """
    from pipeline.runs.artifacts import send_names
    from pipeline.runs.names import set_names
    from pipeline.runs.report import put_names

    set_names(run, names, echo)
    if atlas := put_names(run):
        echo(f"atlas: {atlas}")
    send_names(run, echo)


@app.command()
def report(run: RunArgument) -> None:
    """Rewrite the atlas of a run: one page that shows every cluster.

    The atlas is one file that works offline. Every run writes it at the end, and `digpro label` updates its names.

    \b
    Example:
      digpro report runs/digits-0123abcd
    """
    from pipeline.runs.report import report as make_report

    _print_places(make_report(run))


@app.command()
def sweep_k(
    data: Annotated[
        str,
        typer.Argument(
            metavar="RUN|DATA",
            parser=Location,
            help="Folder of a finished run, or of shards; for shards, the preset needs a frozen backbone.",
        ),
    ],
    first: Annotated[int, typer.Option("--from", min=2, metavar="K", help="Smallest number of clusters.")] = 5,
    last: Annotated[int, typer.Option("--to", min=2, metavar="K", help="Largest number of clusters.")] = 50,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", parser=Location, help="Write results here.  [default: RUN/sweep-k; required for DATA]"
        ),
    ] = None,
    preset: PresetOption = "photos",
    settings: SetOption = None,
) -> None:
    """Estimate the number of clusters.

    Clusters the features for every number from --from to --to, and rates each by six criteria that use no labels. For a
    run, also writes files for `digpro label` that merge its clusters. The same command resumes an interrupted sweep.

    \b
    Example:
      digpro sweep-k runs/photos-0123abcd --from 5 --to 50
      digpro sweep-k data/photos --out runs/sweep-photos --to 30
    """
    from pipeline.runs.sweep_k import is_run, of_data, of_run, sweep

    if is_run(data):
        subject, out = of_run(data), out or join(data, "sweep-k")
    elif out is None:
        raise ConfigError(f"{data} is not the folder of a run; for shards, give --out, the folder for the results")
    else:
        subject = of_data(load_config(preset, [*(settings or []), f"data.path={data}"]), echo)
    summary = sweep(subject, range(first, last + 1), out, echo)
    for name, pick in summary["picks"].items():
        echo(f"{name:<13}{pick}")
    echo(summary["recommendation"]["sentence"])
    _print_places(summary["outputs"])


@app.command()
def deliver(
    run: RunArgument,
    uri: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Send to this MLflow server or database.  [default: the run's own]"),
    ] = None,
) -> None:
    """Send a run's waiting records to MLflow.

    Records wait in the run's folder while MLflow is unreachable. Running `digpro train` again also sends them,
    whether the run was interrupted or finished. The exit status is 1 if some are still waiting.

    \b
    Example:
      digpro deliver runs/digits-0123abcd --uri http://mlflow:5000
    """
    from pipeline.tracking import deliver_run

    delivery = deliver_run(run, uri)
    where = delivery.uri or "nowhere (MLflow is off for this run)"
    echo(f"{delivery.sent} records sent to {where}, {delivery.waiting} still waiting")
    if delivery.waiting:
        raise typer.Exit(1)


@app.command()
def doctor(preset: PresetOption = "digits", settings: SetOption = None) -> None:
    """Check this machine and every node before a run.

    \b
    Example:
      digpro doctor --preset cifar10 --set storage=s3://bucket/runs --set tracking.uri=http://mlflow:5000
    """
    from pipeline.checks.doctor import examine
    from pipeline.runs.train import resolve

    config = resolve(load_config(preset, settings), Path(preset).stem)
    findings = machine_findings(starts_cluster=cluster_address() is None)
    if not any(finding.remedy for finding in findings):  # otherwise Ray could not start
        connect()
        findings += examine(config)
    for finding in findings:
        echo(f"{'FIX' if finding.remedy else 'ok':<5} {finding.what}: {finding.found}")
        if finding.remedy:
            echo(f"      -> {finding.remedy}")
    if any(finding.remedy for finding in findings):
        raise typer.Exit(1)


AddressOption = Annotated[
    str | None, typer.Option(metavar="URL", help="The cluster's dashboard.  [default: RAY_ADDRESS, or this machine's]")
]


@app.command(context_settings={"allow_extra_args": True, "allow_interspersed_args": False})
def submit(
    context: typer.Context,
    verb: Annotated[
        str, typer.Argument(metavar="VERB ...", help=f"Command to run, with its options: one of {', '.join(VERBS)}.")
    ],
    address: AddressOption = None,
    working_dir: Annotated[str, typer.Option(metavar="FOLDER", help="Send this project folder with the job.")] = ".",
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=VALUE]",
            help="Set an environment variable for the job; without =VALUE, copy it from here. Can be repeated.",
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return without waiting for the job to end.")] = False,
) -> None:
    """Run a command as a job on a Ray cluster.

    Checks settings, paths and upload size before it sends anything, then shows the log until the job ends.

    \b
    Example:
      digpro submit --address http://127.0.0.1:8265 train --preset digits \\
          --set data.path=/mnt/data/digits --set storage=/mnt/runs
    """
    job_script(verb, working_dir)  # an unknown command is reported before its options
    run_submission(
        verb,
        context.args,
        _parse(context, verb),
        address=address,
        folder=working_dir,
        env=env or [],
        follow=not detach,
        echo=echo,
    )


@app.command()
def stop(
    job: Annotated[str, typer.Argument(metavar="JOB", help="ID of the job, as `digpro submit` printed it.")],
    address: AddressOption = None,
) -> None:
    """Stop a submitted job.

    To resume a training run, submit it again.
    """
    stop_job(job, address=address)
    echo(f"job {job} is being stopped")


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(metavar="[NAME|FILE]", help="Show all settings of this preset.")] = None,
) -> None:
    """List the presets, or show one in full."""
    if name is None:
        echo("\n".join(preset_names()))
    else:
        echo(yaml.safe_dump(load_config(name).model_dump(mode="json"), sort_keys=False).rstrip())


def _check_one_source(context: typer.Context) -> None:
    """ConfigError for several SOURCEs, into which a shell expands an unquoted pattern."""
    if context.args:
        raise ConfigError(
            f"{len(context.args)} extra arguments, the last is {context.args[-1]!r}; SOURCE is one argument: for "
            'several images, quote the pattern, as in "photos/*.jpg", or give a .txt file that lists them'
        )


def _check_preset_or_run(context: typer.Context) -> None:
    """ConfigError for `--preset` beside `--from`."""
    run, source = context.params.get("start_from"), context.get_parameter_source("preset")
    if run and source and source.name == "COMMANDLINE":
        raise ConfigError(
            f"--preset {context.params['preset']} and --from {run} both give the settings; leave --preset out, and "
            "change single settings with --set"
        )


def _ingest_progress(done: int, total: int, images: int) -> None:
    echo(f"part {done}/{total}: {images:,} images")


def _print_result(summary: dict[str, Any]) -> None:
    if "scores" in summary:
        scores = "  ".join(f"{name.upper()} {value:.4f}" for name, value in summary["scores"].items())
        echo(scores or "no classes are known, so there are no scores")
    _print_places(summary["outputs"])


def _print_places(places: dict[str, str]) -> None:
    for title, place in places.items():
        echo(f"{title + ':':<13}{place}")


def _print_assignment(summary: dict[str, Any]) -> None:
    from pipeline.runs.assign import group_sizes

    echo(f"{summary['images']:,} images assigned, {summary['bad']:,} bad, {summary['left_out']:,} left out by rule")
    sizes = group_sizes(summary)
    shown = [(f"cluster {key}" if isinstance(key, int) else key, n) for key, n in sizes.most_common(SHOWN_CLUSTERS)]
    largest = ", ".join(f"{name}: {images:,}" for name, images in shown)
    more = f", and {len(sizes) - SHOWN_CLUSTERS} more" if len(sizes) > SHOWN_CLUSTERS else ""
    echo(f"clusters by size: {largest}{more}")
    echo("drift from training: " + "  ".join(f"{name} {value:+.3f}" for name, value in summary["drift"].items()))
    _print_result(summary)


def _parse(context: typer.Context, verb: str) -> dict[str, Any]:
    """Parse the arguments of a job: all parameters by name."""
    group: Any = context.parent.command if context.parent else None
    command = group.get_command(context, verb)
    with command.make_context(f"submit {verb}", list(context.args), parent=context.parent) as parsed:
        _check_one_source(parsed)
        _check_preset_or_run(parsed)
        return dict(parsed.params)


def main(verb: str | None = None) -> None:
    """Entry point: an error that the user can fix gives one message and an exit status, not a traceback.

    `verb` is the command that a script in `jobs/` runs, with the arguments of the command line.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may hold bytes that are not text
            stream.reconfigure(errors="backslashreplace")
    try:
        app([verb, *sys.argv[1:]] if verb else None, prog_name="digpro")
    except UserError as error:
        echo(f"error: {error}", error=True)
        raise SystemExit(error.exit_status) from None
    except OSError as error:
        if (fault := storage_fault(error)) is None:
            raise
        echo(f"error: {fault}", error=True)
        raise SystemExit(UserError.exit_status) from None
    except Interrupted as end:
        echo(str(end), error=True)
        raise SystemExit(end.exit_status) from None


if __name__ == "__main__":
    main()
