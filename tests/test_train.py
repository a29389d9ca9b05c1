"""Training: losses against known numbers, the optimiser, and a run that is stopped and resumed."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import anyres
from anyres.data.datasets import leaks, open_dataset, picture_checksum
from anyres.errors import AnyresError, InputError, WeightsError
from anyres.train import checkpoint
from anyres.train.batches import Batch, batches
from anyres.train.config import TrainConfig, load_config
from anyres.train.interaction import Annotator, Targets
from anyres.train.interactive import interactive_loss
from anyres.train.loading import _calm
from anyres.train.loop import train
from anyres.train.losses import dice, mask_iou, normalized_focal
from anyres.train.muon import Muon, orthogonalize
from anyres.train.optimizers import rate
from anyres.train.samples import SampleStream
from anyres.train.trainer import Trainer

TINY = TrainConfig(
    steps=4, rounds=((64, 1),), objects=2, warmup=1, checkpoint_every=100, workers=0, threads=1
)


def silent(step, record):
    pass


@pytest.mark.parametrize(
    ("case", "arguments", "weight"),
    [
        ("default", {}, 1),
        ("no_void", {}, 1),
        ("extreme_logits", {}, 1),
        ("alpha25_gamma1", {"alpha": 0.25, "gamma": 1.0}, 1),
        ("weight2_gamma3", {"gamma": 3.0}, 2),
    ],
)
def test_focal_loss_golden(golden, case, arguments, weight):
    _, tensors = golden("clicks_metrics_losses")
    logits = tensors[f"in::nfl_{case}::logits"][:, 0].requires_grad_()
    labels = tensors[f"in::nfl_{case}::labels"]
    loss = weight * normalized_focal(
        logits.sigmoid(), (labels == 1).float(), (labels != 255).float(), **arguments
    )
    loss.sum().backward()
    wanted, grad = tensors[f"out::nfl_{case}::loss"], tensors[f"out::nfl_{case}::grad"]
    assert (loss - wanted.flatten()).abs().max() <= 1e-4 * max(1, wanted.max())
    assert (logits.grad - grad[:, 0]).abs().max() <= 1e-4 * max(1, grad.abs().max())


def test_losses_of_perfect_and_opposite_masks():
    target = torch.zeros(1, 8, 8)
    target[:, 2:6, 2:6] = 1
    valid = torch.ones_like(target)
    right = (target - 0.5) * 40
    assert dice(right.sigmoid(), target, valid).item() < 1e-6
    assert dice((-right).sigmoid(), target, valid).item() > 0.95
    assert mask_iou(right, target, valid).item() == 1
    assert mask_iou(-right, target, valid).item() == 0
    valid[:, :, :4] = 0  # the left half is void: mistakes there do not count
    wrong_left = torch.where(valid > 0, right, -right)
    assert mask_iou(wrong_left, target, valid).item() == 1
    assert dice(wrong_left.sigmoid(), target, valid).item() < 1e-6


def test_orthogonalize():
    torch.manual_seed(0)
    for shape in ((20, 50), (16, 16)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(3, *shape)).float())
        assert values.min() > 0.5
        assert values.max() < 1.5


def test_muon_takes_matrices_of_one_shape_together_and_tall_ones_lying():
    torch.manual_seed(0)
    shapes = [(20, 50), (50, 20), (20, 50), (5, 2, 3, 3)]
    gradients = [torch.randn(shape) for shape in shapes]

    def trained(numbers):
        params = [torch.ones(shapes[i], requires_grad=True) for i in numbers]
        for p, i in zip(params, numbers, strict=True):
            p.grad = gradients[i].clone()
        optimizer = Muon(params, lr=0.1, weight_decay=0.5)
        optimizer.step()
        return [p.detach() for p in params]

    together = trained(range(4))
    for i, one in enumerate(together):
        (alone,) = trained([i])
        assert (one - alone).abs().max() < 1e-4
        moved = 0.95 - one.flatten(1)
        # The root mean square of an update is 0.2 times the rate, and its sign the gradient's.
        assert moved.square().mean().sqrt() == pytest.approx(0.02, rel=0.2)
        assert (moved * gradients[i].flatten(1)).sum() > 0


def test_rate():
    config = TrainConfig(steps=100, warmup=10, decay=0.5)
    assert rate(0, config) == pytest.approx(0.1)
    assert rate(9, config) == rate(49, config) == 1
    assert rate(75, config) == pytest.approx(0.5)
    assert rate(100, config) == 0


def test_annotator_clicks_the_middle_then_the_error():
    masks = torch.zeros(1, 2, 40, 40, dtype=torch.uint8)
    masks[0, 0, 8:32, 8:32] = 1
    masks[0, 1, 0:4, 0:40] = 1
    valid = torch.ones(1, 40, 40, dtype=torch.uint8)
    targets = Targets.from_full(masks, valid)
    annotator = Annotator(targets, np.random.default_rng(0).spawn(2))
    annotator.click(None)
    xy, labels = annotator.points()
    assert labels.tolist() == [[1], [1]]
    assert (xy[0, 0] - 20).abs().max() <= 2
    # The first object is found and nothing else; of the second nothing, and a false square.
    logits = torch.full((2, 1, 10, 10), -1.0)
    logits[0, 0, 2:8, 2:8] = 1
    logits[1, 0, 5:10, 5:10] = 1
    annotator.click(logits)
    _, labels = annotator.points()
    assert labels.tolist() == [[1, -1], [1, 0]]
    boxes = annotator.boxes(jitter=0)
    assert boxes.tolist() == [[8, 8, 32, 32], [0, 0, 40, 4]]


def test_resumed_run_equals_an_uninterrupted_one(discs, tmp_path):
    assert train(TINY, discs, tmp_path / "whole", silent)

    class StopError(Exception):
        pass

    def stop(step, record):
        if step == 3:
            raise StopError

    saving = replace(TINY, checkpoint_every=2)
    with pytest.raises(StopError):
        train(saving, discs, tmp_path / "broken", stop)
    with (tmp_path / "broken" / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "los')  # as a crash leaves it
    assert train(saving, discs, tmp_path / "broken", silent)
    whole, broken = (checkpoint.load(tmp_path / name) for name in ("whole", "broken"))
    for part in ("model", "average"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, broken[part][name]), f"{part} {name}"
    log = (tmp_path / "broken" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4]


def test_what_a_run_saves_can_be_used(discs, tmp_path):
    train(replace(TINY, steps=1), discs, tmp_path, silent)
    predictor = anyres.load("default", weights=tmp_path / "model.safetensors", dtype="float32")
    assert leaks(open_dataset(discs), predictor.model.trained_on) == ("discs",)
    image = np.asarray(Image.open(discs / "discs" / "images" / "0.png"))
    predictor.set_image(image)
    masks, scores, _ = predictor.predict(point_coords=[[40, 40]], point_labels=[1])
    assert masks.shape == (3, 80, 80)
    assert np.isfinite(scores).all()


def test_steps_on_one_batch_lower_its_loss(discs):
    config = replace(TINY, rounds=((64, 2),), steps=100, box_share=0.0, mask_share=0.0)
    trainer = Trainer(config, interactive_loss)
    batch = next(batches(SampleStream(discs, size=64, objects=2, seed=0), 2, workers=0))
    losses = [trainer.train_step([batch])["loss"] for _ in range(12)]
    assert max(losses[-3:]) < 0.85 * min(losses[:3])


def test_objects_too_small_to_click_on_have_a_loss():
    """At the loss's resolution they vanish; the step must go on, with every picture in it."""
    masks = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    masks[:, :, 7, 9] = 1
    images = torch.randint(0, 255, (2, 64, 64, 3), dtype=torch.uint8)
    batch = Batch(images, masks, torch.ones(2, 64, 64, dtype=torch.uint8), 0)
    config = replace(TINY, box_share=0.0, mask_share=0.0)
    record = Trainer(config, interactive_loss).train_step([batch])
    assert np.isfinite([record["loss"], record["norm"]]).all()


