"""The claims' queue and what is read from its results (`benchmarks/claims`)."""

import json
from pathlib import Path

import pytest
from benchmarks.claims.plan import KINDS, SEEDS, Score, Training, jobs
from benchmarks.claims.tables import Results, page, verdicts


def test_what_a_job_needs_comes_before_it():
    done: set[str] = set()
    for job in jobs():
        needed = job.weights if isinstance(job, Score) else job.start and job.start[1]
        assert needed is None or needed in done, f"{job.name} needs {needed}"
        assert job.name not in done
        done.add(job.name)


def test_the_longer_generalist_takes_as_many_steps_as_all_specialists():
    steps = {job.name: job.steps for job in jobs() if isinstance(job, Training)}
    for seed in SEEDS:
        assert steps[f"on-all-longer-{seed}"] == sum(steps[f"on-{kind}-{seed}"] for kind in KINDS)


def write(out: Path, name: str, **figures: float) -> None:
    (out / "scores").mkdir(exist_ok=True)
    (out / "scores" / f"{name}.json").write_text(json.dumps({"figures": figures}))


def held(out: Path, claim: str, figure: str) -> list[str]:
    rows = [line.strip("| ").split(" | ") for line in verdicts(Results(out)).splitlines()]
    return next(row[2:] for row in rows if row[:2] == [claim, figure])


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        ((10, 11, 12), ["-3.33", "3 of 3", "yes, beyond the spread"]),
        ((13, 12, 15), ["-1.00", "3 of 3", "yes"]),
        ((13, 12, 16), ["-0.67", "2 of 3", "in the mean"]),
        ((14, 13, 16), ["+0.00", "0 of 3", "no"]),
        ((13, None, 13), ["-2.00", "2 of 2", "yes"]),
        # Never one seed's student against another seed's teacher.
        ((None, None, 15), ["-1.00", "1 of 1", "yes"]),
    ],
)
def test_claims_compare_seed_by_seed(tmp_path, student, expected):
    for seed, (clicks, own) in enumerate(zip(student, (14, 13, 16), strict=True)):
        write(tmp_path, f"teacher-{seed}--scenes--256", noc90=own)
        if clicks is not None:
            write(tmp_path, f"student-{seed}--scenes--512", noc90=clicks)
    claim = "student at 512 better than teacher at 256, scenes"
    assert held(tmp_path, claim, "noc90") == expected


def test_more_overlap_is_better(tmp_path):
    for seed in SEEDS:
        write(tmp_path, f"student-{seed}--scenes--256", iou5=0.75 + seed / 100)
        write(tmp_path, f"teacher-{seed}--scenes--256", iou5=0.70 + seed / 100)
    claim = "student better than teacher, both at 256, scenes"
    assert held(tmp_path, claim, "iou5") == ["+0.050", "3 of 3", "yes, beyond the spread"]


def test_the_page_says_what_is_missing(tmp_path):
    write(tmp_path, "on-cwfid-0--cwfid--256", noc90=20.0, iou5=0.5)
    text = page(tmp_path)
    assert "| cwfid | on-cwfid | 20.00 (one seed) | - | - | 0.500 (one seed) | - |" in text
    assert "| cwfid | on-all | - | - | - | - | - |" in text
