"""Composed scenes: masks are what was drawn, seeds repeat them, sets are whole or go on."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

cv2 = pytest.importorskip("cv2")

from anyres.cli.main import app  # noqa: E402
from anyres.data import scene_sets, scenes  # noqa: E402
from anyres.data.augment import CutOut, paste  # noqa: E402
from anyres.data.datasets import leaks, open_dataset, picture_checksum  # noqa: E402
from anyres.data.details import DETAILED, Mark, render  # noqa: E402
from anyres.data.images import read_image, read_mask  # noqa: E402
from anyres.data.scene_notes import LABEL, NOTES  # noqa: E402
from anyres.data.scene_sets import SceneSet, find_objects, find_photos, write_set  # noqa: E402
from anyres.errors import InputError, OutputError  # noqa: E402
from anyres.train.config import load_config  # noqa: E402
from anyres.train.embeddings import find_views, seen_in  # noqa: E402
from anyres.train.loading import Share  # noqa: E402
from anyres.train.objectives import find_task  # noqa: E402

CENTRE = np.array([400.0, 300.0])


def photograph(height=260, width=320, seed=0):
    rng = np.random.default_rng(seed)
    rough = rng.integers(0, 256, (9, 12, 3), np.uint8)
    fine = rng.integers(-9, 10, (height, width, 1))
    return (cv2.resize(rough, (width, height)) + fine).clip(0, 255).astype(np.uint8)


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        Image.fromarray(photograph(seed=seed)).save(tmp_path / "photos" / f"p{seed}.png")
    return tmp_path / "photos"


@pytest.fixture
def objects(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / "things" / folder).mkdir(parents=True)
    mask = np.zeros((80, 100), np.uint8)
    cv2.circle(mask, (50, 40), 30, 255, -1)
    Image.fromarray(photograph(80, 100, 9)).save(tmp_path / "things" / "images" / "t.png")
    Image.fromarray(mask).save(tmp_path / "things" / "masks" / "t.png")
    return tmp_path / "things"


def scene_set(photos, objects=None, **changes):
    things = () if objects is None else find_objects(objects)
    made = SceneSet(find_photos(photos), things, (192, 256), 4, 1)
    return replace(made, **changes)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# what is drawn


@pytest.mark.parametrize("draw", DETAILED, ids=lambda draw: draw.__name__)
def test_a_window_shows_what_the_whole_shows_there(draw):
    for seed in range(4):
        drawing = draw(500, np.random.default_rng(seed))
        whole = render(drawing, (600, 800), CENTRE)
        window = render(drawing, (200, 150), CENTRE - (310, 120))
        part = whole[120:320, 310:460]
        assert (part != window).mean() < 1e-3
        assert np.abs(part.astype(int) - window).max() < 40
        assert 0.001 < (whole >= 128).mean() < 0.6


@pytest.mark.parametrize("draw", DETAILED[:-1], ids=lambda draw: draw.__name__)
def test_details_are_lost_when_a_scene_is_scaled_down(draw):
    """A quarter of the pixels a side and back costs far more than it costs a plain form."""

    def iou(drawing):
        alpha = render(drawing, (1600, 1600), np.array([800.0, 800.0]))
        small = cv2.resize(alpha, (400, 400), interpolation=cv2.INTER_AREA)
        back = cv2.resize(small, (1600, 1600), interpolation=cv2.INTER_LINEAR) >= 128
        return (back & (alpha >= 128)).sum() / (back | (alpha >= 128)).sum()

    worst = min(iou(draw(1200, np.random.default_rng(seed))) for seed in range(3))
    assert worst < 0.985
    assert iou([Mark(np.array([[-400.0, -400], [400, -400], [0, 400]]))]) > 0.99


def test_widths_are_in_pixels_whatever_the_extent():
    """Threads of a net twice as large are no thicker."""
    for draw in DETAILED[:2]:
        one, two = (draw(e, np.random.default_rng(3)) for e in (600, 1200))
        widths = [{round(m.width, 6) for m in d if m.width} for d in (one, two)]
        assert widths[0] == widths[1]


@pytest.mark.parametrize("seed", range(12))
def test_the_mask_is_where_the_object_covers_half(monkeypatch, seed):
    """White over black, without light, shadow or noise: what is seen is the coverage."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(scenes, "_front", lambda part, *_: np.full_like(part, 255))
    monkeypatch.setattr(scenes, "_shadow", lambda *_: None)
    drawing = DETAILED[seed % len(DETAILED)](300, rng)
    alpha = render(drawing, (320, 400), np.array([200.0, 160.0]))
    image = np.zeros((320, 400, 3), np.uint8)

    class Flat:
        """No slope of light."""

        random, uniform = rng.random, rng.uniform

        def normal(self, *_):
            return np.zeros(2)

    found = scenes._lay(image, alpha, photograph(), Flat())
    np.testing.assert_array_equal(found, (image[..., 0] >= 128).astype(np.uint8))


