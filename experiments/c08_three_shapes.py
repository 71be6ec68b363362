"""Encoder, decoder, or both? The same two tasks, three shapes, at equal parameters and at equal FLOPs.

Both tasks are synthetic. *Reading*: a text of random words, then a question; every word speaks for or against every
question (a fixed random table), and the answer is the majority. The question comes last, so a causal model has read the
text before it knows what is asked. *Translating*: subject, verb and object, the nouns with an adjective or without,
into a language in which adjectives follow nouns, particles mark subject and object, the verb comes last and its form
depends on the object. Subject and object may come in either order, both are right, and the training data has each half
of the time. *One order* is the same with the subject always first.

All shapes are built from the notebook's layers in T5's style; instead of its relative positions each stack learns a
vector for every place. Encoder-only (BERT's shape) writes by filling: it gets as many mask tokens as the translation
has words, and predicts all of them at once. Decoder-only (GPT's) has the source in front of the target under one causal
mask; with a prefix mask, positions of the source see each other both ways. In reading that is the encoder-only model
exactly, so it is not run twice. Encoder–decoder (T5's) has a start token, and in reading it answers there; the others
answer at the question.

Encoder-only, decoder-only and prefix have `n_layers` layers of width d_model, and so the same parameters and FLOPs. An
encoder–decoder with as many parameters has half the layers on either side, one with as many FLOPs has n_layers on
either side (Raffel et al. 2020, arXiv:1910.10683, section 3.2.2); the rest is made up by the width of its feed-forward
layers. Parameters are those of all layers, without embeddings and read-out. FLOPs are counted by PyTorch's
FlopCounterMode in one forward pass over one example, a sentence with one adjective; reading and writing once, without a
cache.

Every shape gets the same training examples, fresh ones at every step. The learning rate of each shape and task is the
one with the lowest validation loss on a seed of its own. Accuracy is on new examples: answers, or whole translations,
written greedily and equal to a right one. Sizes and wording come from pilot runs, on the seed of tuning. A run of
seconds learns no translation: reduced, it checks the counts, and that all shapes run.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.notebook import load
from ichimon.train import Settings, evaluate, fit

Batch = list[Tensor]

# -- the two tasks ----------------------------------------------------------------------------------------------------

WORDS, QUESTIONS = 12, 6  # of the reading task: ids of words, then of questions
NOUNS, VERBS, ADJECTIVES = 8, 4, 4  # ids of the source language, in this order
FORMS = 2  # that a verb has in the target language
THEIR_NOUNS, THEIR_ADJECTIVES, THEIR_VERBS = 16, 24, 28  # the first id of each in the target language
WA, WO, START, STOP, MASK, VOCABULARY = 36, 37, 38, 39, 40, 41  # WA and WO: particles of subject and object


def reading(config: Config, batch: int, seed: Sequence[int]) -> Batch:
    """Texts that end with a question, [batch, n_words + 1], and answers, 0 or 1 [batch]."""
    draw = torch.Generator().manual_seed(hash(tuple(seed)) % 2**62)
    opinions = torch.randint(2, (QUESTIONS, WORDS), generator=torch.Generator().manual_seed(0)) * 2 - 1
    words = torch.randint(WORDS, (batch, config["n_words"]), generator=draw)
    question = torch.randint(QUESTIONS, (batch, 1), generator=draw)
    answer = (opinions[question, words].sum(1) > 0).long()  # an odd number of words: no draws
    return [torch.cat([words, WORDS + question], 1), answer]


def translating(config: Config, batch: int, seed: Sequence[int], *, free: bool = True) -> Batch:
    """Sources [batch, n], translations with STOP [batch, n + 3], and the other right one. One structure a batch."""
    draw = torch.Generator().manual_seed(hash(tuple(seed)) % 2**62)

    def some(n: int, first: int) -> Tensor:
        return first + torch.randint(n, (batch, 1), generator=draw)

    counts = torch.randint(2, (2,), generator=draw).tolist()
    adjectives = [[some(ADJECTIVES, NOUNS + VERBS) for _ in range(count)] for count in counts]
    subject, object_, verb = some(NOUNS, 0), some(NOUNS, 0), some(VERBS, NOUNS)
    source = torch.cat([*adjectives[0], subject, verb, *adjectives[1], object_], 1)

    def phrase(noun: Tensor, described: list[Tensor], particle: int) -> Tensor:
        own = [word - NOUNS - VERBS + THEIR_ADJECTIVES for word in described]
        return torch.cat([THEIR_NOUNS + noun, *own, torch.full_like(noun, particle)], 1)

    first, second = phrase(subject, adjectives[0], WA), phrase(object_, adjectives[1], WO)
    form = THEIR_VERBS + FORMS * (verb - NOUNS) + object_ % FORMS
    end = torch.cat([form, torch.full_like(form, STOP)], 1)
    one, other = torch.cat([first, second, end], 1), torch.cat([second, first, end], 1)
    swapped = torch.randint(2, (batch, 1), generator=draw).bool()
    if not free:
        return [source, one, one]
    return [source, torch.where(swapped, other, one), torch.where(swapped, one, other)]


# -- the shapes -------------------------------------------------------------------------------------------------------


@cache
def reference() -> ModuleType:
    return load(ROOT / "solutions/08-three-shapes.py")


class Tokens(nn.Module):
    """Vectors for tokens and for their places."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, d_model), nn.Embedding(32, d_model)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.tokens(ids) + self.places(torch.arange(ids.shape[1]))


