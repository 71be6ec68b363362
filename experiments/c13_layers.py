"""One layer written in six ways: how much of a dense layer's speed is left, and why?

Forward and backward in float32 on one thread; experiments/moe_layers.py holds the ways and says what is measured, and
`python benchmarks/moe_layers.py` measures it again, for skewed loads too. One sweep over the layers is one seed.
"""

from collections.abc import Sequence

from experiments.moe_layers import WAYS, Row, measure
from ichimon.measure import Config, Experiment, Results, Verdict, estimate, main


def run(config: Config, seeds: Sequence[int]) -> Results:
    rows = [Row(*sizes) for sizes in config["rows"]]
    sweeps = [
        [measure(row, skewed=False, ways=list(WAYS), repeats=config["repeats"], seed=seed) for row in rows]
        for seed in seeds
    ]
    return {
        "rows": [
            {
                **vars(row),
                "dense_d_hidden": sweeps[0][i]["dense_d_hidden"],
                "speed": {way: estimate([sweep[i][way] for sweep in sweeps]) for way in (*WAYS, "transformers")},
            }
            for i, row in enumerate(rows)
        ]
    }


def verdict(found: Results) -> Verdict:
    speeds = [row["speed"] for row in found["rows"]]
    means = [{way: speed["mean"] for way, speed in row.items()} for row in speeds]
    many = means[1] if len(means) > 1 else means[0]  # 64 experts
    best = all(row["ours"] > row["transformers"] for row in means)
    bad = max(many["masks"], many["sorted_indexed"]) < 0.5
    if best and bad and all(row["ours"] >= limit for row, limit in zip(means, (0.85, 0.8, 0.85), strict=False)):
        return "strong"
    return "weak" if bad and many["ours"] > many["transformers"] else "null"


EXPERIMENT = Experiment(
    name="c13_layers",
    claim=(
        "Sorted tokens, one slice an expert and one gradient for all experts keep at least 0.85 of a dense layer's "
        "speed with 8 experts and 0.8 with 64, and more than transformers' default does. With 64 experts, masks or "
        "W[e] leave less than half."
    ),
    run=run,
    verdict=verdict,
    config={"rows": [[256, 896, 8, 2, 4096], [256, 224, 64, 8, 4096], [512, 1792, 8, 2, 2048]], "repeats": 5},
    reduced={"rows": [[128, 112, 64, 8, 512]], "repeats": 2},
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main(EXPERIMENT)