def test_a_broken_gradient_stops_before_the_weights_break(discs):
    trainer = Trainer(TINY, interactive_loss)
    trainer.model.mask_decoder.iou_token.weight.register_hook(lambda grad: grad * np.nan)
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    batch = next(batches(SampleStream(discs, size=64, objects=2, seed=0), 1, workers=0))
    with pytest.raises(AnyresError, match="its gradient nan at step 0"):
        trainer.train_step([batch])
    for name, tensor in trainer.model.named_parameters():
        assert torch.equal(tensor, before[name]), name


def test_a_run_starts_from_weights_of_its_model_alone(discs, tmp_path):
    train(replace(TINY, steps=1), discs, tmp_path, silent)
    start = str(tmp_path / "model.safetensors")
    trainer = Trainer(replace(TINY, start=start), interactive_loss)
    saved = checkpoint.load(tmp_path)["average"]
    assert all(torch.equal(t, saved[n]) for n, t in trainer.model.state_dict().items())
    # What a model once saw stays in its list, through other data and a stop.
    one = discs / "discs" / "images" / "0.png"
    trainer.learns_from({"discs": ["0123456789abcdef"], "more": [picture_checksum(one)]})
    resumed = Trainer(replace(TINY, start=start), interactive_loss)
    resumed.load_state(trainer.state())
    seen = resumed.average.model.trained_on
    assert {name: len(pictures) for name, pictures in seen.items()} == {"discs": 9, "more": 1}
    with pytest.raises(WeightsError, match="holds the model 'hrsam_xs' and not 'sam_ti'"):
        Trainer(replace(TINY, model="sam_ti", start=start), interactive_loss)


