"""Which conversations of a task are taken: filters first, then one of each stratum in turn, all of it in DuckDB."""

from typing import TYPE_CHECKING, Any

from unimed.config import Subset
from unimed.data.tables import SPLITS
from unimed.errors import InputError

if TYPE_CHECKING:
    import duckdb

FILTERS = {
    "excluded_sources": "from an annotation file that is excluded",
    "excluded_datasets": "of a data set that is excluded",
    "licences": "under a licence that is not allowed",
    "datasets": "of another data set",
    "modalities": "of another modality",
    "classes": "about a class that was not asked for",
}
"""What the filters leave out, in the order in which they are asked; a conversation that several leave out counts for the first."""

BEYOND = "beyond the number asked for"
_SHOWN = 10
"""Known names in a message."""

_NAMED = """
    CREATE OR REPLACE TEMP TABLE named AS
    SELECT conversation_id, unnest(mask_ids) AS mask_id, generate_subscripts(mask_ids, 1) AS place FROM (
        SELECT conversation_id,
            json_extract_string(turns, '$[*].targets[*][*]') || json_extract_string(turns, '$[*].regions[*]') AS mask_ids
        FROM conversations WHERE list_contains($tasks, task)
    )
"""
"""Masks that a conversation names: targets of all its turns, then regions."""

_ABOUT = """
    CREATE OR REPLACE TEMP TABLE about AS
    SELECT conversation_id, sample_id, source, question_type, modality, dataset, licence, split,
        coalesce(classes, []) AS classes, coalesce(first_class, '') AS class
    FROM conversations JOIN samples USING (sample_id) LEFT JOIN (
        SELECT conversation_id, list(DISTINCT coalesce(class_name, '')) AS classes, arg_min(coalesce(class_name, ''), place) AS first_class
        FROM named LEFT JOIN masks USING (mask_id) GROUP BY conversation_id
    ) USING (conversation_id)
    WHERE list_contains($tasks, task)
"""

_JUDGED = """
    CREATE OR REPLACE TEMP TABLE judged AS
    SELECT *, list_filter([
        CASE WHEN list_contains($excluded_sources::VARCHAR[], source) THEN 'excluded_sources' END,
        CASE WHEN list_contains($excluded_datasets::VARCHAR[], dataset) THEN 'excluded_datasets' END,
        CASE WHEN NOT list_contains($licences::VARCHAR[], licence) THEN 'licences' END,
        CASE WHEN NOT list_contains($datasets::VARCHAR[], dataset) THEN 'datasets' END,
        CASE WHEN NOT list_contains($modalities::VARCHAR[], modality) THEN 'modalities' END,
        CASE WHEN NOT list_has_all($classes::VARCHAR[], classes) THEN 'classes' END
    ], lambda name: name IS NOT NULL) AS against FROM about
"""
"""A filter that is null leaves nothing out: what is compared with null is neither true nor false."""

_CHOSEN = """
    CREATE OR REPLACE TEMP TABLE chosen AS
    SELECT conversation_id, sample_id, split FROM (
        SELECT *, row_number() OVER (PARTITION BY split ORDER BY round, stratum) AS place FROM (
            SELECT conversation_id, sample_id, split,
                row_number() OVER (
                    PARTITION BY split, modality, question_type, class ORDER BY sha256(concat_ws(chr(0), $seed, conversation_id))
                ) AS round,
                sha256(concat_ws(chr(0), $seed, modality, question_type, class)) AS stratum
            FROM judged WHERE len(against) = 0
        )
    ) WHERE place <= CASE split WHEN 'train' THEN $train WHEN 'val' THEN $val ELSE $test END
"""
"""One of each stratum in turn, strata and rows in the order of splits.rank."""

_KNOWN = {
    "modalities": "SELECT DISTINCT modality FROM samples ORDER BY 1",
    "datasets": "SELECT DISTINCT dataset FROM samples ORDER BY 1",
    "excluded_datasets": "SELECT DISTINCT dataset FROM samples ORDER BY 1",
    "classes": "SELECT DISTINCT class_name FROM masks ORDER BY 1",
    "excluded_sources": "SELECT DISTINCT source FROM conversations ORDER BY 1",
}
"""Names that a filter may use. Licences are missing: an allow-list says what would be allowed, not what there is."""