def test_a_cut_out_covers_half_where_its_mask_is(monkeypatch):
    monkeypatch.setattr("anyres.data.augment._relight", lambda front, *_: front)
    monkeypatch.setattr("anyres.data.augment._shadow", lambda *_: None)
    mask = np.zeros((60, 60), np.uint8)
    cv2.ellipse(mask, (30, 30), (22, 12), 30, 0, 360, 1, -1)
    cut = CutOut(np.full((60, 60, 3), 255, np.uint8), mask, (False,) * 4)
    for seed in range(5):
        image = np.zeros((200, 200, 3), np.uint8)
        found = paste(image, cut, 90, np.random.default_rng(seed))
        np.testing.assert_array_equal(found, (image[..., 0] >= 128).astype(np.uint8))


def test_holes_show_what_lies_behind():
    """Pixels in a hole are not the object's, and stay as they were but for the shadow."""
    square = np.array([[-80.0, -80], [80, -80], [80, 80], [-80, 80]])
    alpha = render([Mark(square), Mark(square / 2, None, 0)], (200, 200), np.array([100.0, 100.0]))
    image = np.full((200, 200, 3), 128, np.uint8)
    found = scenes._lay(image, alpha, photograph(), np.random.default_rng(2))
    assert not found[70:130, 70:130].any()
    assert found[30, 30:170].all()
    assert (np.ptp(image[75:125, 75:125].reshape(-1, 3), axis=0) <= 90).all()
    assert (image[75:125, 75:125] <= 128).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(64, 400), st.integers(64, 400), st.integers(0, 1000))
def test_scenes_of_any_size_and_aspect(height, width, seed):
    made = [
        scenes.compose(
            photograph(), [photograph(seed=1)], [], (height, width), np.random.default_rng(seed)
        )
        for _ in range(2)
    ]
    assert made[0].image.shape == (height, width, 3)
    assert made[0].image.dtype == np.uint8
    np.testing.assert_array_equal(made[0].image, made[1].image)
    if made[0].masks:
        assert np.sum(made[0].masks, axis=0, dtype=int).max() == 1
    for one, other in zip(made[0].masks, made[1].masks, strict=True):
        assert one.shape == (height, width)
        assert one.mean() >= scenes.LEAST
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size_hw", [(100, 100), (300, 200), (640, 900), (1000, 64)])
def test_a_backdrop_has_the_photographs_colours(size_hw):
    photo = photograph(300, 420)
    made = scenes.backdrop(photo, size_hw, np.random.default_rng(0))
    assert made.shape == (*size_hw, 3)
    assert made.flags.writeable
    assert abs(float(made.mean()) - float(photo.mean())) < 35


