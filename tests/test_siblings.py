"""Answers written together say what transformers' `generate` says, hold every prompt once, and can be replayed."""

from collections import Counter

import pytest
import tiled
import tiny
import torch
from problems import CLOSE, built, problem, with_stirred_reasoner
from taping import Tape
from test_fast_path import Waits, apart
from torch.nn.functional import scaled_dot_product_attention
from transformers import GenerationConfig, LlamaConfig

from unimed.model.attention import attending
from unimed.rl import joined, replayed, rollout, shared_attention, siblings

QUESTIONS = ("<image>Is there a nodule?", "<image>Which structure is marked? the liver")


def model(level="token", count=2, **changes):
    """A routed model whose reasoner is far from zero, two query heads to each key head."""
    names = {"experts": [f"e{number}" for number in range(count)], "expert_ranks": [2] * count, "expert_scalings": [2.0] * count}
    text = LlamaConfig(
        vocab_size=len(tiny.processor().tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    return with_stirred_reasoner(tiled.stirred(**tiny.EXPERTS | names, router_level=level, text_config=text, **changes))


def asked(*questions):
    """Prompts of different lengths about pictures on different canvases."""
    sizes = [tiled.SHAPES[2, 2], tiled.SHAPES[3, 1]]
    return tiled.inputs([tiny.picture(seed, *size) for seed, size in enumerate(sizes)], *tiny.ask(*(questions or QUESTIONS)))


def chosen(new=12, drawn=False, ends=(), made=None):
    """How to write, as TRL asks for it."""
    forbidden = [made.config.image_token_id, made.config.region_token_id] if made else []
    common = {"max_new_tokens": new, "pad_token_id": 0, "eos_token_id": list(ends), "suppress_tokens": forbidden, "use_cache": True}
    return GenerationConfig(**common, **({"do_sample": True, "temperature": 0.7, "top_k": 0} if drawn else {"do_sample": False}))


def log_probs(made, given, said, count, temperature):
    """Of every word that could follow, at each step, by one full pass over prompts and answers; each prompt has one image."""
    rows = torch.arange(len(given["input_ids"])).repeat_interleave(count)
    ids, mask = (torch.cat([given[name][rows], more], 1) for name, more in (("input_ids", said), ("attention_mask", said >= 0)))
    images = {name: given[name][rows] for name in ("pixel_values", "image_sizes")}
    logits = made(input_ids=ids, attention_mask=mask.long(), **images).logits[:, -said.shape[1] - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def written(made, given, count, config):
    """What `write` says, and the logits of each step."""
    seen, original = [], made.logits
    made.logits = lambda hidden: seen.append(original(hidden)) or seen[-1]
    said = siblings.write(made, given, count, config)
    del made.logits
    return said, torch.stack([seen[0][:, 0].repeat_interleave(count, 0), *seen[1:]], 1)


@pytest.mark.parametrize(
    ("level", "count", "drawn"), [("sequence", 2, False), ("sequence", 4, True), ("token", 2, True), ("token", 4, False)]
)
def test_words_are_those_of_generate_greedy_and_drawn(level, count, drawn):
    made, given = model(level, count), asked()
    made = babbling_tiled(made) if drawn else made
    config, length = chosen(drawn=drawn, ends=[5], made=made), given["input_ids"].shape[1]
    torch.manual_seed(3)
    rows = torch.arange(2).repeat_interleave(3)
    # Drawn without our own cache; `rollout.sample` is compared with it elsewhere.
    expected = made.generate(**{name: value[rows] for name, value in given.items()}, generation_config=config)[:, length:]
    torch.manual_seed(3)
    found = siblings.write(made, given, 3, config)
    assert torch.equal(found, expected)
    assert len({tuple(row) for row in found.tolist()}) == (6 if drawn else 2)
    assert not drawn or made.config.seg_token_id in found[:, :-1]


def babbling_tiled(made):
    """The model with `<SEG>` a likely word, so that its own rows are read."""
    with torch.no_grad():
        hidden = made.model(**asked(QUESTIONS[0], QUESTIONS[0])).last_hidden_state[0, -1]
        made.grounding.seg_output.copy_(hidden / hidden.square().sum() * (made.lm_head(hidden).logsumexp(0) - 1))
    return made


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_every_step_sees_what_a_full_pass_sees(level):
    made, given = model(level), asked()
    said, logits = written(made, given, 3, chosen(new=11, drawn=True, made=made))
    with torch.no_grad():
        expected = log_probs(made, given, said, 3, 0.7)
    torch.testing.assert_close((logits / 0.7).log_softmax(-1), expected, **CLOSE)


def test_the_gradient_pass_gives_drawn_words_the_probabilities_they_were_drawn_with(tmp_path):
    made, given = model("sequence"), asked()
    with built(made, [problem(tmp_path)], tiled.processor()) as policy:
        said, logits = written(made, given, 4, policy.generation_config)
        assert made.training
        rows = torch.arange(2).repeat_interleave(4)
        ids, mask = torch.cat([given["input_ids"][rows], said], 1), torch.cat([given["attention_mask"][rows], torch.ones_like(said)], 1)
        images = {name: given[name][rows] for name in ("pixel_values", "image_sizes")}
        trained, _ = policy._get_per_token_logps_and_entropies(made, ids, mask, said.shape[1], num_images=[1] * 8, **images)[:2]
    drawn = (logits / 0.7).log_softmax(-1).gather(2, said.unsqueeze(2)).squeeze(2)
    before_end = (said == policy.eos_token_ids[0]).cumsum(1) - (said == policy.eos_token_ids[0]).long() == 0
    assert before_end.sum() > 8
    torch.testing.assert_close((trained - drawn).exp()[before_end], torch.ones(int(before_end.sum())), **CLOSE)


def test_a_prompt_is_held_once_however_many_answer_it():
    made, given = model(), asked()
    answers = siblings.Answers(made, given, 5, chosen(new=7))
    held = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for memory in answers.memories for part in (
        memory.keys, memory.values)}  # fmt: skip
    position = 2 * 8 * 4  # key heads, their size, bytes of a number
    prompts, own = 2 * given["input_ids"].shape[1], 2 * 5 * 7
    assert sum(held.values()) == 2 * 2 * position * (prompts + own)


def test_an_answer_that_ends_changes_nothing_for_the_others():
    made, given = model(), asked()
    torch.manual_seed(0)
    free = siblings.write(made, given, 3, chosen(drawn=True, made=made))
    ends = [int(free[1, 4]), int(free[4, 7])]
    torch.manual_seed(0)
    found = siblings.write(made, given, 3, chosen(drawn=True, ends=ends, made=made))
    for row, other in zip(found.tolist(), free.tolist(), strict=True):
        stop = next((place for place, word in enumerate(other, 1) if word in ends), len(other))
        assert row == other[:stop] + [0] * (len(other) - stop)
    assert {word for row in found.tolist() for word in row}.issuperset(ends) and len(set(ends)) == 2
    assert any(not {*ends} & {*row} for row in free.tolist())


def test_writing_stops_soon_after_all_have_ended(monkeypatch):
    monkeypatch.setattr(siblings, "LOOK", 4)
    made, given, steps = model(), asked(QUESTIONS[0], QUESTIONS[0]), []
    words = siblings.write(made, given, 1, chosen(new=40))
    original = siblings.Answers.step
    monkeypatch.setattr(siblings.Answers, "step", lambda answers: steps.append(1) or original(answers))
    found = siblings.write(made, given, 1, chosen(new=40, ends=words[:, 5].tolist()))
    last = max(next(place for place, word in enumerate(row) if word in words[:, 5]) for row in found.tolist())
    assert last <= len(steps) <= last + 4 < 39
    assert not found[:, last + 1 :].any()


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_a_step_can_be_replayed_and_waits_for_nothing(level):
    """The tape does with operators what a CUDA graph does with kernels: the same ones again, on the same memory."""
    made, given, waits = model(level), asked(), Counter()
    torch.manual_seed(0)
    free = siblings.write(made, given, 3, chosen(new=30, drawn=True, made=made))
    config = chosen(new=30, drawn=True, ends=[int(free[0, 10])], made=made)
    torch.manual_seed(0)
    expected = siblings.write(made, given, 3, config)
    assert not expected[0, 11:].any() and free[0, 11:].any()
    torch.manual_seed(0)
    with torch.no_grad():
        answers = siblings.Answers(made, given, 3, config)
    language = made.model.language_model
    with torch.no_grad(), attending(language, shared_attention.NAME), joined.joined(language):
        answers.step()
        with Tape() as tape, Waits(waits):
            answers.step()
        for _ in range(27):
            tape.replay()
    assert torch.equal(answers.said, expected)
    assert len(tape.calls) > 100 and not waits


def test_attention_is_that_over_prompt_and_own_words_together():
    draw = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2 * 5 + 6 * 9, 2, 8, generator=draw) for _ in range(2))
    at = shared_attention.blocks(torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]), siblings=3, room=9, heads=2)
    at.used[2:] += 4
    memory = shared_attention.Memory(keys, values, at, {})
    query, shown = torch.randn(6, 4, 1, 8, generator=draw), torch.ones(6, 1, 1, 9, dtype=torch.bool)
    shown[3:, ..., :2] = False
    parts = [(side[:10].unflatten(0, (2, 5)).repeat_interleave(3, 0), side[10:].unflatten(0, (6, 9))[:, :4]) for side in (keys, values)]
    given = [torch.cat(part, 1).transpose(1, 2) for part in parts]
    expected = scaled_dot_product_attention(query, *given, attn_mask=shown, scale=0.3, enable_gqa=True).transpose(1, 2)
    found, _ = shared_attention.attend(torch.nn.Module(), query, keys, values, None, 0.3, memory)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_model_is_left_as_it_was_found():
    made, given = model().train(), asked()
    layer = made.model.language_model.layers[0]
    layer.forward = kept = layer.forward
    with replayed.compiled(made.model.language_model, "eager"):
        assert layer.forward is not kept
    assert layer.forward is kept and "forward" not in made.model.language_model.layers[1].__dict__
    before = made.model.language_model.config._attn_implementation
    siblings.write(made, given, 2, chosen(new=2))
    assert made.training and made.model.language_model.config._attn_implementation == before != shared_attention.NAME


