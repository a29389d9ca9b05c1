import json
import sys

import numpy as np
import pytest

from anyres.errors import InputError, MissingExtraError, StateError
from anyres.metrics.detection import NAMES, AveragePrecision, Instances

pytest.importorskip("pycocotools")


def pictures(count=12, seed=0):
    """Random boxes of all sizes as truth, and predictions that are off by a little or a lot."""
    rng = np.random.default_rng(seed)
    for picture in range(count):
        height, width = rng.integers(130, 200, 2)
        wanted, classes, crowds = [], [], []
        found, labels, scores = [], [], []
        for _ in range(rng.integers(0 if picture else 1, 5)):
            side = int(rng.choice([12, 50, 120]))
            y, x = rng.integers(0, height - side), rng.integers(0, width - side)
            mask = np.zeros((height, width), bool)
            mask[y : y + side, x : x + side] = True
            wanted.append(mask)
            classes.append(int(rng.integers(1, 4)))
            crowds.append(bool(rng.random() < 0.1))
            for _ in range(rng.integers(0, 3)):
                moved = np.roll(mask, rng.integers(-side // 5, side // 5 + 1, 2), (0, 1))
                found.append(moved)
                labels.append(classes[-1] if rng.random() < 0.8 else 2)
                scores.append(float(rng.random()))
        yield Instances(found, labels, scores), Instances(wanted, classes, crowds=crowds)


def directly(pairs, folder):
    """COCOeval on files, as its own examples do."""
    from pycocotools import mask as rle
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def encoded(mask):
        code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        return code | {"counts": code["counts"].decode()}

    truth = {"info": {}, "images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": number} for number in (1, 2, 3)]
    answers = []
    for number, (prediction, target) in enumerate(pairs, start=100):
        height, width = (prediction.masks or target.masks or [np.zeros((1, 1))])[0].shape
        truth["images"].append({"id": number, "height": height, "width": width})
        for place, mask in enumerate(target.masks):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number,
                    "category_id": target.classes[place],
                    "segmentation": encoded(mask),
                    "area": int(mask.sum()),
                    "bbox": [0, 0, 1, 1],
                    "iscrowd": int(target.crowds[place]),
                }
            )
        for place, mask in enumerate(prediction.masks):
            answers.append(
                {
                    "image_id": number,
                    "category_id": prediction.classes[place],
                    "segmentation": encoded(mask),
                    "score": prediction.scores[place],
                }
            )
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "answers.json").write_text(json.dumps(answers))
    coco = COCO(folder / "truth.json")
    scoring = COCOeval(coco, coco.loadRes(str(folder / "answers.json")), "segm")
    scoring.evaluate()
    scoring.accumulate()
    scoring.summarize()
    return scoring.stats[:6]


def test_as_coco_itself(tmp_path, capsys):
    pairs = list(pictures())
    expected = directly(pairs, tmp_path)
    capsys.readouterr()
    metric = AveragePrecision()
    for prediction, target in pairs:
        metric.update(prediction, target)
    found = metric.result()
    assert capsys.readouterr().out == ""
    assert found.pop("pictures") == len(pairs)
    assert list(found) == list(NAMES)
    np.testing.assert_allclose(list(found.values()), expected, rtol=0, atol=1e-12)
    assert 0.05 < found["ap"] < found["ap50"] < 1
    # Asking changes nothing.
    assert metric.result() == {"pictures": len(pairs), **found}


def test_run_lengths_are_masks_too_and_areas_sort():
    from pycocotools import mask as rle

    mask = np.zeros((60, 60), np.uint8)
    mask[:50, :50] = 1
    code = rle.encode(np.asfortranarray(mask))
    metric = AveragePrecision()
    metric.update(Instances([mask], [1], [0.5]), Instances([code], [1], areas=[500.0]))
    found = metric.result()
    assert found["ap"] == found["ap_small"] == pytest.approx(1)
    assert found["ap_medium"] == found["ap_large"] == -1


def test_nothing_found_and_nothing_there():
    mask = np.ones((5, 5), bool)
    metric = AveragePrecision()
    metric.update(Instances([], [], []), Instances([mask], [1]))
    assert metric.result()["ap"] == 0
    metric = AveragePrecision()
    metric.update(Instances([mask], [1], [0.9]), Instances([], []))
    assert metric.result()["ap"] == -1
    metric = AveragePrecision()
    metric.update(Instances([], [], []), Instances([], []))
    assert metric.result()["ap"] == -1


def test_bad_input_is_named(monkeypatch):
    mask = np.ones((5, 5), bool)
    with pytest.raises(InputError, match="1 masks, and 2 classes"):
        Instances([mask], [1, 2])
    metric = AveragePrecision()
    with pytest.raises(InputError, match="need scores"):
        metric.update(Instances([mask], [1]), Instances([mask], [1]))
    with pytest.raises(InputError, match="several sizes"):
        metric.update(Instances([mask], [1], [1.0]), Instances([mask[:3]], [1]))
    with pytest.raises(InputError, match="0 and 1 alone"):
        metric.update(Instances([mask * 7], [1], [1.0]), Instances([mask], [1]))
    with pytest.raises(StateError, match="no picture"):
        metric.result()
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(MissingExtraError, match=r'pip install "anyres\[eval\]"'):
        metric.update(Instances([mask], [1], [1.0]), Instances([mask], [1]))
