"""What do experts specialise in: the token, its class, its place, or the kind of text?

A small MoE (3 layers, 8 experts a layer, 2 of them a token) trains on three kinds of text in equal parts: topics of
Python's language reference, docstrings, and code. Nobody tells it the kind. Then it reads windows of each kind that it
has not seen, equally many, and we note each token's first expert in each layer.

Judged by: the mutual information of expert and label in nats, plug-in, minus the mean of shuffled labels (`excess`).
Labels: the token; its class; the token before it, and that one's class; its place in the window in eighths; the domain.
The class goes by spelling alone, so that it means the same in prose and in code: white space, digits, punctuation, the
beginning of a word, the inside of a word. It is a function of the token, so it never shares more than the token does.
Because tokens are not equally frequent in the domains, what domain, place and class before add to a token that is
already known is measured too: I(expert; label | token), with labels shuffled among the places of the same token. In
code, the class that Python's own tokeniser gives (keyword, name, string, comment, …) stands in for part of speech: the
same letters may be a keyword, or part of a comment. It knows syntax; it knows no meaning.

Control: the same model before training. Its router is random, but it reads vectors of tokens, so it already sorts by
token. The learning rate is that of the course's small MoE and was not tuned here; balancing loss 0.01.

A pilot on one seed, which this claim was written after, found the token far ahead of its class and of the domain, and
the domain's share growing with depth.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.moe import MoE, decoder, loss, routes
from ichimon import corpus, train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.notebook import load

DOMAINS: tuple[corpus.Kind, ...] = ("topics", "docstrings", "code")
CLASSES = ("space", "digit", "punctuation", "word begins", "word goes on")
KINDS = corpus.PROSE + corpus.CODE
EIGHTHS = 8


def spelling(piece: str) -> int:
    """The class of a token by its first visible character; a word begins where white space comes first."""
    visible = piece.lstrip()
    if not visible:
        return 0
    if visible[0].isdigit():
        return 1
    if not (visible[0].isalpha() or visible[0] == "_"):
        return 2
    return 3 if piece[0].isspace() else 4


def encoded(kind: corpus.Kind, splits: Sequence[corpus.Split], limit: int) -> tuple[Tensor, Tensor]:
    """The ids of a kind of text, at most `limit`, and for code the class that Python's tokeniser gives, else −1."""
    bpe = corpus.tokenizer(corpus.VOCABULARY, KINDS)
    ids: list[int] = []
    classes: list[int] = []
    for split in splits:
        for text in corpus.texts((kind,), split):
            if len(ids) >= limit:
                break
            if kind == "code":
                try:
                    found, names = corpus.token_classes(bpe, text.text)
                except corpus.CorpusError:
                    continue
                named = [corpus.CLASSES.index(name) for name in names]
            else:
                found = bpe.encode(text.text).ids
                named = [-1] * len(found)
            ids += [*found, 0]
            classes += [*named, -1]
    return torch.tensor(ids[:limit]), torch.tensor(classes[:limit])


def information(x: Tensor, y: Tensor) -> float:
    """The plug-in mutual information in nats, as the chapter's mutual_information has it, for labels from 0 on."""
    columns = int(y.max()) + 1
    p = torch.bincount(x * columns + y, minlength=(int(x.max()) + 1) * columns).view(-1, columns).double() / len(x)
    entropies = [torch.special.entr(share).sum() for share in (p.sum(0), p.sum(1), p)]
    return (entropies[0] + entropies[1] - entropies[2]).item()


def shuffled(x: Tensor, y: Tensor, n: int, generator: torch.Generator) -> float:
    """The mean information of x and y in a random order."""
    return sum(information(x, y[torch.randperm(len(y), generator=generator)]) for _ in range(n)) / n


