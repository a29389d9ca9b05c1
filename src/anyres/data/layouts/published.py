"""Where the published data sets keep their pictures and masks.

Each layout is a description; ``anyres.data.layouts.listing`` finds the files. Its parts have names
that are the same in every layout: HQSeg44K's DUTS-TE is that of DUTS, which is how it can be known
that a model has seen it.
"""

from dataclasses import dataclass
from typing import Final

from anyres.data.maps import Meaning


@dataclass(frozen=True)
class Part:
    """One part of a data set, whose results are reported apart.

    Attributes:
        name: what it is called, in results, too.
        places: (folder of pictures, folder of masks), the first that is there counts. Where both
            are one folder, JPEG files are the pictures and PNG files the masks. For annotations
            in COCO's format, (folder of pictures, JSON file).
        meaning: what the masks' values mean.
        ending: what follows a picture's stem in its mask's; ``#`` and digits may come after it.
        without: pictures whose names start so are left out.
    """

    name: str
    places: tuple[tuple[str, str], ...]
    meaning: Meaning = "bright"
    ending: str = ""
    without: str = ""


@dataclass(frozen=True)
class Layout:
    """A published data set.

    Attributes:
        parts: all its parts.
        default: names of the parts that papers score.
        inside: folders that people may have around it; the root may be the folder above them.
        every: whether papers score every object, however small or large.
    """

    parts: tuple[Part, ...]
    default: tuple[str, ...]
    inside: tuple[str, ...] = ()
    every: bool = True


def _mixed(name: str, folder: str) -> Part:
    return Part(name, ((folder, folder),), "drawn")


def _pair(name: str, *places: tuple[str, str], meaning: Meaning = "bright") -> Part:
    return Part(name, places, meaning)


def _dis(name: str, folder: str, meaning: Meaning) -> Part:
    return Part(name, ((f"{folder}{name}/im", f"{folder}{name}/gt"),), meaning)


_THIN: Final = "thin_object_detection"


def _duts(name: str) -> Part:
    images, masks = f"{name}-Image", f"{name}-Mask"
    return _pair(name, (f"{name}/{images}", f"{name}/{masks}"), (images, masks))


def _cod(split: str, *others: tuple[str, str]) -> Part:
    return Part(
        f"COD10K-{split.lower()}",
        ((f"{split}/Image", f"{split}/GT_Object"), *others),
        without="COD10K-NonCAM",
    )


def _cod_instances(split: str) -> Part:
    return Part(
        f"COD10K-{split.lower()}-instances",
        ((f"{split}/Image", f"{split}/CAM_Instance_{split}.json"),),
    )


def _isic(split: str) -> Part:
    return Part(
        f"ISIC2018-{split.lower()}",
        ((f"ISIC2018_Task1-2_{split}_Input", f"ISIC2018_Task1_{split}_GroundTruth"),),
        ending="_segmentation",
    )


def _coco(name: str) -> Part:
    annotations = f"annotations/instances_{name}.json"
    return Part(f"COCO-{name}", ((name, annotations), (f"images/{name}", annotations)))


LAYOUTS: Final[dict[str, Layout]] = {
    # https://github.com/SysCV/sam-hq, train/: "HQSeg-44K"
    "hqseg44k": Layout(
        (
            _dis("DIS-TR", "DIS5K/", "drawn"),
            _pair(
                "ThinObject5K-train",
                (f"{_THIN}/ThinObject5K/images_train", f"{_THIN}/ThinObject5K/masks_train"),
                meaning="drawn",
            ),
            _mixed("FSS", "cascade_psp/fss_all"),
            _mixed("DUTS-TR", "cascade_psp/DUTS-TR"),
            _mixed("DUTS-TE", "cascade_psp/DUTS-TE"),
            _mixed("ECSSD", "cascade_psp/ecssd"),
            _mixed("MSRA-10K", "cascade_psp/MSRA_10K"),
            _pair("COIFT", (f"{_THIN}/COIFT/images", f"{_THIN}/COIFT/masks"), meaning="drawn"),
            _pair(
                "HRSOD", (f"{_THIN}/HRSOD/images", f"{_THIN}/HRSOD/masks_max255"), meaning="drawn"
            ),
            _pair(
                "ThinObject5K-test",
                (f"{_THIN}/ThinObject5K/images_test", f"{_THIN}/ThinObject5K/masks_test"),
                meaning="drawn",
            ),
            _dis("DIS-VD", "DIS5K/", "drawn"),
        ),
        default=("COIFT", "HRSOD", "ThinObject5K-test", "DIS-VD"),
    ),
    # The 345 frames of https://github.com/SamsungLabs/ritm_interactive_segmentation. In another
    # copy that is about, masks are named 00001#001.png.
    "davis": Layout(
        (_pair("DAVIS", ("img", "gt"), meaning="drawn"),),
        default=("DAVIS",),
        inside=("DAVIS",),
    ),
    "grabcut": Layout(
        (_pair("GrabCut", ("data_GT", "boundary_GT"), ("img", "gt"), meaning="trimap"),),
        default=("GrabCut",),
        inside=("GrabCut",),
    ),
    "dis5k": Layout(
        tuple(
            _dis(f"DIS-{name}", "", "bright") for name in ("TR", "VD", "TE1", "TE2", "TE3", "TE4")
        ),
        default=("DIS-VD", "DIS-TE1", "DIS-TE2", "DIS-TE3", "DIS-TE4"),
        inside=("DIS5K",),
    ),
    "duts": Layout((_duts("DUTS-TR"), _duts("DUTS-TE")), default=("DUTS-TE",), inside=("DUTS",)),
    # As published (v3), and as https://github.com/DengPingFan/SINet hands it on.
    "cod10k": Layout(
        (
            _cod("Train", ("TrainDataset/Imgs", "TrainDataset/GT")),
            _cod_instances("Train"),
            _cod("Test", ("TestDataset/COD10K/Imgs", "TestDataset/COD10K/GT")),
            _cod_instances("Test"),
        ),
        default=("COD10K-test",),
        inside=("COD10K-v3", "COD10K"),
    ),
    "isic": Layout(
        tuple(_isic(split) for split in ("Training", "Validation", "Test")),
        default=("ISIC2018-test",),
        inside=("ISIC2018", "isic_2018"),
    ),
    "coco": Layout(
        tuple(_coco(f"{split}{year}") for year in (2017, 2014) for split in ("train", "val")),
        default=("COCO-val2017",),
        inside=("coco", "coco2017", "COCO"),
        every=False,
    ),
}

# What people call them in lists of what a model was trained on -> the parts that it stands for.
SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "HQSeg44K": tuple(
        part.name
        for part in LAYOUTS["hqseg44k"].parts
        if part.name not in LAYOUTS["hqseg44k"].default
    ),
    "DIS5K": ("DIS-TR",),
    "DIS5K-TR": ("DIS-TR",),
    "DIS5K-VD": ("DIS-VD",),
    "ThinObject5K": ("ThinObject5K-train",),
    "ThinObject5K-TR": ("ThinObject5K-train",),
    "ThinObject5K-TE": ("ThinObject5K-test",),
    "DUTS": ("DUTS-TR",),
    "COD10K": ("COD10K-train", "COD10K-train-instances"),
    "COD10K-train": ("COD10K-train", "COD10K-train-instances"),
    "COD10K-test": ("COD10K-test", "COD10K-test-instances"),
    "ISIC": ("ISIC2018-training",),
    "ISIC2018": ("ISIC2018-training",),
    "COCO": ("COCO-train2017", "COCO-train2014"),
}
