"""How many tokens does top-p keep from one place to the next, and does it lose fewer right ones than top-k?

The dense model that ships with the course reads test text, prose and code. At every place the notebook's
next_token_distribution cuts its guess with top-p, and what is left is counted. Did the token that really came survive?
Top-k is given the same room: as many tokens everywhere as top-p kept on average. A seed draws the windows of text.

For the figure that readers can play with, the whole guesses after three short texts are kept: the model is nearly
certain after the first, and far from it after the last.

The claim was worded after a pilot run on validation text.
"""

from collections.abc import Sequence

import torch

from ichimon import corpus, moe, train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.notebook import load


@torch.no_grad()
def run(config: Config, seeds: Sequence[int]) -> Results:
    distribution = load(ROOT / "solutions/01-next-token.py").next_token_distribution
    model, bpe = moe.load_trained("dense")
    ids = corpus.tokens(corpus.PROSE + corpus.CODE, "test")
    few, many, survived_p, survived_k = [], [], [], []
    for seed in seeds:
        window = train.windows(ids, batch=config["batch"], length=config["length"], seed=seed)(0)
        logits = model(window[:, :-1]).logits[:, config["context"] :].flatten(0, 1)
        came = window[:, 1 + config["context"] :].reshape(-1, 1)
        by_p = distribution(logits, top_p=config["top_p"]) > 0
        kept = by_p.sum(-1).double()
        by_k = distribution(logits, top_k=round(kept.mean().item())) > 0
        few.append(kept.quantile(0.1).item())
        many.append(kept.quantile(0.9).item())
        survived_p.append(by_p.gather(-1, came).double().mean().item())
        survived_k.append(by_k.gather(-1, came).double().mean().item())
    shown = [
        {"text": text, "logits": model(torch.tensor([[0, *bpe.encode(text).ids]])).logits[0, -1].tolist()}
        for text in config["texts"]
    ]
    return {
        "few": estimate(few),
        "many": estimate(many),
        "survived": {"top_p": estimate(survived_p), "top_k": estimate(survived_k)},
        "top_p_over_top_k": paired(survived_p, survived_k),
        "entries": len(shown[0]["logits"]),
        "vocabulary": [bpe.decode([i]) for i in range(len(shown[0]["logits"]))],
        "shown": shown,
    }


def verdict(found: Results) -> Verdict:
    survived, gain = found["survived"]["top_p"], found["top_p_over_top_k"]
    sure = survived["low"] > 0.87 and survived["high"] < 0.93
    if found["many"]["low"] > 8 * found["few"]["high"] and sure and gain["low"] > -0.02 and gain["high"] < 0.02:
        return "strong"
    return "weak" if found["many"]["mean"] > 4 * found["few"]["mean"] else "null"


EXPERIMENT = Experiment(
    name="c01_sampling",
    claim=(
        "Of 1,024 tokens, top-p 0.9 keeps more than eight times as many at the tenth of the places where it keeps "
        "most as at the tenth where it keeps fewest. What really came is among them in 87 to 93 % of the places. "
        "Top-k with as many tokens on average loses it as often, to within 2 points."
    ),
    run=run,
    verdict=verdict,
    config={
        "top_p": 0.9,
        "batch": 48,
        "length": 96,
        "context": 16,
        "texts": ["def __init__(self", "If the file does not ex", "This is the value of the"],
    },
    reduced={"batch": 12, "length": 48},
)

if __name__ == "__main__":
    main(EXPERIMENT)
