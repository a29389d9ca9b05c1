"""Do one job of the plan: train in a process of its own, score in this one."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.claims.plan import MAPS, SCENES, Job, Score, Training

import anyres
from anyres import LengthConfig
from anyres.data.datasets import Dataset, leaks, open_dataset
from anyres.errors import InputError
from anyres.evaluate.figures import summarise
from anyres.evaluate.protocols import Rules
from anyres.evaluate.run import Task, work
from anyres.files import write_json
from anyres.ops.precision import resolve_dtype


class Workshop:
    """Where the jobs are done.

    A training is finished when its folder holds ``done.json``, a score when its file is there:
    whatever was interrupted is taken up again where it stopped, or done anew.
    """

    def __init__(self, out: Path, data: Path, scenes: Path, scale: float, objects: int) -> None:
        """Keep the folders.

        Args:
            out: for models and results.
            data: holds ``train`` and ``val``.
            scenes: the semi-synthetic validation set.
            scale: of the number of steps; figures for print have 1.
            objects: at most so many of a validation set, evenly chosen.
        """
        self.out = out
        self.data = data
        self.scenes = scenes
        self.scale = scale
        self.objects = objects
        self._sets: dict[str, Dataset] = {}

    def place(self, job: Job) -> Path:
        """What tells that the job is done."""
        if isinstance(job, Training):
            return self.out / job.name / "done.json"
        return self.out / "scores" / f"{job.name}.json"

    def weights(self, name: str) -> Path:
        """What a training gave."""
        return self.out / name / "model.safetensors"

    def do(self, job: Job) -> None:
        """Do it; nothing if it is done already."""
        place = self.place(job)
        if place.exists():
            return
        found = self._train(job) if isinstance(job, Training) else self._score(job)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, {"job": asdict(job), "scale": self.scale, **found})

    def _train(self, job: Training) -> dict[str, Any]:
        folder = self.out / job.name
        steps = max(2, round(job.steps * self.scale))
        settings = {**job.settings, "steps": str(steps)}
        if job.keeps:
            settings["cache"] = f"'{self.out / 'embeddings'}'"
        if job.start is not None:
            key, source = job.start
            settings[key] = f"'{self.weights(source)}'"
        command = [sys.executable, "-m", "anyres", "train", job.recipe]
        command += ["--data", str(self.data / "train"), "--out", str(folder)]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        subprocess.run(command, check=True)
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        return {"steps": steps, "minutes": sum(r.get("seconds", 0.0) for r in records) / 60}

    def _score(self, job: Score) -> dict[str, Any]:
        dataset = self._dataset(job.data)
        task = Task(dataset, Rules())
        length = LengthConfig(**job.length) if job.length else None
        # One precision for all: SAM's own choice would be float32, and the times no comparison.
        dtype = str(resolve_dtype("auto", "cpu")).removeprefix("torch.")
        predictor = anyres.load(
            weights=self.weights(job.weights),
            resolution=job.resolution,
            length=length,
            device="cpu",
            dtype=dtype,
        )
        known = leaks(dataset, predictor.model.trained_on)
        if known:
            raise InputError(f"{job.weights} was trained on {', '.join(known)} of {job.data}")
        step = max(1, -(-len(dataset.objects) // self.objects))
        refs = dataset.objects[::step]
        results = {result["key"]: result for result in work(task, predictor, refs)}
        return {"figures": summarise(task.rules, refs, results)["overall"]}

    def _dataset(self, name: str) -> Dataset:
        if name not in self._sets:
            folder = self.scenes if name == SCENES else self.data / "val" / name
            self._sets[name] = open_dataset(folder, kind=MAPS.get(name, "auto"), smallest=0.0)
        return self._sets[name]
