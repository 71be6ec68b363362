"""One word, two meanings: does the vector at *hashi* say whether it is a bridge or chopsticks?

The corpus is synthetic. A sentence is 32 words: fillers, and the three Japanese homophones hashi, kumo and ame, each in
one of two senses. One cue, 1 to 20 words before the homophone, gives its sense away ("river" or "rice"), and nine times
in ten the word right after it fits the sense ("creaks" or "pinch"). Every sentence so holds cues for two other words.

A one-layer language model learns to predict the next word; nobody tells it a sense. Then a linear probe (logistic
regression) reads the sense from the vector at the homophone. Compared: a trained model without attention, attention as
initialised, and trained attention. Control: the last again, with probes fitted to shuffled labels, 40 times (10 in a
first run, which left the control's interval too wide to be judged). The learning rate is chosen by validation loss on a
seed of its own, the probe's penalty by validation accuracy; what is reported comes from sentences that neither model
nor probe has seen.

A probe shows that the sense can be read there, not that the model uses it. So each cue of hashi is also replaced by a
filler, and we watch how much of the probability of the next word stays with words that fit the sense. Not part of the
claim, but reported: how much attention hashi pays to its cue, in the head that pays most; for the sense whose cues get
more of it and for the other, because a model may look for the cues of one sense only and take their absence for the
other.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.notebook import load

# homophone -> for each sense: the cues that come before it, and the words that fit right after it
LEXICON = {
    "hashi": [
        ("river boat car stone town iron", "creaks sways spans"),
        ("rice noodles soup bowl table dinner", "pinch lift snap"),
    ],
    "kumo": [
        ("sky wind plane sun mountain weather", "drifts darkens covers"),
        ("web silk leg corner insect ceiling", "crawls bites spins"),
    ],
    "ame": [
        ("umbrella coat puddle storm autumn roof", "falls drips pours"),
        ("sugar child mouth shop wrapper pocket", "melts tastes sticks"),
    ],
}
NEUTRAL = (
    "the a and then of to in on at by for with from as so but or if when while "
    "there here now again once still only even very quite some any each both other this that these those it"
)
FILLERS = NEUTRAL.split()
SENSES = [[(cues.split(), fits.split()) for cues, fits in senses] for senses in LEXICON.values()]
WORDS = [*LEXICON, *FILLERS, *(word for senses in SENSES for cues, fits in senses for word in cues + fits)]
ID = {word: i for i, word in enumerate(WORDS)}
LENGTH, FARTHEST, FITTING = 32, 20, 0.9


@dataclass
class Sentences:
    """`ids` [n, length]; for each of the three homophones its place, its sense (0 or 1) and its cue's place, [n, 3]."""

    ids: Tensor
    place: Tensor
    sense: Tensor
    cue: Tensor


def sentences(n: int, seed: int) -> Sentences:
    rng = random.Random(seed)
    rows: list[list[list[int]]] = []
    for _ in range(n):
        words = [""] * LENGTH
        places = rng.sample(range(FARTHEST, LENGTH, 2), len(SENSES))
        choices = [rng.randrange(2) for _ in SENSES]
        for homophone, senses, place, sense in zip(LEXICON, SENSES, places, choices, strict=True):
            words[place] = homophone
            words[place + 1] = rng.choice(senses[sense][1] if rng.random() < FITTING else FILLERS)
        cues = []
        for senses, place, sense in zip(SENSES, places, choices, strict=True):
            cues.append(rng.choice([i for i in range(place - FARTHEST, place) if not words[i]]))
            words[cues[-1]] = rng.choice(senses[sense][0])
        rows.append([[ID[word or rng.choice(FILLERS)] for word in words], places, choices, cues])
    return Sentences(*(torch.tensor(column) for column in zip(*rows, strict=True)))


