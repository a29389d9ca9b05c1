"""Data sets: plain folders, every published layout in small, the index, and what goes wrong."""

import json
import os
import pickle
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from anyres.data import datasets
from anyres.data.datasets import leaks, open_dataset, picture_checksum
from anyres.data.images import read_mask
from anyres.data.layouts import index
from anyres.errors import InputError, MissingExtraError

SIZE = (20, 30)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "datasets"


def _picture(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.name.encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG" if path.suffix.lower() == ".png" else "JPEG")


def _mask(value=255, size=SIZE, dtype=np.uint8):
    mask = np.zeros(size, dtype)
    mask[4:10, 5:15] = value
    return mask


def _save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _pair(image, mask, array=None):
    _picture(image)
    _save(mask, _mask() if array is None else array)


def _keys(dataset):
    return [ref.key for ref in dataset.objects]


def _targets_fit(dataset):
    for ref in dataset.objects:
        target = dataset.target(ref)
        assert target.dtype == np.uint8
        assert target.shape == ref.size_hw == dataset.picture(ref).shape[:2]
        assert (target == 1).sum() == ref.area


# plain folders


@pytest.fixture
def plain(tmp_path):
    root = tmp_path / "garden"
    instances = np.zeros(SIZE, np.uint8)
    instances[:5, :5], instances[10:12, 4:9], instances[0, 29], instances[15:, 20:] = 7, 3, 9, 255
    _pair(root / "images" / "b.jpg", root / "masks" / "b.png", instances)
    _pair(root / "images" / "a.JPG", root / "masks" / "a__one.png")
    _save(root / "masks" / "a__two.png", 255 - _mask())
    return root


def test_a_plain_folder(plain):
    data = open_dataset(plain)
    assert data.name == "garden"
    assert data.sets == ("garden",)
    assert data.problems == ()
    # Object 9 has one pixel of 600, less than 0.2 %.
    assert _keys(data) == ["garden/a/0", "garden/a/1", "garden/b/0", "garden/b/1"]
    assert [ref.area for ref in data.objects] == [60, 540, 10, 25]
    assert [ref.number for ref in data.objects] == [0, 1, 0, 1]
    assert data.objects[2].image == plain / "images" / "b.jpg"
    assert data.objects[0].category is None
    assert len(data) == 4
    _targets_fit(data)


def test_the_bounds_are_on_the_objects_area(plain):
    assert _keys(open_dataset(plain, smallest=0)) == [
        "garden/a/0", "garden/a/1", "garden/b/0", "garden/b/1", "garden/b/2",
    ]  # fmt: skip
    assert _keys(open_dataset(plain, smallest=0.05, largest=0.5)) == ["garden/a/0"]
    assert _keys(open_dataset(plain, smallest=0.1, largest=0.1)) == ["garden/a/0"]
    full = np.full(SIZE, 255, np.uint8)
    _pair(plain / "images" / "c.jpg", plain / "masks" / "c.png", full)
    assert "garden/c/0" not in _keys(open_dataset(plain))
    assert "garden/c/0" in _keys(open_dataset(plain, largest=1))


def test_void_is_background_or_ignored(plain):
    data = open_dataset(plain)
    assert set(np.unique(data.target(data.objects[2]))) == {0, 1}
    ignoring = open_dataset(plain, void="ignore")
    target = ignoring.target(ignoring.objects[2])
    assert (target[15:, 20:] == 255).all()
    assert (target == 255).sum() == 50
    assert ignoring.objects[2].area == 10
    assert ignoring.fingerprint != data.fingerprint


def test_classes_fall_into_components(plain):
    pytest.importorskip("cv2")
    classes = np.zeros(SIZE, np.uint8)
    classes[:4, :4] = classes[10:14, 10:14] = 2
    for name in ("a__one", "a__two", "b"):
        _save(plain / "masks" / f"{name}.png", classes)
    data = open_dataset(plain, kind="class")
    assert [ref.key for ref in data.objects if ref.image.name == "b.jpg"] == [
        "garden/b/0", "garden/b/1",
    ]  # fmt: skip
    assert {ref.category for ref in data.objects} == {"2"}
    _targets_fit(data)
    _save(plain / "masks" / "b.png", np.zeros(SIZE, np.uint8))
    assert open_dataset(plain, kind="class").problems == ()  # nothing to see is no mistake


def test_a_folder_of_plain_folders(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "all" / "garden")
    shutil.copytree(plain, tmp_path / "all" / "wood")
    (tmp_path / "all" / "README.md").write_text("two sets")
    data = open_dataset(tmp_path / "all")
    assert data.sets == ("garden", "wood")
    assert data.objects[-1].key == "all/wood/b/1"
    assert open_dataset(tmp_path / "all", part="WOOD").sets == ("wood",)
    with pytest.raises(InputError, match="no part 'field'; it has garden, wood"):
        open_dataset(tmp_path / "all", part="field")


def test_pictures_of_one_stem_have_keys_of_their_own(plain):
    _picture(plain / "images" / "b.png")
    keys = _keys(open_dataset(plain))
    assert len(set(keys)) == len(keys) == 6
    assert {"garden/b.jpg/0", "garden/b.png/0"} <= set(keys)


def test_what_cannot_be_used_is_named(plain):
    images, masks = plain / "images", plain / "masks"
    _picture(images / "lonely.jpg")
    _save(masks / "orphan.png", _mask())
    _save(masks / "b.bmp", _mask())
    _pair(images / "sizes.jpg", masks / "sizes.png", _mask(size=(30, 20)))
    _pair(images / "empty.jpg", masks / "empty.png", _mask(0))
    for name, half in (("torn.jpg", images), ("cut.png", masks)):
        _pair(images / f"{name[:-4]}.jpg", masks / f"{name[:-4]}.png")
        whole = (half / name).read_bytes()
        (half / name).write_bytes(whole[: len(whole) // 2])
    (images / "._b.jpg").write_bytes(b"left by a Mac")
    data = open_dataset(plain)
    assert len(data) == 4
    told = {problem.path.name: problem.reason for problem in data.problems}
    assert {problem.path.parent for problem in data.problems} == {images, masks}
    expected = {
        "lonely.jpg": "has no mask",
        "orphan.png": "is a mask without a picture",
        "b.bmp": "is no PNG file",
        "sizes.png": "is 20x30 pixels and should be 30x20",
        "empty.png": "it has no object",
        "torn.jpg": "damaged or incomplete",
        "cut.png": "damaged or incomplete",
    }
    assert set(told) == set(expected)
    for name, reason in expected.items():
        assert reason in told[name]
    assert str(data.problems[0]).startswith("garden: ")
    with pytest.raises(InputError, match="7 problems, the first: garden: "):
        open_dataset(plain, strict=True)


def test_a_fingerprint_is_of_the_data_and_what_is_counted(plain, tmp_path):
    data = open_dataset(plain)
    shutil.copytree(plain, tmp_path / "elsewhere" / "garden")
    copied = open_dataset(tmp_path / "elsewhere" / "garden")
    assert copied.fingerprint == data.fingerprint
    assert _keys(copied) == _keys(data)
    assert len(data.fingerprint) == 64
    assert open_dataset(plain, smallest=0).fingerprint != data.fingerprint
    _picture(tmp_path / "elsewhere" / "garden" / "images" / "b.jpg", (20, 30))
    changed = np.zeros((*SIZE, 3), np.uint8)
    Image.fromarray(changed).save(tmp_path / "elsewhere" / "garden" / "images" / "b.jpg")
    assert open_dataset(tmp_path / "elsewhere" / "garden").fingerprint != data.fingerprint


def test_wrong_arguments_are_named(plain, tmp_path):
    with pytest.raises(InputError, match="no folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no layout 'voc'; there are folder, hqseg44k, davis"):
        open_dataset(plain, layout="voc")
    with pytest.raises(InputError, match="'panoptic'"):
        open_dataset(plain, kind="panoptic")
    with pytest.raises(InputError, match="leave out kind"):
        open_dataset(plain, layout="davis", kind="binary")
    with pytest.raises(InputError, match="void is 'white'"):
        open_dataset(plain, void="white")
    with pytest.raises(InputError, match="the smallest first"):
        open_dataset(plain, smallest=0.5, largest=0.1)
    with pytest.raises(
        InputError, match=r"no object of 0\.99 to 1 of its picture: \d+ are smaller, 0 larger"
    ):
        open_dataset(plain, smallest=0.99, largest=1)
    with pytest.raises(InputError, match="no folder images/"):
        open_dataset(plain / "images")


# the index


@pytest.fixture
def reads(monkeypatch):
    """The names of the pictures that are decoded."""
    names = []
    original = index.read_image

    def read(path):
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(index, "read_image", read)
    return names


def test_the_index_is_kept_until_something_changes(plain, cache, reads):
    first = open_dataset(plain)
    assert sorted(reads) == ["a.JPG", "b.jpg"]
    assert [path.suffix for path in cache.iterdir()] == [".json"]
    reads.clear()
    again = open_dataset(plain, smallest=0, void="ignore")
    assert reads == []
    assert again.objects[:4] == first.objects
    changed = np.zeros(SIZE, np.uint8)
    changed[3:9, 3:9] = 4
    _save(plain / "masks" / "b.png", changed)
    assert [ref.area for ref in open_dataset(plain).objects] == [60, 540, 36]
    assert reads == ["b.jpg"]
    reads.clear()
    (plain / "masks" / "a__two.png").rename(plain / "masks" / "a__three.png")
    assert len(open_dataset(plain)) == 3
    assert reads == ["a.JPG"]
    (plain / "images" / "b.jpg").unlink()
    assert _keys(open_dataset(plain)) == ["garden/a/0", "garden/a/1"]


@pytest.mark.parametrize("damage", ["cut", "bit", "text", "folder"])
def test_a_damaged_index_is_made_anew(damage, plain, cache, reads):
    first = open_dataset(plain)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    if damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        bit = whole.replace(b"540", b"541")
        assert bit != whole
        file.write_bytes({"cut": whole[:-30], "bit": bit, "text": b"\xff no index"}[damage])
    reads.clear()
    assert open_dataset(plain).objects == first.objects
    assert len(reads) == 2
    reads.clear()
    open_dataset(plain)
    assert len(reads) == (2 if damage == "folder" else 0)


def test_an_index_that_cannot_be_kept_is_no_error(plain, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path / "file"))
    assert len(open_dataset(plain)) == 4


def test_pictures_that_failed_are_tried_again(plain, reads):
    torn = plain / "images" / "b.jpg"
    status, whole = torn.stat(), torn.read_bytes()
    torn.write_bytes(b"\0" * len(whole))
    assert len(open_dataset(plain).problems) == 1
    torn.write_bytes(whole)
    os.utime(torn, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_dataset(plain).problems == ()


def test_progress_is_told_of_what_takes_long(plain, monkeypatch):
    told = []
    open_dataset(plain, on_progress=lambda *step: told.append(step))
    assert told == []
    monkeypatch.setattr(datasets, "_PATIENCE", -1)
    monkeypatch.setenv("ANYRES_CACHE", str(plain / "other"))
    open_dataset(plain, on_progress=lambda *step: told.append(step))
    assert told == [(1, 2), (2, 2)]


def test_an_interrupt_while_indexing_comes_through(plain, cache, monkeypatch):
    monkeypatch.setattr(datasets, "_PATIENCE", -1)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_dataset(plain, on_progress=stop)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_a_map_that_shrinks_after_opening_is_an_error(plain):
    data = open_dataset(plain)
    _save(plain / "masks" / "b.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(InputError, match="garden/b/0 is another object now"):
        data.target(data.objects[2])


def test_a_data_set_goes_to_other_processes(plain):
    data = open_dataset(plain)
    sent = pickle.loads(pickle.dumps(data))
    assert sent.objects == data.objects
    np.testing.assert_array_equal(sent.target(sent.objects[1]), data.target(data.objects[1]))


# published layouts: (files of pictures and masks, options, names of the parts, keys)

_THIN = "thin_object_detection"
PUBLISHED = {
    "hqseg44k": (
        [
            (f"{_THIN}/COIFT/images/cow.jpg", f"{_THIN}/COIFT/masks/cow.png"),
            (f"{_THIN}/HRSOD/images/9.jpg", f"{_THIN}/HRSOD/masks_max255/9.png"),
            (f"{_THIN}/ThinObject5K/images_test/axe.jpg",
             f"{_THIN}/ThinObject5K/masks_test/axe.png"),
            (f"{_THIN}/ThinObject5K/images_train/bow.jpg",
             f"{_THIN}/ThinObject5K/masks_train/bow.png"),
            ("DIS5K/DIS-VD/im/1#a.jpg", "DIS5K/DIS-VD/gt/1#a.png"),
            ("DIS5K/DIS-TR/im/2#7.jpg", "DIS5K/DIS-TR/gt/2#7.png"),
            ("cascade_psp/DUTS-TE/x.jpg", "cascade_psp/DUTS-TE/x.png"),
            ("cascade_psp/DUTS-TR/y.jpg", "cascade_psp/DUTS-TR/y.png"),
            ("cascade_psp/fss_all/z.jpg", "cascade_psp/fss_all/z.png"),
            ("cascade_psp/ecssd/0001.jpg", "cascade_psp/ecssd/0001.png"),
            ("cascade_psp/MSRA_10K/5.jpg", "cascade_psp/MSRA_10K/5.png"),
        ],
        ["hqseg44k/COIFT/cow/0", "hqseg44k/HRSOD/9/0", "hqseg44k/ThinObject5K-test/axe/0",
         "hqseg44k/DIS-VD/1#a/0"],
        {"DUTS-TE": ["hqseg44k/DUTS-TE/x/0"], "msra-10k": ["hqseg44k/MSRA-10K/5/0"],
         "FSS": ["hqseg44k/FSS/z/0"], "DIS-TR": ["hqseg44k/DIS-TR/2#7/0"],
         "ThinObject5K-train": ["hqseg44k/ThinObject5K-train/bow/0"],
         "ECSSD": ["hqseg44k/ECSSD/0001/0"], "DUTS-TR": ["hqseg44k/DUTS-TR/y/0"]},
    ),
    "davis": (
        [("DAVIS/img/00001.jpg", "DAVIS/gt/00001.png"),
         ("DAVIS/img/00002.JPG", "DAVIS/gt/00002#001.PNG")],
        ["davis/00001/0", "davis/00002/0"],
        {},
    ),
    "grabcut": (
        [("data_GT/bush.jpg", "boundary_GT/bush.bmp"),
         ("data_GT/106024.JPG", "boundary_GT/106024.bmp")],
        ["grabcut/106024/0", "grabcut/bush/0"],
        {},
    ),
    "dis5k": (
        [(f"DIS-{name}/im/{name}.jpg", f"DIS-{name}/gt/{name}.png")
         for name in ("TR", "VD", "TE1", "TE2", "TE3", "TE4")],
        ["dis5k/DIS-VD/VD/0"] + [f"dis5k/DIS-TE{n}/TE{n}/0" for n in (1, 2, 3, 4)],
        {"DIS-TR": ["dis5k/DIS-TR/TR/0"], "dis-te3": ["dis5k/DIS-TE3/TE3/0"]},
    ),
    "duts": (
        [("DUTS-TE/DUTS-TE-Image/sun.jpg", "DUTS-TE/DUTS-TE-Mask/sun.png"),
         ("DUTS-TR-Image/ILSVRC.jpg", "DUTS-TR-Mask/ILSVRC.png")],
        ["duts/DUTS-TE/sun/0"],
        {"DUTS-TR": ["duts/DUTS-TR/ILSVRC/0"]},
    ),
    "cod10k": (
        [("Test/Image/COD10K-CAM-1-Aquatic-3-Crab-1.jpg",
          "Test/GT_Object/COD10K-CAM-1-Aquatic-3-Crab-1.png"),
         ("Test/Image/COD10K-NonCAM-2-Other-9.jpg", "Test/GT_Object/COD10K-NonCAM-2-Other-9.png"),
         ("Train/Image/COD10K-CAM-3-Flying-5.jpg", "Train/GT_Object/COD10K-CAM-3-Flying-5.png")],
        ["cod10k/COD10K-test/COD10K-CAM-1-Aquatic-3-Crab-1/0"],
        {"COD10K-train": ["cod10k/COD10K-train/COD10K-CAM-3-Flying-5/0"]},
    ),
    "isic": (
        [(f"ISIC2018_Task1-2_{split}_Input/ISIC_{n}.jpg",
          f"ISIC2018_Task1_{split}_GroundTruth/ISIC_{n}_segmentation.png")
         for n, split in enumerate(("Training", "Validation", "Test"))],
        ["isic/ISIC2018-test/ISIC_2/0"],
        {"ISIC2018-training": ["isic/ISIC2018-training/ISIC_0/0"],
         "isic2018-validation": ["isic/ISIC2018-validation/ISIC_1/0"]},
    ),
}  # fmt: skip


def _published(root, layout):
    for image, mask in PUBLISHED[layout][0]:
        path = root / mask
        _picture(root / image)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_mask()).save(path, format="BMP" if mask.endswith("bmp") else "PNG")


@pytest.mark.parametrize("layout", PUBLISHED)
def test_a_published_layout_is_read_as_it_lies(layout, tmp_path):
    root = tmp_path / "anywhere"
    _published(root, layout)
    _, keys, parts = PUBLISHED[layout]
    data = open_dataset(root, layout=layout)
    assert _keys(data) == keys
    assert data.problems == ()
    assert data.name == layout
    assert {ref.area for ref in data.objects} == {60}
    _targets_fit(data)
    for part, named in parts.items():
        assert _keys(open_dataset(root, layout=layout, part=part)) == named


@pytest.mark.parametrize("layout", PUBLISHED)
def test_a_published_layout_tells_what_is_wrong(layout, tmp_path):
    root = tmp_path / "anywhere"
    _published(root, layout)
    pairs = PUBLISHED[layout][0]
    image, mask = next(
        (root / image, root / mask)
        for image, mask in pairs
        if image.split("/")[-1].split(".")[0] in PUBLISHED[layout][1][0]
    )
    ending, add = mask.suffix, "_segmentation" if layout == "isic" else ""
    stems = {n: image.with_name(f"COD10K-CAM-{n}.jpg") for n in ("a", "b", "c", "d")}
    for picture in stems.values():
        _picture(picture)

    def of(name):
        return mask.with_name(f"COD10K-CAM-{name}{add}{ending}")

    _save(of("b"), _mask(size=(30, 20)))
    _save(of("c"), _mask(0))
    of("d").write_bytes(mask.read_bytes()[:50])
    data = open_dataset(root, layout=layout)
    assert _keys(data) == PUBLISHED[layout][1]
    told = {problem.path: problem.reason for problem in data.problems}
    assert set(told) == {stems["a"], of("b"), of("c"), of("d")}
    assert told[stems["a"]] == "has no mask"
    assert "should be 30x20" in told[of("b")]
    assert "no object" in told[of("c")]
    assert "damaged" in told[of("d")] or "incomplete" in told[of("d")]
    with pytest.raises(InputError, match="4 problems"):
        open_dataset(root, layout=layout, strict=True)


def test_published_sets_score_every_object(tmp_path):
    _pair(tmp_path / "img" / "a.jpg", tmp_path / "gt" / "a.png", np.full(SIZE, 1, np.uint8))
    tiny = np.zeros(SIZE, np.uint8)
    tiny[3, 4] = 255
    _pair(tmp_path / "img" / "b.jpg", tmp_path / "gt" / "b.png", tiny)
    assert _keys(open_dataset(tmp_path, layout="davis")) == ["davis/a/0", "davis/b/0"]
    assert _keys(open_dataset(tmp_path, layout="davis", largest=0.95)) == ["davis/b/0"]
    assert _keys(open_dataset(tmp_path, layout="davis", smallest=0.002)) == ["davis/a/0"]


def test_davis_counts_whatever_is_drawn_in_any_colour(tmp_path):
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[2:4, 2:4, 0], colours[8, 8:10, 2] = 128, 1
    _pair(tmp_path / "img" / "a.jpg", tmp_path / "gt" / "a.png", colours)
    palette = Image.fromarray(_mask(2))
    palette.putpalette([0, 0, 0, 9, 9, 9, 0, 64, 0])
    _picture(tmp_path / "img" / "b.jpg")
    palette.save(tmp_path / "gt" / "b.png")
    clear = np.dstack([colours, np.full(SIZE, 7, np.uint8)])
    _pair(tmp_path / "img" / "c.jpg", tmp_path / "gt" / "c.png", clear)
    data = open_dataset(tmp_path, layout="davis")
    assert [ref.area for ref in data.objects] == [6, 60, 6]
    _targets_fit(data)
    assert read_mask(tmp_path / "gt" / "b.png", brightest=True).max() == 64


def test_saliency_masks_are_cut_above_128(tmp_path):
    grey = _mask(129)
    grey[0, :4] = 128
    _pair(tmp_path / "DUTS-TE-Image" / "a.jpg", tmp_path / "DUTS-TE-Mask" / "a.png", grey)
    deep = _mask(128 * 257 + 1, dtype=np.uint16)
    deep[0, :4] = 128 * 257
    _pair(tmp_path / "DUTS-TE-Image" / "b.jpg", tmp_path / "DUTS-TE-Mask" / "b.png", deep)
    data = open_dataset(tmp_path, layout="duts")
    assert [ref.area for ref in data.objects] == [60, 60]


def test_grabcuts_border_is_void(tmp_path):
    trimap = _mask()
    trimap[3, 5:15] = 128
    _picture(tmp_path / "img" / "a.jpg")
    _save(tmp_path / "gt" / "a.png", trimap)
    for void, value in (("background", 0), ("ignore", 255)):
        data = open_dataset(tmp_path, layout="grabcut", void=void)
        target = data.target(data.objects[0])
        assert (target[3, 5:15] == value).all()
        assert data.objects[0].area == (target == 1).sum() == 60


def test_missing_parts_are_named(tmp_path):
    _pair(tmp_path / "DIS-VD" / "im" / "a.jpg", tmp_path / "DIS-VD" / "gt" / "a.png")
    data = open_dataset(tmp_path, layout="dis5k")
    assert [problem.set for problem in data.problems] == [
        "DIS-TE1",
        "DIS-TE2",
        "DIS-TE3",
        "DIS-TE4",
    ]
    assert data.problems[0].reason == "is not there"
    assert open_dataset(tmp_path, layout="dis5k", part="DIS-VD", strict=True).sets == ("DIS-VD",)
    with pytest.raises(InputError, match="no part 'DIS-TE1'; it has DIS-VD"):
        open_dataset(tmp_path, layout="dis5k", part="DIS-TE1")
    (tmp_path / "DIS-VD").rename(tmp_path / "DIS-TR")
    with pytest.raises(InputError, match="name one of the parts that are there: DIS-TR"):
        open_dataset(tmp_path, layout="dis5k")
    with pytest.raises(InputError, match="has folders such as data_GT and boundary_GT"):
        open_dataset(tmp_path, layout="grabcut")


# COCO


@pytest.fixture
def coco(tmp_path):
    pytest.importorskip("pycocotools")
    root = tmp_path / "coco"
    for name in ("b.jpg", "a.jpg", "bare.jpg"):
        _picture(root / "val2017" / name)
    square = [[2, 2, 8, 2, 8, 6, 2, 6]]
    counts = [20 * 29, 20]
    from anyres.data.formats.annotations import pack

    packed = pack(_mask() > 0)
    packed["counts"] = packed["counts"].decode()
    annotations = [
        {"id": 11, "image_id": 2, "category_id": 5, "segmentation": square, "iscrowd": 0},
        {"id": 12, "image_id": 1, "category_id": 7, "segmentation": packed, "iscrowd": 0},
        {"id": 13, "image_id": 2, "category_id": 7, "iscrowd": 0,
         "segmentation": {"size": list(SIZE), "counts": counts}},
        {"id": 14, "image_id": 2, "category_id": 5, "iscrowd": 1,
         "segmentation": {"size": list(SIZE), "counts": [0, 600]}},
    ]  # fmt: skip
    images = [
        {"id": number, "file_name": name, "height": 20, "width": 30}
        for number, name in enumerate(("a.jpg", "b.jpg", "bare.jpg"), 1)
    ]
    categories = [{"id": 5, "name": "cat"}, {"id": 7, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    _write(root, content)
    return root, content


def _write(root, content):
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))


def test_cocos_instances(coco, reads):
    root, content = coco
    data = open_dataset(root, layout="coco")
    assert _keys(data) == [
        "coco/COCO-val2017/a/0",
        "coco/COCO-val2017/b/0",
        "coco/COCO-val2017/b/1",
    ]
    assert [(ref.area, ref.category) for ref in data.objects] == [
        (60, "dog"),
        (24, "cat"),
        (20, "dog"),
    ]
    assert data.problems == ()
    _targets_fit(data)
    assert data.target(data.objects[1])[2:6, 2:8].all()
    assert data.target(data.objects[2])[:, 29].all()
    reads.clear()
    assert open_dataset(root.parent, layout="coco").objects == data.objects
    assert reads == []
    content["annotations"][0]["segmentation"] = [[2, 2, 9, 2, 9, 6, 2, 6]]
    _write(root, content)
    assert open_dataset(root, layout="coco").objects[1].area == 28
    (root / "images").mkdir()
    (root / "val2017").rename(root / "images" / "val2017")
    assert len(open_dataset(root, layout="coco", part="coco-val2017")) == 3


def test_what_is_wrong_with_coco_is_named(coco):
    root, content = coco
    content["images"].append({"id": 4, "file_name": "gone.jpg", "height": 20, "width": 30})
    content["images"][2]["width"] = 31
    content["annotations"][2]["segmentation"]["counts"] = [3, 3]
    _write(root, content)
    data = open_dataset(root, layout="coco")
    assert _keys(data) == ["coco/COCO-val2017/a/0"]
    told = {problem.path.name: problem.reason for problem in data.problems}
    assert "does not exist" in told["gone.jpg"]
    assert "is 30x20, its annotations are for 31x20" in told["bare.jpg"]
    assert "annotation 13" in told["instances_val2017.json"]
    (root / "annotations" / "instances_val2017.json").write_text('{"images": [')
    with pytest.raises(InputError, match=r"instances_val2017\.json is no valid JSON"):
        open_dataset(root, layout="coco")


def test_cocos_masks_without_pycocotools_name_the_extra(coco, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(MissingExtraError, match=r"anyres\[eval\]"):
        open_dataset(coco[0], layout="coco")


def test_cod10ks_instances_are_annotations(coco, tmp_path):
    root, content = coco
    (tmp_path / "COD10K-v3" / "Test").mkdir(parents=True)
    (root / "val2017").rename(tmp_path / "COD10K-v3" / "Test" / "Image")
    file = tmp_path / "COD10K-v3" / "Test" / "CAM_Instance_Test.json"
    file.write_text(json.dumps(content))
    data = open_dataset(tmp_path, layout="cod10k", part="COD10K-test-instances")
    assert len(data) == 3
    assert data.sets == ("COD10K-test-instances",)
    _targets_fit(data)


# leaks


@pytest.mark.parametrize(
    ("layout", "part", "trained_on", "expected"),
    [
        ("duts", None, ["HQSeg44K"], ("DUTS-TE",)),
        ("duts", None, ["hqseg-44k"], ("DUTS-TE",)),
        ("duts", None, ["DUTS", "DUTS-TR"], ()),
        ("duts", "DUTS-TR", ["DUTS"], ("DUTS-TR",)),
        ("hqseg44k", None, ["HQSeg44K"], ()),
        ("hqseg44k", "DUTS-TE", ["HQSeg44K"], ("DUTS-TE",)),
        ("hqseg44k", None, ["DIS5K", "DIS5K-VD"], ("DIS-VD",)),
        ("hqseg44k", "MSRA-10K", ["MSRA10K"], ("MSRA-10K",)),
        ("dis5k", "DIS-TR", ["HQSeg44K"], ("DIS-TR",)),
        ("davis", None, [], ()),
    ],
)
def test_what_a_model_has_seen_is_named(layout, part, trained_on, expected, tmp_path):
    _published(tmp_path, layout)
    data = open_dataset(tmp_path, layout=layout, part=part)
    assert leaks(data, dict.fromkeys(trained_on, ())) == expected


def test_plain_folders_are_known_by_their_names_or_their_pictures(plain):
    data = open_dataset(plain)
    assert leaks(data, {"Garden": []}) == ("garden",)
    assert leaks(data, {"HQSeg44K": [], "COCO": []}) == ()
    # Pictures decide where they are listed: another set may have the same name.
    assert leaks(data, {"garden": ["0123456789abcdef"]}) == ()
    seen = picture_checksum(data.objects[-1].image)
    assert leaks(data, {"x": ["0123456789abcdef"], "meadow": [seen]}) == ("garden",)


# real ones


def test_real_sets(shared_data):
    davis = open_dataset(shared_data / "val" / "davis2016val", strict=True)
    assert len(davis) == 50
    _targets_fit(davis)
    both = open_dataset(shared_data / "val", part="carrotweed")
    assert {ref.size_hw for ref in both.objects} == {(1536, 2048)}
    assert both.problems == ()