def choose(connection: "duckdb.DuckDBPyConnection", tasks: tuple[str, ...], asked: Subset, seed: int) -> None:
    """Make the tables judged (conversations of the tasks, `against` with the filters that leave each out), chosen and named.

    Raises InputError when a filter names a modality, class, data set or source that the views do not have.
    """
    filters = asked.model_dump(include=set(FILTERS))
    for name, query in _KNOWN.items():
        if filters[name]:
            _check(name, filters[name], [row[0] for row in connection.sql(query).fetchall()])
    connection.execute(_NAMED, {"tasks": list(tasks)})
    connection.execute(_ABOUT, {"tasks": list(tasks)})
    connection.execute(_JUDGED, filters)
    most = {split: 2**62 if getattr(asked, split) is None else getattr(asked, split) for split in SPLITS}
    connection.execute(_CHOSEN, {"seed": str(seed), **most})


def _check(name: str, wanted: list[str], known: list[str]) -> None:
    if unknown := [value for value in wanted if value not in known]:
        more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
        raise InputError(f"{name}: expected names that the tables have ({', '.join(known[:_SHOWN])}{more}), found {unknown[0]!r}")


_HOW_MANY = "SELECT (SELECT count(*) FROM judged), (SELECT count(*) FROM conversations SEMI JOIN samples USING (sample_id))"


def told(connection: "duckdb.DuckDBPyConnection", asked: Subset) -> dict[str, Any]:
    """What was asked, taken and left out: by split with reasons, by each filter alone, and by what conversations are about."""
    [(available, every)] = connection.sql(_HOW_MANY).fetchall()
    return {
        "available": available,
        "of_other_tasks": every - available,
        "splits": {split: _split(connection, split, getattr(asked, split)) for split in SPLITS},
        "filters": _filters(connection, asked),
        "conversations_by": {name: _fall(connection, query) for name, query in _FALLS.items()},
    }


def _split(connection: "duckdb.DuckDBPyConnection", split: str, number: int | None) -> dict[str, Any]:
    query = "SELECT coalesce(against[1], ''), count(*) FROM judged WHERE split = $split GROUP BY 1"
    first = dict(connection.execute(query, {"split": split}).fetchall())
    [(taken,)] = connection.execute("SELECT count(*) FROM chosen WHERE split = $split", {"split": split}).fetchall()
    left_out = {FILTERS[name]: first[name] for name in FILTERS if name in first} | {BEYOND: first.get("", 0) - taken}
    about = {"asked": number, "available": sum(first.values()), "taken": taken}
    return about | {"left_out": {reason: count for reason, count in left_out.items() if count}}


def _filters(connection: "duckdb.DuckDBPyConnection", asked: Subset) -> dict[str, Any]:
    """Each filter that is set, with all that it leaves out, also of what another leaves out before."""
    against = dict(connection.sql("SELECT unnest(against), count(*) FROM judged GROUP BY 1").fetchall())
    wanted = asked.model_dump(include=set(FILTERS))
    return {name: {"asked": wanted[name], "leaves_out": against.get(name, 0)} for name in FILTERS if wanted[name] not in (None, [])}


_FALLS = {
    "modality": """
        SELECT modality, count(*), count(chosen.conversation_id)
        FROM judged LEFT JOIN chosen USING (conversation_id) GROUP BY 1 ORDER BY 1
    """,
    "dataset": """
        SELECT dataset, count(*), count(chosen.conversation_id)
        FROM judged LEFT JOIN chosen USING (conversation_id) GROUP BY 1 ORDER BY 1
    """,
    "class": """
        SELECT class, count(*), count(chosen.conversation_id)
        FROM (SELECT conversation_id, unnest(classes) AS class FROM judged) LEFT JOIN chosen USING (conversation_id) GROUP BY 1 ORDER BY 1
    """,
    "source": """
        SELECT source, count(*), count(chosen.conversation_id)
        FROM judged LEFT JOIN chosen USING (conversation_id) GROUP BY 1 ORDER BY 1
    """,
}


def _fall(connection: "duckdb.DuckDBPyConnection", query: str) -> dict[str, Any]:
    return {value: {"available": available, "taken": taken} for value, available, taken in connection.sql(query).fetchall()}
