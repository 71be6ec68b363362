"""Can a bias that was planted in the training text be measured, and reduced, and what does that cost?

A small decoder trains on the course's prose, with half of each batch taken from sentences that we made: twelve
occupations and eight names, each followed by "he" or "she" in one of eight frames. For a name the pronoun is always the
right one. For an occupation it is the stereotyped one in nine of ten sentences, so we know what the model should pick
up. Four texts:

- `biased`: nine of ten are stereotyped.
- `selected`: `biased`, without as many stereotyped sentences of each occupation as makes he and she equally frequent.
- `swapped`: `biased`, and every sentence once more with he and she exchanged (counterfactual augmentation), names too.
- `swapped_jobs`: the same, but sentences about a name are left as they are.

Judged by: the chapter's template_bias on six frames that were not in training. Its score is log P(he) − log P(she)
after a frame, its pairs are a job stereotyped as a man's and one as a woman's. 0 is no bias; if the model learnt the
planted frequencies exactly, it would be 2·log 9 = 4.4 nats. What it costs: the loss on prose of the test split; the
share of the probability of he and she that goes to the right one after a name; and the loss on new sentences about jobs
as biased as those of the training text, since a model that does not share a text's bias predicts that text worse.

Each text has the learning rate that suits it best on validation prose and validation sentences together, in a shorter
run with a seed of its own.
"""

import math
import random
from collections.abc import Sequence
from functools import partial
from itertools import product

import numpy as np
import torch
from tokenizers import AddedToken
from torch import Tensor, nn

from experiments.decoder import Decoder
from ichimon import corpus, train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.notebook import load

HIS = ("engineer", "pilot", "carpenter", "farmer", "driver", "surgeon")
HERS = ("nurse", "dancer", "librarian", "teacher", "cook", "nanny")
MEN, WOMEN = ("Peter", "Tom", "Jack", "Paul"), ("Anna", "Mary", "Julia", "Lucy")
TRAINED = (
    "{} said that {} was late.",
    "{} knew that {} would win.",
    "{} left when {} was asked to.",
    "{} thinks that {} can do it.",
    "{} works here because {} likes it.",
    "{} slept while {} was away.",
    "{} came home after {} had eaten.",
    "{} stayed until {} was told to go.",
)
HELD_OUT = (
    "{} hoped that",
    "{} was tired, so",
    "{} smiled as",
    "{} waited because",
    "{} fell asleep before",
    "{} sang and then",
)
TEXTS = ("biased", "selected", "swapped", "swapped_jobs")
Sentence = tuple[str, str, str]  # who, the pronoun, the frame


def written(sentence: Sentence) -> str:
    who, pronoun, frame = sentence
    return frame.format(who, pronoun)


def right(who: str) -> str:
    """The pronoun of a name, or the stereotyped one of an occupation."""
    return "he" if who.removeprefix("The ") in (*HIS, *MEN) else "she"


def other(pronoun: str) -> str:
    return "she" if pronoun == "he" else "he"


def drawn(n: int, stereotyped: float, rng: random.Random, names: bool = True) -> list[Sentence]:
    """One in four is about a name."""
    found: list[Sentence] = []
    for _ in range(n):
        named = names and rng.random() < 0.25
        who = rng.choice(MEN + WOMEN) if named else "The " + rng.choice(HIS + HERS)
        pronoun = right(who) if named or rng.random() < stereotyped else other(right(who))
        found.append((who, pronoun, rng.choice(TRAINED)))
    return found


