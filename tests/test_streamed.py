"""JSON read entry by entry gives what reading it whole gives, in little memory, and says line and column of what is wrong."""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimed.data import streamed
from unimed.errors import InputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of three bytes, so that every token is cut somewhere."""
    monkeypatch.setattr(streamed, "_CHUNK", 3)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(VALUES, max_size=4), indent=st.sampled_from([None, 1]), ascii_only=st.booleans(), chunk=st.integers(1, 9))
def test_a_list_comes_back_value_by_value_wherever_it_is_cut(tmp_path_factory, values, indent, ascii_only, chunk):
    file = tmp_path_factory.mktemp("json") / "list.json"
    file.write_text(json.dumps(values, indent=indent, ensure_ascii=ascii_only), encoding="utf-8", errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "_CHUNK", chunk)
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            with pytest.raises(InputError, match="expected JSON in UTF-8"):
                list(streamed.items(file))
        else:
            assert list(streamed.items(file)) == values


@pytest.mark.parametrize("chunk", range(1, 9))
def test_a_number_that_is_cut_is_read_to_its_end(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(streamed, "_CHUNK", chunk)
    (tmp_path / "n.json").write_text("[1.5e-7,-12.25,1E3,120]")
    assert list(streamed.items(tmp_path / "n.json")) == [1.5e-7, -12.25, 1000.0, 120]


def test_an_object_comes_back_pair_by_pair_and_keeps_what_is_repeated(tmp_path, small_chunks):
    (tmp_path / "o.json").write_text('\n{ "a" : [1, 22, 333],\n"b":{}, "a": 4567 }\n')
    assert list(streamed.pairs(tmp_path / "o.json")) == [("a", [1, 22, 333]), ("b", {}), ("a", 4567)]


MALFORMED = {
    '[1, {"a" 2}]': "line 1, column 10",
    "[1,\n\n  2,,3]": "line 3, column 5",
    "[1, 2": "line 1, column 6: Expecting ']'",
    "[1 2]": "line 1, column 4: Expecting ']'",
    "[1,]": "line 1, column 4: ",
    "[1]\n]": "line 2, column 1: Extra data",
    '["a\nb"]': "line 1, column 4: Invalid control character",
    '["open': "line 1, column 2: Unterminated string",
}


@pytest.mark.parametrize("text", MALFORMED)
@pytest.mark.parametrize("chunk", [1, 3, 2**20])
def test_an_error_is_placed_where_it_is(tmp_path, monkeypatch, text, chunk):
    monkeypatch.setattr(streamed, "_CHUNK", chunk)
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(InputError, match=r"m\.json: expected JSON, found an error in") as error:
        list(streamed.items(tmp_path / "m.json"))
    assert MALFORMED[text] in str(error.value)


@pytest.mark.parametrize(("text", "message"), [('{"a" 1}', "line 1, column 6"), ("{1: 2}", "Expecting a name"), ('{"a": 1', "column 8")])
def test_an_error_in_an_object_is_placed_too(tmp_path, small_chunks, text, message):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(InputError, match=message):
        list(streamed.pairs(tmp_path / "m.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'["ab", "\xff"]', "expected JSON in UTF-8, found byte 0xff at 8"),
        (b'["a\xc3', "expected JSON in UTF-8, found byte 0xc3 at 3"),
        (b"{}", "expected a list of records, found dict"),
        (b"", "expected JSON, found an error in line 1, column 1"),
        (b"\xef\xbb\xbf[]", "expected JSON, found an error in line 1, column 1: Unexpected UTF-8 BOM"),
        (b"[" + b"[" * 20_000 + b"]" * 20_000 + b"]", "expected JSON with few levels, found too many"),
    ],
)
def test_what_is_no_list_of_json_is_refused(tmp_path, small_chunks, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError) as error:
        list(streamed.items(tmp_path / "x.json"))
    assert message in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.json: expected a JSON file, found No such file"):
        list(streamed.items(tmp_path / "absent.json"))


def test_an_entry_longer_than_any_annotation_is_refused_and_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "MOST_CHARACTERS", 5_000_000)
    with (tmp_path / "x.json").open("w") as file:
        file.write('[1,\n"')
        for _ in range(60):
            file.write("x" * 1_000_000)
        file.write('"]')
    tracemalloc.start()
    with pytest.raises(InputError, match="expected entries of at most 5000000 characters, found a longer one in line 2, column 1"):
        list(streamed.items(tmp_path / "x.json"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000_000


def test_a_long_list_takes_no_more_memory_than_a_short_one(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "_CHUNK", 2**14)
    (tmp_path / "x.json").write_text("[" + ",\n".join(['{"id": "record", "conversations": [1, 2, 3]}'] * 20_000) + "]")
    tracemalloc.start()
    assert sum(1 for _ in streamed.items(tmp_path / "x.json")) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**18  # of a file of 900 KB
