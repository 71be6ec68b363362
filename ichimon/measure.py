"""Measured claims: declare an experiment, run it, and keep what it said.

A script in `experiments/` declares one `Experiment`: a claim stated before the run, a configuration, seeds, and the
rule that turns numbers into a verdict. `main` runs it and writes `experiments/results/<name>.json`; pages of the book
read that file with `results`. This module never imports torch, so building the book does not either.
"""

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Config = Mapping[str, Any]
Results = dict[str, Any]
Record = dict[str, Any]
Verdict = Literal["strong", "weak", "null"]

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "experiments"
CONFIDENCE = 0.95
WIDTH = 170  # columns of a results file: an estimate over five seeds fits on a line


@dataclass(frozen=True)
class Experiment:
    """One claim and how it is tested.

    `run(config, seeds)` returns the results: plain numbers, strings, lists and dicts. `verdict(results)` is "strong"
    when the claim holds as it is worded, "weak" when only its direction does, "null" otherwise. `reduced` overrides
    `config` for a run of seconds, which the tests use to check the direction of every strong claim.
    """

    name: str
    claim: str
    run: Callable[[Config, Sequence[int]], Results]
    verdict: Callable[[Results], Verdict]
    config: Config
    reduced: Config = field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    headline: str = ""  # an estimate of the results whose mean also stands at the top of the record, under its name

    def measure(self, *, reduced: bool = False) -> Record:
        """Run the experiment (on its first three seeds if `reduced`) and return the whole record, written nowhere.

        An experiment that keeps runs from before says in its results what all of them took (`cpu_seconds_of_runs`).
        """
        unknown = set(self.reduced) - set(self.config)
        if unknown:
            raise ValueError(
                f"{self.name}: `reduced` overrides {sorted(unknown)}, which `config` does not have; add them to it."
            )
        if len(self.seeds) < 3:
            raise ValueError(f"{self.name} has {len(self.seeds)} seeds; a claim needs at least three.")
        config = {**self.config, **(self.reduced if reduced else {})}
        seeds = list(self.seeds[:3] if reduced else self.seeds)
        with _one_thread():
            surroundings = environment(f"experiments/{self.name}.py", "solutions")
            cpu, wall = _cpu_seconds(), time.perf_counter()
            found = _plain(self.run(config, seeds))
            cpu, wall = _cpu_seconds() - cpu, time.perf_counter() - wall
        cpu = max(cpu, found.get("cpu_seconds_of_runs", 0.0))
        return _plain(
            {
                "name": self.name,
                "claim": self.claim,
                "verdict": self.verdict(found),
                "seeds": seeds,
                **({self.headline: found[self.headline]["mean"]} if self.headline else {}),
                "config": config,
                "results": found,
                "environment": surroundings,
                "cpu_seconds": cpu,
                "wall_seconds": wall,
            }
        )


def estimate(values: Sequence[float]) -> dict[str, Any]:
    """Mean of one value a seed, its Student-t 95 % confidence interval, standard deviation and the values themselves.

    The interval may reach past what is possible (an accuracy above 1), so figures should show `values` as well.
    """
    if len(values) < 2:
        raise ValueError(f"A spread needs at least two values, one for each seed; got {len(values)}.")
    from scipy.stats import t  # imported here: a page that only reads results should not wait for it

    mean, sd, n = statistics.fmean(values), statistics.stdev(values), len(values)
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / n**0.5
    return {"mean": mean, "low": mean - half, "high": mean + half, "sd": sd, "n": n, "values": list(values)}


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The estimate of ours − theirs, seed by seed: what the two share through the seed cancels."""
    return estimate([a - b for a, b in zip(ours, theirs, strict=True)])


def interleaved(functions: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each function, called in turn `repeats` times after one call that does not count.

    Taking turns lets a busy moment of the machine hit all of them alike, and another order in each round gives none
    the same caches and free memory to start from. Report ratios of these numbers, not the numbers.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    order, rounds = list(functions.items()), random.Random(0)
    for repeat in range(repeats + 1):
        rounds.shuffle(order)
        for name, function in order:
            start = time.process_time()
            function()
            if repeat:
                times[name].append(time.process_time() - start)
    return times


def environment(*sources: str) -> dict[str, Any]:
    """What a result depends on besides its configuration. `uncommitted`: a source differed from that commit."""
    found: dict[str, Any] = {
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "uncommitted": bool(_git("status", "--porcelain", "--", *sources)),
        "device": "cpu",
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        found |= {
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
        }
    return found


def save(record: Record, folder: Path = EXPERIMENTS / "results") -> Path:
    """Write a record to `<folder>/<name>.json`, whole or not at all, in a form that gives readable diffs."""
    path = folder / f"{record['name']}.json"
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(_layout(_plain(record)) + "\n", encoding="utf-8")
    draft.replace(path)
    return path


def results(name: str, folder: Path = EXPERIMENTS / "results") -> Record:
    """The record that the last full run of experiment `name` wrote."""
    path = folder / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no result {name!r} in {folder}: run `python experiments/{name}.py` first.")
    return json.loads(path.read_text(encoding="utf-8"))


def published(key: str) -> dict[str, Any]:
    """A figure that others published: its value, unit, source (a key of references.bib) and where in it."""
    figures = json.loads((EXPERIMENTS / "published.json").read_text(encoding="utf-8"))
    if key not in figures:
        raise KeyError(f"experiments/published.json has no {key!r}; it has {', '.join(sorted(figures))}.")
    return figures[key]


def main(experiment: Experiment) -> None:
    """The command line of one experiment's script."""
    import typer

    def command(
        reduced: bool = typer.Option(False, help="A run of seconds that checks the direction; its result is not kept."),
    ) -> None:
        typer.echo(f"{experiment.name}\nClaim: {experiment.claim}")
        record = experiment.measure(reduced=reduced)
        kept = _layout(record["results"]) if reduced else f"Written: {save(record)}"
        typer.echo(f"{kept}\nVerdict: {record['verdict']} ({record['cpu_seconds']:.0f} CPU seconds)")

    command.__doc__ = sys.modules["__main__"].__doc__
    typer.run(command)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Times then mean the same on any number of cores, and results do not depend on how a sum was shared out."""
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 1
    try:
        if torch:
            torch.set_num_threads(1)
        with threadpool_limits(1):  # NumPy's and scikit-learn's BLAS and OpenMP
            yield
    finally:
        if torch:
            torch.set_num_threads(before)


def _cpu_seconds() -> float:
    """CPU time of this process and of the children that it has waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _plain(value: Any) -> Any:
    """Only what JSON holds, floats to six significant digits: more would be noise in every diff."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        if value - value != 0:  # NaN and the infinities are not JSON
            raise ValueError(f"A result must be finite, and one is {value}: find out which measurement failed.")
        return float(f"{value:.6g}")
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(
        f"A result must be plain data; {type(value).__name__} is not: convert it with float() or .tolist()."
    )


def _layout(value: Any, indent: int = 0, room: int = WIDTH) -> str:
    """JSON in which everything that fits into `room` is on one line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) <= room or not isinstance(value, dict | list):
        return line
    inner, room = indent + 2, WIDTH - indent - 3  # two more columns, and one for the comma
    if isinstance(value, dict):
        keys = [json.dumps(key, ensure_ascii=False) + ": " for key in value]
        items = [key + _layout(item, inner, room - len(key)) for key, item in zip(keys, value.values(), strict=True)]
    else:
        items = [_layout(item, inner, room) for item in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{' ' * inner}" + f",\n{' ' * inner}".join(items) + f"\n{' ' * indent}{closing}"
