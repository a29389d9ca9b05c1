"""The recipes that ship: each is documented, and does what it says on data that is small."""

import re
import tomllib
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from anyres.cli.main import app
from anyres.errors import InputError, WeightsError
from anyres.models import parts, weights
from anyres.predict.load import read_model
from anyres.train import checkpoint, feeding
from anyres.train.config import RECIPES, TrainConfig, load_config
from anyres.train.loop import train
from anyres.train.samples import stream_of
from anyres.train.start import find_start
from tiny import random_model

SMALL = ["steps=2", "rounds=[[64,1]]", "objects=1", "workers=0", "threads=1"]
NAMES = ("adapt", "distil", "generalist", "interactive", "scratch")


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A user's folder: two pictures of a disc each."""
    root = tmp_path_factory.mktemp("mine")
    y, x = np.mgrid[:80, :90]
    for name in ("images", "masks"):
        (root / name).mkdir()
    for i in range(2):
        disc = (y - 40) ** 2 + (x - 30 - 20 * i) ** 2 < 300
        image = np.where(disc[..., None], (200, 60, 60), (40, 90, 40)).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        Image.fromarray((disc * 255).astype(np.uint8)).save(root / "masks" / f"{i}.png")
    return root


def silent(step, record):
    pass


def test_these_recipes_ship():
    assert sorted(path.stem for path in RECIPES.glob("*.toml")) == sorted(NAMES)