def test_a_worker_that_dies_is_told(discs, tmp_path, monkeypatch):
    def die(self, index, size=None):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(SampleStream, "sample", die)
    with pytest.raises(AnyresError, match=r"samples died.*goes on from the last checkpoint"):
        train(replace(TINY, workers=1), discs, tmp_path, silent)


def test_a_changed_setting_counts_when_a_run_goes_on(discs):
    before, after = (
        Trainer(TINY, interactive_loss),
        Trainer(replace(TINY, weight_decay=0.5, matrix_lr=0.1), interactive_loss),
    )
    batch = next(batches(SampleStream(discs, size=64, objects=2, seed=0), 1, workers=0))
    before.train_step([batch])
    after.load_state(before.state())
    after.train_step([batch])
    groups = [optimizer.param_groups[0] for optimizer in after.optimizers.all]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.5]
    assert groups[0]["lr"] == pytest.approx(0.1 * rate(1, TINY))


def _report_signals(pipe):
    _calm(0)
    pipe.send("ready")
    while True:
        pipe.send(pipe.recv())


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the sender is not told here")
def test_a_worker_ends_at_the_signal_of_its_own_run():
    near, far = multiprocessing.Pipe()
    worker = multiprocessing.Process(target=_report_signals, args=(far,), daemon=True)
    worker.start()
    assert near.recv() == "ready"
    subprocess.run(["kill", str(worker.pid)], check=True)  # somebody else's
    near.send("still there")
    assert near.recv() == "still there"
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(10)
    assert worker.exitcode == 0


def test_stops_on_sigterm_with_a_checkpoint(discs, tmp_path):
    code = textwrap.dedent(f"""
        import multiprocessing, os, signal, subprocess
        from dataclasses import replace
        from pathlib import Path
        from anyres.train.config import TrainConfig
        from anyres.train.loop import train
        config = TrainConfig(steps=50, rounds=((64, 1),), objects=1, workers=1, threads=1)
        def report(step, record):
            if step == 2:
                workers = multiprocessing.active_children()
                assert len(workers) == 1
                subprocess.run(["kill", str(workers[0].pid)], check=True)  # as systemd does
                os.killpg(0, signal.SIGTERM)  # as torchrun does
        print(train(config, Path({str(discs)!r}), Path({str(tmp_path)!r}), report))
    """)
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, start_new_session=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
    assert checkpoint.load(tmp_path)["step"] == 2
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert {p.name for p in tmp_path.iterdir()} == {
        "checkpoint.pt",
        "log.jsonl",
        "model.safetensors",
    }


