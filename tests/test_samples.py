import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from anyres.data.layouts.folder import Entry
from anyres.errors import ImageError, InputError
from anyres.train.batches import batches
from anyres.train.cache import Cache
from anyres.train.config import load_config
from anyres.train.crops import FILL, Crop, draw_object, draw_window
from anyres.train.samples import SampleStream
from anyres.train.sources import RULES, Rule, Source, find_sources, label_map, majority

pytest.importorskip("cv2")

COLOURS = np.array([(30, 30, 30), (220, 40, 40), (40, 220, 40), (40, 40, 220)], np.uint8)


def _add(root, name, stem, labels):
    for folder in ("images", "masks"):
        (root / name / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(COLOURS[labels]).save(root / name / "images" / f"{stem}.png")
    Image.fromarray(labels).save(root / name / "masks" / f"{stem}.png")


@pytest.fixture
def root(tmp_path):
    labels = np.zeros((90, 140), np.uint8)
    labels[10:50, 10:60] = 1
    labels[10:50, 60:90] = 2
    labels[60:80, 100:130] = 3
    for stem in "abc":
        _add(tmp_path, "shapes", stem, labels)
        labels = np.ascontiguousarray(labels[::-1, ::-1])
    return tmp_path


def _same(a, b):
    for name in ("image", "masks", "valid"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_samples_have_the_promised_form(root):
    stream = SampleStream(root, size=64, objects=3, seed=1)
    for sample in islice(stream, 40):
        assert sample.image.shape == (64, 64, 3)
        assert sample.masks.shape == (3, 64, 64)
        assert sample.valid.shape == (64, 64)
        assert {x.dtype for x in (sample.image, sample.masks, sample.valid)} == {np.dtype(np.uint8)}
        assert sample.masks.max() == 1
        assert (sample.masks.sum((1, 2)) > 0).all()
        assert not (sample.masks & ~sample.valid & 1).any()
        assert all(x.flags.c_contiguous for x in (sample.image, sample.masks, sample.valid))


def test_parts_of_large_objects_come_among_the_samples(root):
    """With all of them drawn over, most samples are others than with none, and masks stay whole."""
    made = []
    for share in (0.0, 1.0):
        stream = SampleStream(root, size=64, objects=2, seed=3, drawn=0, detailed=share)
        made.append(list(islice(stream, 30)))
    again = list(islice(stream, 30))
    for sample, same in zip(made[1], again, strict=True):
        _same(sample, same)
    changed = sum(
        not np.array_equal(one.masks, other.masks) for one, other in zip(*made, strict=True)
    )
    assert changed > 20
    assert all(sample.masks.any((1, 2)).all() for sample in made[1])


def test_a_sample_depends_on_seed_and_index_alone(root):
    one = SampleStream(root, size=48, objects=2, seed=5)
    other = SampleStream(root, size=48, objects=2, seed=5)
    for index in (7, 3, 12):
        _same(one.sample(index), other.sample(index))
    list(islice(one, 10))
    _same(one.sample(3), other.sample(3))
    assert (one.sample(3).image != one.sample(4).image).any()
    reseeded = SampleStream(root, size=48, objects=2, seed=6)
    assert (one.sample(3).image != reseeded.sample(3).image).any()
    assert one.sample(3, size=32).image.shape == (32, 32, 3)


def test_masks_lie_on_their_objects(root, monkeypatch):
    monkeypatch.setattr("anyres.train.samples.photometric", lambda image, rng: image.copy())
    monkeypatch.setitem(RULES, "shapes", Rule())
    stream = SampleStream(root, size=64, objects=3, seed=2, drawn=0, detailed=0)
    seen = 0
    for sample in islice(stream, 30):
        for mask in sample.masks:
            colours = sample.image[mask > 0].astype(int)
            nearest = np.abs(colours[:, None] - COLOURS.astype(int)).sum(-1).argmin(1)
            # Pixels on an edge are mixed.
            assert (nearest > 0).mean() > 0.85
            seen += 1
    assert seen == 90


def test_pasted_objects_hide_what_is_below(root, monkeypatch):
    monkeypatch.setitem(RULES, "shapes", Rule(1.0, "instance", cut=1.0))
    stream = SampleStream(root, size=64, objects=4, seed=0)
    rng = np.random.default_rng(0)
    source = stream._sources[0]
    for _ in range(20):
        scene = stream._pasted(stream._crop(source, 64, rng), rng)
        count = np.sum(scene.masks, axis=0)
        if len(scene.masks):
            assert count.max() == 1


def test_drawn_objects_join_the_masks(root):
    stream = SampleStream(root, size=64, objects=4, seed=0, drawn=1, detailed=0)
    rng = np.random.default_rng(0)
    drawn = 0
    for _ in range(40):
        scene = stream._crop(stream._sources[0], 64, rng)
        hidden = stream._synthetic(scene, rng)
        if hidden is scene:
            continue
        drawn += 1
        assert all(0.0005 <= mask.mean() <= 0.8 for mask in hidden.masks)
        changed = (hidden.valid != scene.valid).any() or len(hidden.masks) != len(scene.masks)
        assert changed or any(
            (m != n).any() for m, n in zip(hidden.masks, scene.masks, strict=True)
        )
    assert drawn > 30


def test_padding_is_mean_colour_and_not_valid(root):
    stream = SampleStream(root, size=64, objects=2, seed=0)
    padded = [s for s in islice(stream, 60) if not s.valid.all()]
    assert padded
    for sample in padded:
        assert (sample.image[sample.valid == 0] == FILL).all()


def test_void_is_not_valid_but_shows_the_picture(tmp_path):
    labels = np.zeros((64, 64), np.uint8)
    labels[8:56, 8:56] = 1
    _add(tmp_path, "one", "a", labels)
    labels[:8] = 255
    Image.fromarray(labels).save(tmp_path / "one" / "masks" / "a.png")
    crop = Crop.of((0, 0, 64, 64), (64, 64), 64)
    stream = SampleStream(tmp_path, size=64, objects=1, seed=0)
    scenes = [stream._crop(stream._sources[0], 64, np.random.default_rng(i)) for i in range(30)]
    void = [scene for scene in scenes if (scene.inside & (1 - scene.valid)).any()]
    assert void
    assert crop.inside().all()
    for scene in void:
        gone = (scene.inside == 1) & (scene.valid == 0)
        assert not (scene.image[gone] == FILL).all(axis=-1).any()


def test_weights_choose_the_sets(root):
    labels = np.ones((40, 40), np.uint8) * 2
    labels[10:30, 10:30] = 3
    _add(root, "other", "x", labels)
    names = {s.name: s.rule.weight for s in find_sources(root, {"other": 0.7})}
    assert names == pytest.approx({"other": 0.7, "shapes": 0.3})
    with pytest.raises(InputError, match=r"other, shapes are 1\.5 together"):
        find_sources(root, {"other": 0.7, "shapes": 0.8})
    with pytest.raises(InputError, match="share of other is -1"):
        find_sources(root, {"other": -1})
    with pytest.raises(InputError, match=r"sampling names sets that are not in .*: shape$"):
        find_sources(root, {"shape": 0.5})
    assert [s.name for s in find_sources(root, {"shapes": 0.0})] == ["other"]
    assert [s.name for s in find_sources(root / "other")] == ["other"]


def test_the_stated_shares_are_what_is_drawn(tmp_path):
    """Also of a set most of whose maps are empty, and of one in a published layout."""
    rng = np.random.default_rng(0)
    inks = {"empty": 60, "plain": 130, "DUTS": 200}
    for name, ink in inks.items():
        images, masks = ("images", "masks")
        if name == "DUTS":
            images, masks = "DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask"
        for i in range(6):
            disc = np.hypot(*(np.mgrid[:60, :60] - rng.integers(20, 40))) < 16
            if name == "empty" and i < 4:
                disc[:] = False
            for kind, array in ((images, np.full((60, 60, 3), ink)), (masks, disc * 255)):
                (tmp_path / name / kind).mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(array.astype(np.uint8))
                picture.save(tmp_path / name / kind / f"{i}.png")
    config = load_config("generalist", ["sampling={empty=0.5,plain=0.2,DUTS=0.3}"])
    config = replace(config, layouts={"DUTS": "duts/DUTS-TR"})
    stream = SampleStream(
        tmp_path,
        size=32,
        objects=1,
        seed=0,
        weights=config.sampling,
        layouts=config.layouts,
        pasted=0,
        drawn=0,
        detailed=0,
    )
    drawn = []
    real = stream._crop
    stream._crop = lambda source, side, rng: drawn.append(source.name) or real(source, side, rng)
    counts = dict.fromkeys(inks, 0)
    for index in range(600):
        drawn.clear()
        stream.sample(index)
        assert len(set(drawn)) == 1
        counts[drawn[0]] += 1
    for name, share in config.sampling.items():
        assert abs(counts[name] / 600 - share) < 4 * (share * (1 - share) / 600) ** 0.5
    for layouts, message in (
        ({"DUTS": "duts"}, "name its part"),
        ({"DUTS": "duts/DUTS"}, "has no part 'DUTS'"),
        ({"DUT": "duts/DUTS-TR"}, "layouts names sets that are not in"),
    ):
        with pytest.raises(InputError, match=message):
            find_sources(tmp_path, layouts=layouts)


def test_annotations_are_trained_on_like_maps(tmp_path):
    pytest.importorskip("pycocotools")
    folder = tmp_path / "mine" / "train2017"
    folder.mkdir(parents=True)
    Image.new("RGB", (60, 40), (80, 120, 60)).save(folder / "a.png")
    large, small, crowd = ([x, 5, x + n, 5, x + n, 5 + n, x, 5 + n] for x, n in
                           ((5, 30), (20, 10), (40, 19)))  # fmt: skip
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "segmentation": [xy], "iscrowd": int(i == 3)}
        for i, xy in enumerate((small, large, crowd), 1)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    file = tmp_path / "mine" / "annotations" / "instances_train2017.json"
    file.parent.mkdir()
    file.write_text(json.dumps(content))
    layouts = {"mine": "coco/COCO-train2017"}
    (source,) = find_sources(tmp_path, layouts=layouts)
    found = Cache(1 << 20).labels(source, source.entries[0], 0)
    # The large square has a hole where the small one lies; the crowd is none.
    assert found.count == 2
    assert found.boxes[1].tolist() == [5, 5, 35, 35]
    assert found.boxes[2].tolist() == [20, 5, 30, 15]
    assert found.areas[1:3].tolist() == [30 * 30 - 100, 100]
    sample = SampleStream(tmp_path, size=32, objects=2, seed=0, layouts=layouts).sample(0)
    assert sample.masks.any()
    # What is wrong with it is said of the file.
    annotations[0]["segmentation"] = "none"
    file.write_text(json.dumps(content))
    (source,) = find_sources(tmp_path, layouts=layouts)
    with pytest.raises(InputError, match=r"instances_train2017\.json, annotation 1"):
        Cache(1 << 20).labels(source, source.entries[0], 0)


def test_batches_go_through_the_plan_and_resume(root):
    stream = SampleStream(root, size=32, objects=2, seed=0)
    plan = [(32, 3), (48, 2)]
    first = list(islice(batches(stream, plan, workers=0), 5))
    assert [tuple(batch.images.shape) for batch in first[:3]] == [
        (3, 32, 32, 3),
        (2, 48, 48, 3),
        (3, 32, 32, 3),
    ]
    assert first[1].masks.shape == (2, 2, 48, 48)
    assert [batch.number for batch in first] == [0, 1, 2, 3, 4]
    resumed = next(batches(stream, plan, start=3, workers=0))
    assert torch.equal(resumed.images, first[3].images)
    assert torch.equal(resumed.valid, first[3].valid)
    # Batch 3 is samples 8 and 9: no sample is used twice.
    np.testing.assert_array_equal(first[3].images[0], stream.sample(8, 48).image)


def test_a_worker_makes_the_same_batches(root):
    stream = SampleStream(root, size=32, objects=2, seed=0)
    here = list(islice(batches(stream, 2, start=1, workers=0), 2))
    there = list(islice(batches(stream, 2, start=1, workers=1), 2))
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)


