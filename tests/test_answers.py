"""What a text answers."""

import pytest

from unimed.errors import InputError
from unimed.eval.answers import Thought, chosen_option, closed_match, lenient_answer, normalise, split_thought, strict_answer

ORGANS = ["Lungs", "Heart", "Liver", "Kidney"]
LESIONS = ["Chondral abnormality", "Soft tissue fluid", "Focal flair hyperintensity", "Intraperitoneal mass"]
PAIRS = ["left and calcified", "left and smooth", "right and calcified", "right and smooth"]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Yes, it is.", "yes it is"),
        ("The  left\nlung", "left lung"),
        ("A CT of an abdomen", "ct of abdomen"),
        ("hepatitis A", "hepatitis a"),
        ("X-ray", "x ray"),
        ("heart_atrium_left", "heart atrium left"),
        ("3.5 cm.", "3.5 cm"),
        ("-5 HU", "-5 hu"),
        ("> 3 cm", "> 3 cm"),
        ("", ""),
    ],
)
def test_normalised_text_keeps_what_changes_the_meaning(text, plain):
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("prediction", "truth"),
    [
        ("Yes", "yes"),
        ("yes.", "Yes"),
        ("Yes, it is.", "Yes"),
        ("The answer is yes", "Yes"),
        ("No", "No, it is not."),
        ("No, it is not.", "No"),
        ("There is no nodule.", "No"),
        ("left", "Left"),
        ("on the left side", "left"),
        ("The nodule lies on the left.", "Left"),
        ("This is a CT image.", "CT"),
        ("left and calcified", "left and calcified"),
        ("No finding", "No finding"),
    ],
)
def test_a_sentence_that_gives_the_true_answer_matches(prediction, truth):
    assert closed_match(prediction, truth)


@pytest.mark.parametrize(
    ("prediction", "truth"),
    [
        ("No", "Yes"),
        ("Yes", "No"),
        ("", "Yes"),
        ("Yes or no", "Yes"),
        ("No, yes", "Yes"),
        ("It is calcified", "Yes"),
        ("Yesterday", "Yes"),
        ("Nodule", "No"),
        ("left or right", "left"),
        ("left, right", "left"),
        ("left and right", "right"),
        ("both left", "left"),
        ("not on the left", "left"),
        ("CT, MR", "CT"),
        ("leftover", "left"),
        ("No idea", "No finding"),
        ("liver and spleen", "spleen"),
    ],
)
def test_another_answer_or_both_answers_do_not_match(prediction, truth):
    assert not closed_match(prediction, truth)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        *(
            (form, 0)
            for form in ("A", "a", "(A)", "A.", "a)", "A) Lungs", "A.Lungs", "A - Lungs", "A: Lungs", "A Lungs", " **A** ", "（A）")
        ),
        *((form, 0) for form in ("Option A", "Answer: A", "answer: a.", "Lungs", "lungs.", "The answer is A because lungs are seen")),
        *((form, 1) for form in ("The answer is B", "I choose B", "It is B.", "B because of its shape", "option (b)", "It is the heart.")),
        *((form, 2) for form in ("C, Liver", "\\boxed{C}", "Final answer:\nC", "(C) liver", "the answer is a liver")),
        *((form, 3) for form in ("d", "D) Kidney", "Answer: D. Kidney", "The correct choice is D")),
    ],
)
def test_every_usual_way_to_name_an_option_is_read(text, index):
    assert chosen_option(text, ORGANS) == index


@pytest.mark.parametrize(
    "text",
    [
        "",
        "E",
        "A or B",
        "A and B",
        "Both A and B",
        "A/B",
        "A\nB",
        "Answer: A or B",
        "Lungs and heart",
        "A) Heart",
        "B) Lungs",
        "Answer: A. The heart is enlarged.",
        "not B",
        "It is not the heart",
        "Anything but (A)? never (B)",
        "A nodule is seen",
        "Bad cabbage faced a decade",
        "I am unsure",
        "vitamin D deficiency",
        "A C-arm image",
        "e.g. an abscess, i.e. a cavity",
        "lung",
    ],
)
def test_no_option_two_options_and_denied_options_are_none(text):
    assert chosen_option(text, ORGANS) is None


@pytest.mark.parametrize("index", range(4))
def test_gold_answers_as_letter_with_text_are_all_read(index):
    letter = "ABCD"[index]
    for text in (
        f"{letter}) {LESIONS[index]}",
        f"({letter}) {LESIONS[index].lower()}",
        LESIONS[index],
        f"The finding is a {LESIONS[index]}.",
    ):
        assert chosen_option(text, LESIONS) == index, text


