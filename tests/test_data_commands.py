"""`unimed data`: each command does what its help says, through the command line itself."""

import json
import shutil

import pytest
import raw_tree
import released
from typer.testing import CliRunner

from conftest import NOWHERE, ROOT
from unimed.cli import app
from unimed.data import exclusions
from unimed.errors import InputError


def called(*words: str) -> str:
    """What a command prints; an error comes through."""
    done = CliRunner().invoke(app, ["data", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_tables_are_described_and_written_back_flat(tmp_path, monkeypatch):
    monkeypatch.chdir(raw_tree.ingested(raw_tree.write(tmp_path / "raw"), tmp_path))
    raw_tree.chosen(tmp_path, "grounding")
    assert "card/DATA.md and card/croissant.json describe tables, subsets/grounding" in called(
        "card", "tables", "subsets/grounding", "--out", "card"
    )
    assert "| grounding | 7 |" in (tmp_path / "card/DATA.md").read_text()
    assert "written to flat" in called("export", "--tables", "subsets/grounding", "--shards", "shards", "--out", "flat", "--flat")
    assert len(json.loads((tmp_path / "flat/grounding.json").read_text())) == 25
    called("export", "--tables", "tables", "--shards", "shards", "--out", "whole")
    assert (tmp_path / "whole" / raw_tree.INDEX).is_file()


def test_a_case_is_withdrawn_with_its_reason_and_an_unknown_one_is_an_error(released_project, tmp_path, monkeypatch):
    released.copied(released_project, tmp_path)
    for name in ("dvc.yaml", "exclusions.csv"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    with pytest.raises(InputError, match="SetA/case_9: expected a case of the tables in data, found none"):
        called("erase", "SetA/case_9")
    said = called("erase", "SetA/case_1", "SetB/case_3", "--reason", "consent withdrawn")
    assert "models/aligned: made by align" in said and "127.0.0.1:9 does not answer" in said.replace("\n", " ")
    assert set(exclusions.read(tmp_path / "exclusions.csv").values()) == {"consent withdrawn"}
    assert "was excluded before" in called("erase", "SetB/case_3")
