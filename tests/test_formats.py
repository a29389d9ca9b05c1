"""Formats: what is written is read back, and damaged files are told where."""

import base64
import io
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from anyres.data.formats import files
from anyres.data.formats.annotations import Annotated, Annotation, pack, unpack
from anyres.data.formats.coco import read_coco, read_sa1b, write_coco, write_sa1b
from anyres.data.formats.geojson import read_geojson, write_geojson
from anyres.data.formats.labelme import read_labelme, write_labelme
from anyres.data.formats.png import read_png, write_binary, write_ids
from anyres.data.formats.polygons import fill, fill_all, outline
from anyres.data.formats.yolo import read_yolo, write_yolo
from anyres.errors import ImageError, InputError, MissingExtraError

pytest.importorskip("cv2")
codes = pytest.importorskip("pycocotools.mask")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FEW = settings(max_examples=30)  # every one writes a file
SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))
MASKS = SIDES.flatmap(lambda size: arrays(np.bool_, size))
CLASSES = ("cat", "dog", "object")


@st.composite
def pictures(draw):
    """Up to three objects that may overlap, with and without words."""
    size = draw(SIDES)
    annotations = tuple(
        Annotation(
            draw(arrays(np.bool_, size)),
            draw(st.sampled_from(CLASSES)),
            draw(st.none() | st.floats(0, 1)),
            number if draw(st.booleans()) else None,
        )
        for number in range(1, draw(st.integers(0, 3)) + 1)
    )
    return Annotated("pictures/cat 1.jpg", size, annotations)


def _same(read, written, *, words=("category", "score"), empty=True):
    kept = [each for each in written.annotations if empty or each.mask.any()]
    assert read.size_hw == written.size_hw
    assert read.image == written.image
    assert len(read.annotations) == len(kept)
    for one, other in zip(read.annotations, kept, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        for word in words:
            assert getattr(one, word) == getattr(other, word)


def _special():
    ring = np.ones((7, 8), np.bool_)
    ring[2:5, 2:6] = False
    ring[3, 3] = True  # an island in the hole
    comb = np.zeros((5, 6), np.bool_)
    comb[::2, ::2] = comb[1::2, 1::2] = True
    one = np.zeros((4, 3), np.bool_)
    one[3, 2] = True
    return {
        "empty": np.zeros((3, 4), np.bool_),
        "full": np.ones((3, 4), np.bool_),
        "one pixel": one,
        "island in a hole": ring,
        "touching at corners": comb,
        "holes touching at corners": ~comb,
    }


# polygons


@given(MASKS)
def test_an_outline_filled_is_the_mask(mask):
    polygons = outline(mask)
    np.testing.assert_array_equal(fill_all(polygons, mask.shape), mask)
    rings = [ring for polygon in polygons for ring in polygon]
    np.testing.assert_array_equal(fill(rings, mask.shape), mask)
    parts = np.zeros(mask.shape, int)
    for polygon in polygons:
        parts += fill(polygon, mask.shape)
        for place, ring in enumerate(polygon):
            x, y = ring.T
            clockwise = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() > 0
            assert clockwise == (place == 0)
    assert parts.max() <= 1


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("empty", []),
        ("full", [1]),
        ("one pixel", [1]),
        ("island in a hole", [2, 1]),
        ("touching at corners", [1] * 15),
    ],
)
def test_parts_and_holes_are_told_apart(name, shape):
    assert [len(polygon) for polygon in outline(_special()[name])] == shape


def test_corners_are_those_of_the_pixels():
    mask = np.zeros((4, 5), np.bool_)
    mask[1:3, 2:5] = True
    assert outline(mask)[0][0].tolist() == [[2, 1], [5, 1], [5, 3], [2, 3]]


def test_a_pixel_is_inside_if_its_centre_is():
    square = np.array([(0.4, 0.4), (2.6, 0.4), (2.6, 1.6), (0.4, 1.6)])
    expected = np.zeros((3, 4), np.bool_)
    expected[0:2, 0:3] = True
    np.testing.assert_array_equal(fill([square], (3, 4)), expected)
    np.testing.assert_array_equal(fill([square + 0.2], (3, 4))[0], [0, 0, 0, 0])
    outside = np.array([(-5.0, -5.0), (50, -5), (50, 50), (-5, 50)])
    assert fill([outside], (3, 4)).all()
    assert not fill([outside + 100], (3, 4)).any()
    assert not fill([], (3, 4)).any()


