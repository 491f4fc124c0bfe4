"""What can be scored without looking."""

from unimed.eval.baselines import Asked, Choice, answer_vocabulary, majority_letter, option_lookup
from unimed.eval.metrics import open_match

TRAIN = [
    Asked("Is there a liver?", "Yes", "presence"),
    Asked("Is there a liver?", "Yes", "presence"),
    Asked("Is there a liver?", "No", "presence"),
    Asked("Is there a spleen?", "No", "presence"),
    Asked("Is there a heart?", "No", "presence"),
    Asked("On which side?", "Left", "side"),
]


def test_the_same_question_is_answered_as_most_often_in_training():
    test = [Asked("is there a LIVER", "Yes", "presence"), Asked("Is there a liver?", "No", "presence")]
    assert answer_vocabulary(TRAIN, test) == [1, 0]


def test_an_unknown_question_falls_back_to_its_type_and_then_to_all():
    test = [Asked("Is there a kidney?", "No", "presence"), Asked("Where is it?", "left", "side"), Asked("What is it?", "No", "open")]
    assert answer_vocabulary(TRAIN, test) == [1, 1, 1]


def test_ties_do_not_depend_on_the_order_of_training():
    train, test = [Asked("q", "Yes"), Asked("q", "No")], [Asked("q", "No")]
    assert answer_vocabulary(train, test) == answer_vocabulary(train[::-1], test) == [1]


def test_nothing_is_known_without_training():
    assert answer_vocabulary([], TRAIN) == [0] * len(TRAIN)


def test_open_answers_can_be_compared_as_open_answers():
    train, test = [Asked("q", "CT of the chest")], [Asked("q", "CT")]
    assert answer_vocabulary(train, [Asked("q", "ct of chest")], open_match) == [1]
    assert answer_vocabulary(train, test, open_match) == [0]


def test_balanced_answers_hold_the_vocabulary_to_chance():
    train = [Asked(f"Is there a {organ}?", answer) for organ in ("liver", "heart") for answer in ("Yes", "No") for _ in range(20)]
    scores = answer_vocabulary(train, train)
    assert sum(scores) / len(scores) == 0.5


def test_the_majority_letter_comes_from_training():
    assert majority_letter("ABBC", "BAB") == [1, 0, 1]
    assert majority_letter("", "AB") == [0, 0]


def test_distractors_that_are_never_right_give_the_answer_away():
    items = [Choice(("Cyst", f"made up {number}", f"invented {number}"), "cyst") for number in range(5)]
    assert option_lookup(items) == [1] * 5


def test_an_items_own_answer_does_not_count_for_it():
    assert option_lookup([Choice(("cyst", "mass"), "cyst")]) == [0.5]
    assert option_lookup([Choice(("cyst", "mass"), "cyst"), Choice(("mass", "fluid"), "mass")]) == [0, 0.5]


def test_answers_seen_in_training_count_too():
    items = [Choice(("cyst", "mass", "fluid"), "mass")]
    assert option_lookup(items, seen=["MASS ", "fluid"]) == [0.5]
    assert option_lookup(items, seen=["mass", "mass", "fluid"]) == [1]


def test_shared_options_with_balanced_answers_are_not_found_out():
    options = ("left and smooth", "left and calcified", "right and smooth", "right and calcified")
    items = [Choice(options, options[number % 4]) for number in range(400)]
    assert sum(option_lookup(items)) == 0
    assert sum(option_lookup(items, seen=[options[0]] * 5)) == 100
