"""Runs of training: shared out, accumulated, validated, estimated."""

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from anyres.cli.main import main
from anyres.errors import AnyresError, InputError, MissingExtraError
from anyres.predict import assets
from anyres.train import checkpoint
from anyres.train.batches import batches
from anyres.train.config import TrainConfig
from anyres.train.interactive import interactive_loss
from anyres.train.loading import Share
from anyres.train.loop import estimate, train
from anyres.train.optimizers import rate
from anyres.train.samples import SampleStream
from anyres.train.trainer import Trainer
from training import TINY, gradients, log_of, silent


def assert_close(ours, theirs):
    assert len(ours) == len(theirs) > 50
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-3 * other.abs().max() + 1e-7


def first_step(config, discs, **share):
    trainer = Trainer(config, interactive_loss)
    stream = SampleStream(discs, size=64, objects=2, seed=0)
    feed = batches(stream, config.rounds, workers=0, share=Share(**share))
    record = trainer.train_step([next(feed) for _ in range(config.accumulate)])
    return record, gradients(trainer.state())


def test_two_processes_take_the_step_of_one_with_twice_the_batch(discs, tmp_path):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    settings = {"steps": 1, "objects": 2, "threads": 1, "workers": 0, "dtype": "float32"}
    options = [f"--data={discs}", f"--out={tmp_path}", "--set=rounds=[[64, 2]]"]
    options += [f"--set={name}={value}" for name, value in settings.items()]
    done = subprocess.run(
        [*start, "-m", "anyres", "train", "scratch", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("done:") == 1  # one of them talks
    assert "FutureWarning" not in done.stderr
    trainer = Trainer(replace(TINY, steps=1, rounds=((64, 4),), warmup=60), interactive_loss)
    stream = SampleStream(discs, size=64, objects=2, seed=0)
    record = trainer.train_step([next(batches(stream, 4, workers=0))])
    (logged,) = log_of(tmp_path)
    for name in ("loss", "norm", "iou_first", "iou_last"):
        assert logged[name] == pytest.approx(record[name], rel=1e-3)
    saved = checkpoint.load(tmp_path)
    assert_close(gradients(saved), gradients(trainer.state()))
    # Batch normalisation saw the samples of both.
    own = trainer.model.state_dict()
    running = [name for name in own if "running" in name]
    assert running
    for name in running:
        assert torch.allclose(saved["model"][name], own[name], rtol=1e-4, atol=1e-6), name


def test_accumulated_batches_are_one_large_one(discs):
    # The stem is frozen, and its norms: their statistics would be those of each batch.
    parts = ("mask_decoder", "click_maps", "prompt_encoder")
    config = replace(TINY, train=parts)
    one, large = first_step(replace(config, rounds=((64, 4),)), discs)
    two, small = first_step(replace(config, rounds=((64, 2),), accumulate=2), discs, accumulate=2)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert_close(small, large)


def test_shares_of_a_step_are_its_samples(discs):
    stream = SampleStream(discs, size=64, objects=1, seed=3)
    whole = list(zip(range(3), batches(stream, [(64, 4), (32, 8)], workers=0), strict=False))
    feeds = [
        batches(stream, [(64, 1), (32, 2)], workers=0, share=Share(rank, 2, 2)) for rank in (0, 1)
    ]
    for _, batch in whole:
        parts = [next(feed) for _ in range(2) for feed in feeds]
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        count = len(parts[0].images)
        assert [part.place for part in parts] == [0, count, 2 * count, 3 * count]


def test_computing_blocks_twice_changes_no_gradient(discs):
    _, kept = first_step(TINY, discs)
    trainer = Trainer(replace(TINY, checkpoint_activations=True), interactive_loss)
    calls = []
    block = trainer.model.image_encoder.blocks[0]
    block.norm1.register_forward_hook(lambda *_: calls.append(1))
    batch = next(batches(SampleStream(discs, size=64, objects=2, seed=0), 1, workers=0))
    trainer.train_step([batch])
    assert len(calls) == 2
    for one, other in zip(gradients(trainer.state()), kept, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(InputError, match="has no blocks"):
        Trainer(replace(TINY, model="mobile_sam", checkpoint_activations=True), interactive_loss)


def test_layer_decay_slows_what_comes_early():
    trainer = Trainer(replace(TINY, layer_decay=0.5), interactive_loss)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    trainer.optimizers.step(1.0, 0.0)
    rates = {
        names[id(p)]: group["lr"]
        for optimizer in trainer.optimizers.all
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert set(rates) == set(names.values())
    peak = TINY.matrix_lr
    assert rates["mask_decoder.direct.0.weight"] == peak
    assert rates["image_encoder.blocks.5.mlp.fc1.weight"] == peak / 2
    assert rates["image_encoder.mamba_blocks.1.out_proj.weight"] == peak / 2
    assert rates["image_encoder.blocks.0.mlp.fc1.weight"] == peak / 2**6
    assert rates["image_encoder.patch_embed.to_s2.0.weight"] == peak / 2**7
    assert rates["image_encoder.patch_embed.to_s2.1.weight"] == TINY.other_lr / 2**7


def test_cosine():
    config = TrainConfig(steps=110, warmup=10, schedule="cosine")
    assert rate(0, config) == pytest.approx(0.1)
    assert rate(10, config) == 1
    assert rate(60, config) == pytest.approx(0.5)
    assert rate(110, config) == pytest.approx(0)


def test_the_last_checkpoints_are_kept(discs, tmp_path):
    config = replace(TINY, steps=4, checkpoint_every=1, keep=2)
    train(config, discs, tmp_path, silent)
    names = [path.name for path in checkpoint.numbered(tmp_path)]
    assert names == ["checkpoint-000003.pt", "checkpoint-000004.pt"]
    (tmp_path / names[0]).rename(tmp_path / "checkpoint.pt")
    assert checkpoint.load(tmp_path)["step"] == 3
    train(replace(config, keep=1), discs, tmp_path, silent)
    assert checkpoint.numbered(tmp_path) == []
    assert [row["step"] for row in log_of(tmp_path)] == [1, 2, 3, 4]


def test_a_broken_step_keeps_what_it_broke_on(discs, tmp_path, monkeypatch):
    config = replace(TINY, checkpoint_every=1)

    def breaks(model, batch, config, rng):
        loss, record = interactive_loss(model, batch, config, rng)
        return loss * (np.nan if batch.number == 1 else 1), record

    monkeypatch.setattr("anyres.train.objectives.interactive_loss", breaks)
    with pytest.raises(AnyresError, match=r"the loss is nan.*broken-step-1\.safetensors.*look at"):
        train(config, discs, tmp_path, silent)
    tensors = load_file(tmp_path / "broken-step-1.safetensors")
    stream = SampleStream(discs, size=64, objects=2, seed=0)
    wanted = next(batches(stream, 1, start=1, workers=0))
    assert torch.equal(tensors["images"], wanted.images)
    assert torch.equal(tensors["masks"], wanted.masks)
    # The picture, and beside it once more for each object.
    with Image.open(tmp_path / "broken-step-1.png") as picture:
        assert picture.size == (3 * 64, 64)
    assert checkpoint.load(tmp_path)["step"] == 1


@pytest.mark.skipif(not assets.has_embedded("default"), reason="no embedded weights")
def test_validation(discs, tmp_path):
    other = tmp_path / "other"
    for kind in ("images", "masks"):
        (other / kind).mkdir(parents=True)
        for i in range(2):
            with Image.open(discs / "discs" / kind / f"{i}.png") as picture:
                Image.fromarray(np.asarray(picture)[:, ::-1].copy()).save(other / kind / f"{i}.png")
    # From weights that find something, and fast enough that each step changes it.
    with assets.embedded_weights() as path:
        start = str(shutil.copy(path, tmp_path / "start.safetensors"))
    plain = replace(TINY, start=start, matrix_lr=0.005, ema=0.0, warmup=1)
    config = replace(
        plain, validation=str(other), validate_every=1, validation_objects=2, validation_clicks=3
    )
    train(config, discs, tmp_path / "run", silent)
    first, second = (row["validation"] for row in log_of(tmp_path / "run"))
    assert set(first) == {"iou1", "iou5", "noc85", "noc90"}
    assert first != second
    assert all(0 < figures["iou1"] <= 1 and 0 < figures["iou5"] <= 1 for figures in (first, second))
    assert all(1 <= figures["noc85"] <= figures["noc90"] <= 3 for figures in (first, second))
    best = max((first, second), key=lambda figures: figures["iou1"] + figures["iou5"])
    saved = checkpoint.load(tmp_path / "run")
    assert saved["best"] == pytest.approx((best["iou1"] + best["iou5"]) / 2)
    assert (tmp_path / "run" / "best.safetensors").stat().st_size > 1e6
    with Image.open(tmp_path / "run" / "validation.png") as sheet:
        assert sheet.size[0] > 600
    # Trying a model moves nothing: the run without it is the same.
    train(plain, discs, tmp_path / "plain", silent)
    without = checkpoint.load(tmp_path / "plain")
    assert all(torch.equal(t, saved["model"][name]) for name, t in without["model"].items())
    with pytest.raises(InputError, match="is among what the model is trained on"):
        train(replace(config, validation=str(discs)), discs, tmp_path / "leak", silent)
    with pytest.raises(InputError, match="validate_every needs a folder"):
        replace(TINY, validate_every=1)


def test_tensorboard_that_is_not_installed(discs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"anyres\[tensorboard\]"):
        train(replace(TINY, tensorboard=True), discs, tmp_path, silent)


def test_what_a_run_would_take(discs, tmp_path, capsys, monkeypatch):
    config = replace(TINY, steps=1000, rounds=((64, 1), (64, 1), (80, 1)), keep=3)
    found = estimate(config, discs, tmp_path / "run")
    assert [kind[:2] for kind in found.rounds] == [(64, 1), (80, 1)]
    steps = [seconds for _, _, seconds in found.rounds]
    assert found.seconds >= 1000 * (2 * steps[0] + steps[1]) / 3
    assert found.memory > 1e8
    assert list(tmp_path.iterdir()) == []
    # The checkpoint that the run then writes is as large as was said, four of which may be there.
    train(TINY, discs, tmp_path / "run", silent)
    large, small = (
        (tmp_path / "run" / name).stat().st_size for name in ("checkpoint.pt", "model.safetensors")
    )
    assert found.disk == pytest.approx(4 * large + 3 * small, rel=0.01)
    arguments = ["train", "scratch", "--data", str(discs), "--out", str(tmp_path / "new")]
    sets = ["--set", "rounds=[[64, 1]]", "--set", "workers=0", "--set", "objects=2"]
    monkeypatch.setattr(sys, "argv", ["anyres", *arguments, *sets, "--check"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    told = capsys.readouterr().err
    assert "a step at 64 pixels, 1 pictures" in told
    assert "all steps that are left" in told
    assert not (tmp_path / "new").exists()
