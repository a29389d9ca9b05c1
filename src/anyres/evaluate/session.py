"""A whole run: what decides its results, what is left of it to do, and its report."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anyres import __version__
from anyres.data.datasets import leaks
from anyres.errors import InputError
from anyres.evaluate import report
from anyres.evaluate.choice import Choice, default_threads
from anyres.evaluate.figures import summarise
from anyres.evaluate.journal import Journal, Result
from anyres.evaluate.run import Task, work
from anyres.evaluate.workers import work_in_processes


def records_file(out: Path) -> Path:
    """Where the results of an unfinished run lie: beside its report."""
    return out.with_name(f"{out.name}.records.jsonl")


def lock_file(out: Path) -> Path:
    """What keeps two processes from writing one report."""
    return out.with_name(f"{out.name}.lock")


class Session:
    """A run, from the first object or from where an earlier session was stopped.

    Attributes:
        model: what ``choice`` loaded.
        refs: the objects, in the order of the data set.
        journal: the results so far.
        leaks: parts of the data that the model was trained on.
    """

    def __init__(
        self,
        task: Task,
        choice: Choice,
        out: Path | None,
        *,
        limit: int | None = None,
        workers: int = 1,
        allow_leak: bool = False,
    ) -> None:
        """Load the model and find out what is left to do.

        Args:
            task: what is asked of the model.
            choice: the model.
            out: where the report will be; results are kept beside it. None keeps them in memory.
            limit: only the first so many objects.
            workers: how many processes share the processor; 1 is this one.
            allow_leak: score a model on what it was trained on.

        Raises:
            InputError: no such model; a leak that is not allowed; or an unfinished run with
                other settings is beside ``out``.
            WeightsError: the weights are missing, damaged, or another model's.
            RecordError: the results of the unfinished run are damaged.
            OutputError: results cannot be written there.
        """
        self.task = task
        self.choice = choice
        self.refs = task.dataset.objects[:limit]
        self.workers = workers
        self.threads = max(1, default_threads() // workers)
        self.model = choice.load(self.threads)
        self.leaks = leaks(task.dataset, choice.trained_on(self.model))
        if self.leaks and not allow_leak:
            raise InputError(
                f"{choice.name} was trained on {', '.join(self.leaks)}: its figures there say "
                "nothing about other pictures. Choose other data or another --part; --allow-leak "
                "scores it all the same, and the report says so"
            )
        self._facts = choice.facts(self.model)
        self.journal = Journal(
            None if out is None else records_file(out),
            {
                "anyres": __version__,
                "model": self._facts,
                "data": {"fingerprint": task.dataset.fingerprint},
                "protocol": asdict(task.rules),
                "limit": limit,
                "strict": task.strict,
            },
        )
        self._limit = limit
        self._start = time.perf_counter()

    def run(self, on_result: Callable[[Result], None]) -> None:
        """Try the model on all objects without a result; a kill loses only those at work.

        Args:
            on_result: is told each result once it is kept.
        """
        left = [ref for ref in self.refs if ref.key not in self.journal.done]
        if self.workers == 1:
            results = work(self.task, self.model, left)
        else:
            results = work_in_processes(self.task, self.choice, left, self.workers, self.threads)
        for result in results:
            self.journal.add(result)
            on_result(result)

    def report(self, command: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that is known, once ``run`` is through.

        Args:
            command: as typed.
            data: how the data set was opened.

        Raises:
            InputError: no object could be read.
        """
        results = [self.journal.done[ref.key] for ref in self.refs]
        problems = [f"{row['key']}: {row['problem']}" for row in results if "problem" in row]
        if len(problems) == len(results):
            raise InputError(f"none of {len(results)} objects could be read; {problems[0]}")
        encoding = {
            ref.image: row["encoder_seconds"]
            for ref, row in zip(self.refs, results, strict=True)
            if "problem" not in row
        }
        predicting = sum(sum(row.get("prompt_seconds", ())) for row in results)
        dataset = self.task.dataset
        return {
            "format": report.FORMAT,
            **report.surroundings(command, self.workers, self.threads),
            "model": {
                **self._facts,
                "weights": None if self.choice.weights is None else str(self.choice.weights),
                "leaks": list(self.leaks),
            },
            "data": {
                "name": dataset.name,
                **data,
                "limit": self._limit,
                "fingerprint": dataset.fingerprint,
                "pictures": len({ref.image for ref in self.refs}),
                "objects": len(self.refs),
            },
            "protocol": asdict(self.task.rules),
            **summarise(self.task.rules, self.refs, self.journal.done),
            "problems": [*map(str, dataset.problems), *problems],
            "seconds": {
                "session": round(time.perf_counter() - self._start, 3),
                "predictions": round(sum(encoding.values()) + predicting, 3),
            },
            "results": report.rows(self.refs, self.journal.done),
        }
