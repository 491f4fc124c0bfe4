"""What keeps training fast, checked without a GPU: no work that the maths does not ask for, no waiting, nothing compiled twice."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import tiny
import torch
from test_loop import several
from test_packing import adapted
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import LlamaConfig

from benchmarks.shapes import DrawnCollator, drawn
from conftest import ROOT
from unimed.config import MaskLoss, Optimisation, RouterLoss
from unimed.errors import InputError
from unimed.model import adapters, assemble, attention, words
from unimed.train import fast_path, loop
from unimed.train.batch import Collator
from unimed.train.compiled import compiled
from unimed.train.masters import MasterAdamW
from unimed.train.rows import RowCollator
from unimed.train.watch import Watch

TEXT = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
ROWS = {"row_tokens": 400, "batch_size": 1, "max_steps": 3, "learning_rate": 0.01, "warmup_steps": 0}
WAITING = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten._unique2", "aten.equal", "aten.is_nonzero"}
"""Operators whose result the CPU must wait for."""


def model(**changes):
    return tiny.fresh(text_config=LlamaConfig(**TEXT, bos_token_id=None, eos_token_id=None), **changes)


def batch(config, row_tokens, *lengths, labelled=4):
    """A packed row of random words."""
    collator = DrawnCollator(config)
    return RowCollator(collator, row_tokens)([[collator.piece(drawn(0, length, labelled)) for length in lengths]])


def with_adapter(rank=1):
    made = model()
    added = adapters.add(made.model.language_model, "vqa", rank, 1.0, assemble.EXPERT_TARGETS)
    loop.train_only(made, [f"model.language_model.{name}" for name in added])
    return made


class Products(TorchDispatchMode):
    """Adds up the operations of matrix products by torch's own formulas; attention is none of them."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=made)
        return made


def products(made, given) -> int:
    """Operations in matrix products of one step."""
    with attention.packed(made.model.language_model), Products() as counter:
        made(**given, use_cache=False).loss.backward()
    return counter.total


def linears(made) -> int:
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    named = made.model.language_model.named_parameters()
    return sum(
        value.numel() for name, value in named if any(kind in name for kind in kinds) and "lora" not in name and "expert" not in name
    )


def test_a_step_of_an_adapter_costs_four_operations_a_weight_and_token():
    """Two for the result and two for the input's gradient; a weight gradient of what is frozen, or a layer computed twice, would be six."""
    made = with_adapter()
    head = TEXT["hidden_size"] * TEXT["vocab_size"] * 8
    assert 3.5 * linears(made) * 512 < products(made, batch(made.config, 512, 200, 250)) <= 4.1 * (linears(made) * 512 + head)


def test_more_experts_cost_their_rank_and_nothing_else():
    costs, ranks = {}, {}
    for count in (2, 4):
        names = {"experts": [f"e{number}" for number in range(count)], "expert_ranks": [8] * count, "expert_scalings": [1.0] * count}
        made = model(**names, expert_targets=list(assemble.EXPERT_TARGETS))
        loop.train_only(made, [name for name, _ in made.named_modules() if name.endswith(".router.linear")])
        costs[count] = products(made, batch(made.config, 512, 200, 250))
        ranks[count] = sum(value.numel() for name, value in made.named_parameters() if "expert_" in name)
    # Frozen experts: the result and the input's gradient, the first layer's input having none; the gates' spread is the rest.
    assert 0 < costs[4] - costs[2] <= 4.1 * (ranks[4] - ranks[2]) * 512


def test_the_head_sees_labelled_rows_alone():
    made, seen = model(), []
    given = batch(made.config, 512, 200, 250, labelled=7)
    made.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape[0]))
    with attention.packed(made.model.language_model):
        made(**given, use_cache=False)
    assert sum(seen) == len(given["packing"].wanted) == 14


class Waits(TorchDispatchMode):
    """Counts the operators that make the CPU wait."""

    def __init__(self, found: Counter):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).rpartition(".")[0]
        if name in WAITING or (name == "aten.index" and any(index is not None and index.dtype == torch.bool for index in args[1])):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["align", "adapter", "grounding", "sequence", "token"])
