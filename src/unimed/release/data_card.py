"""The data card: what tables hold, where it comes from, under which licences, and what was left out on the way."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from unimed import NOTICE
from unimed.data.tables import SPLITS
from unimed.errors import InputError
from unimed.release import croissant
from unimed.release.described import SCHEMAS, Described, classes, described, parted, sources
from unimed.release.markdown import page, plain, table

DATA_CARD = "DATA.md"


def describe(data: Mapping[str, Path], judged: Mapping[str, str]) -> dict[str, Described]:
    """The validated data of each task. Raises InputError for data that are not those with the hashes `judged`."""
    found = {task: described(folder) for task, folder in data.items()}
    for task, one in found.items():
        if one.digest != judged.get(task):
            expected = f"the data that the gate judged, {judged.get(task)}"
            raise InputError(f"{data[task]}: expected {expected}, found {one.digest}; run the gate again")
    return found


def write(folders: Sequence[Path], out: Path) -> None:
    """Write DATA.md and croissant.json about folders of tables that belong to no release; the same tables give the same bytes.

    Raises InputError when two folders have the same name, by which cards tell them apart, or one holds no tables.
    """
    named = {folder.resolve().name: folder for folder in folders}
    if len(named) < len(folders):
        raise InputError(f"{', '.join(map(str, folders))}: expected folders of different names, found one name twice")
    found = {name: described(folder) for name, folder in named.items()}
    out.mkdir(parents=True, exist_ok=True)
    (out / DATA_CARD).write_text(text(found, "Data"), encoding="utf-8")
    croissant.write(out / croissant.CROISSANT, found)


def text(found: Mapping[str, Described], title: str) -> str:
    """DATA.md."""
    return page(
        f"# {title}",
        f"**{NOTICE}** {_what(found)} `croissant.json` describes the same files for programs.",
        "## Sources and licences",
        table(("data set", "licence", "modalities", "images", "patients"), sources(found)),
        "The licence is the one that travelled with the download; the terms of the sources apply to the models as well.",
        "## Tables",
        table(("task", "images", "masks", "conversations", *SPLITS, "held-out patients"), [_rows(*item) for item in found.items()]),
        _apart(found),
        "## What was left out",
        _table_of_what_was_left_out(found),
        *_promises(found),
        "## Classes",
        table(("class", "masks"), list(classes(found).items())),
        "## Where the data come from",
        *_provenance(found),
        table(("task", "hash (DVC)"), [(task, one.digest) for task, one in found.items()]),
        "## Limits",
        "No scan for text burned into images was made. How patients differ by age, sex, origin or site is not recorded in these data, "
        "so nothing here says how well a model does for any such group.",
    )


def _what(found: Mapping[str, Described]) -> str:
    if unjudged := [name for name, one in found.items() if not one.verdict]:
        return f"Images, masks and conversations. Not held to the data contract: {', '.join(map(plain, unjudged))}."
    return "Images, masks and conversations that passed the data contract, one set for each trained task."


def _rows(name: str, one: Described) -> tuple[object, ...]:
    counts = one.counts()
    splits = [counts["conversations_by_split"].get(split, 0) for split in SPLITS]
    return name, *(counts[name] for name in SCHEMAS), *splits, one.patients("test")


def _apart(found: Mapping[str, Described]) -> str:
    if count := parted(found):
        return f"**{count:,} patients are in more than one split.**"
    return "Splits are by patient: no patient of one split is in another, of any task."


def _table_of_what_was_left_out(found: Mapping[str, Described]) -> str:
    rows = [row for name, one in found.items() for row in _left_out(name, one)]
    return table(("task", "why", "left out"), rows) if rows else "Nothing, as far as the tables say."


def _left_out(name: str, one: Described) -> Iterator[tuple[str, str, int]]:
    """Items by reason: at ingest, by the subset's filters and number, and by the contract."""
    faulty = one.manifest.get("quarantined_at_ingest") or one.manifest.get("quarantined") or {}
    yield from ((name, f"{kind}s that are faulty in the download", count) for kind, count in sorted(faulty.items()))
    excluded = one.manifest.get("excluded_at_ingest") or one.manifest.get("excluded") or {}
    yield from ((name, f"images of excluded cases: {reason}", held["images"]) for reason, held in sorted(excluded.items()))
    reasons: dict[str, int] = {}
    for split in one.manifest.get("splits", {}).values():
        for reason, count in split["left_out"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    yield from ((name, f"conversations {reason}", count) for reason, count in reasons.items())
    for kind in SCHEMAS if one.verdict else ():
        yield name, f"{kind} that break the contract, or depend on what does", one.verdict["checked"][kind] - one.verdict["kept"][kind]


def _promises(found: Mapping[str, Described]) -> Iterator[str]:
    broken = [
        f"- {plain(task)}: {plain(one['says'])}: {one['failed']:,} of {one['of']:,} {plain(one['table'])}"
        for task, valid in found.items()
        for one in valid.verdict.get("expectations", [])
        if one["failed"]
    ]
    if broken:
        yield "\n".join(["Broken promises of the contract:", "", *broken])
    elif all(valid.verdict for valid in found.values()):
        yield "No row breaks a promise of the contract."


def _provenance(found: Mapping[str, Described]) -> Iterator[str]:
    told = {str(key): value for valid in found.values() for key, value in valid.manifest.get("provenance", {}).items() if key != "licences"}
    yield table(("said of the download", ""), sorted(told.items())) if told else "The download says nothing of where it comes from."