def test_one_recipe_explains_every_setting():
    explained = tomllib.loads((RECIPES / "scratch.toml").read_text())
    assert set(explained) == {field.name for field in fields(TrainConfig)}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_how_it_is_run(name):
    assert isinstance(load_config(name), TrainConfig)
    lines = (RECIPES / f"{name}.toml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert any(line.startswith(f"#   anyres train {name} --data ") for line in lines)
    before = ""
    for line in lines:
        if re.match(r"\[\w+\]$", line):
            assert before.startswith("#"), line
        assert len(line) <= 130
        before = line


def test_a_wrong_name_is_an_error_with_the_nearest_one(tmp_path):
    (tmp_path / "mine.toml").write_text('strat = "default"\n')
    with pytest.raises(InputError, match=r"mine\.toml: there is no setting 'strat'.*'start'"):
        load_config(tmp_path / "mine.toml")
    with pytest.raises(InputError, match=r"--set: there is no setting 'matrix_rl'.*'matrix_lr'"):
        load_config("adapt", ["matrix_rl=1"])


def test_adapt_saves_what_it_trained(mine, tmp_path):
    train(load_config("adapt", SMALL), mine, tmp_path, silent)
    file = tmp_path / "model.safetensors"
    base = read_model()
    assert parts.base_of(file) == parts.Base("default", parts.checksum(base))
    found = read_model(weights=file)
    assert found.config.native_limit == base.config.native_limit == 2048
    changed = {
        name.partition(".")[0]
        for (name, a), b in zip(base.state_dict().items(), found.state_dict().values(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {"mask_decoder", "prompt_encoder", "click_maps"}
    # Also through the commands.
    picture, out = mine / "images" / "0.png", tmp_path / "mask.png"
    arguments = [
        "predict",
        str(picture),
        "--point",
        "30,40",
        "--weights",
        str(file),
        "-o",
        str(out),
    ]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert np.asarray(Image.open(out)).shape == (80, 90)


def test_adapt_saves_a_blend_with_what_it_started_from(mine, tmp_path):
    config = load_config("adapt", [*SMALL, "limits=[]", "warmup=0", "blend=0.25"])
    train(config, mine, tmp_path, silent)
    base, found = read_model().state_dict(), read_model(weights=tmp_path / "model.safetensors")
    average = checkpoint.load(tmp_path)["average"]
    name = "mask_decoder.iou_token.weight"
    assert not torch.equal(average[name], base[name])
    blend = 0.75 * base[name] + 0.25 * average[name]
    torch.testing.assert_close(found.state_dict()[name], blend)
    # With the whole model, too, and only with weights to start from.
    config = replace(config, train=(), blend=0.0)
    train(config, mine, tmp_path / "whole", silent)
    whole = read_model(weights=tmp_path / "whole" / "model.safetensors")
    for each, tensor in whole.named_parameters():
        torch.testing.assert_close(tensor, base[each], msg=each)
    with pytest.raises(InputError, match=r"blend is 0\.5, .*set start"):
        TrainConfig(blend=0.5)


def test_a_run_that_goes_on_keeps_the_size_it_chose(mine, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(feeding, "choose_limit", lambda *args: asked.append(args[2]) or 640)
    config = load_config("adapt", SMALL)
    for steps in (1, 2):
        train(replace(config, steps=steps), mine, tmp_path, silent)
    assert asked == [(512, 1024)]
    assert read_model(weights=tmp_path / "model.safetensors").config.native_limit == 640
    # What is said is not looked for, and a model of one size has none.
    cpu = torch.device("cpu")
    said = replace(config, native_limit=768)
    assert feeding.settled(said, mine, tmp_path / "new", cpu) == said
    weights.save(random_model("sam_ti", 64), tmp_path / "sam.safetensors")
    other = replace(config, start=str(tmp_path / "sam.safetensors"), model="sam_ti")
    assert feeding.settled(other, mine, tmp_path / "new", cpu) == other
    assert len(asked) == 1
    with pytest.raises(InputError, match="limits are tried with the weights of start"):
        TrainConfig(limits=(512,))


def test_the_size_is_the_largest_of_the_good_ones():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.05, (12, 1))
    own = rng.normal(0, 0.01, (12, 3))
    # Sizes descending: what differs between objects alone says nothing.
    assert feeding.largest_good(0.6 + noise + own + (0, 0, 0.1)) == 2
    assert feeding.largest_good(0.6 + noise + own + (0, 0.1, 0.1)) == 1
    assert feeding.largest_good(0.6 + noise + own + (0.1, 0.1, 0)) == 0
    assert feeding.largest_good(0.6 + noise + own + (0, 0, 0.04)) == 0
    assert feeding.largest_good(np.array([(0.5, 0.5, 0.28), (0.5, 0.5, 0.88)] * 6)) == 0
    assert feeding.largest_good(np.full((4, 3), 0.5)) == 0
    assert feeding.largest_good(np.array([[0.0, 0.0, 1.0]])) == 0
    assert feeding.largest_good(np.zeros((0, 3))) == 0


def test_sizes_are_tried_on_whole_pictures(mine, monkeypatch):
    """Of a picture of 90 pixels 64 are another size; the larger ones are not."""
    fed = []

    class Watched(feeding.Predictor):
        def set_image(self, image):
            fed.append((self.resolution, image.shape))
            super().set_image(image)

    monkeypatch.setattr(feeding, "Predictor", Watched)
    monkeypatch.setattr(feeding, "OBJECTS", 3)
    monkeypatch.setattr(feeding, "CLICKS", 2)
    model, told = random_model("hrsam_ti", 64), []
    model.config = replace(
        model.config, native_limit=2048, encoder=replace(model.config.encoder, window=2)
    )
    stream = stream_of(load_config("adapt", SMALL), mine)
    place = torch.device("cpu")
    found = feeding.choose_limit(
        model, stream, [64, 512], place, lambda *numbers: told.append(numbers)
    )
    assert found in (64, 512, 2048)
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert sorted(fed) == sorted([(64, (80, 90, 3)), (90, (80, 90, 3))] * 3)
    fed.clear()
    assert feeding.choose_limit(model, stream, [128, 512], place) == 2048
    assert fed == []


def test_adapt_of_a_file_is_loaded_on_that_file_alone(mine, tmp_path):
    weights.save(random_model("sam_ti", 64), tmp_path / "sam.safetensors")
    settings = [
        "model=sam_ti",
        f"start={tmp_path / 'sam.safetensors'}",
        "distance=true",
        'train=["image_encoder.blocks.*.attn.distance"]',
    ]
    run = tmp_path / "run"
    train(load_config("adapt", SMALL + settings), mine, run, silent)
    file = run / "model.safetensors"
    state, _ = weights.read_safetensors(file)
    assert sorted(state) == [f"image_encoder.blocks.{i}.attn.distance" for i in (11, 2, 5, 8)]
    assert all(tensor != 0.1 for tensor in state.values())
    found = read_model(weights=file, base=tmp_path / "sam.safetensors")
    assert found.config.encoder.length.learnable
    weights.save(random_model("sam_ti", 64, seed=1), run / "sam.safetensors")
    with pytest.raises(WeightsError, match="is another model"):
        read_model(weights=file)


def test_starts_that_contradict_themselves():
    with pytest.raises(InputError, match="image_size is for new weights"):
        find_start(load_config("adapt", ["image_size=256"]))
    with pytest.raises(InputError, match="distance is for SAM's image encoder"):
        find_start(load_config("adapt", ["distance=true"]))
    model = find_start(load_config("scratch", ["model=sam_ti", "image_size=256"])).model
    assert model.config.encoder.image_size == 256
    assert model.image_encoder.pos_embed.shape == (1, 16, 16, 192)


def test_interactive_saves_the_whole(mine, tmp_path):
    train(load_config("interactive", SMALL), mine, tmp_path, silent)
    found = weights.load(tmp_path / "model.safetensors")
    assert set(found.state_dict()) == set(read_model().state_dict())