FULL, HALF = ["full_attention"] * 2, torch.bfloat16


@pytest.mark.parametrize(("capability", "dtype", "kinds", "expected"), [
    ((9, 0), HALF, FULL, True), ((8, 0), torch.float16, None, True), ((9, 0), HALF, ["full_attention", "sliding_attention"], False),
    ((7, 5), HALF, FULL, False), ((9, 0), torch.float32, FULL, False), (None, HALF, FULL, False),
])  # fmt: skip
def test_answers_are_written_together_where_the_kernel_can(capability, dtype, kinds, expected):
    language = LlamaConfig()
    language.layer_types = kinds
    assert rollout.together(capability, dtype, language) is expected


def graphs(level: str) -> list[int]:
    """How many graphs there are after each step for two rollouts with prompts of other lengths, and last how many breaks."""
    made, counters, found = model(level), torch._dynamo.utils.counters, []
    for questions in (QUESTIONS, ("<image>Is there?", "<image>Which structure is marked? Which structure is the liver?")):
        given = asked(*questions)
        expected = siblings.write(made, given, 3, chosen(new=22))
        with torch.no_grad():
            answers = siblings.Answers(made, given, 3, chosen(new=22))
        with (
            torch.no_grad(),
            attending(made.model.language_model, shared_attention.NAME),
            joined.joined(made.model.language_model),
            replayed.compiled(made.model.language_model, "eager"),
        ):
            for _ in range(21):
                answers.step()
                found.append(counters["stats"]["unique_graphs"])
        assert torch.equal(answers.said, expected)
    return [*found, len(counters["graph_break"])]


@pytest.mark.slow
@pytest.mark.parametrize(("level", "count"), [("sequence", 1), ("token", 2)])
def test_layers_are_compiled_once_for_all_steps_and_prompts(level, count):
    """In a process of its own, where no wrapper checks shapes. Routers that decide word by word are a graph beside the layers'."""
    assert apart("test_siblings", "graphs", level) == [count] * 42 + [0]
