"""How many rows tables have and how they fall by modality, class, source and split: what every manifest says."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb

_ROWS = """
    SELECT (SELECT count(*) FROM samples), (SELECT count(*) FROM masks), (SELECT count(*) FROM conversations)
"""

_BY = {
    "samples_by_modality": "SELECT modality, count(*) FROM samples GROUP BY 1 ORDER BY 1",
    "samples_by_split": "SELECT split, count(*) FROM samples GROUP BY 1 ORDER BY 1",
    "samples_by_licence": "SELECT licence, count(*) FROM samples GROUP BY 1 ORDER BY 1",
    "masks_by_class": "SELECT class_name, count(*) FROM masks GROUP BY 1 ORDER BY 1",
    "conversations_by_task": "SELECT task, count(*) FROM conversations JOIN samples USING (sample_id) GROUP BY 1 ORDER BY 1",
    "conversations_by_question_type": """
        SELECT question_type, count(*) FROM conversations JOIN samples USING (sample_id) GROUP BY 1 ORDER BY 1
    """,
    "conversations_by_modality": "SELECT modality, count(*) FROM conversations JOIN samples USING (sample_id) GROUP BY 1 ORDER BY 1",
    "conversations_by_source": "SELECT source, count(*) FROM conversations JOIN samples USING (sample_id) GROUP BY 1 ORDER BY 1",
    "conversations_by_split": "SELECT split, count(*) FROM conversations JOIN samples USING (sample_id) GROUP BY 1 ORDER BY 1",
}


def counts(connection: "duckdb.DuckDBPyConnection") -> dict[str, Any]:
    """The counts of the views samples, masks and conversations; a conversation about no sample is in none of its tallies."""
    [rows] = connection.sql(_ROWS).fetchall()
    return dict(zip(("samples", "masks", "conversations"), rows, strict=True)) | {
        name: dict(connection.sql(query).fetchall()) for name, query in _BY.items()
    }