@pytest.mark.parametrize("content", [b"no checkpoint", b"junk\n", b"", b"PK\x03\x04"])
def test_a_nonsense_checkpoint_is_an_error(discs, tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(WeightsError, match="start in another folder"):
        train(TINY, discs, tmp_path, silent)


def test_a_run_of_another_model_is_an_error(discs, tmp_path):
    state = {"config": json.dumps({"model": "sam_ti"})}
    checkpoint.save(tmp_path, state)
    with pytest.raises(InputError, match="sam_ti"):
        train(TINY, discs, tmp_path, silent)


def test_a_checkpoint_of_another_shape_is_an_error(discs, tmp_path):
    state = Trainer(TINY, interactive_loss).state()
    state["model"]["mask_decoder.iou_token.weight"] = torch.zeros(1, 3)
    checkpoint.save(tmp_path, state)
    with pytest.raises(WeightsError, match="does not fit this version's model"):
        train(TINY, discs, tmp_path, silent)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rounds=[]", "rounds is empty"),
        ("rounds=[256, 6]", "rounds: 256 is not of type tuple"),
        ('rounds=[[256, "6"]]', "rounds: '6' is not of type int"),
        ('sampling={discs="much"}', "sampling: 'much' is not of type float"),
        ("steps=true", "not of type int"),
        ("max_clicks=1", "max_clicks is 1; it must be at least 2"),
        ("checkpoint_every=0", "checkpoint_every is 0"),
        ("workers=-1", "workers is -1; it must be at least 0"),
        ("ema=1.5", "ema is 1.5; it must be at most 1"),
        ("matrix_lr=nan", "matrix_lr is nan"),
        ("step=3", "did you mean 'steps'"),
        ("steps=many", "not of type int"),
        ("steps", "name=value"),
        ("ema=[1]", "not of type float"),
    ],
)
def test_bad_settings(override, message):
    with pytest.raises(InputError, match=message):
        load_config("scratch", [override])


def test_recipe_states_the_defaults():
    """The shipped recipe is the dataclass, explained: neither says more than the other."""
    assert load_config("scratch") == TrainConfig()
    assert load_config("scratch", ["steps=7", "matrix_lr=1"]) == TrainConfig(steps=7, matrix_lr=1.0)


def test_missing_recipe(tmp_path):
    with pytest.raises(InputError, match=r"one of: adapt, .*scratch"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(InputError, match="is not TOML"):
        load_config(tmp_path / "bad.toml")


def test_only_what_is_named_is_trained(discs):
    names = ("mask_decoder.iou_*", "image_encoder.patch_embed.block_s8.norm")
    trainer = Trainer(replace(TINY, train=names), interactive_loss)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    batch = next(batches(SampleStream(discs, size=64, objects=2, seed=0), 1, workers=0))
    trainer.train_step([batch])
    changed = {
        name
        for name, tensor in trainer.model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed
    parts = {".".join(name.split(".")[:2]) for name in changed}
    assert parts == {
        "mask_decoder.iou_token",
        "mask_decoder.iou_prediction_head",
        "image_encoder.patch_embed",
    }
    # Of the stem the one norm alone, its statistics included; those of frozen norms stay.
    stem = {name.rpartition(".")[0] for name in changed if "patch_embed" in name}
    assert stem == {"image_encoder.patch_embed.block_s8.norm"}
    with pytest.raises(InputError, match=r"'image_decoder'.* there are: .*mask_decoder"):
        Trainer(replace(TINY, train=("image_decoder",)), interactive_loss)