@given(st.lists(st.tuples(st.floats(-3, 12), st.floats(-3, 12)), min_size=3, max_size=8))
def test_filling_is_the_even_odd_rule(corners):
    ring = np.array(corners)
    mask = fill([ring], (8, 9))
    for y in range(8):
        for x in range(9):
            left = 0  # borders to the left of the centre
            for edge in zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True):
                (x0, y0), (x1, y1) = sorted(edge, key=lambda point: point[1])
                if (y0 <= y + 0.5) != (y1 <= y + 0.5):
                    left += x0 + (y + 0.5 - y0) * ((x1 - x0) / (y1 - y0)) <= x + 0.5
            assert mask[y, x] == (left % 2 == 1)


def test_outlines_with_holes_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    two = np.zeros((9, 4), np.bool_)
    two[:3, :3] = two[5:8, :3] = True
    assert len(outline(two)) == 2
    two[1, 1] = False
    with pytest.raises(MissingExtraError, match=r"anyres\[eval\]"):
        outline(two)


# round trips


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("formats") / "file"


@pytest.mark.parametrize("style", ["rle", "counts", "polygon"])
def test_coco_comes_back(style, file):
    @FEW
    @given(st.lists(pictures(), max_size=2))
    def check(written):
        if len(written) > 1:  # ids are unique in a file
            written[1] = Annotated(
                "other.png",
                written[1].size_hw,
                tuple(Annotation(a.shape, a.category, a.score) for a in written[1].annotations),
            )
        write_coco(file, written, style)
        read = read_coco(file)
        assert len(read) == len(written)
        for one, other in zip(read, written, strict=True):
            _same(one, other)
            numbers = [each.id for each in other.annotations]
            assert all(
                given in (None, each.id)
                for each, given in zip(one.annotations, numbers, strict=True)
            )

    check()


@pytest.mark.parametrize(
    ("write", "read", "options"),
    [
        (write_sa1b, read_sa1b, {}),
        (write_geojson, read_geojson, {}),
        (write_labelme, read_labelme, {"empty": False}),
    ],
    ids=["sa1b", "geojson", "labelme"],
)
def test_files_of_a_picture_come_back(write, read, options, file):
    @FEW
    @given(pictures())
    def check(written):
        write(file, written)
        _same(read(file), written, **options)

    check()
    for name, mask in _special().items():
        written = Annotated(name, mask.shape, (Annotation(mask, "cat"),))
        write(file, written)
        _same(read(file), written, **options)


def test_yolo_comes_back(file):
    def back(written):
        write_yolo(file, written, CLASSES)
        read = read_yolo(file, image=written.image, size_hw=written.size_hw, classes=CLASSES)
        _same(read, written, words=("category",), empty=False)

    FEW(given(pictures())(back))()
    for mask in _special().values():
        back(Annotated("a.png", mask.shape, (Annotation(mask, "dog"),)))
    large = np.zeros((1237, 3001), np.bool_)
    large[100:1200:7, 5:2990] = True
    large[301:303, 400:900] = False
    back(Annotated("a.png", large.shape, (Annotation(large, "cat"),)))


@pytest.mark.parametrize("palette", [True, False])
def test_maps_of_ids_come_back(palette, file):
    @FEW
    @given(arrays(np.uint16, (5, 6), elements=st.sampled_from([0, 1, 2, 7, 254])))
    def check(values):
        ids = [int(value) for value in np.unique(values) if value]
        objects = tuple(Annotation(values == number, id=number) for number in ids)
        written = Annotated("a.png", values.shape, objects)
        write_ids(file, written, palette=palette)
        _same(read_png(file, image="a.png", kind="instance"), written, words=("id",))
        with Image.open(file) as stored:
            assert stored.mode == ("P" if palette else "I;16")
            np.testing.assert_array_equal(np.asarray(stored), values)

    check()


