"""Stage 5 on canvases: tiles and sizes reach every pass that TRL makes, and prompts are shared only where both are the same."""

import pytest
import tiled
import tiny
import torch
from problems import CLOSE, built, marked, pointing, problem, replied, settings, with_stirred_reasoner
from torch.nn.functional import interpolate
from transformers import GenerationConfig

from unimed.data.records import SEG
from unimed.rl import prompts, rewards, rollout, trainer
from unimed.train import losses

WIDE, TALL = tiled.SHAPES[2, 2], tiled.SHAPES[3, 1]


@pytest.fixture
def model():
    """A routed model on canvases whose reasoner, alone, trains; its adapter is far from zero."""
    return with_stirred_reasoner(tiled.stirred(**tiny.EXPERTS, router_level="sequence"))


def test_the_gradient_pass_sees_every_tile_in_both_branches_and_knows_the_sizes(tmp_path, model):
    sample, seen = marked(tmp_path, side=WIDE), []

    def spy(name):
        return lambda module, args, kwargs: seen.append((name, torch.is_grad_enabled(), dict(kwargs, first=args[:1])))

    entries = {"vit": model.model.encoder.vision.embeddings, "detail": model.model.encoder.detail.embeddings, "backbone": model.model}
    for name, module in entries.items():
        module.register_forward_pre_hook(spy(name), with_kwargs=True)
    trainer.reinforce(model, tiled.processor(), [sample], [], settings(max_steps=1), seed=0)
    learning = [(name, inputs) for name, with_grad, inputs in seen if with_grad]
    [read] = [inputs for name, inputs in learning if name == "backbone" and inputs.get("pixel_values") is not None]
    assert read["image_sizes"].tolist() == [list(WIDE)]
    assert torch.equal(read["pixel_values"], tiled.processor().pixels([tiny.marked(sample.load_image(), *sample.turns[0].regions)]))
    assert [tuple(inputs["first"][0].shape) for name, inputs in learning if name == "detail"] == [(1, 3, 32, 32), (1, 3, 64, 64)]
    assert [tuple(inputs["first"][0].shape) for name, inputs in learning if name == "vit"] == [(5, 3, 16, 16)]


def test_trl_computes_the_log_probabilities_of_a_full_forward(tmp_path, model):
    samples = [marked(tmp_path, side=WIDE), problem(tmp_path, side=TALL), pointing(tmp_path, side=WIDE)]
    ids, mask, inputs, length = replied(tiled.processor(), samples, [0, 1, 0, 2], f"yes{SEG}no {SEG} {SEG}yes It")
    images = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
    counted = mask[:, -length:].bool()
    with built(model, samples, tiled.processor()) as policy:

        def computed(**images):
            found = policy._get_per_token_logps_and_entropies(model, ids, mask, length, batch_size=2, num_images=[1] * 4, **images)
            return found[0].where(counted, 0)

        found = computed(**images)
        other = images["pixel_values"].clone()
        other[0, 4, :3] = other[0, 4, :3].flip(-1)
        moved = (computed(**images | {"pixel_values": other}) - found).abs().amax(1)
    assert moved[0] > 1e-4 and moved[1:].max() < 1e-5
    logits = model(ids, attention_mask=mask, **images).logits[:, -length - 1 : -1] / 0.7
    expected = logits.log_softmax(-1).gather(2, ids[:, -length:].unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(found, expected.where(counted, 0), **CLOSE)


def test_reading_prompts_once_changes_no_state(tmp_path, model):
    samples = [marked(tmp_path, side=WIDE), problem(tmp_path, side=TALL)]
    ids, mask, inputs, length = replied(tiled.processor(), samples, [0, 1, 1, 0], "yes no It yes")
    images = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
    outputs, seen = [], []
    model.model.encoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    for sharing in (False, True):
        with torch.no_grad(), rollout.sharing_prompts(model) as shared, shared.prompts_of(ids.shape[1] - length if sharing else 0):
            outputs.append(model.model(input_ids=ids, attention_mask=mask, use_cache=False, **images).last_hidden_state[:, -length:])
    assert seen == [4, 2]
    torch.testing.assert_close(*outputs, **CLOSE)


@torch.no_grad()
def test_black_images_of_two_shapes_share_no_prompt(tmp_path, model):
    """As many black tiles, once side by side and once one below the other."""
    samples = [problem(tmp_path, seed, side=tiled.SHAPES[grid]) for seed, grid in enumerate([(1, 2), (2, 1)])]
    ids, mask, inputs, length = replied(tiled.processor(), samples, [0, 1], "yes yes")
    images = {"pixel_values": torch.zeros_like(inputs["pixel_values"]), "image_sizes": inputs["image_sizes"]}
    assert torch.equal(ids[0], ids[1])
    plain = model.model(input_ids=ids, attention_mask=mask, use_cache=False, **images).last_hidden_state[:, -length:]
    with rollout.sharing_prompts(model) as shared, shared.prompts_of(ids.shape[1] - length):
        found = model.model(input_ids=ids, attention_mask=mask, use_cache=False, **images).last_hidden_state[:, -length:]
    torch.testing.assert_close(found, plain, **CLOSE)
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_a_rollout_says_what_generate_says(tmp_path, model):
    samples, processor = [problem(tmp_path, side=WIDE), marked(tmp_path, side=TALL)], tiled.processor()
    asked = [prompts.reasoning_messages(sample, think=True) for sample in samples]
    pictures = [tiny.marked(sample.load_image(), *sample.turns[0].regions) for sample in samples]
    texts = processor.apply_chat_template(asked, add_generation_prompt=True)
    inputs = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    greedy = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0, use_cache=True)
    expected = model.generate(**inputs, generation_config=greedy)[:, inputs["input_ids"].shape[1] :]
    found = rollout.sample(model, inputs, 2, greedy)
    assert torch.equal(found, expected.repeat_interleave(2, 0))
    assert not torch.equal(found[0], found[2])


@torch.no_grad()
def test_masks_are_rewarded_in_the_square_of_their_own_image(tmp_path, model):
    samples, processor = [pointing(tmp_path, seed, side=side) for seed, side in ((0, WIDE), (1, TALL))], tiled.processor()
    seg, asked = model.config.seg_token_id, [prompts.reasoning_messages(sample, think=False) for sample in samples]
    for said, sample in zip(asked, samples, strict=True):
        said[0]["content"][0]["image"] = sample.load_image()
    targets = [list(sample.turns[0].targets) for sample in samples]
    found = rewards.overlaps(model, processor, asked, [[seg], [seg]], targets)
    for own, said, sample, target in zip(found, asked, samples, targets, strict=True):
        text = processor.apply_chat_template(said, add_generation_prompt=True) + SEG
        inputs = processor(images=[sample.load_image()], text=[text], return_tensors="pt")
        low = model(**inputs, segment=True).mask_logits
        grown = interpolate(low[:, None], 32, mode="bilinear", align_corners=False)[:, 0]
        assert own == pytest.approx((1 - losses.dice(grown, processor.target(target[0])[None])).tolist(), abs=1e-5)
