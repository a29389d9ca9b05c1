"""Distillation: a teacher's embeddings kept in shards, and a student that learns them."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from anyres.data.datasets import picture_checksum
from anyres.errors import InputError, WeightsError
from anyres.models import parts, weights
from anyres.models.presets import preset
from anyres.train import embeddings
from anyres.train.config import TrainConfig
from anyres.train.distil import Lessons, distil_loss, lessons, prepare
from anyres.train.embeddings import Store, View, embed, find_views, padded
from anyres.train.loading import Share
from anyres.train.loop import train
from anyres.train.start import find_start, student_of
from tiny import random_model

SIZE = 64


@pytest.fixture(scope="module")
def teacher():
    return random_model("sam_ti", SIZE)


@pytest.fixture(scope="module")
def teacher_file(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    weights.save(teacher, path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    (root / "deep" / "images").mkdir(parents=True)
    (root / "deep" / "masks").mkdir()
    rng = np.random.default_rng(0)
    for i, shape in enumerate(((40, 80, 3), (70, 50, 3), (64, 64, 3), (30, 90, 3))):
        coarse = rng.integers(0, 255, (4, 5, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize(shape[1::-1])
        image.save(root / ("deep/images" if i % 2 else ".") / f"{i}.png")
    Image.new("L", (8, 8)).save(root / "deep" / "masks" / "0.png")
    (root / "notes.txt").write_text("no picture")
    (root / "copy.png").write_bytes((root / "0.png").read_bytes())
    return root


def config_of(teacher_file, cache, **others):
    settings = {
        "task": "distil",
        "model": "hrsam_ti",
        "teacher": str(teacher_file),
        "cache": str(cache),
        "train": ("image_encoder",),
        "rounds": ((SIZE, 2),),
        "steps": 2,
        "workers": 0,
        "threads": 1,
    }
    return TrainConfig(**settings | others)


def embedded(teacher, view):
    with torch.inference_mode():
        return teacher.encode(padded(teacher, view.read(SIZE), SIZE)).embedding[0]


def test_views_are_pictures_once_each(pictures, tmp_path):
    views = find_views(pictures, 3)
    assert len(views) == 4 * 3
    assert len({view.key for view in views}) == 12
    assert {view.checksum for view in views} == {
        picture_checksum(pictures / name)
        for name in ("0.png", "2.png", "deep/images/1.png", "deep/images/3.png")
    }
    whole, mirrored, square = (view.read(SIZE) for view in views[:3])
    assert whole.shape == mirrored.shape == (32, 64, 3)
    assert np.abs(whole[:, ::-1].astype(int) - mirrored).max() <= 1
    assert square.shape == (64, 64, 3)
    assert (square == views[2].read(SIZE)).all()
    with pytest.raises(InputError, match="no picture in"):
        find_views(tmp_path, 1)


def test_pictures_behind_links_are_found(pictures, tmp_path):
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "one").symlink_to(pictures / "deep", target_is_directory=True)
    (tmp_path / "sets" / "again").symlink_to(pictures / "deep", target_is_directory=True)
    (tmp_path / "sets" / "round").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "sets" / "2.png").symlink_to(pictures / "2.png")
    views = find_views(tmp_path / "sets", 1)
    assert sorted(view.path.name for view in views) == ["1.png", "2.png", "3.png"]
    linked = tmp_path / "linked"
    linked.symlink_to(pictures, target_is_directory=True)
    assert {view.key for view in find_views(linked, 1)} == {v.key for v in find_views(pictures, 1)}


def test_embeddings_are_those_of_the_teacher(pictures, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "SHARD_BYTES", 2 * 2 * 128 * 16)
    monkeypatch.setattr(embeddings, "_PIXELS", SIZE * SIZE)
    views, store = find_views(pictures, 2), Store(tmp_path, "aa", SIZE)
    told = []
    embed(teacher, views, store, SIZE, lambda done, total: told.append((done, total)))
    assert told == [(i, 8) for i in range(1, 9)]
    shards = list(store.folder.iterdir())
    assert len(shards) == 4
    assert all(path.stat().st_size < 3 * 2 * 128 * 16 for path in shards)
    again = Store(tmp_path, "aa", SIZE)
    again.look()
    for view in views:
        wanted = embedded(teacher, view)
        assert again[view.key].dtype == torch.float32
        assert (again[view.key] - wanted).abs().max() < 2e-3 * wanted.abs().max()


def test_what_was_killed_or_damaged_is_computed_again(pictures, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "SHARD_BYTES", 1)
    monkeypatch.setattr(embeddings, "_PIXELS", SIZE * SIZE)
    views, store = find_views(pictures, 1), Store(tmp_path, "aa", SIZE)
    seen = []
    encode = teacher.encode

    def counted(pixels):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(teacher, "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        embed(teacher, views, store, SIZE)
    shards = sorted(store.folder.iterdir())
    assert len(shards) == 3
    truncated, flipped = (path.read_bytes() for path in shards[:2])
    shards[0].write_bytes(truncated[:-9])
    shards[1].write_bytes(flipped[:-9] + bytes([flipped[-9] ^ 1]) + flipped[-8:])
    seen.clear()
    store = Store(tmp_path, "aa", SIZE)
    store.look()
    assert sum(view.key in store for view in views) == 1
    embed(teacher, views, store, SIZE)
    assert seen == [1, 1, 1]
    for view in views:
        monkeypatch.setattr(teacher, "encode", encode)
        assert (store[view.key] - embedded(teacher, view)).abs().max() < 5e-3
    gone = next(iter(store.folder.iterdir()))
    keys = [view.key for view in views if store._shards[view.key] == gone]
    gone.unlink()
    with pytest.raises(WeightsError, match="start again"):
        store[keys[0]]


def test_stores_are_never_mixed(pictures, teacher, tmp_path):
    views, store = find_views(pictures, 1), Store(tmp_path, "aa", SIZE)
    embed(teacher, views, store, SIZE)
    for checksum, size in (("bb", SIZE), ("aa", 2 * SIZE)):
        other = Store(tmp_path, checksum, size)
        other.look()
        assert not any(view.key in other for view in views)
        # Not even where somebody moves the files.
        other.folder.mkdir()
        for shard in store.folder.iterdir():
            (other.folder / shard.name).write_bytes(shard.read_bytes())
        other.look()
        assert not any(view.key in other for view in views)


def test_two_processes_at_once_do_no_harm(pictures, teacher, tmp_path):
    views = find_views(pictures, 1)
    stores = [Store(tmp_path, "aa", SIZE) for _ in range(2)]
    threads = [
        threading.Thread(target=embed, args=(teacher, views, store, SIZE)) for store in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stores[0].look()
    assert all(view.key in stores[0] for view in views)
    assert len(list(stores[0].folder.iterdir())) == 1


def test_a_student_has_the_teachers_prompt_side(teacher, teacher_file, tmp_path):
    student = find_start(config_of(teacher_file, tmp_path)).model
    assert student.config.name == "hrsam_ti"
    assert student.config.image_size == SIZE
    mine, theirs = student.state_dict(), teacher.state_dict()
    prompt = [name for name in theirs if not name.startswith("image_encoder.")]
    assert prompt
    assert all(torch.equal(mine[name], theirs[name]) for name in prompt)
    pixels = torch.zeros(1, 3, SIZE, SIZE)
    embeddings = [model.encode(pixels).embedding for model in (student, teacher)]
    assert embeddings[0].shape == embeddings[1].shape
    with pytest.raises(InputError, match="mobile_sam has no stem to make the like"):
        student_of(preset("mobile_sam"), random_model("sam_xs", SIZE))
    with pytest.raises(InputError, match="needs a teacher"):
        TrainConfig(task="distil")


def test_a_student_has_the_teachers_stem():
    teacher = random_model("sam_xs", SIZE)
    pixels = torch.randn(1, 3, SIZE, SIZE)
    for name in ("hrsam_xs", "hrsam_s"):  # as wide as the teacher, and wider
        student = student_of(preset(name), teacher)
        mine, theirs = (model.encode(pixels).details for model in (student, teacher))
        assert all(map(torch.equal, mine, theirs))


def test_a_student_of_the_embedded_model_has_a_stem_of_its_own():
    teacher = random_model("default", SIZE)
    student = student_of(preset("hrsam_ti"), teacher, 2 * SIZE)
    assert (student.config.image_size, teacher.config.image_size) == (2 * SIZE, SIZE)
    pixels = torch.randn(1, 3, SIZE, SIZE)
    mine, theirs = (model.encode(pixels).details for model in (student, teacher))
    assert [x.shape for x in mine] == [x.shape for x in theirs]
    assert student.click_maps is not None
    assert all(
        torch.equal(one, other)
        for one, other in zip(
            student.click_maps.parameters(), teacher.click_maps.parameters(), strict=True
        )
    )


def test_the_loss_is_the_mean_squared_error(pictures, teacher, teacher_file, tmp_path):
    config = config_of(teacher_file, tmp_path, rounds=((SIZE, 4),))
    views, store = prepare(config, pictures, Share())
    batch = next(lessons(config, views, store, Share(), 0))
    # The teacher itself has learned all there is, but for the precision of the store.
    loss, record = distil_loss(teacher, batch, config, np.random.default_rng())
    assert loss < 1e-5 * batch.targets.var()
    assert record["unexplained"] == pytest.approx(loss.item() / batch.targets.var().item())
    shifted = Lessons(batch.images, batch.sizes_hw, batch.targets + 2, 0)
    loss, _ = distil_loss(teacher, shifted, config, np.random.default_rng())
    assert loss.item() == pytest.approx(4, rel=1e-2)
    # At another size the teacher's map is resized to the student's grid.
    larger = next(
        lessons(config_of(teacher_file, tmp_path, rounds=((128, 4),)), views, store, Share(), 0)
    )
    student = find_start(config).model
    assert larger.targets.shape == (4, 128, 4, 4)
    loss, _ = distil_loss(student, larger, config, np.random.default_rng())
    assert torch.isfinite(loss)


def test_every_view_is_seen_once_a_round(pictures, teacher_file, tmp_path):
    config = config_of(teacher_file, tmp_path, views=2, rounds=((SIZE, 2), (32, 1)))
    views, store = prepare(config, pictures, Share())
    stream = lessons(config, views, store, Share(), 0)
    seen = []
    by_content = {store[view.key].numpy().tobytes(): view for view in views}
    batches = [next(stream) for _ in range(16)]
    for batch in batches:
        seen += [by_content[target.numpy().tobytes()] for target in batch.targets]
    assert [len(batch.images) for batch in batches[:4]] == [2, 1, 2, 1]
    for first in (0, 8, 16):
        assert sorted(v.key for v in seen[first : first + 8]) == sorted(v.key for v in views)
    assert seen[:8] != seen[8:16]
    later = next(lessons(config, views, store, Share(), 5))
    assert torch.equal(later.images, batches[5].images)
    assert later.number == 5


def test_a_student_learns_and_can_be_used(pictures, teacher, teacher_file, tmp_path):
    config = config_of(teacher_file, tmp_path / "cache", steps=12, warmup=1, rounds=((SIZE, 4),))
    records = []
    train(config, pictures, tmp_path / "run", lambda step, record: records.append(record))
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    student = weights.load(tmp_path / "run" / "model.safetensors")
    theirs = teacher.state_dict()
    for name, tensor in student.state_dict().items():
        if not name.startswith("image_encoder."):
            assert torch.equal(tensor, theirs[name]), name
    assert {len(known) for known in student.trained_on.values()} == {4}
    # The next run asks the teacher nothing.
    store = Store(tmp_path / "cache", parts.checksum(teacher), SIZE)
    store.look()
    assert all(View(v.path, v.checksum, 0).key in store for v in find_views(pictures, 1))
