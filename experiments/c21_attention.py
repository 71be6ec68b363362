"""Is attention an explanation: do the tokens with much attention change the guess when they are removed?

The dense model that ships with the course (3 layers, 4 heads) reads windows of text that it has not seen, prose and
code, and guesses the token after the last. For each token of a window but the last we remove what it says, by giving it
the mean embedding of the text, and note by how much the log-probability of the guess changes, up or down. That is the
effect, and an explanation is good if it puts the tokens in the same order: Spearman's rank correlation in a window,
averaged over windows. A seed is a set of windows of its own. The last token is left out: it makes the guess, every
method gives it most, and everybody would look better for it.

Explanations: attention of the last position in the last layer, mean of the heads; the same averaged over all layers;
attention rollout, as the chapter has it; gradient times input, the size of it; how near a token stands (recency), which
needs no model; and random numbers. Also: how often the token that is put first is the one with the largest effect.

The same for heads. The effect of a head is the change of that log-probability while its output is its mean over other
windows. Is it told by how sharply the head attends (the largest weight of the last position)? By how long the vector is
that the head adds at the last position?

`sentences` are not part of the claim: maps and effects for the page's figure.

A pilot on validation text shaped the claim: see experiments/pilots/c21.jsonl.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ichimon import corpus
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.moe import load_trained
from ichimon.notebook import load

KINDS = corpus.PROSE + corpus.CODE


def ranks(values: Tensor) -> Tensor:
    """The place of each value in its row, from 0; equal values share the mean of their places."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    return below + (equal - 1) / 2


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """The rank correlation of each row of one with the same row of the other."""
    x, y = (part - part.mean(-1, keepdim=True) for part in (ranks(a), ranks(b)))
    return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