def test_crop_beyond_the_picture():
    image = np.arange(12 * 20 * 3, dtype=np.uint8).reshape(12, 20, 3)
    crop = Crop.of((0, 0, 20, 20), image.shape[:2], 20)
    sample = crop.picture(image)
    np.testing.assert_array_equal(sample[:12], image)
    assert (sample[12:] == FILL).all()
    np.testing.assert_array_equal(crop.inside().sum(0), np.full(20, 12))
    mask = np.zeros((12, 20), np.uint8)
    mask[4:8, 5:9] = 255
    np.testing.assert_array_equal(crop.mask(mask[crop.window])[:12], mask // 255)


@pytest.mark.parametrize("side", [16, 50, 64, 256])
def test_windows_show_the_object(side):
    rng = np.random.default_rng(0)
    box = np.array([100, 40, 160, 120])
    for _ in range(200):
        x0, y0, x1, y1 = draw_window(box, (200, 300), side, rng)
        assert x1 > x0
        assert y1 > y0
        assert min(x1, 160) > max(x0, 100)
        assert min(y1, 120) > max(y0, 40)
        # Never more than three times enlarged, but for pictures that are too small for it.
        assert max(x1 - x0, y1 - y0) >= min(side / 3, 200) * 0.8


def test_unions_are_connected_and_whole_is_all():
    labels = np.array([[1, 1, 2, 2, 0, 0, 0, 3]] * 30, np.uint8).repeat(6, axis=1)
    found = label_map(labels, Rule(kind="instance", union=1.0), labels.shape)
    rng = np.random.default_rng(0)
    drawn = {draw_object(found, Rule(union=1.0), rng) for _ in range(60)}
    assert {frozenset(some) for some in drawn} == {frozenset({1, 2}), frozenset({3})}
    whole = draw_object(found, Rule(whole=1.0), rng)
    np.testing.assert_array_equal(found.select(whole) > 0, labels > 0)
    assert found.box((1, 3)).tolist() == [0, 0, 48, 30]


def test_labels_of_a_map():
    stored = np.zeros((40, 50), np.uint8)
    stored[5:20, 5:20] = 4
    stored[25:35, 5:45] = 9
    stored[0, 49] = 9
    stored[38:] = 11
    rule = Rule(kind="class", skip=(11,))
    found = label_map(stored, rule, stored.shape)
    assert found.count == 2
    assert found.areas.tolist() == [40 * 50 - 225 - 401, 225, 400, 1]
    assert found.boxes[1:3].tolist() == [[5, 5, 20, 20], [5, 25, 45, 35]]
    assert found.labels[0, 49] == 3
    assert found.inner[1:3].all()


def test_majority_removes_speckles():
    labels = np.full((30, 30), 2, np.uint8)
    labels[:, 15:] = 7
    clean = labels.copy()
    labels[5, 5], labels[20, 25] = 7, 0
    np.testing.assert_array_equal(majority(labels, 2.0), clean)


def test_cache_forgets_the_oldest(root):
    entries = find_sources(root)[0].entries
    cache = Cache(90 * 140 * 3 * 2)
    pictures = [cache.picture(entry) for entry in entries]
    assert len(cache._kept) == 2
    assert cache.picture(entries[2]) is pictures[2]
    assert cache.picture(entries[0]) is not pictures[0]


def test_bad_input_is_named(root, tmp_path):
    for options in ({"size": 8}, {"objects": 0}, {"seed": -1}):
        with pytest.raises(InputError, match="size"):
            SampleStream(root, **{"size": 64, "objects": 2, "seed": 0, **options})
    with pytest.raises(InputError, match="nowhere"):
        find_sources(tmp_path / "nowhere")
    with pytest.raises(InputError, match="absent"):
        find_sources(root, {"absent": 1.0})
    with pytest.raises(InputError, match="-1"):
        find_sources(root, {"shapes": -1.0})
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no picture with a mask"):
        find_sources(tmp_path / "empty")
    stream = SampleStream(root, size=64, objects=2, seed=0)
    for plan in ([], [(8, 2)], 0):
        with pytest.raises(InputError, match="plan"):
            next(batches(stream, plan, workers=0))
    image = find_sources(root)[0].entries[0].image
    small = tmp_path / "small.png"
    Image.fromarray(np.ones((4, 4), np.uint8)).save(small)
    entry = Entry(image, (small,))
    with pytest.raises(InputError, match=r"small\.png is \(4, 4\)"):
        Cache(1 << 20).labels(Source("one", Rule(), (entry,)), entry, 0)


def test_an_error_in_a_worker_is_told_as_it_is(root):
    for picture in root.rglob("images/*"):
        picture.write_bytes(picture.read_bytes()[:60])
    stream = SampleStream(root, size=64, objects=1, seed=0)
    for workers in (0, 1):
        with pytest.raises(ImageError, match=r"^[^\n]* is damaged or incomplete [^\n]*$"):
            next(batches(stream, 2, workers=workers))


@pytest.mark.parametrize("pixels", [0, 1], ids=["empty", "one pixel"])
def test_masks_without_objects_are_an_error_not_a_hang(tmp_path, pixels):
    labels = np.zeros((40, 40), np.uint8)
    labels[7, :pixels] = 1
    _add(tmp_path, "void", "a", labels)
    stream = SampleStream(tmp_path, size=32, objects=1, seed=0)
    with pytest.raises(InputError, match=r"no object.*empty, or all objects smaller than 0\.05%"):
        list(islice(stream, 50))


def test_real_sets_give_samples(shared_data):
    weights = dict.fromkeys((d.name for d in (shared_data / "train").iterdir()), 0.0)
    weights |= {"camvid": 0.3, "fasseg": 0.3, "dsb2018": 0.4}
    stream = SampleStream(shared_data / "train", size=96, objects=4, seed=0, weights=weights)
    shares = [float(mask.mean()) for s in islice(stream, 8) for mask in s.masks]
    assert min(shares) >= 0.0005
    assert max(shares) <= 0.8
    assert max(shares) > 5 * min(shares)
