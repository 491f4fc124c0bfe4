"""What a run takes is told before it starts, and where it is too much, layers are computed twice."""

import tiny
import torch
from test_fast_path import ROWS, TEXT, model, with_adapter
from test_loop import several
from test_packing import adapted, learned, rows_of

from unimed.config import Optimisation
from unimed.model import assemble
from unimed.train import fast_path, loop, memory


def test_the_memory_a_layer_keeps_is_counted_by_hand():
    made = model()
    width, inner = TEXT["hidden_size"], TEXT["intermediate_size"]
    layer = made.model.language_model.layers[0]
    loop.train_only(made, assemble.ALIGNED)
    # Inputs of two norms; query, key, value and what was attended to; gate and up.
    assert memory.kept(layer, width) == 6 * width + 2 * inner
    tuned = with_adapter(rank=3).model.language_model.layers[0]
    assert memory.kept(tuned, width) == 6 * width + 2 * inner + 2 * width + inner + 7 * 3
    # Frozen experts of ranks 2 and 4 beside four linears, each before and after its gates.
    routed = tiny.fresh(**tiny.EXPERTS).requires_grad_(False).model.language_model.layers[0]
    assert memory.kept(routed, 32) == 6 * 32 + 2 * 48 + 4 * 2 * (2 + 4)


def test_a_run_is_told_what_it_will_take(monkeypatch):
    made = with_adapter(rank=2)
    trained = sum(value.numel() for value in made.parameters() if value.requires_grad)
    found = memory.estimate(made, Optimisation(**(ROWS | {"row_tokens": 512})))
    weights = sum(value.nbytes for value in [*made.parameters(), *made.buffers()])
    kept = memory.kept(made.model.language_model.layers[0], TEXT["hidden_size"])
    assert (found.weights, found.optimizer, found.states) == (weights, 12 * trained, 2 * 512 * 4 * kept)
    assert found.work == 1024 * 512 * (8 + 12)
    three = ROWS | {"row_tokens": 512, "batch_size": 3}
    apart, more = (memory.estimate(made, Optimisation(**three, samples_at_once=most)) for most in (1, 4))
    assert apart == found
    assert more.states == 3 * found.states, "no more rows are in the model than the batch has"
    assert more.work == 3 * 512 * 4 * (2 * 256 + 3 * 512), "gradients of a layer, which are more than a chunk of logits"
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert memory.estimate(made, Optimisation(**three)) == found, "of each process with one of three rows"
    assert str(memory.Estimate(2**30, 2**29, 2**31, 0)) == "3.5 GiB expected: weights 1.0, optimizer 0.5, states 2.0, work 0.0"


def test_a_fusion_that_trains_keeps_what_the_vit_makes_after_it_of_every_image_that_fits():
    made = model()
    loop.train_only(made, assemble.ALIGNED)
    # 17 tokens: one block after the first fusion, six widths of 16 and one of 32; two fusions, three widths of 24 and three of 16.
    assert memory.seen(made) == 17 * (6 * 16 + 32 + 2 * (3 * 24 + 3 * 16))
    found = memory.estimate(made, Optimisation(**(ROWS | {"row_tokens": 512})))
    layers = 2 * memory.kept(made.model.language_model.layers[0], TEXT["hidden_size"])
    assert found.states == 4 * (512 * layers + 512 // 16 * memory.seen(made))
    loop.train_only(made, ["model.projector"])
    assert memory.seen(made) == 0


def test_memory_is_short_where_all_parts_together_take_more_than_95_of_100_bytes():
    made, settings = model(), Optimisation(**ROWS)
    need = memory.estimate(made, settings).total
    for share, short in ((0.94, False), (0.96, True)):
        with fast_path.fitting(made, settings, room=int(need / share)):
            assert made.model.language_model.layers[0].gradient_checkpointing == short


def test_where_memory_is_short_layers_are_computed_twice_and_learn_the_same(tmp_path, caplog):
    made, given = adapted(), rows_of(list(several(tmp_path, 5)))
    made.train()
    expected = learned(made, given, packed=True)
    expected = expected[0], {name: value.clone() for name, value in expected[2].items()}
    layers, settings = made.model.language_model.layers, Optimisation(**ROWS)
    with caplog.at_level("INFO", logger="train"), fast_path.fitting(made, settings, room=2**20):
        assert all(layer.gradient_checkpointing for layer in layers)
        again = learned(made, given, packed=True)
    assert "too much, so layers are computed twice" in caplog.text
    assert not any(layer.gradient_checkpointing for layer in layers)
    torch.testing.assert_close((again[0], again[2]), expected, atol=1e-6, rtol=1e-4)
    with fast_path.fitting(made, settings, room=2**40):
        assert not any(layer.gradient_checkpointing for layer in layers)
