"""Train and score everything that the claims need, or print what there is.

``python -m benchmarks.claims`` works through the queue and goes on where it was stopped;
``python -m benchmarks.claims --tables`` prints the tables of what is done so far. The large
(semi-synthetic) set is made once, of validation pictures V=../shared/data/val:

  anyres scenes --photos $V/davis2016val --photos $V/carrotweed --objects $V/alphamatting27
  --objects $V/davis2016val --size 2048 --count 24 --seed 0 --out out/scenes2048
"""

import argparse
import sys
import time
from pathlib import Path

from benchmarks.claims.plan import SEEDS, Training, jobs
from benchmarks.claims.tables import page
from benchmarks.claims.work import Workshop


def main() -> int:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("out/claims"), help="models and results")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="train/ and val/")
    parser.add_argument(
        "--scenes", type=Path, default=Path("out/scenes2048"), help="the semi-synthetic set"
    )
    parser.add_argument(
        "--seed", type=int, action="append", choices=SEEDS, help="only this one; may be repeated"
    )
    parser.add_argument("--only", default="", help="jobs whose name begins so, e.g. teacher-0")
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps; 1 for figures")
    parser.add_argument("--objects", type=int, default=25, help="of each validation set, at most")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no job after so many")
    parser.add_argument("--list", action="store_true", help="print the queue")
    parser.add_argument("--tables", action="store_true", help="print the results")
    options = parser.parse_args()
    shop = Workshop(options.out, options.data, options.scenes, options.scale, options.objects)
    queue = [j for j in jobs(tuple(options.seed or SEEDS)) if j.name.startswith(options.only)]
    if options.tables:
        print(page(options.out), end="")
        return 0
    if options.list:
        for job in queue:
            print("done " if shop.place(job).exists() else "     ", job.name)
        return 0
    begin = time.monotonic()
    for number, job in enumerate(queue):
        minutes = (time.monotonic() - begin) / 60
        if options.minutes and minutes > options.minutes:
            print(f"{len(queue) - number} jobs are left; the same command goes on")
            return 0
        if not shop.place(job).exists():
            kind = "train" if isinstance(job, Training) else "score"
            print(f"{number + 1}/{len(queue)} {kind} {job.name}", file=sys.stderr, flush=True)
        shop.do(job)
    return 0


if __name__ == "__main__":
    sys.exit(main())
