"""Does RoPE make a query and a key that are far apart score less?

The paper on RoPE shows that an upper bound on the score falls with the distance, and calls it long-term decay (Su et
al. 2021, arXiv:2104.09864, section 3.4.3). A bound is not a score. Here are the scores themselves, of vectors with
independent standard normal entries, divided by √d_head:

- `independent`: query and key have nothing to do with each other; the root of the mean square of their scores;
- `equal`: the key is the query; the mean score. Theory: √d_head times the mean of cos(distance · frequency);
- `aimed`: the key is the query turned back by `aim` positions, as a model may learn to make it; the mean score.

One seed is one draw of `n_vectors` queries and keys.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load


def run(config: Config, seeds: Sequence[int]) -> Results:
    rope = load(ROOT / "solutions/03-position.py").rope
    d, aim, n = config["d_head"], config["aim"], config["n_vectors"]
    distances: list[int] = config["distances"]

    def turned(x: Tensor, distance: int) -> Tensor:
        return rope(x, torch.full((n,), distance))

    rows: dict[str, list[list[float]]] = {"independent": [], "equal": [], "aimed": []}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        q, k = torch.randn(2, n, d, generator=generator)
        keys = {"independent": k, "equal": q, "aimed": turned(q, aim)}
        for kind, key in keys.items():
            scores = torch.stack([(turned(q, distance) * key).sum(-1) / d**0.5 for distance in distances], -1)
            found = scores.square().mean(0).sqrt() if kind == "independent" else scores.mean(0)
            rows[kind].append(found.tolist())
    curves = {kind: [estimate(values) for values in zip(*by_seed, strict=True)] for kind, by_seed in rows.items()}
    return {"distances": distances, "aim": aim, "d_head": d, "score": curves}


def verdict(found: Results) -> Verdict:
    distances, score = found["distances"], found["score"]
    mean = {kind: [row["mean"] for row in rows] for kind, rows in score.items()}
    flat = max(mean["independent"]) < 1.05 * min(mean["independent"])
    far = [value for distance, value in zip(distances, mean["equal"], strict=True) if distance >= 256]
    falls = max(far) < 0.5 * mean["equal"][0]
    later = [value - least for least, value in zip(_running_minimum(mean["equal"]), mean["equal"], strict=True)]
    rises = max(later) > 0.05 * mean["equal"][0]
    aimed = distances[max(range(len(distances)), key=lambda i: mean["aimed"][i])] == found["aim"]
    if flat and falls and rises and aimed:
        return "strong"
    return "weak" if flat and aimed else "null"


def _running_minimum(values: Sequence[float]) -> list[float]:
    return [min(values[: i + 1]) for i in range(len(values))]


EXPERIMENT = Experiment(
    name="c03_decay",
    claim=(
        "Scores of independent queries and keys do not decay: at no distance up to 4096 does their size differ by more "
        "than 5 %. The score of a vector with itself does: from a distance of 256 on it is less than half of what it "
        "is at 0, but on the way it also rises again, by more than a twentieth of it. And a key can be made to score "
        "highest at a distance of 300, so RoPE does not force a model to prefer what is near."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_head": 64,
        "aim": 300,
        "n_vectors": 8192,
        "distances": sorted({0, 300, *(round(2 ** (i / 2)) for i in range(25))}),
    },
    reduced={"n_vectors": 4096},
)

if __name__ == "__main__":
    main(EXPERIMENT)
