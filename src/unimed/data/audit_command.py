"""The command `unimed data audit`."""

import json
from pathlib import Path
from typing import Annotated

import typer


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
