"""What can be said and asked about a phantom: captions, questions with answers, targets to point at, and reasoning items.

Every closed question is as often answered one way as the other, given its words, so that nothing is gained by not looking.
"""

from collections.abc import Iterable, Iterator
from string import ascii_uppercase
from typing import Any

import numpy as np

from unimed.data.phantoms import CLASSES, LESION, MODALITIES, ORGANS, SIDES, Scene
from unimed.data.records import lettered

Record = dict[str, Any]
QUALITIES = {True: "calcified", False: "smooth"}


def article(modality: str) -> str:
    """The modality with its indefinite article."""
    return f"an {modality}" if modality in ("MR", "ultrasound") else f"a {modality}"


def place(scene: Scene, name: str) -> str:
    """Where a class lies, as words that follow a noun."""
    side = scene.side_of(name)
    return f"on the {side}" if side else "on both sides"


def inventory(scene: Scene, names: Iterable[str]) -> str:
    """For every class its side, or that it is on both or absent."""
    return ", ".join(f"{name} {scene.side_of(name) or ('both' if scene.named(name) else 'absent')}" for name in names)


def caption(scene: Scene) -> str:
    """One sentence on the modality and one phrase per class present."""
    present = [name for name in CLASSES if scene.named(name)]
    phrases = [f"{described(scene, name)} {place(scene, name)}" for name in present]
    return f"{article(scene.modality).capitalize()} slice. It shows {listed(phrases) if phrases else 'no structure'}."


def described(scene: Scene, name: str) -> str:
    """The class with its article; a nodule also with its quality."""
    return f"the {QUALITIES[scene.calcified]} {name}" if name == LESION else f"the {name}"


def listed(phrases: list[str]) -> str:
    """Phrases joined as a list in a sentence."""
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def closed_questions(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, str, str]]:
    """Question type, question and answer of every closed question drawn for a scene."""
    present = [name for name in ORGANS if scene.named(name)]
    absent = [name for name in ORGANS if not scene.named(name)]
    for names, answer in ((present, "Yes"), (absent, "No")):
        if names:
            yield "presence", f"Is there a {rng.choice(names)} in this image?", answer
    asked = scene.modality if rng.random() < 0.5 else str(rng.choice([name for name in MODALITIES.values() if name != scene.modality]))
    yield "modality", f"Is this {article(asked)} image?", "Yes" if asked == scene.modality else "No"
    if sided := [name for name in CLASSES if scene.side_of(name)]:
        name = str(rng.choice(sided))
        yield "side", f"Is the {name} on the left or on the right?", str(scene.side_of(name)).capitalize()
    if scene.named(LESION):
        yield "detail", "Is the nodule calcified?", "Yes" if scene.calcified else "No"


def reasoning_items(scene: Scene, rng: np.random.Generator) -> Iterator[Record]:
    """Multiple-choice items that need two facts: the nodule's side with its quality, or with an organ's side."""
    side = scene.side_of(LESION)
    if side is None:
        return
    first = f"The nodule is on the {side}."
    quality = QUALITIES[scene.calcified]
    combinations = _shuffled(rng, [f"{one} and {other}" for one in SIDES for other in QUALITIES.values()])
    yield _item("attributes", "Which words describe the nodule?", combinations, f"{side} and {quality}", f"{first} It is {quality}.")
    beside = [name for name in ORGANS if scene.side_of(name) == side]
    elsewhere = [name for name in ORGANS if scene.side_of(name) not in (side, None)] + [name for name in ORGANS if not scene.named(name)]
    if beside and len(elsewhere) >= 3:
        answer = str(rng.choice(beside))
        names = _shuffled(rng, [answer, *_shuffled(rng, elsewhere)[:3]])
        looked = ", ".join(f"{name} {'yes' if name == answer else 'no'}" for name in names)
        yield _item("same_side", "Which structure is on the same side as the nodule?", names, answer, f"{first} There: {looked}.")


def _shuffled(rng: np.random.Generator, words: list[str]) -> list[str]:
    return [str(word) for word in rng.permutation(words)]


def _item(kind: str, question: str, options: list[str], answer: str, rationale: str) -> Record:
    return {
        "question": question,
        "options": options,
        "answer": answer,
        "problem": lettered(question, options),
        "solution": ascii_uppercase[options.index(answer)],
        "rationale": rationale,
        "question_type": kind,
    }
