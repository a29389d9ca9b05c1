"""Training where something goes wrong: full disks, useless masks, kills."""

import random
import resource
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from anyres.errors import InputError, OutputError, WeightsError
from anyres.train import checkpoint
from anyres.train.loop import estimate, train
from training import TINY, gradients, log_of, silent


def test_a_disk_without_room_is_told_before_the_first_step(discs, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    with pytest.raises(OutputError, match=r"10 MB are free there and the run needs \d+ MB"):
        train(TINY, discs, tmp_path / "run", silent)
    with pytest.raises(OutputError, match="10 MB are free"):
        estimate(TINY, discs, tmp_path / "run")


def test_python_ends_while_samples_are_being_made(discs):
    """Something that keeps the stream alive must not keep Python waiting for its workers."""
    code = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from anyres.train.batches import batches
        from anyres.train.samples import SampleStream
        samples = SampleStream(Path({str(discs)!r}), size=64, objects=1, seed=0)
        stream = batches(samples, 1, workers=1)
        next(stream)
        sys.kept = stream
    """)
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 0


def test_a_disk_that_fills_up_costs_no_checkpoint(discs, tmp_path):
    """A limit on the size of files stands for the full disk: of a checkpoint, of the log."""
    train(replace(TINY, steps=1), discs, tmp_path, silent)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, name in ((1_000_000, "checkpoint.pt"), (len(before["log.jsonl"]) + 9, "log.jsonl")):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, former[1]))
            with pytest.raises(OutputError, match=rf"{name} cannot be written.*the same command"):
                train(replace(TINY, steps=3, checkpoint_every=1), discs, tmp_path, silent)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)
        after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert after.keys() == before.keys()
        assert after["checkpoint.pt"] == before["checkpoint.pt"]
        assert after["model.safetensors"] == before["model.safetensors"]
    train(replace(TINY, steps=3), discs, tmp_path, silent)
    assert [row["step"] for row in log_of(tmp_path)] == [1, 2, 3]


def write_set(root, masks):
    for kind in ("images", "masks"):
        (root / "some" / kind).mkdir(parents=True)
    for i, mask in enumerate(masks):
        picture = np.random.default_rng(i).integers(0, 255, (*mask.shape, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / "some" / "images" / f"{i}.png")
        Image.fromarray(mask.astype(np.uint8)).save(root / "some" / "masks" / f"{i}.png")
    return root


def one_pixel():
    mask = np.zeros((80, 80))
    mask[40, 40] = 255
    return mask


def half_void():
    """Class 1 on the left; the rest is void, as 255 is in maps of classes."""
    mask = np.full((80, 80), 255)
    mask[:, :40] = 1
    mask[:, 5:30] = 2
    return mask


@pytest.mark.parametrize(
    "mask", [np.zeros((80, 80)), np.full((80, 80), 255), one_pixel()], ids=["empty", "all", "pixel"]
)
def test_masks_with_nothing_to_learn_are_an_error(tmp_path, mask):
    data = write_set(tmp_path / "data", [mask])
    with pytest.raises(InputError, match=r"no object.*are the masks empty"):
        train(TINY, data, tmp_path / "run", silent)


def test_masks_with_nothing_do_no_harm_beside_others(discs, tmp_path):
    disc = np.asarray(Image.open(discs / "discs" / "masks" / "0.png"))
    masks = [disc, np.zeros((80, 80)), one_pixel(), np.full((80, 80), 255)]
    data = write_set(tmp_path / "data", masks)
    assert train(replace(TINY, steps=4), data, tmp_path / "run", silent)
    void = write_set(tmp_path / "void", [half_void()])
    assert train(TINY, void, tmp_path / "void_run", silent)
    for name in ("run", "void_run"):
        assert np.isfinite([row["loss"] for row in log_of(tmp_path / name)]).all()


@pytest.mark.parametrize("folder", ["none", "empty", "only_pictures"])
def test_wrong_folders(discs, tmp_path, folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "only_pictures" / "images").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "only_pictures" / "images" / "0.png")
    with pytest.raises(InputError, match=r"does not exist|no picture with a mask"):
        train(TINY, tmp_path / folder, tmp_path / "run", silent)
    assert not (tmp_path / "run").exists()


def test_parts_that_were_not_trained_before_need_another_folder(discs, tmp_path):
    train(replace(TINY, steps=1), discs, tmp_path, silent)
    with pytest.raises(WeightsError, match=r"\(train, layer_decay\).*start in another folder"):
        train(replace(TINY, train=("mask_decoder",)), discs, tmp_path, silent)


RUN = """
import sys
from dataclasses import replace
from pathlib import Path
from anyres.train.config import TrainConfig
from anyres.train.loop import train
config = TrainConfig(steps={steps}, rounds=((64, 1),), objects=1, workers=0, threads=1)
train(replace(config, checkpoint_every=2, keep=2), Path({data!r}), Path({out!r}), lambda *_: None)
"""


def killed_at_random(code, log, steps, kills):
    """Run the code again and again, killing it at a random moment of a random step."""
    rng = random.Random(0)
    for _ in range(kills):
        begun = len(log.read_text().splitlines()) if log.exists() else 0
        wait_for = rng.randint(begun, steps - 1)
        process = subprocess.Popen([sys.executable, "-c", code])
        while process.poll() is None:
            if log.exists() and len(log.read_text().splitlines()) >= max(1, wait_for):
                time.sleep(rng.random() * 0.2)
                process.kill()
                break
            time.sleep(0.002)
        process.wait()
    return subprocess.run([sys.executable, "-c", code], check=True)


def compare_killed(discs, folder, steps, kills):
    def code(name):
        return textwrap.dedent(RUN).format(steps=steps, data=str(discs), out=str(folder / name))

    exec(code("whole"), {})
    killed_at_random(code("killed"), folder / "killed" / "log.jsonl", steps, kills)
    whole, killed = (checkpoint.load(folder / name) for name in ("whole", "killed"))
    for part in ("model", "average"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, killed[part][name]), f"{part} {name}"
    for one, other in zip(gradients(whole), gradients(killed), strict=True):
        assert torch.equal(one, other)
    logs = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in log_of(folder / name)]
        for name in ("whole", "killed")
    ]
    assert logs[0] == logs[1]
    assert [row["step"] for row in logs[0]] == list(range(1, steps + 1))
    # Nothing half written is left but what the system had no time to take away.
    names = {path.name for path in (folder / "killed").iterdir() if path.suffix != ".tmp"}
    assert names == {path.name for path in (folder / "whole").iterdir()}


def test_a_killed_run_that_goes_on_equals_an_uninterrupted_one(discs, tmp_path):
    compare_killed(discs, tmp_path, steps=5, kills=1)


@pytest.mark.slow
def test_a_run_killed_ten_times_equals_an_uninterrupted_one(discs, tmp_path):
    compare_killed(discs, tmp_path, steps=40, kills=10)
