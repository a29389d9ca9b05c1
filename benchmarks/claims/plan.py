"""What is trained and what is scored, as jobs that need each other.

All models of a seed stem from one teacher: SAM's encoder with global attention (`sam_xs`), which
never sees more than TRAINED pixels. It learns the embeddings of the model that ships, then clicks:
from random weights so few steps leave a teacher that is not worth distilling.

(a) a student with HRSAM's encoder, as wide and as deep (`hrsam_xs`), is distilled from it, then
    fine-tuned with clicks on larger crops, and scored at once, twice and four times the teacher's
    size;
(b) the same student with the anchor of HRSAM++;
(c) the teacher itself at other sizes, zero-shot, with each part of BA-SAM on and off;
(d) the teacher fine-tuned on four sets at once against four fine-tuned on one of them each: once
    in the steps of one of those, once in the steps of all four.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TRAINED = 256  # long side in pixels
SIZES = (TRAINED, 2 * TRAINED, 4 * TRAINED)
OTHER_SIZES = (TRAINED // 2, TRAINED, 3 * TRAINED // 2, 2 * TRAINED, 4 * TRAINED)
SEEDS = (0, 1, 2)

# Validation set -> its options. Those of clicks on natural photos, and the one made to be large.
PHOTOS = ("davis2016val", "alphamatting27")
SCENES = "scenes"

# What is scored of a specialist: training set -> validation set of the same kind.
KINDS = {
    "coco128seg": "coco128seg",
    "cwfid": "cwfid",
    "cables70": "cables_real100",
    "human290": "alphamatting27",
}
# The generalists and their steps for each of a specialist's.
GENERALISTS = {"all": 1, "all-longer": len(KINDS)}
MAPS = {"coco128seg": "instance", "cwfid": "class"}

# Zero-shot variants of BA-SAM: what `anyres.LengthConfig` is made of.
LENGTHS: dict[str, dict[str, Any]] = {
    "plain": {"scale": "none"},
    "scale": {"scale": "log"},
    "bias": {"scale": "none", "bias": "distance"},
    "both": {"scale": "log", "bias": "distance"},
}
# Variants tried to settle the default, at twice and four times the size: other strengths of the
# bias, and another base of the logarithm (256 tokens are the teacher's own).
VARIANTS: dict[str, dict[str, Any]] = {
    "bias 0.03": {"scale": "none", "bias": "distance", "coefficient": 0.03},
    "bias 0.3": {"scale": "none", "bias": "distance", "coefficient": 0.3},
    "scale, base 64": {"scale": "log", "base": 64.0},
    "scale, base 4096": {"scale": "log", "base": 4096.0},
}


@dataclass(frozen=True)
class Training:
    """A run of ``anyres train``.

    Attributes:
        name: of the job and of its folder.
        recipe: one that ships with anyres.
        steps: optimiser steps at full scale.
        settings: further settings, as after ``--set``.
        start: setting that takes the weights of another training, and its name.
        keeps: it keeps a teacher's embeddings beside the models.
    """

    name: str
    recipe: str
    steps: int
    settings: dict[str, str]
    start: tuple[str, str] | None = None
    keeps: bool = False


@dataclass(frozen=True)
class Score:
    """Clicks on a validation set.

    Attributes:
        name: of the job and of its file.
        weights: name of the training.
        data: name of the validation set.
        resolution: long side fed, in pixels; None is the size the model was trained at.
        length: of BA-SAM; empty leaves the model as it is.
    """

    name: str
    weights: str
    data: str
    resolution: int
    length: dict[str, Any] = field(default_factory=dict)


Job = Training | Score


def trainings(seed: int) -> Iterator[Training]:
    """The models of (a), (b) and (c), each after what it stems from."""
    seeded = {"seed": str(seed)}
    teacher = f"teacher-{seed}"
    lessons = {**seeded, "rounds": f"[[{TRAINED}, 12]]"}
    yield Training(
        f"teacher-distilled-{seed}",
        "distil",
        400,
        {**lessons, "model": "'sam_xs'", "image_size": str(TRAINED), "teacher": "'default'"},
        keeps=True,
    )
    # The rates of new weights: its stem means nothing to the decoder yet.
    yield Training(
        teacher,
        "scratch",
        300,
        {**seeded, "rounds": f"[[{TRAINED}, 6]]"},
        ("start", f"teacher-distilled-{seed}"),
    )
    for kind, model in (("student", "hrsam_xs"), ("anchored", "hrsam_pp_xs")):
        distilled = f"{kind}-distilled-{seed}"
        # All of the encoder but the stem (patch_embed), which is the teacher's.
        others = {"model": f"'{model}'", "train": "['image_encoder.[!p]*']"}
        yield Training(distilled, "distil", 200, lessons | others, ("teacher", teacher), keeps=True)
        yield Training(
            f"{kind}-{seed}",
            "interactive",
            250,
            {**seeded, "rounds": f"[[{2 * TRAINED}, 2], [{TRAINED}, 6]]"},
            ("start", distilled),
        )


def specialists(seed: int) -> Iterator[Training]:
    """The models of (d)."""
    seeded = {"seed": str(seed)}
    teacher = f"teacher-{seed}"
    together = ", ".join(f"{name} = {1 / len(KINDS)}" for name in KINDS)
    sampling = {name: f"{{{name} = 1.0}}" for name in KINDS}
    sampling |= dict.fromkeys(GENERALISTS, f"{{{together}}}")
    for name, shares in sampling.items():
        yield Training(
            f"on-{name}-{seed}",
            "generalist",
            150 * GENERALISTS.get(name, 1),
            {
                **seeded,
                "rounds": f"[[{TRAINED}, 6]]",
                "sampling": shares,
                "layouts": "{}",
                "warmup": "20",
            },
            ("start", teacher),
        )


def scores(seed: int) -> Iterator[Score]:
    """What is scored for (a), (b) and (c)."""
    for kind in ("teacher", "student", "anchored"):
        for data in (*PHOTOS, SCENES):
            for size in SIZES:
                yield _score(f"{kind}-{seed}", data, size)
    for data in PHOTOS:
        for size in OTHER_SIZES:
            # At the size of training every part is as good as none.
            lengths = LENGTHS if size != TRAINED else {"plain": LENGTHS["plain"]}
            for name, length in lengths.items():
                yield _score(f"teacher-{seed}", data, size, name, length)
    for size in SIZES[1:]:
        for name, length in VARIANTS.items():
            yield _score(f"teacher-{seed}", PHOTOS[0], size, name, length)


def special_scores(seed: int) -> Iterator[Score]:
    """What is scored for (d)."""
    for name, data in KINDS.items():
        for trained_on in (name, *GENERALISTS):
            yield _score(f"on-{trained_on}-{seed}", data, TRAINED)
        yield _score(f"teacher-{seed}", data, TRAINED)


def _score(
    weights: str, data: str, size: int, variant: str = "", length: dict[str, Any] | None = None
) -> Score:
    parts = [weights, data, str(size), variant.replace(", ", "_").replace(" ", "_")]
    return Score("--".join(filter(None, parts)), weights, data, size, length or {})


def jobs(seeds: tuple[int, ...] = SEEDS) -> list[Job]:
    """The queue: a seed after the other, so that whatever is done is of use; (d) is last."""
    queue: dict[str, Job] = {}
    for seed in seeds:
        for job in (*trainings(seed), *scores(seed)):
            queue.setdefault(job.name, job)
    for seed in seeds:
        for job in (*specialists(seed), *special_scores(seed)):
            queue.setdefault(job.name, job)
    return list(queue.values())