@FEW
@given(mask=MASKS)
def test_a_binary_map_comes_back(mask, file):
    written = Annotated("a.png", mask.shape, (Annotation(mask),))
    write_binary(file, written)
    _same(read_png(file, image="a.png"), written, words=("id",), empty=False)
    assert set(np.unique(np.asarray(Image.open(file)))) <= {0, 255}


@given(mask=MASKS)
def test_run_lengths_are_those_of_pycocotools(mask):
    packed = pack(mask)
    assert packed == codes.encode(np.asfortranarray(mask.astype(np.uint8)))
    np.testing.assert_array_equal(unpack(packed), mask)
    shape = Annotation(packed, "cat")
    assert shape.size_hw == mask.shape
    np.testing.assert_array_equal(shape.mask, mask)


# what is in the files


def test_coco_is_as_its_own_library_reads_it(file, capsys):
    from pycocotools.coco import COCO

    ring = _special()["island in a hole"]
    block = np.zeros(ring.shape, np.bool_)
    block[1:4, 2:7] = True
    written = Annotated("a.jpg", ring.shape, (Annotation(ring, "cat", 0.5), Annotation(block)))
    for style in ("rle", "counts", "polygon"):
        write_coco(file, [written], style)
        coco = COCO(str(file))
        for each, number in zip(written.annotations, coco.getAnnIds(), strict=True):
            stored = coco.loadAnns(number)[0]
            np.testing.assert_array_equal(coco.annToMask(stored), each.mask)
            assert stored["area"] == each.mask.sum()
    assert isinstance(coco.loadAnns(1)[0]["segmentation"], dict)  # a polygon has no holes
    assert coco.loadAnns(2)[0]["segmentation"] == [[2, 1, 7, 1, 7, 4, 2, 4]]
    assert coco.loadAnns(2)[0]["bbox"] == [2, 1, 5, 3]
    assert [each["name"] for each in coco.dataset["categories"]] == ["cat", "object"]
    capsys.readouterr()