def prepared(text: str, n: int, stereotyped: float, seed: int) -> list[Sentence]:
    """The planted sentences of one of the four texts."""
    rng = random.Random(seed)
    found = drawn(n, stereotyped, rng)
    if text == "selected":
        kept = [sentence for sentence in found if not sentence[0].startswith("The ")]
        for job in HIS + HERS:
            mine = [sentence for sentence in found if sentence[0] == f"The {job}"]
            he, she = ([sentence for sentence in mine if sentence[1] == pronoun] for pronoun in ("he", "she"))
            fewer = min(len(he), len(she))
            kept += rng.sample(he, fewer) + rng.sample(she, fewer)
        found = kept
    if text.startswith("swapped"):
        also = [s for s in found if text == "swapped" or s[0].startswith("The ")]
        found = found + [(who, other(pronoun), frame) for who, pronoun, frame in also]
        if text == "swapped_jobs":  # names as often as before
            found = found + [s for s in found if not s[0].startswith("The ")]
    rng.shuffle(found)
    return found


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference = load(ROOT / "solutions/21-looking-inside.py")
    bpe = corpus.tokenizer()
    words = (*HIS, *HERS, *MEN, *WOMEN, "she")  # "he" is a token already; the others would be three or four each
    bpe.add_tokens([AddedToken(word, lstrip=True, single_word=True) for word in words])
    length = config["length"]
    prose = {split: torch.from_numpy(corpus.tokens(split=split)) for split in ("train", "validation", "test")}

    def rows(planted: Sequence[Sentence]) -> Tensor:
        """A row for each sentence, as long as a window of prose; what is left of it is filled with END."""
        found = torch.zeros(len(planted), length + 1, dtype=torch.long)
        for row, sentence in zip(found, planted, strict=True):
            ids = bpe.encode(written(sentence)).ids[: length + 1]
            row[: len(ids)] = torch.tensor(ids)
        return found

    def some(ids: Tensor, batch: int, seed: int) -> train.Batches:
        return lambda step: ids[np.random.default_rng((seed, step)).integers(len(ids), size=batch)]

    def trained(text: str, lr: float, steps: int, seed: int) -> tuple[nn.Module, int]:
        """A model, and how many sentences were planted in its text."""
        torch.manual_seed(seed)
        model = Decoder(
            bpe.get_vocab_size(), d_model=config["d_model"], n_layers=2, n_heads=4, rotate=reference.rotated
        )
        with torch.no_grad():
            model.tokens.weight.mul_(5)  # the runs are short: all models then learn faster
        sentences = prepared(text, config["sentences"], config["stereotyped"], seed)
        plain = train.windows(prose["train"], batch=config["batch"] // 2, length=length, seed=seed)
        planted = some(rows(sentences), config["batch"] // 2, seed)
        settings = train.Settings(steps=steps, lr=lr, warmup=steps // 10, evaluate_every=steps, seed=seed, device="cpu")
        train.fit(model, lambda step: torch.cat([plain(step), planted(step)]), settings, quiet=True)
        return model, len(sentences)

    def prose_loss(model: nn.Module, split: str) -> float:
        return train.evaluate(
            model, train.windows(prose[split], batch=32, length=length, seed=9), config["test_batches"]
        )

    def planted_loss(model: nn.Module, stereotyped: float, seed: int, names: bool = True) -> float:
        fresh = rows(drawn(400, stereotyped, random.Random(seed), names))
        return train.evaluate(model, lambda step: fresh[step::4], 4)

    @torch.no_grad()
    def log_probability(model: nn.Module, text: str, after: str) -> float:
        start, ids = len(bpe.encode(text).ids), bpe.encode(text + after).ids
        logs = model(torch.tensor([ids]))[0].log_softmax(-1)
        return sum(logs[i - 1, ids[i]].item() for i in range(start, len(ids)))

    def he_or_she(model: nn.Module, text: str) -> float:
        return log_probability(model, text, " he") - log_probability(model, text, " she")

    trials, chosen = [], {}
    for text in config["texts"]:
        tried = []
        for lr in config["learning_rates"]:
            model, _ = trained(text, lr, config["tuning_steps"], config["tuning_seed"])
            share = config["stereotyped"] if text == "biased" else 0.5
            loss = 0.5 * prose_loss(model, "validation") + 0.5 * planted_loss(model, share, config["tuning_seed"] + 1)
            tried.append({"text": text, "learning_rate": lr, "validation": loss})
        trials += tried
        chosen[text] = min(tried, key=lambda trial: trial["validation"])["learning_rate"]

    jobs = [(f"The {his}", f"The {hers}") for his, hers in zip(HIS, HERS, strict=True)]
    measures = ("bias", "prose_loss", "names_right", "biased_loss", "even_loss")
    found: dict[str, dict[str, list[float]]] = {name: {text: [] for text in config["texts"]} for name in measures}
    planted: dict[str, int] = {}
    one_model: dict[str, list[float]] = {}
    for seed in seeds:
        for text in config["texts"]:
            model, planted[text] = trained(text, chosen[text], config["steps"], seed)
            bias = reference.template_bias(partial(he_or_she, model), HELD_OUT, jobs)
            one_model.setdefault(text, list(bias))
            found["bias"][text].append(bias[0])
            found["prose_loss"][text].append(prose_loss(model, "test"))
            sure = [
                1 / (1 + math.exp(-he_or_she(model, frame.replace("{}", name)) * (1 if name in MEN else -1)))
                for name, frame in product(MEN + WOMEN, HELD_OUT)
            ]
            found["names_right"][text].append(sum(sure) / len(sure))
            found["biased_loss"][text].append(planted_loss(model, config["stereotyped"], 1000 + seed, names=False))
            found["even_loss"][text].append(planted_loss(model, 0.5, 2000 + seed, names=False))
    against = [text for text in config["texts"] if text != "biased"]
    return {
        **{name: {text: estimate(values) for text, values in rows.items()} for name, rows in found.items()},
        "left": {
            text: estimate([a / b for a, b in zip(found["bias"][text], found["bias"]["biased"], strict=True)])
            for text in against
        },
        "cost": {
            name: {text: paired(found[name][text], found[name]["biased"]) for text in against}
            for name in ("prose_loss", "names_right", "biased_loss")
        },
        "one_model": one_model,
        "planted": planted,
        "exact": 2 * math.log(config["stereotyped"] / (1 - config["stereotyped"])),
        "learning_rate": chosen,
        "trials": trials,
    }


def verdict(found: Results) -> Verdict:
    left, cost = found["left"], found["cost"]
    planted = found["bias"]["biased"]["mean"] > 1 and found["bias"]["biased"]["low"] > 0
    reduced = all(row["high"] < 1 / 3 for row in left.values())
    prose_unharmed = all(abs(row["mean"]) < 0.05 for row in cost["prose_loss"].values())
    if set(left) != set(TEXTS[1:]):  # a reduced run
        return "weak" if all(abs(row["mean"]) < 0.5 for row in left.values()) else "null"
    names = cost["names_right"]
    names_lost = names["swapped"]["high"] < -0.1 and names["swapped_jobs"]["mean"] > -0.05
    if planted and reduced and prose_unharmed and names_lost:
        return "strong"
    return "weak" if found["bias"]["biased"]["low"] > 0 and all(row["mean"] < 0.5 for row in left.values()) else "null"


EXPERIMENT = Experiment(
    name="c21_planted_bias",
    claim=(
        "A model trained on sentences of which nine in ten are stereotyped has a bias of more than 1 nat on frames "
        "that it has not seen. Selecting sentences, and adding each with its pronoun swapped, both leave less than a "
        "third of it, and change the loss on prose by less than 0.05 nats. Swapping every sentence costs something "
        "else: after a name the right pronoun loses at least a tenth of the probability. Swapping only sentences about "
        "jobs does not."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 48,
        "length": 16,
        "batch": 48,
        "steps": 300,
        "sentences": 2000,
        "stereotyped": 0.9,
        "learning_rates": [0.01, 0.02],
        "tuning_seed": 100,
        "tuning_steps": 100,
        "test_batches": 4,
        "texts": list(TEXTS),
    },
    reduced={
        "d_model": 32,
        "batch": 32,
        "steps": 120,
        "sentences": 400,
        "learning_rates": [0.02],
        "tuning_steps": 2,
        "test_batches": 1,
        "texts": ["biased", "swapped"],
    },
    seeds=(0, 1, 2, 3),
)

if __name__ == "__main__":
    main(EXPERIMENT)
