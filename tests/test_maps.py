import sys

import numpy as np
import pytest
from PIL import Image

from anyres.data.layouts.folder import FolderDataset
from anyres.data.maps import kind_of, objects_of
from anyres.errors import InputError, MissingExtraError


def _write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path):
    for stem in ("b", "a", "a__x", "lonely"):
        _write(tmp_path / "images" / f"{stem}.jpg", np.full((8, 10, 3), 90, np.uint8))
    binary = np.zeros((8, 10), np.uint8)
    binary[2:4, 3:5] = 255
    _write(tmp_path / "masks" / "b.png", binary)
    _write(tmp_path / "masks" / "a__o1.png", binary)
    _write(tmp_path / "masks" / "a__o2.png", 255 - binary)
    _write(tmp_path / "masks" / "a__x__o1.png", binary)
    _write(tmp_path / "masks" / "nobody.png", binary)
    (tmp_path / "masks" / "notes.txt").write_text("no map")
    return tmp_path


def test_a_map_goes_to_the_picture_with_the_longest_fitting_name(folder):
    data = FolderDataset(folder)
    assert len(data) == 3
    named = {entry.image.name: [path.name for path in entry.maps] for entry in data}
    assert named == {
        "a.jpg": ["a__o1.png", "a__o2.png"],
        "a__x.jpg": ["a__x__o1.png"],
        "b.jpg": ["b.png"],
    }
    assert data[2].image.name == "b.jpg"


def test_pictures_and_objects_are_read(folder):
    data = FolderDataset(folder)
    assert data.picture(0).shape == (8, 10, 3)
    assert data.picture(0).dtype == np.uint8
    objects = data.objects(0, 1)
    assert len(objects) == 1
    assert objects.ids == (255,)
    assert objects.mask(0).sum() == 76


def test_binary_maps_are_one_object_and_have_no_void():
    array = np.zeros((4, 6), np.uint8)
    array[1, 1] = array[3, 5] = 255
    for given in (array, array // 255, array > 0):
        objects = objects_of(given, "binary")
        assert len(objects) == 1
        assert objects.void is None
        assert objects.mask(0).sum() == 2
    assert len(objects_of(np.zeros((4, 6), np.uint8))) == 0


def test_instance_maps_keep_their_ids_and_void():
    array = np.array([[0, 7, 7, 255], [3, 3, 0, 7]], np.uint8)
    objects = objects_of(array, "instance")
    assert objects.ids == (3, 7)
    np.testing.assert_array_equal(objects.labels, [[0, 2, 2, 0], [1, 1, 0, 2]])
    np.testing.assert_array_equal(objects.void, array == 255)
    np.testing.assert_array_equal(objects.target(1), [[0, 1, 1, 255], [0, 0, 0, 1]])


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_wide_maps_have_no_void(dtype):
    array = np.array([[0, 255, 300], [70_000 % (1 << 16), 2, 2]], dtype)
    objects = objects_of(array)
    assert objects.ids == (2, 255, 300, 4464)
    assert objects.void is None
    assert [int(objects.mask(i).sum()) for i in range(4)] == [2, 1, 1, 1]


def test_ids_too_large_for_a_table():
    array = np.array([[0, 1 << 20, 5], [1 << 20, 1 << 24, 0]], np.int64)
    objects = objects_of(array)
    assert objects.ids == (5, 1 << 20, 1 << 24)
    np.testing.assert_array_equal(objects.labels, [[0, 2, 1], [2, 3, 0]])


def test_classes_fall_into_components():
    pytest.importorskip("cv2")
    array = np.array([[1, 0, 1, 2], [0, 1, 0, 2], [255, 255, 0, 1]], np.uint8)
    objects = objects_of(array, "class")
    # The first three ones touch at their corners.
    assert objects.ids == (1, 1, 2)
    assert sorted(int(objects.mask(i).sum()) for i in range(3)) == [1, 2, 3]
    assert int(objects.void.sum()) == 2
    for index in range(3):
        assert set(array[objects.mask(index)]) == {objects.ids[index]}


def test_kind_is_told_from_the_values():
    assert kind_of(np.array([[0, 255]], np.uint8)) == "binary"
    assert kind_of(np.array([[True]])) == "binary"
    assert kind_of(np.array([[0, 1, 255]], np.uint8)) == "instance"
    assert kind_of(np.array([[0, 255]], np.uint16)) == "instance"


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match="images"):
        FolderDataset(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="masks"):
        FolderDataset(tmp_path)
    with pytest.raises(InputError, match="panoptic"):
        objects_of(np.zeros((2, 2), np.uint8), "panoptic")
    with pytest.raises(InputError, match=r"\(2, 2, 3\)"):
        objects_of(np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(InputError, match="float32"):
        objects_of(np.zeros((2, 2), np.float32))
    with pytest.raises(InputError, match="has 1 objects"):
        objects_of(np.full((2, 2), 255, np.uint8)).mask(1)


def test_classes_without_opencv_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"anyres\[eval\]"):
        objects_of(np.ones((2, 2), np.uint8), "class")


def test_the_real_sets_read_as_their_readme_says(shared_data):
    davis = FolderDataset(shared_data / "val" / "davis2016val")
    assert len(davis) == 50
    assert len(davis.objects(0)) == 1
    nuclei = FolderDataset(shared_data / "train" / "dsb2018")
    assert len(nuclei) == 150
    assert len(nuclei.objects(0)) > 1
    segments = FolderDataset(shared_data / "train" / "bsds500")
    assert len(segments) == 480
    assert sum(len(entry.maps) for entry in segments) == 1440
    objects = segments.objects(0, 2)
    assert objects.labels.shape == segments.picture(0).shape[:2]
    assert (objects.labels > 0).all()