def test_a_backdrop_that_is_scaled_up_has_grain():
    photo = photograph()
    made = scenes.backdrop(photo, (1040, 1280), np.random.default_rng(0)).astype(np.float32)
    plain = cv2.resize(photo, (1280, 1040), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    fine = [float(np.abs(x - cv2.GaussianBlur(x, (0, 0), 1)).mean()) for x in (made, plain)]
    assert fine[0] > 1.5 * fine[1]


# sets


def test_a_set_is_a_data_set_that_says_what_it_is(photos, objects, tmp_path):
    out = tmp_path / "made"
    counts = list(write_set(out, scene_set(photos, objects, count=6)))
    assert counts == [0, 1, 2, 3, 4, 5, 6]
    data = open_dataset(out, strict=True, smallest=0)
    assert data.sets == (f"made{LABEL}",)
    assert len({ref.image for ref in data.objects}) == 6
    assert len(open_dataset(out, part="made")) == len(open_dataset(out, part=data.sets[0]))
    notes = json.loads((out / NOTES).read_text())
    assert notes["semi_synthetic"] is True
    assert (notes["seed"], notes["size_hw"], notes["count"]) == (1, [192, 256], 6)
    assert set(notes["sources"]) == {
        picture_checksum(path) for path in (*photos.iterdir(), objects / "images" / "t.png")
    }
    assert all(set(used) <= set(notes["sources"]) for used in notes["scenes"].values())


def test_masks_are_those_of_the_scene(photos, tmp_path):
    made = scene_set(photos, count=2)
    list(write_set(tmp_path / "made", made))
    for number in range(2):
        scene = made.scene(number)
        files = sorted((tmp_path / "made" / "masks").glob(f"scene_{number:05d}__*.png"))
        for path, mask in zip(files, scene.masks, strict=True):
            np.testing.assert_array_equal(read_mask(path), mask * 255)
        image = read_image(tmp_path / "made" / "images" / f"scene_{number:05d}.jpg")
        assert np.abs(image.astype(int) - scene.image).mean() < 4


def test_the_same_seed_gives_the_same_bytes_in_any_number_of_processes(photos, objects, tmp_path):
    made = scene_set(photos, objects)
    list(write_set(tmp_path / "one", made))
    list(write_set(tmp_path / "two", made, workers=2))
    list(write_set(tmp_path / "other", replace(made, seed=2)))
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert len(one) >= 9
    assert all(other[name] != one[name] for name in one if name.suffix == ".jpg")


def test_a_stopped_set_goes_on(photos, tmp_path):
    made = scene_set(photos)
    list(write_set(tmp_path / "whole", made))
    half = write_set(tmp_path / "half", made)
    assert [next(half), next(half), next(half)] == [0, 1, 2]
    half.close()
    (tmp_path / "half" / "images" / ".anyres-0123456789abcdef.tmp").write_bytes(b"torn")
    kept = (tmp_path / "half" / "images" / "scene_00000.jpg").stat().st_mtime_ns
    assert list(write_set(tmp_path / "half", made)) == [2, 3, 4]
    assert contents(tmp_path / "half") == contents(tmp_path / "whole")
    assert (tmp_path / "half" / "images" / "scene_00000.jpg").stat().st_mtime_ns == kept
    assert list(write_set(tmp_path / "half", made)) == [4]


def test_a_kill_before_the_notes_leaves_a_folder_that_can_be_used(photos, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / ".anyres-0123456789abcdef.tmp").write_bytes(b"{")
    made = scene_set(photos, count=1)
    assert list(write_set(tmp_path / "made", made)) == [0, 1]
    assert not list(tmp_path.glob("made/.anyres*"))


def test_other_settings_or_other_files_are_refused(photos, tmp_path):
    made = scene_set(photos)
    list(write_set(tmp_path / "made", made))
    before = contents(tmp_path / "made")
    for other in (replace(made, seed=3), replace(made, count=9), replace(made, size_hw=(99, 99))):
        with pytest.raises(InputError, match="other settings"):
            next(write_set(tmp_path / "made", other))
    with pytest.raises(InputError, match="something else"):
        next(write_set(photos, made))
    with pytest.raises(InputError, match="something else"):
        next(write_set(photos / "p0.png", made))
    assert contents(tmp_path / "made") == before


def test_a_full_disk_leaves_no_part_of_a_file(photos, tmp_path, monkeypatch):
    made = scene_set(photos)

    def full(*_):
        raise OSError(28, "No space left on device")

    running = write_set(tmp_path / "made", made)
    next(running)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            next(running)
    names = [path.name for path in contents(tmp_path / "made")]
    assert names == [NOTES]
    assert list(write_set(tmp_path / "made", made))[-1] == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_closed_folder(photos, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="cannot be made"):
        next(write_set(tmp_path / "closed" / "made", scene_set(photos)))


def test_a_folder_that_cannot_be_made(photos):
    with pytest.raises(OutputError, match="cannot be made"):
        next(write_set(photos / "p0.png" / "made", scene_set(photos)))


def test_sources_that_cannot_be_used(photos, tmp_path):
    (tmp_path / "empty" / "images").mkdir(parents=True)
    for folder, message in ((tmp_path / "nowhere", "not exist"), (tmp_path / "empty", "holds no")):
        with pytest.raises(InputError, match=message):
            find_photos(folder)
    with pytest.raises(InputError, match="no folder images"):
        find_objects(photos)
    with pytest.raises(InputError, match="nothing to cut"):
        find_objects(tmp_path / "empty")
    (tmp_path / "tiny").mkdir()
    Image.new("RGB", (300, 90)).save(tmp_path / "tiny" / "t.png")
    with pytest.raises(InputError, match=r"t\.png is 300x90; photographs need at least 240"):
        list(write_set(tmp_path / "made", scene_set(tmp_path / "tiny")))
    for size_hw in ((63, 100), (100, 4097)):
        with pytest.raises(InputError, match="64 to 4096"):
            scene_set(photos, size_hw=size_hw)


def test_an_empty_map_just_gives_no_cut_out(photos, objects, tmp_path):
    Image.new("L", (100, 80)).save(objects / "masks" / "t.png")
    assert list(write_set(tmp_path / "made", scene_set(photos, objects)))[-1] == 4


# leaks and labels


def test_a_model_trained_on_a_source_is_found_out(photos, objects, tmp_path):
    list(write_set(tmp_path / "made", scene_set(photos, objects, count=8)))
    data = open_dataset(tmp_path / "made")
    assert leaks(data, {"things": [picture_checksum(objects / "images" / "t.png")]}) == data.sets
    assert leaks(data, {"x": [picture_checksum(photos / "p1.png")]}) == data.sets
    assert leaks(data, {"x": ["0" * 16]}) == ()
    assert leaks(data, {"Made": []}) == data.sets


def test_training_on_scenes_is_training_on_their_sources(photos, objects, tmp_path):
    list(write_set(tmp_path / "sets" / "made", scene_set(photos, objects, count=8)))
    sources = set(json.loads((tmp_path / "sets" / "made" / NOTES).read_text())["sources"])
    assert picture_checksum(objects / "images" / "t.png") in sources
    learned = find_task(load_config("scratch"), tmp_path / "sets", Share()).pictures
    assert sources < learned["made"]
    assert len(learned["made"]) == len(sources) + 8
    assert leaks(open_dataset(objects), {n: sorted(each) for n, each in learned.items()})
    # Pictures alone, for a teacher, too.
    assert seen_in(find_views(tmp_path / "sets", 1)) == learned["made"]


def test_damaged_notes_are_an_error(photos, tmp_path):
    list(write_set(tmp_path / "made", scene_set(photos, count=1)))
    for text in ("{", "[]", '{"sources": 3}'):
        (tmp_path / "made" / NOTES).write_text(text)
        with pytest.raises(InputError, match=r"scenes\.json"):
            open_dataset(tmp_path / "made")
    (tmp_path / "made" / NOTES).unlink()
    assert open_dataset(tmp_path / "made").sets == ("made",)


def test_the_command_and_the_label_in_every_report(photos, tmp_path):
    run = CliRunner().invoke
    out = tmp_path / "made"
    line = ["scenes", "--photos", str(photos), "--size", "128x96", "--count", "2", "--out"]
    done = run(app, [*line, str(out)])
    assert done.exit_code == 0, done.output
    assert read_image(out / "images" / "scene_00000.jpg").shape == (96, 128, 3)
    report, table = tmp_path / "r.json", tmp_path / "r.csv"
    options = f"--model grabcut --clicks 2 --data {out} --json {report} --csv {table}"
    scored = run(app, ["evaluate", *options.split()])
    assert scored.exit_code == 0, scored.output
    assert "semi-synthetic" in scored.output.replace("\n", "")
    assert list(json.loads(report.read_text())["sets"]) == [f"made{LABEL}"]
    assert LABEL in table.read_text().splitlines()[1]
    other = tmp_path / "s.json"
    shutil.copy(report, other)
    compared = run(app, ["compare", str(report), str(other)])
    assert "semi-synthetic" in compared.output
    assert isinstance(run(app, [*line, str(photos)]).exception, InputError)
    assert isinstance(run(app, [*line[:4], "axb", "--out", str(out)]).exception, InputError)


def test_real_pictures_make_scenes(shared_data):
    photo = shared_data / "val" / "alphamatting27"
    made = SceneSet(find_photos(photo), find_objects(photo), (512, 768), 5, 0)
    shares = []
    for number in range(5):
        scene = made.scene(number)
        shares += [float(mask.mean()) for mask in scene.masks]
    assert len(shares) >= 5
    assert max(shares) < 0.8


def test_large_windows_of_objects_for_training():
    found = [
        scenes.draw_detail(photograph(128, 128, seed), photograph(), np.random.default_rng(seed))
        for seed in range(40)
    ]
    shares = [float(mask.mean()) for mask in found if mask is not None]
    assert len(shares) >= 36
    assert sum(0.001 < share < 0.8 for share in shares) >= 30


def test_names_of_scenes_and_their_order_follow_from_the_seed(photos):
    made = scene_set(photos)
    assert [made.recipe(n).name for n in (0, 12)] == ["scene_00000", "scene_00012"]
    assert {made.recipe(n).photo.name for n in range(3)} == {"p0.png", "p1.png", "p2.png"}
    assert scene_sets.SceneSet(made.photos, (), (64, 64), 1, 1).recipe(2) == made.recipe(2)