class LanguageModel(nn.Module):
    """Embeddings, one attention layer or none, and a guess of the next word."""

    def __init__(self, attention: nn.Module | None, mask: Tensor, d_model: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(len(WORDS), d_model), nn.Embedding(LENGTH, d_model)
        self.attention, self.mask = attention, mask
        self.guess = nn.Linear(d_model, len(WORDS))

    def embedded(self, ids: Tensor) -> Tensor:
        return self.words(ids) + self.places.weight

    def vectors(self, ids: Tensor) -> Tensor:
        x = self.embedded(ids)
        return x if self.attention is None else x + self.attention(x, self.mask)

    def loss(self, ids: Tensor) -> Tensor:
        return cross_entropy(self.guess(self.vectors(ids))[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def train(model: LanguageModel, ids: Tensor, lr: float, config: Config) -> LanguageModel:
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(config["steps"]):
        optimiser.zero_grad()
        model.loss(ids[torch.randint(len(ids), (config["batch"],))]).backward()
        optimiser.step()
    return model


def probe(vectors: list[Tensor], labels: list[Tensor]) -> Tensor:
    """Which test sentences a linear probe gets right; its penalty is chosen on the validation sentences.

    Both arguments hold a part for training, for validation and for the test.
    """
    scaler = StandardScaler().fit(vectors[0])
    x_train, x_validation, x_test = (scaler.transform(part) for part in vectors)
    probes = [LogisticRegression(C=c, max_iter=1000).fit(x_train, labels[0]) for c in (0.01, 1.0)]
    best = max(probes, key=lambda fitted: fitted.score(x_validation, labels[1]))
    return torch.from_numpy(best.predict(x_test)) == labels[2]


@torch.no_grad()
def probed(model: LanguageModel, parts: list[Sentences], homophone: int, shuffled: bool = False) -> Tensor:
    """Which test sentences a probe of the vector at a homophone gets right; fitted to shuffled labels if asked."""
    vectors = [model.vectors(part.ids)[torch.arange(len(part.ids)), part.place[:, homophone]] for part in parts]
    labels = [part.sense[:, homophone] for part in parts]
    if shuffled:
        labels = [label[torch.randperm(len(label))] for label in labels[:2]] + labels[2:]
    return probe(vectors, labels).float()


@torch.no_grad()
def fitting(model: LanguageModel, ids: Tensor, test: Sentences) -> float:
    """Of the probability of the word after hashi that goes to words fitting a sense, the share of the right sense."""
    guesses = model.guess(model.vectors(ids)).softmax(-1)[torch.arange(len(ids)), test.place[:, 0]]
    senses = torch.stack([guesses[:, [ID[word] for word in fits]].sum(-1) for _, fits in SENSES[0]], dim=-1)
    return (senses.gather(1, test.sense[:, :1])[:, 0] / senses.sum(-1)).mean().item()


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference = load(ROOT / "solutions/02-self-attention.py")
    mask, n_heads = reference.causal_mask(LENGTH), config["n_heads"]

    def new(kind: str, seed: int) -> LanguageModel:
        torch.manual_seed(seed)
        layer = None if kind == "no_attention" else reference.MultiHeadAttention(config["d_model"], n_heads)
        return LanguageModel(layer, mask, config["d_model"])

    def corpus(seed: int) -> list[Sentences]:
        """For the language model; for the probe to train, validate and test on."""
        sizes = (config["n_train"], config["n_probe"], config["n_probe"] // 2, config["n_probe"])
        return [sentences(n, len(sizes) * seed + part) for part, n in enumerate(sizes)]

    @torch.no_grad()
    def weights(model: LanguageModel, ids: Tensor, places: Tensor) -> Tensor:
        """How much the word at `places` attends to each word, [n, n_heads, length]."""
        x, layer = model.embedded(ids), cast(Any, model.attention)
        q, k = (reference.split_heads(projection(x), n_heads) for projection in (layer.q_proj, layer.k_proj))
        return reference.attention(q, k, torch.eye(LENGTH), mask)[torch.arange(len(ids)), :, places]

    trials, best = [], {}
    text, _, validation, _ = corpus(config["tuning_seed"])
    for kind in ("no_attention", "trained"):
        tried = []
        for lr in config["learning_rates"]:
            model = train(new(kind, config["tuning_seed"]), text.ids, lr, config)
            with torch.no_grad():
                tried.append({"model": kind, "learning_rate": lr, "loss": model.loss(validation.ids).item()})
        best[kind] = min(tried, key=lambda trial: trial["loss"])["learning_rate"]
        trials += tried

    conditions, ranges = ("no_attention", "untrained", "trained", "shuffled_labels"), config["ranges"]
    accuracy: dict[str, dict[str, list[float]]] = {kind: {word: [] for word in LEXICON} for kind in conditions}
    by_distance: dict[str, list[list[float]]] = {kind: [[] for _ in ranges] for kind in ("untrained", "trained")}
    on_cue: dict[str, list[float]] = {
        kind: [] for kind in ("uniform", "untrained", "trained", "trained_favoured_sense", "trained_other_sense")
    }
    next_word: dict[str, list[float]] = {"no_attention": [], "trained": [], "trained_without_cue": []}
    example: dict[str, Any] = {}
    for seed in seeds:
        text, *parts = corpus(seed)
        test = parts[-1]
        models = {kind: new(kind, seed) for kind in ("no_attention", "untrained", "trained")}
        for kind, lr in best.items():
            train(models[kind], text.ids, lr, config)
        for i, word in enumerate(LEXICON):
            for kind, model in models.items():
                right = probed(model, parts, i)
                accuracy[kind][word].append(right.mean().item())
                if word == "hashi" and kind in by_distance:
                    distance = (test.place - test.cue)[:, i]
                    for values, (low, high) in zip(by_distance[kind], ranges, strict=True):
                        values.append(right[(distance >= low) & (distance <= high)].mean().item())
            shuffles = [probed(models["trained"], parts, i, shuffled=True) for _ in range(config["shuffles"])]
            accuracy["shuffled_labels"][word].append(torch.cat(shuffles).mean().item())

        hashi, cue = test.place[:, 0], test.cue[:, 0]
        blind = test.ids.scatter(1, cue[:, None], ID[FILLERS[0]])
        next_word["no_attention"].append(fitting(models["no_attention"], test.ids, test))
        next_word["trained"].append(fitting(models["trained"], test.ids, test))
        next_word["trained_without_cue"].append(fitting(models["trained"], blind, test))
        on_cue["uniform"].append((1 / (hashi + 1)).mean().item())
        for kind in ("untrained", "trained"):
            to_cue = weights(models[kind], test.ids, hashi)[torch.arange(len(cue)), :, cue]
            on_cue[kind].append(to_cue.mean(0).max().item())
        by_sense = [to_cue[test.sense[:, 0] == sense].mean(0).max().item() for sense in (0, 1)]
        on_cue["trained_favoured_sense"].append(max(by_sense))
        on_cue["trained_other_sense"].append(min(by_sense))
        if not example:  # one sentence that ends in hashi, with a cue for either sense
            ids = test.ids[:1].repeat(2, 1)
            ids[:, cue[0]] = torch.tensor([ID[cues[0]] for cues, _ in SENSES[0]])
            seen = int(hashi[0]) + 1
            example = {"cue": int(cue[0]), "words": [[WORDS[i] for i in row[:seen]] for row in ids.tolist()]}
            for kind in ("untrained", "trained"):
                example[kind] = weights(models[kind], ids, hashi[:1].repeat(2))[:, :, :seen].tolist()
    return {
        "accuracy": {
            kind: {word: estimate(values) for word, values in words.items()} for kind, words in accuracy.items()
        },
        "trained_minus_untrained": {
            word: paired(accuracy["trained"][word], accuracy["untrained"][word]) for word in LEXICON
        },
        "by_distance": {
            "ranges": ranges,
            **{kind: [estimate(values) for values in rows] for kind, rows in by_distance.items()},
        },
        "fitting_next_word": {name: estimate(values) for name, values in next_word.items()},
        "weight_on_cue": {name: estimate(values) for name, values in on_cue.items()},
        "example": example,
        "learning_rate": best,
        "trials": trials,
    }


def verdict(found: Results) -> Verdict:
    gain, blind = found["trained_minus_untrained"]["hashi"], found["accuracy"]["no_attention"]["hashi"]
    shuffled = found["accuracy"]["shuffled_labels"]["hashi"]
    if blind["high"] < 0.55 and gain["low"] >= 0.10 and shuffled["high"] < 0.55:
        return "strong"
    return "weak" if gain["mean"] > 0.02 and blind["mean"] < 0.6 else "null"


EXPERIMENT = Experiment(
    name="c02_word_sense",
    claim=(
        "A linear probe on the vector at hashi is at chance without attention (below 55 %), and reads the sense at "
        "least 10 points better from trained attention than from the same attention as initialised. Fitted to "
        "shuffled labels it stays below 55 %."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 32,
        "n_heads": 4,
        "n_train": 20000,
        "n_probe": 2000,
        "steps": 800,
        "batch": 64,
        "learning_rates": [0.003, 0.01, 0.03],
        "tuning_seed": 100,
        "shuffles": 40,
        "ranges": [[1, 5], [6, 10], [11, 20]],
    },
    reduced={"n_train": 2000, "n_probe": 400, "steps": 150, "batch": 32, "learning_rates": [0.03], "shuffles": 1},
)

if __name__ == "__main__":
    main(EXPERIMENT)
