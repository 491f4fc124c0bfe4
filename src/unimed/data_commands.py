"""Commands about data. They lie beside the folder `data`, whose code every stage depends on: a word mended here retrains nothing."""

import json
from pathlib import Path
from typing import Annotated

import typer

from unimed import demo

data = typer.Typer(help="Make, describe, withdraw or write back data.", no_args_is_help=True)


def add(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(data, name="data")


@data.command()
def phantoms(
    out: Annotated[Path, typer.Option(help="Folder to write; what is in it is replaced.")],
    cases: Annotated[int, typer.Option(min=1, help="Made-up patients.")] = demo.CASES,
    slices: Annotated[int, typer.Option(min=1, help="Slices of each patient.")] = demo.SLICES,
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
    flat: Annotated[
        bool, typer.Option("--flat", help="One JSON a task beside images/ and masks/, instead of the download's layout.")
    ] = False,
) -> None:
    """Write tables and shards back as images/, masks/ and JSON files."""
    from unimed.data import export as writer

    writer.write(tables, shards, out, writer.FLAT if flat else writer.DOWNLOAD)
    typer.echo(f"written to {out}")


@data.command()
def erase(
    cases: Annotated[list[str], typer.Argument(help="Cases to withdraw, named DATASET/CASE.")],
    reason: Annotated[
        str, typer.Option(help="For exclusions.csv, which is kept in git: nothing that tells who a patient is.")
    ] = "withdrawn",
) -> None:
    """List what was made of cases, and exclude them from the next run."""
    from datetime import UTC, datetime

    from unimed import mlflow_server
    from unimed.release import erase as erasure

    typer.echo(erasure.erase(cases, reason, mlflow_server.configured(), Path(), datetime.now(UTC).date()))


@data.command()
def card(
    folders: Annotated[list[Path], typer.Argument(help="Folders of tables, such as data/tables or data/subsets/vqa.")],
    out: Annotated[Path, typer.Option(help="Folder for DATA.md and croissant.json.")],
) -> None:
    """Describe tables for people (Markdown) and for programs (Croissant)."""
    from unimed.release import data_card

    data_card.write(folders, out)
    typer.echo(f"{out / data_card.DATA_CARD} and {out / 'croissant.json'} describe {', '.join(map(str, folders))}")


@data.command()
def audit(
    file: Annotated[Path, typer.Argument(help="Multiple choice in MedVLM-R1's schema: a JSON list or JSON lines.")],
    train: Annotated[Path | None, typer.Option(help="Another such file: learnt from, and searched for what FILE repeats.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images, if they are at hand.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Tell how far a set of questions can be answered without its images."""
    from unimed.data import audit as audits
    from unimed.data import audit_files

    found = audit_files.read(file)
    learnt = audit_files.read(train, known=True).items if train else ()
    rows = audits.summary(audits.multiple_choice([*learnt, *found.items]))
    pictures = audit_files.pictures(found.items, images) if images else {}
    if as_json:
        typer.echo(json.dumps({"items": len(found.items), "unreadable": list(found.faults), "images": pictures, "audits": rows}))
        return
    typer.echo(f"{len(found.items)} items of {len({item.group for item in found.items})} images; {len(found.faults)} records unreadable")
    if found.faults:
        typer.echo(f"first of them: {found.faults[0]}")
    if pictures:
        typer.echo(f"images: {pictures['named']} named, {pictures['there']} there, {pictures['decode']} decode")
    width = max(len(row["name"]) for row in rows)
    typer.echo(f"{'answered by':<{width}}  score  95 % interval   chance     n")
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row['score']:.3f}  {row['low']:.3f} – {row['high']:.3f}  {row['chance']:.3f}  {row['n']:>6}")
