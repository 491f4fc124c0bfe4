"""Model card and data card: every number, hash and licence of a release, exceptions where everyone sees them, and text that stays text."""

import json
import re
import shutil
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest
import released
import yaml

from unimed.errors import InputError
from unimed.eval.ladder import Row
from unimed.model import artifacts
from unimed.release import cards, data_card, manifest


@dataclass(frozen=True)
class Exemption:
    name: str
    reason: str
    until: date


OVERRIDE = Exemption("Ann Doe", "the study ends in May", date(2026, 5, 31))


def card(project: Path) -> str:
    return cards.read(project / "reports/release")


def release(project: Path) -> dict:
    return manifest.read(project / "reports/release")


def test_the_front_matter_is_what_hugging_face_reads(released_project):
    _, front, _ = card(released_project).split("---\n", 2)
    about = yaml.safe_load(front)
    assert (about["license"], about["license_name"]) == ("other", "research-only-cc-by-4.0-cc0-1.0")
    assert (about["datasets"], about["metrics"]) == (["SetA", "SetB"], ["accuracy", "dice"])
    assert about["pipeline_tag"] == "image-text-to-text" and "research-only" in about["tags"]


def test_the_ladder_stands_with_interval_baseline_and_n(released_project):
    text = card(released_project)
    assert "| vqa_expert | closed accuracy (baseline: image blanked) | 0.900 | 0.850 to 0.950 | 0.500 | 300 | ✓ |" in text
    assert "| grounding_expert | SEG emitted on questions | 0.010 | 0.000 to 0.020 | – | 300 | ✓ |" in text


def test_a_row_without_a_bound_has_no_tick_and_one_within_its_baseline_is_a_limit(released_project):
    extra = vars(Row("grpo", "format", 0.5, 0.4, 0.6, 12, 0.6))
    text = cards.model_card(release(released_project), [extra], data_card.describe(*data(released_project)))
    assert "| grpo | format | 0.500 | 0.400 to 0.600 | 0.600 | 12 | – |" in text
    assert "Not told apart from the baseline, which lies in the interval: grpo: format." in text


def data(project: Path) -> tuple[dict, dict]:
    return released.of(project).data, release(project)["data"]


def test_the_card_says_it_is_for_research_only_and_holds_every_hash(released_project):
    text, content = card(released_project), release(released_project)
    assert text.count("For research only: not a medical device") == 1
    for part in content["parts"].values():
        assert part["manifest_sha256"] in text and part["dvc"] in text
    assert all(digest in text for digest in [*content["data"].values(), content["gate"]["sha256"], content["evaluation"]["dvc"]])
    assert "Git revision: abc." in text


def test_the_data_card_counts_by_hand(released_project):
    """Four images of three patients in SetA, three of three in SetB; all tasks use all of them."""
    text = (released_project / "reports/release/DATA.md").read_text()
    assert "| SetA | CC0-1.0 | ct, mr, ultrasound | 4 | 3 |" in text
    assert "| SetB | CC-BY-4.0 | ct, mr, ultrasound | 3 | 3 |" in text
    assert "| vqa | 7 | 24 | 26 | 12 | 0 | 14 | 3 |" in text
    assert "| kidney | 18 |" in text and "| liver | 6 |" in text
    assert all(digest in text for digest in release(released_project)["data"].values())


def test_other_data_than_the_gate_judged_are_refused(released_project, tmp_path):
    found = released.of(released_project).data
    shutil.copytree(found["vqa"], tmp_path / "vqa")
    released.flip(tmp_path / "vqa/report.html")
    with pytest.raises(InputError, match=r"vqa: expected the data that the gate judged, .*run the gate again"):
        data_card.describe({**found, "vqa": tmp_path / "vqa"}, release(released_project)["data"])


def test_the_same_release_has_the_same_bytes(released_project, tmp_path):
    root = released.copied(released_project, tmp_path)
    again = released.release(root, folder="reports/again")
    for file in (root / "reports/release").iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_release_names_every_file_beside_it_and_its_base(released_project):
    folder, content = released_project / "reports/release", release(released_project)
    names = {"README.md", "DATA.md", "MLmodel", "croissant.json", "pyfunc_model.py", "sbom.cdx.json", "scores.parquet"}
    assert content["files"] == {name: artifacts.sha256(folder / name) for name in names}
    foundation = json.loads((released_project / "models/foundation/manifest.json").read_text())
    assert content["base"]["files"] == foundation["files"]
    assert content["base"]["manifest_sha256"] == artifacts.sha256(released_project / "models/foundation/manifest.json")


def test_a_gate_without_scores_is_told_to_run_again(released_project, tmp_path):
    root = released.copied(released_project, tmp_path)
    (root / "reports/gate/scores.parquet").unlink()
    with pytest.raises(InputError, match="expected the scores that the gate judged, found none; run the gate again"):
        released.release(root, folder="reports/again")


def test_overrides_take_the_place_of_none(released_project):
    plain, told = cards.with_overrides(card(released_project), []), cards.with_overrides(card(released_project), [OVERRIDE])
    assert plain == card(released_project) and plain.endswith("## Overrides\n\nNone in force.\n")
    assert told.endswith("## Overrides\n\n- Until 2026-05-31, by Ann Doe: the study ends in May\n")
    with pytest.raises(InputError, match="expected a model card with a section"):
        cards.with_overrides("# Another page", [])


def test_the_description_begins_with_what_it_is_and_its_overrides(released_project):
    told = cards.description(release(released_project), [OVERRIDE])
    first, second = told.split("\n\n")[:2]
    assert first.startswith("**For research only") and second == "**In use by override.**"
    assert "- Until 2026-05-31, by Ann Doe: the study ends in May" in told
    assert "| grounding_expert | mDice (baseline: image blanked) | 0.800 | 0.750 to 0.850 | 0.100 | 300 |" in told
    assert "CC-BY-4.0, CC0-1.0" in told
    assert "override" not in cards.description(release(released_project), [])


def test_a_description_fits_a_database_however_much_there_is_to_say(released_project):
    content = release(released_project)
    rows = [vars(Row("grpo", f"metric {number}", 0.5, 0.4, 0.6, 300, 0.1)) for number in range(200)]
    told = cards.description({**content, "evaluation": {"rows": rows}}, [OVERRIDE])
    assert 3000 < len(told) < 5000 and "metric 0 " in told
    assert len(cards.description(content, [Exemption("A" * 999, "B" * 9999, date.max)] * 20)) < 5000


def test_words_of_others_stay_words(released_project):
    wild = Exemption("<script>alert(1)</script>", "one\n## Two | three [link](x) `code`", date.max)
    told = cards.description(release(released_project), [wild])
    assert "<script>" not in told and "\n## Two" not in told
    [line] = re.findall(r"(?m)^- Until.*$", told)
    assert "| three" not in line and "[link]" not in line