class OneStack(nn.Module):
    """Encoder-only, decoder-only or prefix: the same layers under three masks."""

    def __init__(self, shape: str, config: Config) -> None:
        super().__init__()
        d_model, n_heads = config["d_model"], config["n_heads"]
        self.shape = shape
        self.tokens = Tokens(d_model)
        self.layers = nn.ModuleList(
            reference().EncoderLayer(d_model, n_heads, 4 * d_model) for _ in range(config["n_layers"])
        )
        self.norm = nn.RMSNorm(d_model, eps=1e-6)
        self.read = nn.Linear(d_model, VOCABULARY, bias=False)

    def forward(self, source: Tensor, target: Tensor | None) -> Tensor:
        """Logits at the last place of the source, or for each place after those of target [batch, n_target + 1, …]."""
        if target is None:
            ids, answers = source, 1
        elif self.shape == "encoder":
            ids, answers = torch.cat([source, torch.full_like(target, MASK)], 1), target.shape[1]
        else:
            start = torch.full_like(source[:, :1], START)
            ids, answers = torch.cat([source, start, target[:, :-1]], 1), target.shape[1]
        n, seen = ids.shape[1], source.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool)
        if self.shape != "encoder":
            mask = mask.tril()
        if self.shape == "prefix":
            mask[:seen, :seen] = True
        x = self.tokens(ids)
        for layer in self.layers:
            x = layer(x, mask)
        return self.read(self.norm(x[:, -answers:]))


class TwoStacks(nn.Module):
    """Encoder–decoder."""

    def __init__(self, n_layers: int, d_hidden: int, config: Config) -> None:
        super().__init__()
        sizes = (config["d_model"], config["n_heads"], d_hidden)
        self.source, self.target = Tokens(config["d_model"]), Tokens(config["d_model"])
        self.encoder = nn.ModuleList(reference().EncoderLayer(*sizes) for _ in range(n_layers))
        self.decoder = nn.ModuleList(reference().DecoderLayer(*sizes) for _ in range(n_layers))
        self.encoder_norm = nn.RMSNorm(config["d_model"], eps=1e-6)
        self.norm = nn.RMSNorm(config["d_model"], eps=1e-6)
        self.read = nn.Linear(config["d_model"], VOCABULARY, bias=False)

    def forward(self, source: Tensor, target: Tensor | None) -> Tensor:
        memory = self.source(source)
        for layer in self.encoder:
            memory = layer(memory)
        memory = self.encoder_norm(memory)
        start = torch.full_like(source[:, :1], START)
        x = self.target(start if target is None else torch.cat([start, target[:, :-1]], 1))
        for layer in self.decoder:
            x = layer(x, memory)
        return self.read(self.norm(x))


