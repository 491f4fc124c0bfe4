"""The page of a server in a real browser: a marked image, a question, and the answer with its masks where they belong."""

import io

import browser
import numpy as np
import pytest
import service
import tiny
from PIL import Image

from unimed.data import masks

pytestmark = [pytest.mark.slow, browser.needed]
LIMITS = service.Limits(batch=2, queue=2, max_new_tokens=200)
ANSWERED = "#about:has-text('request')"


@pytest.fixture(scope="module")
def server():
    made = service.model()
    service.script(made, "<think> It is there.</think><answer> yes <SEG></answer>")
    with service.serving(made, LIMITS) as running:
        yield running


def picture() -> dict:
    """An image as a file that a user picks."""
    content = io.BytesIO()
    tiny.picture(3).save(content, "PNG")
    return {"name": "slice.png", "mimeType": "image/png", "buffer": content.getvalue()}


def drag(page, *ends: tuple[float, float]) -> None:
    """Drag over the image between two places, as shares of its width and height."""
    frame = page.locator("#view").bounding_box()
    places = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in ends]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=4)
    page.mouse.up()


def pixels(page) -> np.ndarray:
    """The canvas as RGBA."""
    shown = page.evaluate("() => { const c = $('view'); return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; }")
    return np.array(shown, dtype=np.uint8).reshape(32, 32, 4)


def test_a_question_about_a_marked_image_is_answered_with_reasoning_and_masks(server, tmp_path):
    with browser.looking(server.url) as page:
        page.goto(server.url)
        page.wait_for_selector("text=model 1")
        assert page.locator("#ask").is_disabled()
        page.set_input_files("#file", picture())
        drag(page, (0.25 + 0.01, 0.25 + 0.01), (0.5 - 0.01, 0.5 - 0.01))
        assert page.locator("#regions li").all_inner_texts() == ["box:8,8,8,8"]
        page.fill("#question", "Please segment <region>.")
        page.check("#think")
        with page.expect_response("**/v1/answer") as response:
            page.click("#ask")
        page.wait_for_selector(ANSWERED)
        assert page.inner_text("#answer") == "yes mask 1"
        assert page.inner_text("#reasoning") == "It is there."
        assert "model 1 · request " in page.inner_text("#about")
        assert "not for clinical use" in page.inner_text(".notice")
        page.screenshot(path=tmp_path / "answer.png", full_page=True)
        assert len(np.unique(np.asarray(Image.open(tmp_path / "answer.png").convert("RGB")).reshape(-1, 3), axis=0)) > 50
        page.click("#clear")
        shown = pixels(page)
        [answered] = dict(service.events(response.value.text()))["masks"]["masks"]
    drawn = masks.decode(answered["counts"], *answered["size"])
    changed = (shown[..., :3] != np.asarray(tiny.picture(3).convert("RGB"))).any(-1)
    assert drawn.any() and (changed == drawn).mean() > 0.99  # a tint can leave a pixel of its own colour as it is


def test_a_browser_unpacks_run_lengths_as_pycocotools_packs_them(server):
    draw = np.random.default_rng(0)
    with browser.looking(server.url) as page:
        page.goto(server.url)
        for _ in range(20):
            height, width = (int(side) for side in draw.integers(1, 300, 2))
            mask = draw.random((height, width)) < draw.random() ** 4
            found = page.evaluate("([counts, height, width]) => [...unmask(counts, height, width)]", [masks.encode(mask), height, width])
            assert (np.array(found).reshape(height, width) == mask).all()


def test_what_cannot_be_used_is_told_in_one_sentence(server):
    with browser.looking(server.url) as page:
        page.goto(server.url)
        page.set_input_files("#file", {"name": "note.png", "mimeType": "image/png", "buffer": b"no image"})
        page.wait_for_selector("text=note.png: expected a PNG or JPEG, found a file that this browser cannot show")
        assert page.locator("#ask").is_disabled()
        page.set_input_files("#file", picture())
        page.fill("#question", "What is <SEG>?")
        page.click("#ask")
        page.wait_for_selector("#problem:has-text('expected')")
        assert "<SEG>" in page.inner_text("#problem") and page.locator("#reply").is_hidden()
        assert page.locator("#ask").is_enabled(), "it can be asked again"


def test_who_has_the_token_may_ask():
    with service.serving(service.model(), LIMITS, token="the-canary") as server, browser.looking(server.url) as page:
        page.goto(server.url)
        page.wait_for_selector("text=expected the server's bearer token")
        page.fill("#token", "the-canary")
        page.set_input_files("#file", picture())
        page.fill("#question", "Is there a nodule?")
        page.click("#ask")
        page.wait_for_selector(ANSWERED)
        assert "the-canary" not in page.url


def test_nobody_is_asked_for_a_token_that_there_is_not(server):
    with browser.looking(server.url) as page:
        page.goto(server.url)
        page.wait_for_selector("text=model 1")
        assert page.locator("#token").is_hidden()


def test_text_of_an_answer_is_text():
    made = service.model()
    service.script(made, "<img src=x onerror=alert(1)>")
    with service.serving(made, LIMITS) as server, browser.looking(server.url) as page:
        page.goto(server.url)
        page.set_input_files("#file", picture())
        page.fill("#question", "Is there a nodule?")
        page.click("#ask")
        page.wait_for_selector(ANSWERED)
        assert page.locator("#answer img").count() == 0
