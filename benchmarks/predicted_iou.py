"""How far the IoU that a model predicts is from the IoU that it has.

    .venv/bin/python benchmarks/predicted_iou.py --data ../shared/data/val/davis2016val

By the papers' click protocol: of each click the mean of what was predicted and of what it was, the
mean of the difference between the two, and their rank correlation over the objects.
"""

import argparse
from pathlib import Path

import numpy as np

import anyres
from anyres.data.datasets import open_dataset
from anyres.evaluate.protocols import Rules
from anyres.evaluate.run import Task, work

CLICKS = (1, 3, 5, 10)


class Watched:
    """A predictor that keeps what it predicts of its own masks."""

    def __init__(self, model: anyres.Predictor) -> None:
        self.model = model
        self.scores: list[float] = []

    def set_image(self, image):
        """Take a picture."""
        self.model.set_image(image)

    def predict(self, points, labels, **others):
        """Answer; a first click begins a new list."""
        if len(points) == 1:
            self.scores = []
        answer = self.model.predict(points, labels, **others)
        self.scores.append(float(answer[1][0]))
        return answer


def ranks(values):
    """Places in order, from 0."""
    return np.argsort(np.argsort(values))


def main() -> None:
    """Print a row for each set and click."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--limit", type=int, default=50, help="objects of each set, spread evenly")
    options = parser.parse_args()
    model = Watched(anyres.load(weights=options.weights))
    print("| set | click | predicted | is | mean difference | rank correlation |")
    print("|---|---|---|---|---|---|")
    for folder in options.data:
        dataset = open_dataset(folder, smallest=0.0)
        refs = dataset.objects[:: max(1, -(-len(dataset.objects) // options.limit))]
        found = [
            (model.scores, result["ious"])
            for result in work(Task(dataset, Rules(clicks=max(CLICKS))), model, refs)
        ]
        for click in CLICKS:
            pairs = [(p[click - 1], t[click - 1]) for p, t in found if len(t) >= click]
            predicted, true = np.array(pairs).T
            order = np.corrcoef(ranks(predicted), ranks(true))[0, 1]
            print(
                f"| {folder.name} | {click} | {predicted.mean():.3f} | {true.mean():.3f} "
                f"| {np.abs(predicted - true).mean():.3f} | {order:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