class Subject:
    """The shipped model, the mean embedding of text, and what can be read off one window."""

    def __init__(self, reference: Any, ids: Tensor) -> None:
        self.model: Any
        self.model, self.bpe = load_trained("dense")
        self.model.set_attn_implementation("eager")  # the fused one keeps no weights
        self.reference = reference
        self.embed = self.model.model.embed_tokens
        self.mean = self.embed(ids).mean(0).detach()
        self.layers, self.heads = len(self.model.model.layers), self.model.config.num_attention_heads

    def attention(self, ids: Tensor) -> Tensor:
        """Of all layers, [n_layers, batch, n_heads, n, n]."""
        with torch.no_grad():
            return torch.stack(self.model(ids, output_attentions=True).attentions)

    @torch.no_grad()
    def guesses(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest next token of each window and its log-probability."""
        best = self.model(ids).logits[:, -1].log_softmax(-1).max(-1)
        return best.indices, best.values

    @torch.no_grad()
    def token_effects(self, ids: Tensor) -> Tensor:
        """How much the guess's log-probability changes without each token, [batch, n]."""
        guess, said = self.guesses(ids)
        found = torch.zeros(ids.shape)
        for j in range(ids.shape[1]):
            x = self.embed(ids).clone()
            x[:, j] = self.mean
            logs = self.model(inputs_embeds=x).logits[:, -1].log_softmax(-1)
            found[:, j] = (logs.gather(1, guess[:, None])[:, 0] - said).abs()
        return found

    def head_effects(self, ids: Tensor, other: Tensor) -> Tensor:
        """How much the guess's log-probability changes without each head, [batch, n_layers · n_heads]."""
        guess, said = self.guesses(ids)
        rows = []
        for head in [(layer, head) for layer in range(self.layers) for head in range(self.heads)]:
            logs = self.reference.mean_ablate(self.model, ids, [head], other)[:, -1].log_softmax(-1)
            rows.append((logs.gather(1, guess[:, None])[:, 0] - said).abs())
        return torch.stack(rows, -1)

    def gradient_times_input(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).detach().requires_grad_()
        self.model(inputs_embeds=x).logits[:, -1].log_softmax(-1).max(-1).values.sum().backward()
        assert x.grad is not None
        return (x.grad * x).sum(-1).abs().detach()

    @torch.no_grad()
    def lengths(self, ids: Tensor) -> Tensor:
        """The length of the vector that each head adds at the last position, [batch, n_layers · n_heads]."""
        kept: list[Tensor] = []
        projections = [layer.self_attn.o_proj for layer in self.model.model.layers]

        def keep(part: Any, args: Any) -> None:
            kept.append(args[0][:, -1].unflatten(-1, (self.heads, -1)))

        hooks = [part.register_forward_pre_hook(keep) for part in projections]
        self.model(ids)
        for hook in hooks:
            hook.remove()
        added = [
            torch.einsum("bhd,ohd->bho", x, part.weight.unflatten(1, (self.heads, -1)))
            for x, part in zip(kept, projections, strict=True)
        ]
        return torch.cat([part.norm(dim=-1) for part in added], -1)


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference = load(ROOT / "solutions/21-looking-inside.py")
    bpe = load_trained("dense")[1]
    text = {
        split: torch.tensor(
            bpe.encode("\n".join(t.text for t in corpus.texts(KINDS, split))[: config["characters"]]).ids
        )
        for split in (config["split"], "validation")
    }
    subject = Subject(reference, text["validation"])
    n, batch = config["length"], config["windows"]

    methods = ("attention_last", "attention_all", "rollout", "gradient_times_input", "recency", "random")
    by_token: dict[str, list[float]] = {name: [] for name in methods}
    first: dict[str, list[float]] = {name: [] for name in methods}
    by_head: dict[str, list[float]] = {name: [] for name in ("sharpness", "length", "random")}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        windows = partial(drawn, batch=batch, n=n, generator=generator)
        ids, other = windows(text[config["split"]]), windows(text["validation"])
        weights = subject.attention(ids)
        scores = {
            "attention_last": weights[-1].mean(1)[:, -1],
            "attention_all": weights.mean((0, 2))[:, -1],
            "rollout": reference.attention_rollout(weights)[:, -1],
            "gradient_times_input": subject.gradient_times_input(ids),
            "recency": torch.arange(n).float().expand(batch, n),
            "random": torch.rand(batch, n, generator=generator),
        }
        effects = subject.token_effects(ids)[:, :-1]
        for name in methods:
            score = scores[name][:, :-1]
            by_token[name].append(spearman(score, effects).mean().item())
            first[name].append((score.argmax(-1) == effects.argmax(-1)).float().mean().item())
        effects = subject.head_effects(ids, other)
        sharp = weights[:, :, :, -1].amax(-1).permute(1, 0, 2).flatten(1)
        told = {
            "sharpness": sharp,
            "length": subject.lengths(ids),
            "random": torch.rand(sharp.shape, generator=generator),
        }
        for name, score in told.items():
            by_head[name].append(spearman(score, effects).mean().item())
    return {
        "tokens": {name: estimate(values) for name, values in by_token.items()},
        "first": {name: estimate(values) for name, values in first.items()},
        "heads": {name: estimate(values) for name, values in by_head.items()},
        "gradient_minus_attention": paired(by_token["gradient_times_input"], by_token["attention_last"]),
        "attention_minus_recency": paired(by_token["attention_last"], by_token["recency"]),
        "mean_minus_rollout": paired(by_token["attention_all"], by_token["rollout"]),
        "length_minus_sharpness": paired(by_head["length"], by_head["sharpness"]),
        "n_heads": subject.layers * subject.heads,
        "n_windows": batch * len(seeds),
        "sentences": [
            told_of(subject, sentence, text["validation"][: 40 * n].view(40, n)) for sentence in config["sentences"]
        ],
    }


def drawn(ids: Tensor, batch: int, n: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(ids) - n, (batch,), generator=generator)
    return torch.stack([ids[start : start + n] for start in starts.tolist()])


def told_of(subject: Subject, sentence: str, other: Tensor) -> dict[str, Any]:
    """What the figure shows of a sentence: its tokens, the guess, where each head looks from the last, the effects."""
    ids = torch.tensor([subject.bpe.encode(sentence).ids])
    guess, said = subject.guesses(ids)
    weights = subject.attention(ids)

    def short(values: Tensor) -> list[float]:
        return [round(value, 3) for value in values.tolist()]

    return {
        "tokens": [subject.bpe.decode([i]) for i in ids[0].tolist()],
        "guess": subject.bpe.decode(guess.tolist()),
        "chance": said.exp().item(),
        "heads": [short(row) for row in weights[:, 0, :, -1].flatten(0, 1)],
        "head_effects": short(subject.head_effects(ids, other)[0]),
        "map": short(weights[-1, 0].mean(0)[-1]),
        "token_effects": short(subject.token_effects(ids)[0]),
    }


def verdict(found: Results) -> Verdict:
    beyond_recency, better_than_rollout = found["attention_minus_recency"], found["mean_minus_rollout"]
    far_from_all = found["tokens"]["attention_last"]["high"] < 0.7 and found["first"]["attention_last"]["high"] < 0.6
    if beyond_recency["low"] > 0 and better_than_rollout["low"] > 0 and far_from_all:
        return "strong"
    return "weak" if beyond_recency["mean"] > 0 and better_than_rollout["mean"] > 0 else "null"


EXPERIMENT = Experiment(
    name="c21_attention",
    claim=(
        "In the model that ships with the course the attention of the last position in the last layer orders the "
        "earlier tokens more like their effect than nearness does (difference of rank correlations above 0 with its "
        "95 % interval), but its correlation stays below 0.7, and the token that it puts first is the one with the "
        "largest effect in less than 60 % of the windows. The plain mean over all layers does better than rollout."
    ),
    run=run,
    verdict=verdict,
    config={
        "length": 24,
        "windows": 60,
        "split": "test",
        "characters": 200_000,
        "sentences": [
            "Return True if the object is an instance of",
            "If the argument is not a string, a TypeError is",
            "The value of the first argument must be a",
            "for key, value in self.items():\n        if key",
            "import os\nimport sys\nimport",
            "The file is opened in binary mode and the file",
            "def __init__(self, name, value):\n        self.name =",
            "raises an exception if the key is not in the",
            "This method returns a new list, and the old",
            "The class has two methods, and each of the two",
            "Raised when a file or directory is requested but does not",
            "with open(path) as file:\n    data = file",
        ],
    },
    reduced={"windows": 12, "characters": 40_000, "sentences": ["Return True if the object is an instance of"]},
)

if __name__ == "__main__":
    main(EXPERIMENT)
