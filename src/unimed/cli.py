"""The command `unimed`. Everything heavy is imported inside the commands, so that help answers at once."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from unimed import NOTICE, cluster, environment
from unimed import demo as demonstration
from unimed.data import audit_command
from unimed.errors import BAD_INPUT, InputError
from unimed.release import commands as release_commands
from unimed.release import paper_commands
from unimed.serving import command as serving

app = typer.Typer(
    help="Biomedical vision-language model that sees detail, answers, points and reasons.",
    epilog=NOTICE,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Make or write back data.", no_args_is_help=True)
app.add_typer(data, name="data")
data.command()(audit_command.audit)
cluster.add(app)
paper_commands.add(app)
release_commands.add(app)
serving.add(app)


@data.command()
def phantoms(
    out: Annotated[Path, typer.Option(help="Folder to write; what is in it is replaced.")],
    cases: Annotated[int, typer.Option(min=1, help="Made-up patients.")] = demonstration.CASES,
    slices: Annotated[int, typer.Option(min=1, help="Slices of each patient.")] = demonstration.SLICES,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Write synthetic patients in the layout of a real download."""
    from unimed.data import phantom_files

    phantom_files.write(out, cases=cases, slices=slices, seed=seed)
    typer.echo(f"{cases * slices} slices of {cases} made-up patients are in {out}")


@data.command()
def export(
    tables: Annotated[Path, typer.Option(help="Tables of ingest, of a subset or of validated data.")],
    shards: Annotated[Path, typer.Option(help="The image shards beside them.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
) -> None:
    """Write tables and shards back as images/, masks/ and JSON files."""
    from unimed.data import export as writer

    writer.write(tables, shards, out)
    typer.echo(f"written to {out}")


@app.command()
def predict(
    model: Annotated[Path, typer.Option(help="A model folder, such as models/reasoner.")],
    image: Annotated[Path, typer.Option(help="A PNG or JPEG, grey or RGB, of any size.")],
    question: Annotated[str, typer.Option(help="What to ask; <region> marks where a region is meant.")],
    region: Annotated[list[str] | None, typer.Option(help="box:x,y,w,h or point:x,y in pixels; repeat for several.")] = None,
    think: Annotated[bool, typer.Option("--think", help="Ask for the reasoning before the answer; for reasoners.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for mask PNGs and an overlay.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Ask a model about an image: prints answer and reasoning, writes what it points at."""
    from unimed.predict import predict as ask

    found = ask(model=model, image=image, question=question, regions=region or [], out=out, think=think)
    if as_json:
        typer.echo(json.dumps(found))
        typer.echo(NOTICE, err=True)
        return
    if found["reasoning"]:
        typer.echo(f"reasoning: {found['reasoning']}")
    typer.echo(f"answer: {found['answer']}")
    for file in found.get("files", []):
        typer.echo(f"wrote {file}")
    typer.echo(NOTICE)


@app.command("import")
def import_checkpoint(
    source: Annotated[Path, typer.Option("--from", help="A folder with LLaVA-1.5 or MedPLIB as released.")],
    foundation: Annotated[Path, typer.Option(help="The foundation it goes with, such as models/foundation.")],
    out: Annotated[Path, typer.Option(help="Where to write aligned, vqa_expert and grounding_expert: the foundation's folder.")],
    rank: Annotated[int, typer.Option(min=1, help="Of the adapters that experts are folded into.")] = 32,
) -> None:
    """Turn a released model into the folders of stages 1 to 3, to go on from there."""
    from unimed.model import imports

    for name, fold in imports.run(source, foundation, out, rank).items():
        for layer, error in enumerate(fold.errors() if fold else []):
            typer.echo(f"{name} layer {layer}: relative error {error:.4f}")
        typer.echo(f"wrote {out / name}" + (f", relative error {fold.error():.4f} in all at rank {rank}" if fold else ""))
    typer.echo(NOTICE)


@app.command()
def sync() -> None:
    """Send MLflow what it missed while it was down; however often it is interrupted and called again, it is there once."""
    from unimed import sync as outgoing

    outgoing.sync()


@app.command()
def ladder(files: Annotated[list[Path], typer.Argument(help="ladder.json files, such as those of several seeds.")]) -> None:
    """Print the scores of several runs side by side as a Markdown table."""
    from unimed.eval import ladder as ladders

    typer.echo(ladders.side_by_side({str(file.with_suffix("")): ladders.read(file) for file in files}))


@app.command()
def demo(
    raw: Annotated[Path | None, typer.Option(help="A download to use; phantoms are made when left out.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Written to params.yaml; what stands there when left out.")] = None,
    cases: Annotated[int, typer.Option(min=1, help="Made-up patients.")] = demonstration.CASES,
    slices: Annotated[int, typer.Option(min=1, help="Slices of each.")] = demonstration.SLICES,
) -> None:
    """Take raw data through every stage to evaluated, registered models."""
    from unimed import mlflow_server, params

    started = time.monotonic()
    if seed is not None:
        demonstration.set_seed(seed)
    numbers = params.load(Path("params.yaml").read_text())
    if raw is not None:
        demonstration.place_link(raw)
    elif demonstration.place_phantoms(cases, slices, params.parse("seed", int, numbers)):
        typer.echo(f"made {cases * slices} slices of {cases} made-up patients in {demonstration.RAW}")
    if code := demonstration.repro():
        raise typer.Exit(code)
    typer.echo(f"\nreport   {Path('reports/evaluation/report.html').resolve()}")
    for name, version in mlflow_server.latest_versions(mlflow_server.configured()).items():
        typer.echo(f"model    {name} version {version}")
    typer.echo(f"took     {(time.monotonic() - started) / 60:.1f} minutes\n{NOTICE}")


def main() -> None:
    """Run the command line; input at fault ends with one sentence and exit code 78."""
    environment.settle()
    try:
        app()
    except InputError as error:
        typer.echo(f"unimed: {error}", err=True)
        sys.exit(BAD_INPUT)
