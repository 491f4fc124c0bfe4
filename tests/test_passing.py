"""Rows are left out by their numbers, whichever row group of a table they lie in."""

import pytest

from benchmarks import contract_tables
from unimed.data import passing, sql
from unimed.data.tables import Tables


@pytest.mark.slow
def test_the_rows_that_are_left_out_are_those_of_these_numbers_in_a_table_of_several_row_groups(tmp_path):
    contract_tables.write_tables(tmp_path, 70_000)
    numbers = [0, sql.ROWS - 1, sql.ROWS, 69_999]
    with sql.opened() as connection:
        connection.execute("CREATE TABLE dropped_masks AS SELECT unnest(?::BIGINT[]) AS row", [numbers])
        connection.execute("CREATE VIEW dropped_samples AS FROM dropped_masks WHERE row < 0")
        connection.execute("CREATE VIEW dropped_conversations AS FROM dropped_samples")
        assert passing.write(connection, tmp_path, tmp_path / "passed")["masks"] == 69_996
    before, after = (Tables.read(folder).masks["mask_id"] for folder in (tmp_path, tmp_path / "passed"))
    assert list(after) == list(before.drop(numbers))
