"""exclusions.csv: what is read is what was written, what is no such table is one sentence, and two writers lose nothing."""

from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pytest

from conftest import ROOT
from unimed.data import exclusions
from unimed.errors import InputError

DAY = date(2027, 1, 31)


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "exclusions.csv"
    file.write_bytes((ROOT / "exclusions.csv").read_bytes())
    return file


def test_the_table_that_is_shipped_excludes_nobody(table):
    assert exclusions.read(table) == {}


def test_cases_are_added_once_in_the_order_given(table):
    first = [("Set, A", "case 1"), ("SetB", 'case "2"'), ("Set, A", "case 1")]
    assert exclusions.add(table, first, "consent, withdrawn", DAY) == first[:2]
    assert exclusions.add(table, [("SetB", 'case "2"'), ("SetC", "ü")], "again", DAY) == [("SetC", "ü")]
    assert exclusions.read(table) == {first[0]: "consent, withdrawn", first[1]: "consent, withdrawn", ("SetC", "ü"): "again"}
    assert table.read_text().splitlines()[1] == '"Set, A",case 1,"consent, withdrawn",2027-01-31'


def test_a_last_line_without_an_end_is_not_run_into(table):
    table.write_text("dataset,case,reason,date\nA,1,x,2027-01-01")
    exclusions.add(table, [("B", "2")], "y", DAY)
    assert table.read_text() == "dataset,case,reason,date\nA,1,x,2027-01-01\nB,2,y,2027-01-31\n"


def test_many_at_once_lose_no_line(table):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: exclusions.add(table, [("A", str(number))], "x", DAY), range(24)))
    assert sorted(exclusions.read(table)) == sorted(("A", str(number)) for number in range(24))


@pytest.mark.parametrize("reason", ["", "  ", "two\nlines", "a\0b"])
def test_a_reason_that_is_no_line_is_refused_and_nothing_written(table, reason):
    before = table.read_bytes()
    with pytest.raises(InputError, match="--reason: expected one line of text"):
        exclusions.add(table, [("A", "1")], reason, DAY)
    assert table.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected columns dataset,case,reason,date in line 1, found none"),
        ("case,dataset,reason,date\n", "in line 1, found case,dataset,reason,date"),
        ("dataset,case,reason,date\nA,1,x\n", "expected a data set, a case, a reason and a date such as .* in line 2, found 'A,1,x'"),
        ("dataset,case,reason,date\nA,1,x,2027-01-31,more\n", "in line 2"),
        ("dataset,case,reason,date\nA,,x,2027-01-31\n", "in line 2"),
        ("dataset,case,reason,date\nA,1,,2027-01-31\n", "in line 2"),
        ("dataset,case,reason,date\nA,1,x,2027-01-31\n\nB,1,x,31.1.2027\n", "in line 4, found 'B,1,x,31.1.2027'"),
        ("dataset,case,reason,date\nA,1,x,2027-01-31\nA,1,y,2027-02-01\n", "expected each case once, found A/1 again in line 3"),
        ('dataset,case,reason,date\n"A,1,x,2027-01-31\n', "expected a table of comma-separated values"),
        ("dataset,case,reason,date\nA,1,\udcff,2027-01-31\n", "expected a table of comma-separated values in UTF-8"),
    ],
)
def test_what_is_no_such_table_is_one_sentence(table, text, message):
    table.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message):
        exclusions.read(table)


def test_a_missing_table_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"exclusions.csv: expected a table of comma-separated values in UTF-8, found .*No such file"):
        exclusions.read(tmp_path / "exclusions.csv")
