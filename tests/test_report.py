"""The ladder, the overlays and the page that shows them."""

import base64
import io
import json
import math
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from unimed.data import masks
from unimed.errors import InputError
from unimed.eval import charts, ladder, report
from unimed.eval.bootstrap import Interval
from unimed.eval.ladder import Row
from unimed.eval.overlays import PREDICTION, TRUTH, data_uri, outlined, panels

HEIGHT, WIDTH = 24, 32
COLUMNS = ["stage", "task", "variant", "question_type", "modality", "dataset", "case", "sample_id", "conversation_id"]
COLUMNS += ["question", "truth", "prediction", "score", "answer_rle", "truth_rle", "height", "width"]
ROWS = [
    Row("align", "caption_loss", 1.0, 0.9, 1.1, 240, 2.4),
    Row("vqa_expert", "closed_accuracy", 0.9, 0.86, 0.93, 400, 0.5),
    Row("grpo", "strict_accuracy", 0.7, 0.6, 0.8, 96, None),
]
CURVES = {"grpo": [{"step": step, "loss": 1 / step, "reward": float(step), "lr": 0.1} for step in range(1, 40)], "align": []}
ROUTER = [{"task": task, "layer": layer, "expert": "vqa", "share": 0.25} for task in ("vqa", "grounding") for layer in range(3)]
EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """What a page loads, runs and shows."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.links, self.open, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += " " + data


def square(left: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[6:16, left : left + 10] = True
    return mask


def prediction(number: int, **cells) -> dict:
    plain = dict.fromkeys(COLUMNS, "") | {"modality": "ct", "dataset": "PhantomA", "height": HEIGHT, "width": WIDTH, "score": 1.0}
    ids = {"case": f"case_{number // 2}", "sample_id": f"image_{number}", "conversation_id": str(number)}
    return plain | {"answer_rle": "[]", "truth_rle": "[]"} | ids | cells


def vqa(number: int, score: float = 0.0, variant: str = "") -> dict:
    cells = {"question": f"Question {number}?", "truth": "Yes", "prediction": "No" if score < 1 else "Yes", "score": score}
    return prediction(number, stage="vqa_expert", task="vqa", variant=variant, question_type="side", **cells)


def grounding(number: int, question: str = "Segment the liver.", score: float = 0.5) -> dict:
    runs = {
        "truth_rle": json.dumps([masks.encode(square(4))]),
        "answer_rle": json.dumps([masks.encode(square(8)), masks.encode(square(12))]),
    }
    return prediction(number, stage="moe_router", task="grounding", question=question, score=score, **runs)


def reasoning(number: int, text: str, score: float) -> dict:
    return prediction(number, stage="grpo", task="reasoning", question="Which?\nA) x\nB) y", truth="B", prediction=text, score=score)


def written(folder, predictions=(), rows=ROWS, curves=CURVES, router=ROUTER, notes=None) -> str:
    frame = pd.DataFrame(predictions, columns=COLUMNS).astype({"score": float})
    path = report.write(folder, rows, frame, lambda _: Image.new("L", (WIDTH, HEIGHT), 90), curves, router, notes or {})
    return path.read_text(encoding="utf-8")


def everything() -> list[dict]:
    answers = [vqa(number, score=float(number % 3 > 0)) for number in range(30)]
    blind = [vqa(number, score=float(number % 2), variant="blind") for number in range(30)]
    thoughts = [reasoning(number, f"<think>It is y{number}.</think><answer>B</answer>", number % 2) for number in range(12)]
    return answers + blind + thoughts + [grounding(number, score=number / 20) for number in range(20)]


def test_the_ladder_has_exactly_the_agreed_keys_and_four_decimals(tmp_path):
    ladder.write(
        tmp_path / "ladder.json",
        [Row("align", "loss", 1.23456789, 1.2, 1.3, 240, None), ladder.measured("align", "x", Interval(math.nan, math.nan, math.nan, 0))],
    )
    first, second = json.loads((tmp_path / "ladder.json").read_text())
    assert first == {"stage": "align", "metric": "loss", "value": 1.2346, "low": 1.2, "high": 1.3, "n": 240, "baseline": None}
    assert second == {"stage": "align", "metric": "x", "value": None, "low": None, "high": None, "n": 0, "baseline": None}


def test_an_empty_ladder_is_an_empty_list():
    assert json.loads(ladder.to_json([])) == []


def test_the_terminal_table_aligns_numbers_and_names_a_stage_once():
    lines = ladder.table([*ROWS, Row("grpo", "format", None, None, None, 1234, 0.5)]).splitlines()
    assert len({len(line) for line in lines[1:3]} | {len(lines[0])}) == 1
    assert lines[3].startswith("grpo") and lines[4].startswith(" " * 4)
    assert lines[4].split() == ["format", "-", "1,234", "0.500"]


def test_the_panels_show_what_is_missed_and_what_is_extra():
    picture = np.asarray(panels(Image.new("L", (WIDTH, HEIGHT)), square(4), square(8), panel_px=WIDTH).convert("RGB")).astype(int)
    plain, truth, answer, difference = (picture[:, start : start + WIDTH] for start in range(0, 4 * (WIDTH + 4), WIDTH + 4))
    assert not plain.any()
    assert tuple(truth[6, 4]) == TRUTH and tuple(answer[6, 8]) == PREDICTION
    missed, extra, shared = difference[10, 5], difference[10, 16], difference[10, 10]
    assert missed[2] > missed[0] and extra[0] > extra[2] and not shared.any()


def test_an_outline_colours_no_pixel_outside_the_mask():
    picture = np.asarray(outlined(Image.new("RGB", (WIDTH, HEIGHT)), square(4), TRUTH))
    assert (picture.any(axis=2) == square(4)).all()


def test_masks_of_another_size_than_the_image_are_an_error():
    with pytest.raises(InputError, match="a prediction mask of 24 x 32 expected"):
        panels(Image.new("L", (WIDTH, HEIGHT)), square(4), square(4).T)


def test_a_data_uri_holds_the_image():
    uri = data_uri(Image.new("RGB", (8, 6), (10, 20, 30)))
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,"))))
    assert image.size == (8, 6)


def test_a_flat_curve_and_a_single_step_can_be_drawn():
    assert "nan" not in charts.curve([1, 2], [0.0, 0.0], "loss") + charts.curve([5], [3.0], "loss")


def test_a_curve_rises_where_its_values_rise():
    points = charts.curve([0, 10], [1.0, 2.0], "reward").split('points="')[1].split('"')[0].split()
    (left, start), (right, end) = (map(float, point.split(",")) for point in points)
    assert left < right and start > end


def test_the_page_is_one_file_without_script_or_network(tmp_path):
    page = Page(written(tmp_path, everything()))
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert all(link.startswith(("data:image/webp;base64,", "#")) for link in page.links)
    assert not page.open
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_page_shows_every_part(tmp_path):
    page = Page(written(tmp_path, everything(), notes={"licences": {"PhantomA": "CC0-1.0"}, "baselines": {"majority letter": 0.271}}))
    for part in ("For research use only", "0.860 to 0.930", "Dice 0.950", "It is y1.", "Question 3?", "CC0-1.0", "0.271", "blind"):
        assert part in page.text, part
    assert page.tags.count("img") == 3 + 10 + 8


def test_rows_below_two_hundred_items_are_said_to_mean_nothing(tmp_path):
    few = Page(written(tmp_path)).text
    assert "1 of 3 rows below rest on fewer than 200 items (marked †): these scores mean nothing." in few
    assert "96 †" in few and "400 †" not in few
    many = Page(written(tmp_path, rows=ROWS[:2], notes={"warning": "Look twice."})).text
    assert "mean nothing" not in many and "†" not in many


def test_a_warning_in_the_notes_stands_at_the_top(tmp_path):
    text = Page(written(tmp_path, notes={"warning": "Real slices: scores mean nothing."})).text
    assert text.index("Real slices: scores mean nothing.") < text.index("Verdict")


def test_nothing_from_data_or_model_is_taken_for_markup(tmp_path):
    records = [prediction(number, stage=EVIL, task=task, score=0.0) for number, task in enumerate(("vqa", "reasoning", "grounding"))]
    records = [record | dict.fromkeys(("question", "truth", "prediction", "question_type", "modality", "case"), EVIL) for record in records]
    records[2] |= {name: grounding(2)[name] for name in ("answer_rle", "truth_rle")}
    router = [{"task": EVIL, "layer": 0, "expert": EVIL, "share": 1.0}]
    notes = {key: {EVIL: EVIL} for key in ("data", "licences", "baselines")} | {"warning": EVIL}
    curves = {EVIL: [{"step": step, f"loss{EVIL}": 1.0} for step in range(3)]}
    text = written(tmp_path, records, [Row(EVIL, EVIL, 0.5, 0.4, 0.6, 300, 0.1)], curves, router, notes)
    assert "script" not in Page(text).tags
    assert text.count("&lt;script&gt;") >= 15


def test_an_evaluation_without_predictions_still_makes_a_page(tmp_path):
    text = Page(written(tmp_path, rows=[], curves={}, router=[])).text
    for absence in ("No predictions.", "No grounding predictions", "No reasoning predictions.", "No routed stage.", "No training metrics."):
        assert absence in text


def test_one_prediction_of_each_kind_makes_a_page(tmp_path):
    page = Page(written(tmp_path, [vqa(0), grounding(1), reasoning(2, "B", 0.0)]))
    assert page.tags.count("img") == 3
    assert "off form" in page.text and "All questions" not in page.text


def test_the_overlays_are_worst_median_and_best_of_each_question(tmp_path):
    records = [grounding(number, f"Segment {number % 2}.", score=number / 10) for number in range(10)]
    page = Page(written(tmp_path, records)).text
    shown = [part.split()[0] for part in page.split(" Dice ")[1:] if part[0] == "0"]
    assert [value for value in shown if not value.endswith(",")] == ["0.000", "0.400", "0.800", "0.100", "0.500", "0.900"]


def test_predictions_of_the_last_stage_are_shown_whatever_their_order(tmp_path):
    late = [vqa(number) | {"stage": "moe_router", "prediction": "from the router"} for number in range(3)]
    for records in (late + [vqa(number) for number in range(3)], [vqa(number) for number in range(3)] + late):
        text = Page(written(tmp_path, records)).text
        assert text.count("from the router") == 3


def test_a_condition_is_compared_on_the_same_items(tmp_path):
    plain = [vqa(number, score=1.0) for number in range(10)]
    blind = [vqa(number, score=0.0, variant="blind") for number in range(4)]
    assert "−1.000 to −1.000" in Page(written(tmp_path, plain + blind)).text


def test_a_long_evaluation_stays_below_three_megabytes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 1400), dtype=np.uint8)
    mask = json.dumps([masks.encode(noise > 250)])
    sizes = {"height": 900, "width": 1400}
    points = [grounding(number, f"Segment {number % 6}.") | sizes | {"truth_rle": mask, "answer_rle": mask} for number in range(30)]
    texts = [vqa(number) | {"prediction": "word " * 2000} for number in range(30)]
    frame = pd.DataFrame(points + texts + [reasoning(number, "so " * 3000, number % 2) for number in range(30)])
    path = report.write(tmp_path, ROWS, frame, lambda _: Image.fromarray(noise), CURVES, ROUTER, {})
    assert path.stat().st_size < 3_000_000


def test_the_same_inputs_give_the_same_page(tmp_path):
    assert written(tmp_path / "a", everything()) == written(tmp_path / "b", everything())


def test_rewards_are_drawn_by_what_they_are_for_and_a_loss_of_one_part_once(tmp_path):
    rewarded = [{"step": n, "loss": 0.1, "reward": n, "reward_std": 1.0, "rewards/format_reward/mean": n / 9} for n in range(9)]
    curves = {"grpo": rewarded, "align": [{"step": n, "loss": 1 / (n + 1), "loss_words": 1 / (n + 1)} for n in range(9)]}
    text = written(tmp_path, curves=curves)
    training = text[text.index('id="training"') : text.index('id="baselines"')]
    drawn = [part.split('"')[0].split(":")[0] for part in training.split('aria-label="')[1:]]
    assert drawn == ["rewards/format_reward/mean", "reward", "loss"]