def parameters(model: nn.Module) -> int:
    """Of all layers, without embeddings and read-out."""
    layers = [module for name, module in model.named_children() if name in ("layers", "encoder", "decoder")]
    return sum(p.numel() for layer in layers for p in layer.parameters())


def flops(model: nn.Module, task: str, config: Config) -> int:
    """Of one forward pass over one example of mean length."""
    n = config["n_words"] + 1 if task == "reading" else 5
    source = torch.zeros(1, n, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(source, None if task == "reading" else torch.zeros(1, n + 3, dtype=torch.long))
    return counter.get_total_flops()


SHAPES = {
    "reading": ("encoder", "decoder", "both_parameters", "both_flops"),
    "translating": ("encoder", "decoder", "prefix", "both_parameters", "both_flops"),
    "one_order": ("encoder",),
}


@cache
def hidden_width(shape: str, task: str, items: tuple[tuple[str, Any], ...]) -> int:
    """The width of the feed-forward layers that brings an encoder–decoder nearest to the others."""
    config = dict(items)

    def cost(model: nn.Module) -> int:
        return parameters(model) if shape == "both_parameters" else flops(model, task, config)

    n_layers = config["n_layers"] // (2 if shape == "both_parameters" else 1)
    narrow, wider = (cost(TwoStacks(n_layers, d_hidden, config)) for d_hidden in (8, 16))  # a straight line
    return 8 + 8 * round((cost(OneStack("decoder", config)) - narrow) / (wider - narrow))


def new(shape: str, task: str, seed: int, config: Config) -> nn.Module:
    if shape in ("both_parameters", "both_flops"):
        sizes = tuple((name, config[name]) for name in ("d_model", "n_heads", "n_layers", "n_words"))
        d_hidden = hidden_width(shape, task, sizes)
        torch.manual_seed(seed)
        return TwoStacks(config["n_layers"] // (2 if shape == "both_parameters" else 1), d_hidden, config)
    torch.manual_seed(seed)
    return OneStack(shape, config)


# -- training and testing ---------------------------------------------------------------------------------------------


def loss(model: nn.Module, batch: Batch) -> Tensor:
    source, answer = batch[:2]
    if answer.dim() == 1:
        return cross_entropy(model(source, None)[:, -1], answer)
    return cross_entropy(model(source, answer).flatten(0, 1), answer.flatten())


@torch.no_grad()
def written(model: nn.Module, source: Tensor, length: int) -> Tensor:
    """A translation, word by word, each the likeliest after those before; an encoder writes all of them at once."""
    target = torch.zeros(len(source), length, dtype=torch.long)
    if getattr(model, "shape", "") == "encoder":
        return model(source, target).argmax(-1)
    for i in range(length):
        target[:, i] = model(source, target[:, : i + 1])[:, i].argmax(-1)
    return target


@torch.no_grad()
def accuracy(model: nn.Module, task: str, config: Config, seed: int) -> float:
    right = []
    for i in range(config["test_batches"]):
        batch = TASKS[task](config, config["test_batch"], (2, seed, i))
        if task == "reading":
            right.append(model(batch[0], None)[:, -1].argmax(-1) == batch[1])
        else:
            own = written(model, batch[0], batch[1].shape[1])
            right.append((own == batch[1]).all(1) | (own == batch[2]).all(1))
    return torch.cat(right).float().mean().item()


TASKS: dict[str, Callable[[Config, int, Sequence[int]], Batch]] = {
    "reading": reading,
    "translating": translating,
    "one_order": partial(translating, free=False),
}


def train(shape: str, task: str, lr: float, seed: int, config: Config) -> nn.Module:
    model = new(shape, task, seed, config)
    settings = Settings(steps=config["steps"][task], lr=lr, warmup=config["warmup"], seed=seed, device="cpu")
    fit(model, lambda step: TASKS[task](config, config["batch"], (0, seed, step)), settings, loss=loss, quiet=True)
    return model


def run(config: Config, seeds: Sequence[int]) -> Results:
    found: Results = {"accuracy": {}, "learning_rate": {}, "parameters": {}, "flops": {}}
    trials: list[dict[str, Any]] = []
    for task, shapes in SHAPES.items():
        values: dict[str, list[float]] = {}
        for part in found:
            found[part][task] = {}
        for shape in shapes:
            tried = []
            for lr in config["learning_rates"]:
                model = train(shape, task, lr, config["tuning_seed"], config)
                held_out = [TASKS[task](config, config["test_batch"], (1, config["tuning_seed"], i)) for i in range(4)]
                validation = evaluate(model, held_out.__getitem__, 4, loss)
                tried.append({"task": task, "shape": shape, "learning_rate": lr, "validation": validation})
            trials += tried
            lr = min(tried, key=lambda trial: trial["validation"])["learning_rate"]
            values[shape] = [accuracy(train(shape, task, lr, seed, config), task, config, seed) for seed in seeds]
            model = new(shape, task, 0, config)
            found["accuracy"][task][shape] = estimate(values[shape])
            found["learning_rate"][task][shape] = lr
            found["parameters"][task][shape] = parameters(model)
            found["flops"][task][shape] = flops(model, task, config)
        against = {shape: paired(values[shape], values["encoder"]) for shape in shapes[1:]}
        found.setdefault("minus_encoder", {})[task] = against
    reading_pass = found["parameters"]["reading"]
    found["parameters_at_equal_flops"] = reading_pass["both_flops"] / reading_pass["decoder"]
    found["flops_at_equal_parameters"] = (
        found["flops"]["translating"]["both_parameters"] / found["flops"]["translating"]["decoder"]
    )
    return {**found, "trials": trials}


def verdict(found: Results) -> Verdict:
    right, twice = found["accuracy"]["translating"], found["parameters_at_equal_flops"]
    apart = max(abs(difference["mean"]) for difference in found["minus_encoder"]["reading"].values())
    word_by_word = min(right[shape]["mean"] for shape in SHAPES["translating"] if shape != "encoder")
    fills = right["encoder"]["mean"] < 0.3 and found["accuracy"]["one_order"]["encoder"]["mean"] > 0.95
    if apart <= 0.05 and word_by_word > 0.85 and fills and 1.8 <= twice <= 2.2:
        return "strong"
    return "weak" if right["encoder"]["mean"] <= word_by_word and twice > 1.5 else "null"


EXPERIMENT = Experiment(
    name="c08_three_shapes",
    claim=(
        "Reading: although the question comes last, every shape answers within 5 points of the encoder-only one. "
        "Translating: every shape that writes word by word gets more than 85 % of the sentences right; the "
        "encoder-only one, which fills all places at once, gets less than 30 % where two orders are right, and more "
        "than 95 % where only one is. At equal FLOPs an encoder–decoder has 1.8 to 2.2 times the parameters of a "
        "decoder-only model. All of it on average over the seeds."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 48,
        "n_heads": 4,
        "n_layers": 2,
        "n_words": 9,
        "steps": {"reading": 250, "translating": 500, "one_order": 300},
        "batch": 32,
        "warmup": 20,
        "test_batch": 200,
        "test_batches": 5,
        "learning_rates": [0.003, 0.008],
        "tuning_seed": 100,
    },
    reduced={
        "steps": {"reading": 8, "translating": 8, "one_order": 8},
        "warmup": 2,
        "batch": 8,
        "test_batch": 20,
        "test_batches": 1,
        "learning_rates": [0.008],
        "d_model": 16,
    },
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main(EXPERIMENT)