def test_no_step_waits_for_its_results(tmp_path, monkeypatch, stage):
    monkeypatch.chdir(tmp_path)
    experts = tiny.EXPERTS | {"router_level": stage} if stage in ("sequence", "token") else {}
    made, found = adapted() if stage == "adapter" else tiny.stirred(**experts), Counter()
    trained = {"align": assemble.ALIGNED, "grounding": assemble.GROUNDING}.get(stage)
    loop.train_only(made, trained or [name for name, _ in made.named_parameters() if "lora" in name or "router" in name])
    for owner, name in ((loop.StageTrainer, "training_step"), (MasterAdamW, "step"), (loop.StageTrainer, "_clip_grad_norm")):
        original = getattr(owner, name)

        def watched(*args, original=original, **kwargs):
            with Waits(found):
                found["calls"] += 1
                return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)
    settings = Optimisation(**ROWS, dtype="bfloat16")
    weights = RouterLoss(balance_weight=0.1, z_weight=0.1) if experts else None
    masks = MaskLoss(pixel_weight=1.0, dice_weight=1.0) if stage == "grounding" else None
    loop.fit(made, several(tmp_path, 8), Collator(tiny.processor()), settings, 0, "tiny", masks, weights)
    assert found == {"calls": 9}


def graphs(kind: str) -> list[int]:
    """How many graphs there are after each of 21 batches, no two alike, and last how many breaks."""
    experts = {
        "experts": ["a", "b"],
        "expert_ranks": [2, 2],
        "expert_scalings": [1.0, 1.0],
        "expert_targets": list(assemble.EXPERT_TARGETS),
    }
    made = model(**experts) if kind == "experts" else with_adapter()
    if kind == "experts":
        loop.train_only(made, [name for name, _ in made.named_modules() if name.endswith(".router.linear")])
    counters, found = torch._dynamo.utils.counters, []
    with attention.packed(made.model.language_model), compiled(made, backend="eager"):
        for number in range(21):
            lengths = (20 + number, 90 - number, *([30] * (number % 4)))
            made(**batch(made.config, 256, *lengths), use_cache=False).loss.backward()
            found.append(counters["stats"]["unique_graphs"])
    return [*found, len(counters["graph_break"])]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("adapter", 2), ("experts", 4)])
def test_twenty_batches_are_compiled_once_and_without_a_break(kind, count):
    """In a process of its own, where no wrapper checks shapes. The first layer's input has no gradient, so it is a graph of its own."""
    assert apart("test_fast_path", "graphs", kind) == [count] * 21 + [0]


def errors(backend: str) -> list[float]:
    """How far the loss of compiled layers is from that of others, for a model and then one whose experts have other ranks."""
    found = []
    for ranks in ([2, 4], [1, 2]):
        names = {"experts": ["a", "b"], "expert_ranks": ranks, "expert_scalings": [1.0, 1.0]}
        made = model(**names, expert_targets=list(assemble.EXPERT_TARGETS))
        given = batch(made.config, 256, 90, 60)
        with attention.packed(made.model.language_model):
            expected = made(**given, use_cache=False).loss
            with compiled(made, backend=backend):
                found.append(abs(float(made(**given, use_cache=False).loss - expected)))
    return found


@pytest.mark.slow
def test_a_second_model_in_a_process_is_not_given_the_graphs_of_the_first():
    assert max(apart("test_fast_path", "errors", "inductor")) < 1e-5


def apart(module: str, function: str, argument: str) -> list[float]:
    """What a function of a test gives in a process of its own."""
    program = f"import json, {module} as test; print(json.dumps(test.{function}({argument!r})))"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, (ROOT / "tests", ROOT / "src", ROOT)), *sys.path])}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_loss_in_chunks_is_the_loss(chunk):
    draw = torch.Generator().manual_seed(0)
    states, weight = torch.randn(7, 5, generator=draw, requires_grad=True), torch.randn(11, 5, generator=draw, requires_grad=True)
    wanted = torch.randint(11, (7,), generator=draw)
    expected = torch.nn.functional.cross_entropy(states @ weight.T, wanted)
    found = words.loss(lambda rows: rows @ weight.T, states, wanted, [weight], chunk)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(3 * found, [states, weight]), torch.autograd.grad(3 * expected, [states, weight]), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_what_cannot_run_is_said_before_anything_does():
    with pytest.raises(ValueError, match="compile needs row_tokens"):
        Optimisation(**(ROWS | {"row_tokens": None}), compile=True)
    with pytest.raises(InputError, match="expected dtype bfloat16 where rows are packed on a GPU, found float32"):
        fast_path.check(Optimisation(**ROWS), torch.device("cuda"))


def test_what_is_no_number_is_told_with_its_step_and_once():
    watch = Watch()
    assert watch.look(3, {"words": torch.tensor(1.0)}) == []
    parts = {"words": 1.0, "dice": torch.inf}
    assert watch.look(4, {name: torch.tensor(value) for name, value in parts.items()}) == [(4, parts)]
    assert watch.arrive() == []
