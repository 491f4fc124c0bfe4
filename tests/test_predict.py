"""One question about one image, as a person asks it."""

import json

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from places import reasoner, stages

from conftest import Project
from unimed import answering, predict
from unimed.data import masks
from unimed.errors import InputError
from unimed.model import assemble


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of all stages; the model points whatever it is asked."""
    found = stages(tmp_path_factory.mktemp("models"))
    return found | {"reasoner": reasoner(found)}


def image(folder, name, size, mode):
    file = folder / name
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file)
    return file


class Pointing:
    """The model of a folder, made to say one `<SEG>` and stop."""

    def __init__(self, made):
        self.made = made
        end, seg = made.processor.tokenizer.eos_token_id, made.model.config.seg_token_id
        said = iter([seg, end, end])

        def speak(module, args, output):
            if output.logits.shape[1] == 1 and (token := next(said, None)) is not None:
                output.logits[:] = -1e4
                output.logits[..., token] = 1e4
            return output

        made.model.register_forward_hook(speak)


@pytest.mark.parametrize("kind", ["vqa_expert", "grounding_expert", "router", "reasoner"])
def test_every_stage_s_folder_can_be_asked(places, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(answering, "MAX_NEW_TOKENS", 3)
    found = predict.predict(places[kind], image(tmp_path, "scan.png", (40, 25), "L"), "Is there a nodule?", [], None)
    assert isinstance(found["answer"], str)
    assert found["files"] == []
    assert {use["expert"] for use in found["router"]} == ({"vqa", "grounding"} if kind in ("router", "reasoner") else set())


@pytest.mark.parametrize("kind", ["vqa_expert", "router", "reasoner"])
def test_a_model_is_asked_where_models_are_asked(places, monkeypatch, kind):
    assert predict.load(places[kind]).model.device == assemble.device()
    monkeypatch.setattr(assemble, "device", lambda: torch.device("meta"))  # stands for a GPU: a device that is not the CPU
    assert {value.device.type for value in predict.load(places[kind]).model.state_dict().values()} == {"meta"}


@pytest.mark.parametrize(("name", "mode"), [("grey.jpg", "L"), ("colour.jpg", "RGB"), ("scan.png", "L")])
def test_masks_of_large_images_have_the_image_s_own_size(places, tmp_path, monkeypatch, name, mode):
    file = image(tmp_path, name, (2500, 1300), mode)
    load = predict.load
    monkeypatch.setattr(predict, "load", lambda folder: Pointing(load(folder)).made)
    found = predict.predict(places["reasoner"], file, "Please segment the liver.", [], tmp_path / "out")
    [mask] = found["masks"]
    assert mask["size"] == [1300, 2500]
    drawn = np.array(Image.open(tmp_path / "out/mask_0.png"))
    assert drawn.shape == (1300, 2500)
    assert set(np.unique(drawn)) <= {0, 255}
    assert np.array_equal(drawn > 0, masks.decode(mask["counts"], 1300, 2500))
    assert Image.open(tmp_path / "out/overlay.png").size == (2500, 1300)
    assert json.dumps(found)


def test_another_region_is_another_question(places, tmp_path):
    made, file = predict.load(places["reasoner"]), image(tmp_path, "scan.png", (64, 48), "RGB")
    shown = predict.open_image(file)

    def states(text):
        inputs = tiny.inputs([tiny.marked(shown, answering.region(text, shown))], *tiny.ask("<image>Which structure is marked? <region>"))
        with torch.no_grad():
            return made.model(**inputs).logits

    assert not torch.allclose(states("box:0,0,20,20"), states("box:40,20,20,20"))
    assert not torch.allclose(states("point:5,5"), states("point:60,40"))


@pytest.mark.parametrize(
    ("region", "said"),
    [
        ("box:1,2,3", "expected box:x,y,w,h or point:x,y in whole pixels"),
        ("circle:1,2,3,4", "expected box:x,y,w,h or point:x,y in whole pixels"),
        ("box:-1,2,3,4", "expected box:x,y,w,h or point:x,y in whole pixels"),
        ("box:30,2,20,4", "expected a region within 40 x 25 pixels"),
        ("box:3,2,0,4", "expected a region within 40 x 25 pixels"),
        ("point:40,0", "expected a region within 40 x 25 pixels"),
    ],
)
def test_a_region_that_is_none_is_said_in_one_sentence(tmp_path, region, said):
    shown = predict.open_image(image(tmp_path, "scan.png", (40, 25), "L"))
    with pytest.raises(InputError, match=said) as caught:
        answering.region(region, shown)
    assert region in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_file_that_is_no_image_is_said_in_one_sentence(tmp_path, content):
    file = tmp_path / "scan.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match="scan.png"):
        predict.open_image(file)


@pytest.mark.slow
def test_the_command_prints_an_answer_and_one_json_object(places, project: Project, tmp_path):
    file = image(tmp_path, "scan.jpg", (300, 200), "RGB")
    ask = ("unimed", "predict", "--model", str(places["reasoner"]), "--image", str(file), "--question", "Which structure lies in <region>?")
    done = project.run(*ask, "--region", "box:10,20,30,30", "--think", "--out", "answer", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).keys() == {"answer", "reasoning", "masks", "router", "files"}
    missing = project.run(*ask, "--region", "box:290,0,30,30")
    assert missing.returncode == 78
    assert missing.stderr.splitlines()[-1] == "unimed: region box:290,0,30,30: expected a region within 300 x 200 pixels"