def within(token: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
    """The labels shuffled among the places of the same token."""
    noise = torch.rand(len(token), generator=generator, dtype=torch.float64)
    shuffled = (token + noise).argsort()  # tokens in order, and within a token in any order
    found = torch.empty_like(label)
    found[token.argsort(stable=True)] = label[shuffled]
    return found


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference = load(ROOT / "solutions/15-training-moe.py").mutual_information
    length, windows = config["length"], config["windows"]
    bpe = corpus.tokenizer(corpus.VOCABULARY, KINDS)
    pieces = [bpe.decode([i]) for i in range(corpus.VOCABULARY)]
    spelled = torch.tensor([spelling(piece) for piece in pieces])

    text = {kind: encoded(kind, ("train",), config["train_tokens"])[0] for kind in DOMAINS}
    draws = {kind: train.windows(text[kind], batch=config["batch"] // 3, length=length, seed=7) for kind in DOMAINS}

    def mixed(seed: int) -> train.Batches:
        return lambda step: torch.cat([draws[kind](1_000_000 * seed + step) for kind in DOMAINS])

    rows, syntax = [], []
    for kind in DOMAINS:
        ids, classes = encoded(kind, ("test", "validation"), config["held_out_tokens"])
        starts = torch.linspace(0, len(ids) - length - 1, windows).long()
        rows.append(torch.stack([ids[start : start + length] for start in starts]))
        syntax.append(torch.stack([classes[start : start + length] for start in starts]))
    held_out, python_class = torch.cat(rows), torch.cat(syntax)[:, 1:].flatten()
    token, before = held_out[:, 1:].flatten(), held_out[:, :-1].flatten()
    domain = torch.arange(3).repeat_interleave(windows * (length - 1))
    place = (torch.arange(1, length) * EIGHTHS // length).repeat(3 * windows)
    labels = {
        "token": token,
        "class": spelled[token],
        "before": before,
        "class before": spelled[before],
        "place": place,
        "domain": domain,
    }
    in_code = python_class >= 0
    assert abs(information(domain, token) - reference(domain, token)) < 1e-9, "the table and the chapter's code differ"

    def measured(model: torch.nn.Module, seed: int) -> list[dict[str, dict[str, float]]]:
        """Of each layer the excess, what was counted, and the null of every label."""
        generator = torch.Generator().manual_seed(seed)
        found = []
        for experts in routes(model, held_out)[..., 0]:
            expert = experts[:, 1:].flatten()
            row = {}
            for name, label in labels.items():
                null = shuffled(expert, label, config["shuffles"], generator)
                counted = information(expert, label)
                row[name] = {"excess": counted - null, "counted": counted, "null": null}
            conditional = {name: (token, expert, labels[name]) for name in ("class before", "place", "domain")}
            conditional["python class"] = (token[in_code], expert[in_code], python_class[in_code])
            for name, (known, e, label) in conditional.items():
                alone = information(e, known)

                kinds = int(label.max()) + 1
                counted = information(e, known * kinds + label) - alone
                nulls = [
                    information(e, known * kinds + within(known, label, generator)) for _ in range(config["shuffles"])
                ]
                null = sum(nulls) / len(nulls) - alone
                row[f"{name} given token"] = {"excess": counted - null, "counted": counted, "null": null}
            row["python class in code"] = {
                "excess": information(expert[in_code], python_class[in_code])
                - shuffled(expert[in_code], python_class[in_code], config["shuffles"], generator)
            }
            row["itself"] = {"excess": information(expert, expert)}
            found.append(row)
        return found

    def favourites(model: torch.nn.Module) -> list[list[dict[str, Any]]]:
        """For each layer and expert the tokens that it has most of beyond its share, and its domains."""
        found = []
        for experts in routes(model, held_out)[..., 0]:
            expert = experts[:, 1:].flatten()
            layer = []
            for i in range(config["n_experts"]):
                mine = torch.bincount(token[expert == i], minlength=corpus.VOCABULARY).double()
                every = torch.bincount(token, minlength=corpus.VOCABULARY).double()
                lift = torch.where(every >= 30, mine / every.clamp(min=1), 0) * mine.sqrt()
                shares = torch.bincount(domain[expert == i], minlength=3).double()
                layer.append(
                    {
                        "share": (expert == i).double().mean().item(),
                        "tokens": [pieces[int(t)] for t in lift.topk(6).indices],
                        "domains": (shares / shares.sum().clamp(min=1)).tolist(),
                    }
                )
            found.append(layer)
        return found

    collected: dict[str, list[list[dict[str, dict[str, float]]]]] = {"untrained": [], "trained": []}
    losses: list[float] = []
    examples: list[list[dict[str, Any]]] = []
    for seed in seeds:
        torch.manual_seed(seed)
        model = decoder(
            corpus.VOCABULARY,
            lambda: MoE(config["d_model"], config["d_hidden"], n_experts=config["n_experts"], top_k=2),
            length=length,
            d_model=config["d_model"],
            n_layers=config["n_layers"],
        ).eval()
        collected["untrained"].append(measured(model, seed))
        settings = train.Settings(
            steps=config["steps"],
            lr=config["learning_rate"],
            warmup=config["steps"] // 10,
            evaluate_every=config["steps"],
            seed=seed,
            device="cpu",
        )
        model.train()
        train.fit(model, mixed(seed), settings, loss=loss(balance=0.01), quiet=True)
        model.eval()
        collected["trained"].append(measured(model, seed))
        losses.append(train.evaluate(model, lambda step: held_out[step::8], 8))
        examples = examples or favourites(model)

    names = list(collected["trained"][0][0])
    by_layer = {
        kind: {
            name: [estimate([rows[i][name]["excess"] for rows in every]) for i in range(config["n_layers"])]
            for name in names
        }
        for kind, every in collected.items()
    }
    raw = [
        {name: {part: row[name][part] for part in ("counted", "null") if part in row[name]} for name in names}
        for row in collected["trained"][0]
    ]
    last = [rows[-1] for rows in collected["trained"]]
    return {
        "excess": by_layer,
        "first_seed": raw,
        "token_over_domain": [
            estimate([rows[i]["token"]["excess"] / rows[i]["domain"]["excess"] for rows in collected["trained"]])
            for i in range(config["n_layers"])
        ],
        "domain_last_minus_first": paired(
            [row["domain given token"]["excess"] for row in last],
            [rows[0]["domain given token"]["excess"] for rows in collected["trained"]],
        ),
        "class_before_minus_domain": paired(
            [row["class before given token"]["excess"] for row in last],
            [row["domain given token"]["excess"] for row in last],
        ),
        "loss": estimate(losses),
        "examples": examples,
        "tokens": len(token),
        "classes": list(CLASSES),
        "domains": list(DOMAINS),
    }


def verdict(found: Results) -> Verdict:
    ahead = all(row["low"] > 5 for row in found["token_over_domain"])
    deeper = found["domain_last_minus_first"]["low"] > 0
    context = found["class_before_minus_domain"]["low"] > 0
    if ahead and deeper and context:
        return "strong"
    return "weak" if all(row["mean"] > 2 for row in found["token_over_domain"]) else "null"


EXPERIMENT = Experiment(
    name="c15_specialise",
    claim=(
        "Beyond chance, a token's first expert shares at least five times as many nats with the token as with the "
        "domain of the text, in every layer. Once the token is known, the domain adds more in the last layer than in "
        "the first, and in the last layer the class of the token before adds more than the domain."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 64,
        "d_hidden": 64,
        "n_layers": 3,
        "n_experts": 8,
        "length": 128,
        "batch": 9,
        "steps": 1500,
        "learning_rate": 0.004,
        "train_tokens": 400_000,
        "held_out_tokens": 150_000,
        "windows": 200,
        "shuffles": 5,
    },
    reduced={
        "d_model": 32,
        "d_hidden": 32,
        "n_layers": 3,
        "n_experts": 4,
        "length": 32,
        "steps": 150,
        "learning_rate": 0.01,
        "train_tokens": 30_000,
        "held_out_tokens": 20_000,
        "windows": 60,
        "shuffles": 2,
    },
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
