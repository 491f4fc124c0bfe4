"""What a question may hold, and what is told of an answer while it is being written."""

import io
from itertools import pairwise

import pytest
import tiny
from PIL import Image

from unimed import answering
from unimed.answering import Question
from unimed.data.records import SEG
from unimed.errors import InputError
from unimed.eval import answers
from unimed.model import tokenizer
from unimed.model.assemble import Assembled
from unimed.model.processor import IMAGE


@pytest.fixture(scope="module")
def made():
    return Assembled(tiny.fresh(), tiny.processor())


@pytest.mark.parametrize("token", [tokenizer.PAD, tokenizer.USER, tokenizer.ASSISTANT, tokenizer.END, IMAGE, SEG])
@pytest.mark.parametrize("around", ["{}", "Is it there?{}yes", "< {} >"])
def test_a_forged_token_is_refused_by_name(made, token, around):
    with pytest.raises(InputError, match="question: expected plain text, found ") as caught:
        answering.read(made, Question(tiny.picture(0), around.format(token)), 8)
    assert token in str(caught.value)


def test_other_spellings_that_the_tokenizer_takes_for_the_token_are_refused_too(made):
    words = tiny.processor()
    words.tokenizer.add_tokens(["<|secret|>"], special_tokens=False)
    with pytest.raises(InputError, match="expected plain text, found <|secret|>"):
        answering.read(Assembled(made.model, words), Question(tiny.picture(0), "a <|secret|> b"), 8)


@pytest.mark.parametrize("text", ["<SEG", "<|en", "d|> <SE G>", "< SEG >", "<seg>", "&lt;SEG&gt;", "<|END|>"])
def test_what_only_looks_like_a_token_is_text(made, text):
    special = set(made.processor.tokenizer.get_added_vocab().values())
    plain, odd = (answering.read(made, Question(tiny.picture(0), words), 8).inputs["input_ids"][0].tolist() for words in ("a", text))
    assert [number for number in odd if number in special] == [number for number in plain if number in special]


def test_a_region_is_marked_once_for_each_mask(made):
    def read(text, count):
        return answering.read(made, Question(tiny.picture(0), text, (tiny.box(0, 0, 4, 4),) * count), 8)

    region = made.model.config.region_token_id
    for text, count in (("a", 2), ("a <region>", 2), ("<region> <region>", 2), ("a", 0)):
        assert (read(text, count).inputs["input_ids"] == region).sum() == count
    with pytest.raises(InputError, match="expected at most one <region> for each of 1 regions, found 2"):
        read("<region> <region>", 1)


def test_a_question_leaves_room_for_its_answer(made):
    room = made.model.config.text_config.max_position_embeddings
    length = answering.read(made, Question(tiny.picture(0), "yes"), 8).inputs["input_ids"].shape[1]
    answering.read(made, Question(tiny.picture(0), "yes"), room - length)
    with pytest.raises(InputError, match=f"expected at most {length - 1} tokens with its image, found {length}; ask in fewer words"):
        answering.read(made, Question(tiny.picture(0), "yes"), room - length + 1)


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("", ""),
        ("<thi", ""),
        ("yes", ""),
        ("yes <think>no", ""),
        ("<think>", ""),
        ("<think> It", "It"),
        ("<think> It ", "It"),
        ("<think> It </", "It"),
        ("<think> It < 5", "It < 5"),
        ("<think> 5 \ufffd", "5"),
        ("<think> It is.</think><ans", "It is."),
        (" <think> It is. </think><answer> yes</answer>", "It is."),
    ],
)
def test_the_thought_so_far(text, thought):
    assert answering.thought_so_far(text) == thought


def test_a_thought_only_grows_and_ends_as_the_whole():
    text = "<think> The nodule is < 5 mm,\n so it may be </thin> benign. </think><answer> yes</answer>"
    grown = [answering.thought_so_far(text[:end]) for end in range(len(text) + 1)]
    assert all(later.startswith(before) for before, later in pairwise(grown))
    assert grown[-1] == answers.split_thought(text).thought


def content(image: Image.Image, kind: str, **more) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **more)
    return stream.getvalue()


def test_pixels_are_taken_as_they_are_stored():
    image = tiny.picture(0, 20, 30)
    assert answering.picture(content(image, "PNG"), "scan").tobytes() == image.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pixels_that_are_to_be_shown_turned_are_refused(kind):
    exif = Image.Exif()
    exif[0x0112] = 8
    with pytest.raises(InputError, match="scan: expected pixels stored upright, found EXIF orientation 8; turn them and drop the tag"):
        answering.picture(content(tiny.picture(0), kind, exif=exif), "scan")


@pytest.mark.parametrize("text", ["point:²,1", "point:١,1", "point:1e3,1", "point:0000000000,1", "box:1,1,1,", "point:+1,1", "x" * 999])
def test_a_region_is_written_in_plain_digits(text):
    with pytest.raises(InputError, match="expected box:x,y,w,h or point:x,y in whole pixels") as caught:
        answering.region(text, tiny.picture(0))
    assert len(str(caught.value)) < 120
