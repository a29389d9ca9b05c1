"""What tests of training share."""

import json

from anyres.train.config import TrainConfig

TINY = TrainConfig(
    steps=2,
    rounds=((64, 1),),
    objects=2,
    warmup=1,
    checkpoint_every=100,
    workers=0,
    threads=1,
    dtype="float32",
)


def silent(step, record):
    pass


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def gradients(state):
    """What a first step's gradients were, from the momenta that it left."""
    return [
        value
        for optimizer, key in zip(state["optimizers"], ("momentum", "exp_avg"), strict=True)
        for value in (one[key] for one in optimizer["state"].values())
    ]