def test_coco_leaves_crowds_out_and_keeps_pictures_without_objects(file):
    mask = _special()["full"]
    written = [Annotated("a.jpg", (3, 4), (Annotation(mask), Annotation(mask))),
               Annotated("b.jpg", (2, 2), ())]  # fmt: skip
    write_coco(file, written)
    content = json.loads(file.read_text())
    content["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    read = read_coco(file)
    assert [[each.id for each in picture.annotations] for picture in read] == [[2], []]


def test_sa1b_has_its_fields(file):
    mask = _special()["one pixel"]
    write_sa1b(file, Annotated("sa_1.jpg", mask.shape, (Annotation(mask, score=0.75),)))
    content = json.loads(file.read_text())
    assert content["image"] == {"image_id": 1, "width": 3, "height": 4, "file_name": "sa_1.jpg"}
    (entry,) = content["annotations"]
    assert entry["predicted_iou"] == 0.75
    assert (entry["area"], entry["bbox"]) == (1, [2, 3, 1, 1])
    np.testing.assert_array_equal(codes.decode(entry["segmentation"]), mask)


def test_labelme_groups_parts_and_stores_holes_as_pixels(file):
    two = np.zeros((7, 8), np.bool_)
    two[0, 0] = two[5, 3:6] = True
    ring = _special()["island in a hole"]
    write_labelme(file, Annotated("a.jpg", (7, 8), (Annotation(two, "cat"), Annotation(ring))))
    first, second, third = json.loads(file.read_text())["shapes"]
    assert first["group_id"] == second["group_id"] == 1
    assert second["points"] == [[3, 5], [6, 5], [6, 6], [3, 6]]
    assert (third["shape_type"], third["label"]) == ("mask", "object")
    assert third["points"] == [[0, 0], [7, 6]]
    stored = Image.open(io.BytesIO(base64.b64decode(third["mask"])))
    np.testing.assert_array_equal(np.asarray(stored) > 0, ring)


def test_labelme_shapes_that_people_draw(file):
    def shape(kind, points):
        return {"label": "a", "points": points, "shape_type": kind, "group_id": None}

    def masks(*shapes):
        content = {"imagePath": "a.jpg", "imageHeight": 8, "imageWidth": 9, "shapes": shapes}
        file.write_text(json.dumps(content))
        return [each.mask for each in read_labelme(file).annotations]

    box, disc, triangle = masks(
        shape("rectangle", [[5, 6], [2, 1]]),
        shape("circle", [[4, 4], [4, 2]]),
        shape(None, [[0, 0], [8, 0], [0, 8]]),
    )
    assert box.sum() == 15
    assert box[1:6, 2:5].all()
    assert (disc.sum(), disc[3, 3], disc[2, 2]) == (12, True, False)
    assert triangle.sum() == 28
    for kind in ("point", "line", "linestrip"):
        with pytest.raises(InputError, match=rf"shapes\[0\].*{kind}, which has no area"):
            masks(shape(kind, [[1, 1], [2, 2]]))


def test_yolo_lines_are_shares(file):
    mask = np.zeros((4, 8), np.bool_)
    mask[1:3, 2:6] = True
    write_yolo(file, Annotated("a.jpg", (4, 8), (Annotation(mask, "dog"),)), ["cat", "dog"])
    assert file.read_text() == "1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75 0.25 0.25\n"
    with pytest.raises(InputError, match="'cow' is none of the classes"):
        write_yolo(file, Annotated("a.jpg", (4, 8), (Annotation(mask, "cow"),)), ["cat"])


def test_geojson_is_valid_and_turns_as_the_rfc_asks(file):
    ring = _special()["island in a hole"]
    empty = np.zeros(ring.shape, np.bool_)
    write_geojson(
        file, Annotated("a.jpg", ring.shape, (Annotation(ring, "cat"), Annotation(empty)))
    )
    content = json.loads(file.read_text())
    first, second = content["features"]
    assert content["size_hw"] == [7, 8]
    assert second["geometry"] is None
    assert first["geometry"]["type"] == "MultiPolygon"
    for polygon in first["geometry"]["coordinates"]:
        for place, line in enumerate(polygon):
            assert line[0] == line[-1]
            x, y = np.array(line).T
            area = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2
            assert (area > 0) == (place == 0)


def test_other_peoples_geojson_needs_the_size(file):
    square = [[[1, 1], [3, 1], [3, 2.9], [1, 2.9], [1, 1]]]
    feature = {"type": "Feature", "properties": None,
               "geometry": {"type": "Polygon", "coordinates": square}}  # fmt: skip
    file.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    with pytest.raises(InputError, match="size_hw"):
        read_geojson(file)
    read = read_geojson(file, image="a.jpg", size_hw=(4, 5))
    assert read.image == "a.jpg"
    assert read.annotations[0].mask.sum() == 4


# what cannot be written


def test_masks_in_a_map_must_not_overlap(file):
    one, other = np.zeros((2, 4, 5), np.bool_)
    one[1:3, 1:4] = other[2, 3] = True
    picture = Annotated("a.png", (4, 5), (Annotation(one, id=3), Annotation(other, id=9)))
    with pytest.raises(InputError, match="objects 3 and 9 overlap, at x=3 y=2"):
        write_ids(file, picture)


@pytest.mark.parametrize(
    ("ids", "palette", "message"),
    [
        ((1, None), False, "some of the objects"),
        ((4, 4), False, "the same id"),
        ((1, 255), True, "write 16"),
        ((0, 1), False, "1 to 65535"),
        ((1, 70000), False, "1 to 65535"),
    ],
)
def test_ids_must_fit_the_map(ids, palette, message, file):
    masks = np.zeros((2, 2, 2), np.bool_)
    objects = tuple(Annotation(mask, id=number) for mask, number in zip(masks, ids, strict=True))
    with pytest.raises(InputError, match=message):
        write_ids(file, Annotated("a.png", (2, 2), objects), palette=palette)


def test_what_does_not_fit_together_is_named(file):
    mask = np.zeros((2, 3), np.bool_)
    with pytest.raises(InputError, match=r"mask 2 of a.png is \(2, 3\), the picture \(3, 2\)"):
        Annotated("a.png", (3, 2), (Annotation(mask.T), Annotation(mask)))
    with pytest.raises(InputError, match="must be bool"):
        Annotated("a.png", (2, 3), (Annotation(mask.astype(np.uint8)),))
    picture = Annotated("a.png", (2, 3), (Annotation(mask, id=4), Annotation(mask, id=4)))
    with pytest.raises(InputError, match="have the id 4"):
        write_coco(file, [picture])
    with pytest.raises(InputError, match="holds one object, not 2"):
        write_binary(file, picture)
    with pytest.raises(InputError, match="'xml'"):
        write_coco(file, [], "xml")


def test_without_pycocotools_the_extra_is_named(monkeypatch, file):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(MissingExtraError, match=r"anyres\[eval\]"):
        write_coco(file, [Annotated("a.png", (2, 3), (Annotation(np.ones((2, 3), np.bool_)),))])


# damaged files


def _coco(**changes):
    entry = {"id": 5, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 2]]}
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 2, "width": 3}],
        "annotations": [entry | changes],
        "categories": [{"id": 1, "name": "cat"}],
    }


