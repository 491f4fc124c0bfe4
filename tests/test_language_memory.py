"""A large language model is read one tensor at a time: never twice in memory, and not at all while its foundation is made."""

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import derived
import pytest
import torch
from places import ROUTER
from safetensors.torch import load_file, save_file

from benchmarks import originals
from unimed.model import adapters, artifacts, assemble, experts, foundations, weights

pytestmark = pytest.mark.slow
MEASURED = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
MIB = 2**20
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 8}


def own_memory() -> int:
    """Bytes that belong to this process alone; pages of files that were mapped do not count."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@contextmanager
def watched() -> Iterator[list[int]]:
    """The most memory beyond that at the start, in the first item once the block has ended."""
    # What nobody holds any more goes back first, or it would go back, or be used again, while we watch.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, most, done = own_memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], own_memory() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()
        most[0] = max(most[0], own_memory() - before)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[dict[str, Path], int]:
    """The originals with a language model of more than 200 MiB, and its bytes."""
    places = derived.written(tmp_path_factory.mktemp("raw"))
    language = originals.LlamaForCausalLM(originals.LlamaConfig(**originals.TINY.language | LARGE)).bfloat16()
    size = sum(tensor.numel() * 2 for tensor in language.parameters())
    assert size > 200 * MIB
    for part in places["language_model"].glob("model*"):
        part.unlink()
    save_file({name: value.clone() for name, value in language.state_dict().items()}, places["language_model"] / "model.safetensors")
    language.config.save_pretrained(places["language_model"])
    return places, size


@MEASURED
def test_a_language_model_is_in_memory_once(large, tmp_path):
    places, size = large
    with watched() as making:
        foundations.write(tmp_path / "foundation", originals.VLM, places)
    assert making[0] < 0.3 * size
    with watched() as loading:
        made = assemble.foundation(tmp_path / "foundation")
    assert 0.9 * size < loading[0] < 1.3 * size
    assert next(made.model.model.language_model.parameters()).dtype.itemsize == 2


@MEASURED
def test_so_it_is_beside_experts_and_is_still_the_one_that_was_released(large, tmp_path):
    places, size = large
    foundation, aligned, expert = (tmp_path / name for name in ("foundation", "aligned", "expert"))
    foundations.write(foundation, originals.VLM, places)
    made = assemble.foundation(foundation)
    weights.write(aligned, weights.named(made.model, assemble.ALIGNED), {"foundation": foundation})
    language = made.model.model.language_model
    adapters.add(language, "expert", 2, 2.0, assemble.EXPERT_TARGETS)
    adapters.write(expert, adapters.taken(language, "expert"))
    artifacts.seal(expert, {"foundation": foundation, "aligned": aligned})
    del made, language
    with watched() as loading:
        routed = assemble.routed(foundation, aligned, {"vqa": expert, "grounding": expert}, ROUTER).model.model.language_model
    assert 0.9 * size < loading[0] < 1.3 * size
    own = experts.without(routed.state_dict())
    assert {value.dtype for value in own.values()} == {torch.bfloat16} == {routed.layers[0].mlp.up_proj.expert_in.dtype}
    released = load_file(places["language_model"] / "model.safetensors")
    assert {f"model.{name}" for name in own} == released.keys() - {"lm_head.weight"}
    assert all(torch.equal(value[: len(released[f"model.{name}"])], released[f"model.{name}"]) for name, value in own.items())
