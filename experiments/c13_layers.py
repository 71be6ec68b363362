"""One layer written in six ways: how much of a dense layer's speed is left, and why?

Forward and backward in float32 on one thread; experiments/moe_layers.py holds the ways and says what is measured, and
`python benchmarks/moe_layers.py` measures it again, for skewed loads too. One sweep over the layers is one seed, once
as the C library hands out memory and once with what was freed kept for the next step.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from experiments.moe_layers import WAYS, Row, measure, memory_kept
from ichimon.measure import Config, Experiment, Results, Verdict, estimate, main


def run(config: Config, seeds: Sequence[int]) -> Results:
    rows = [Row(*sizes) for sizes in config["rows"]]
    sweeps: dict[str, list[list[dict[str, Any]]]] = {"speed": [], "speed_where_memory_is_kept": []}
    for seed in seeds:
        for name, allocator in (("speed", nullcontext), ("speed_where_memory_is_kept", memory_kept)):
            with allocator():
                how: dict[str, Any] = {"ways": config["ways"], "repeats": config["repeats"], "seed": seed}
                sweeps[name].append([measure(row, skewed=False, **how) for row in rows])

    def of(name: str, i: int, way: str) -> list[float]:
        return [sweep[i][way] for sweep in sweeps[name]]

    ways = [*config["ways"], "transformers"]
    return {
        "rows": [
            {
                **vars(row),
                "dense_d_hidden": sweeps["speed"][0][i]["dense_d_hidden"],
                **{name: {way: estimate(of(name, i, way)) for way in ways} for name in sweeps},
                "fresh_megabytes": {
                    way: estimate([sweep[i]["fresh_megabytes"][way] for sweep in sweeps["speed"]])
                    for way in ("dense", *ways)
                },
            }
            for i, row in enumerate(rows)
        ]
    }


def verdict(found: Results) -> Verdict:
    speeds = [row["speed"] for row in found["rows"]]
    means = [{way: speed["mean"] for way, speed in row.items()} for row in speeds]
    many = found["rows"][1 if len(means) > 1 else 0]  # 64 experts
    lost, kept = (
        many[name]["ours"]["mean"] - many[name]["grouped_mm"]["mean"]
        for name in ("speed", "speed_where_memory_is_kept")
    )
    best = all(row["ours"] > row["transformers"] for row in means)
    enough = all(row["ours"] >= limit for row, limit in zip(means, (0.85, 0.8, 0.85), strict=False))
    if best and enough and lost >= 0.1 and kept <= 0.05:
        return "strong"
    return "weak" if best else "null"


EXPERIMENT = Experiment(
    name="c13_layers",
    claim=(
        "Sorted tokens, one slice an expert and one gradient for all experts keep at least 0.85 of a dense layer's "
        "speed with 8 experts and 0.8 with 64, and more than transformers' default does. What F.grouped_mm loses "
        "against that with 64 experts, at least 0.1, is fresh memory: where memory is kept, it is at most 0.05."
    ),
    run=run,
    verdict=verdict,
    config={
        "rows": [[256, 896, 8, 2, 4096], [256, 224, 64, 8, 4096], [512, 1792, 8, 2, 2048]],
        "ways": list(WAYS),
        "repeats": 5,
    },
    # as many tokens as in the whole run: with fewer, what the experts give takes no fresh memory, and little is lost
    reduced={"rows": [[256, 136, 64, 8, 4096]], "ways": ["grouped_mm", "ours"], "repeats": 1},
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main(EXPERIMENT)