def test_the_longest_option_wins_where_one_contains_another():
    options = ["lung", "left lung", "left lung nodule", "no nodule"]
    assert [chosen_option(f"It is the {option}.", options) for option in options] == [0, 1, 2, 3]


def test_words_of_an_option_may_be_joined_in_other_ways():
    assert [chosen_option(text, PAIRS) for text in ("left, calcified", "Right and smooth.", "right smooth", "C) right, calcified")] == [
        0,
        3,
        3,
        2,
    ]
    assert [chosen_option(text, PAIRS) for text in ("calcified", "left", "A) left, smooth", "calcified and left")] == [None] * 4


def test_numbers_and_signs_tell_options_apart():
    assert chosen_option("<3 cm", ["< 3 cm", "> 3 cm"]) == 0
    assert chosen_option("3.5", ["3", "3.5", "5"]) == 1
    assert chosen_option("There are 2 nodules", ["1", "2", "12"]) == 1
    assert chosen_option("No effusion", ["Effusion", "Pneumonia"]) is None


def test_letters_inside_an_options_own_words_are_not_choices():
    options = ["C. difficile colitis", "Hepatitis B", "Vitamin D deficiency"]
    assert [chosen_option(text, options) for text in ("C. difficile colitis", "Answer: B) Hepatitis B", "vitamin D deficiency")] == [
        0,
        1,
        2,
    ]


def test_options_that_read_the_same_cannot_be_told_apart_by_words():
    assert chosen_option("cyst", ["Cyst", "cyst.", "mass"]) is None
    assert chosen_option("A", ["Cyst", "cyst.", "mass"]) == 0


def test_a_question_without_options_is_an_error():
    with pytest.raises(InputError, match="1 to 26 options, found 0"):
        chosen_option("A", [])


def test_a_completion_in_form_comes_apart():
    assert split_thought(" <think> It is round. </think>\n<answer>B</answer>\n") == Thought("It is round.", "B", well_formed=True)


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "",
        "<think></think><answer>B</answer>",
        "<think> \n </think><answer>B</answer>",
        "<think>round</think><answer> </answer>",
        "<think>round</think> so <answer>B</answer>",
        "<think>round</think><answer>B</answer> surely",
        "Well <think>round</think><answer>B</answer>",
        "<answer>B</answer><think>round</think>",
        "<think>round</think>",
        "<think>round<answer>B</answer>",
        "<think>round</think><answer>A</answer><answer>B</answer>",
        "<think>a</think><think>b</think><answer>B</answer>",
    ],
)
def test_anything_else_is_not_well_formed(text):
    assert not split_thought(text).well_formed


def test_the_one_answer_block_is_found_out_of_form_too():
    assert split_thought("so <answer>B</answer>") == Thought("", "B", well_formed=False)
    assert split_thought("<answer>A</answer><answer>B</answer>").answer == ""


def test_the_strict_score_needs_form_and_the_right_option_in_the_answer():
    assert strict_answer("<think>a heart</think><answer>B) Heart</answer>", ORGANS, "B")
    assert not strict_answer("<think>a heart</think><answer>A) Lungs</answer>", ORGANS, "B")
    assert not strict_answer("<think>B</think><answer>unsure</answer>", ORGANS, "B")
    assert not strict_answer("The answer is B", ORGANS, "B")


@pytest.mark.parametrize(
    "text",
    [
        "<think>lungs? no</think><answer>B</answer>",
        "The answer is B",
        "Lungs are dark. The heart is large.\nSo the answer is B.",
        "<think>The lungs are dark.</think> Answer: B",
        "<think>The lungs are dark.</think><answer>Heart",
    ],
)
def test_the_lenient_score_looks_ever_further_for_the_answer(text):
    assert lenient_answer(text, ORGANS, "B")
    assert not lenient_answer(text, ORGANS, "A")


def test_naming_every_option_is_right_in_neither_score():
    for text in ("<think>hm</think><answer>A B C D</answer>", "<think>hm</think><answer>A</answer><answer>B</answer>"):
        assert not any(score(text, ORGANS, letter) for score in (strict_answer, lenient_answer) for letter in "ABCD")


@pytest.mark.parametrize("solution", ["E", "", "AB", "b"])
def test_a_solution_that_is_no_letter_of_the_options_is_an_error(solution):
    with pytest.raises(InputError, match="one of the letters 'ABCD'"):
        strict_answer("<think>x</think><answer>A</answer>", ORGANS, solution)