DAMAGED = {
    "no object": (read_coco, [1], "it must be a JSON object"),
    "no images": (read_coco, {}, "there is no 'images'"),
    "image": (read_coco, {"images": [{"id": 1}], "annotations": []}, r"images\[0\].*'file_name'"),
    "size": (
        read_coco,
        {"images": [{"id": 1, "file_name": "a", "height": 0, "width": 3}], "annotations": []},
        "image 1: the picture is 3x0",
    ),
    "bomb": (
        read_coco,
        {"images": [{"id": 1, "file_name": "a", "height": 10**6, "width": 10**6}],
         "annotations": []},
        "must have 1 to",
    ),
    "unknown image": (read_coco, _coco(image_id=7), r"annotations\[0\]: there is no image 7"),
    "true": (read_coco, _coco(image_id=True), r"'image_id' is True; it must be of type int"),
    "four numbers": (read_coco, _coco(segmentation=[[0, 0, 3, 2]]), "annotation 5: polygon 1"),
    "odd": (read_coco, _coco(segmentation=[[0, 0, 3, 2, 1, 1, 1]]), "annotation 5: polygon 1"),
    "words": (read_coco, _coco(segmentation=[["x"] * 6]), "annotation 5: polygon 1"),
    "none": (read_coco, _coco(segmentation=[]), "annotation 5: it has no polygon"),
    "null": (read_coco, _coco(segmentation=None), "'segmentation' is None"),
    "other size": (
        read_coco, _coco(segmentation={"size": [3, 3], "counts": [9]}), r"for \[3, 3\], the picture"
    ),
    "short": (
        read_coco, _coco(segmentation={"size": [2, 3], "counts": [2, 3]}), "that add up"
    ),
    "negative": (
        read_coco, _coco(segmentation={"size": [2, 3], "counts": [-2, 8]}), "whole numbers from 0"
    ),
    "code": (
        read_coco, _coco(segmentation={"size": [2, 3], "counts": "zé"}), "compressed counts"
    ),
    "empty code": (
        read_coco, _coco(segmentation={"size": [2, 3], "counts": ""}), "compressed counts"
    ),
    "short code": (
        read_coco, _coco(segmentation={"size": [2, 3], "counts": "04"}), "compressed counts"
    ),
    "sa1b": (read_sa1b, {"annotations": []}, "image: there is no 'image'"),
    "sa1b annotation": (
        read_sa1b,
        {"image": {"height": 2, "width": 3, "file_name": "a"}, "annotations": [3]},
        r"annotations\[0\]: a int stands where",
    ),
    "labelme": (
        read_labelme,
        {"imagePath": "a", "imageHeight": 2, "imageWidth": 3,
         "shapes": [{"label": "a", "points": [[1, 1], [2, 2]]}]},
        r"shapes\[0\]: 'points' has 2 points",
    ),
    "labelme mask": (
        read_labelme,
        {"imagePath": "a", "imageHeight": 2, "imageWidth": 3, "shapes": [
            {"label": "a", "points": [[1, 1], [2, 2]], "shape_type": "mask", "mask": "####"}]},
        r"shapes\[0\]: its mask is no PNG",
    ),
    "geojson": (read_geojson, {"type": "Feature"}, "not 'FeatureCollection'"),
    "geojson ring": (
        read_geojson,
        {"type": "FeatureCollection", "size_hw": [3, 3], "features": [
            {"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, float("nan")]]]}}]},
        r"features\[0\]: ring 0 of polygon 0",
    ),
    "geojson line": (
        read_geojson,
        {"type": "FeatureCollection", "size_hw": [3, 3], "features": [
            {"geometry": {"type": "LineString", "coordinates": []}}]},
        "LineString, which has no area",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_told_where(name, tmp_path):
    read, content, message = DAMAGED[name]
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        read(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("read", [read_coco, read_sa1b, read_labelme, read_geojson])
def test_what_is_no_json_is_named(read, tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(InputError, match=r"a\.json cannot be read"):
        read(path)
    path.write_bytes(b'{"images": [')
    with pytest.raises(InputError, match=r"a\.json is no valid JSON"):
        read(path)
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(InputError, match=r"a\.json is no valid JSON"):
        read(path)


@given(mask=MASKS, cut=st.integers(0, 10), letter=st.integers(32, 126))
def test_damaged_run_lengths_never_pass_for_others(mask, cut, letter):
    from anyres.data.formats.coco import packed_of

    counts = pack(mask)["counts"].decode()
    place = cut % len(counts)
    damaged = counts[:place] + chr(letter) + counts[place + 1 :]
    size = list(mask.shape)
    for text in (damaged, counts[:place]):
        try:
            packed = packed_of({"size": size, "counts": text}, mask.shape)
        except InputError:
            continue
        again = codes.encode(np.asfortranarray(unpack(packed).astype(np.uint8)))
        assert codes.area(again) == codes.area(packed)  # every pixel was covered
    packed_of({"size": size, "counts": counts}, mask.shape)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.1 0.1 0.2", "three or more points"),
        ("0 0.5 0.5 0.1 0.1", "it is a box"),
        ("0 0.1 0.1 0.2 0.1 0.2 x", "no line of numbers"),
        ("3 0 0 1 0 1 1", "there is no class 3"),
        ("0 0 0 1 0 1 nan", "three or more points"),
    ],
)
def test_damaged_yolo_lines_are_named(line, message, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(f"0 0 0 1 0 1 1\n\n{line}\n")
    with pytest.raises(InputError, match=rf"a\.txt, line 3: .*{message}"):
        read_yolo(path, image="a.jpg", size_hw=(4, 4), classes=["cat"])
    with pytest.raises(InputError, match="cannot be read"):
        read_yolo(tmp_path / "none", image="a.jpg", size_hw=(4, 4), classes=["cat"])


def test_a_damaged_map_is_named(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 30)
    with pytest.raises(ImageError, match=r"a\.png"):
        read_png(path)


# by name


@pytest.mark.parametrize("name", files.SUFFIXES)
def test_every_format_is_written_by_its_name(name, tmp_path):
    mask = np.ones((4, 5), np.bool_)
    path = tmp_path / f"a{files.SUFFIXES[name]}"
    files.write(path, Annotated("a.jpg", (4, 5), (Annotation(mask),)), name)
    readers = {
        "png": read_png,
        "coco": lambda path: read_coco(path)[0],
        "labelme": read_labelme,
        "geojson": read_geojson,
        "sa1b": read_sa1b,
        "yolo": lambda path: read_yolo(path, image="a", size_hw=(4, 5), classes=["object"]),
    }
    np.testing.assert_array_equal(readers[name](path).annotations[0].mask, mask)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_format_is_found_by_the_ending(tmp_path):
    assert files.format_of(None, None) == "png"
    assert files.format_of(None, tmp_path / "a.PNG") == "png"
    assert files.format_of(None, tmp_path / "a.geojson") == "geojson"
    assert files.format_of("coco", tmp_path / "a.json") == "coco"
    with pytest.raises(InputError, match="coco, labelme, sa1b: say which"):
        files.format_of(None, tmp_path / "a.json")
    with pytest.raises(InputError, match="no known format"):
        files.format_of(None, tmp_path / "a.jpg")
    with pytest.raises(InputError, match="'xml'"):
        files.format_of("xml", None)


def test_yolo_with_a_byte_order_mark_and_windows_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("0 .1 .1 .5 .1 .5 .5\r\n1 .1 .1 .5 .1 .5 .5\r\n".encode("utf-8-sig"))
    found = read_yolo(path, image="a.jpg", size_hw=(40, 60), classes=["x", "y"])
    assert [each.category for each in found.annotations] == ["x", "y"]
