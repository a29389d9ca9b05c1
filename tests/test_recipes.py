"""The recipes that ship: each is documented, and does what it says on data that is small."""

import re
import tomllib
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from anyres.cli.main import app
from anyres.errors import InputError, WeightsError
from anyres.models import parts, weights
from anyres.predict.load import read_model
from anyres.train.config import RECIPES, TrainConfig, load_config
from anyres.train.loop import train
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
    assert found.config.native_limit == 768
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


def test_adapt_of_a_file_is_loaded_on_that_file_alone(mine, tmp_path):
    weights.save(random_model("sam_ti", 64), tmp_path / "sam.safetensors")
    settings = [
        "model=sam_ti",
        f"start={tmp_path / 'sam.safetensors'}",
        "distance=true",
        'train=["image_encoder.blocks.*.attn.distance"]',
        "native_limit=0",
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
