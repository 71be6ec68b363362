"""Do experts split by modality, and is it their nature or what they are told?

One small model learns digits and vowels at once. Patches and frames have a linear layer each to come in and one to go
out; everything between is shared: three layers of attention (each image and each sound by itself) and of the chapter's
SharedMoE, with six experts, one a token. Nobody tells the router what is an image. It is trained in three ways:

- without any balancing;
- balanced over all tokens together, as in chapter 14: n_experts · Σ f · P, times 0.1;
- balanced within each kind, by the chapter's two entropies after LIMoE (arXiv 2206.02770), times 0.1.

Judged by: the mutual information of expert and kind in nats on images and sounds that were not trained on, equally many
tokens of each, minus the mean of shuffled kinds (`excess`). Its largest value is ln 2: the expert then tells the kind.
The same model before training is the control: a random router too sends unlike vectors to different experts. The
learning rate is that of the pilots and was not tuned.

Pilots on two other seeds, which this claim was written after, turned our first guess round: we had expected that a
balance over all tokens makes experts split. Instead the untrained model was split the most, and training mixed the
kinds, more so the deeper the layer.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot, unfold

from experiments.senses import RATE, Labelled, batches, digits, vowels
from ichimon import train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.notebook import load

WAYS = ("none", "all", "each")


class SeesAndHears(nn.Module):
    """Patches [b, 16, 4] and frames [b, 16, 24] to logits of digits and of vowels, and the experts' own loss."""

    def __init__(self, reference: Any, d_model: int, n_layers: int, n_experts: int) -> None:
        super().__init__()
        self.enter = nn.ModuleList([nn.Linear(4, d_model), nn.Linear(24, d_model)])
        self.positions = nn.Parameter(0.3 * torch.randn(16, d_model))
        self.attention = nn.ModuleList(nn.MultiheadAttention(d_model, 4, batch_first=True) for _ in range(n_layers))
        layers = [reference.SharedMoE(d_model, 2 * d_model, n_experts) for _ in range(n_layers)]
        self.experts = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(2 * n_layers + 1))
        self.leave = nn.ModuleList([nn.Linear(d_model, 10), nn.Linear(d_model, 5)])
        self.heard: list[Tensor] = []  # the router's logits of each layer, in the last call
        for layer in layers:
            layer.router.register_forward_hook(lambda module, inputs, logits: self.heard.append(logits))

    def forward(self, kinds: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        self.heard.clear()
        both = [enter(kind) + self.positions for enter, kind in zip(self.enter, kinds, strict=True)]
        total = torch.zeros(())
        for i, (attend, experts) in enumerate(zip(self.attention, self.experts, strict=True)):
            for k, x in enumerate(both):
                h = self.norms[2 * i](x)
                both[k] = x + attend(h, h, h, need_weights=False)[0]
            *out, loss = experts(*(self.norms[2 * i + 1](x) for x in both))
            both = [x + y for x, y in zip(both, out, strict=True)]
            total = total + loss
        return [leave(self.norms[-1](x).mean(1)) for leave, x in zip(self.leave, both, strict=True)], total


def together(heard: Sequence[Tensor]) -> Tensor:
    """Chapter 14's loss over all tokens of a layer, summed over layers: n_experts · Σ f · P."""
    total = torch.zeros(())
    for logits in heard:
        n = logits.shape[-1]
        share = one_hot(logits.argmax(-1), n).float().mean(0)
        total = total + n * (share * logits.softmax(-1).mean(0)).sum()
    return total


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference = load(ROOT / "solutions/20-beyond-text.py")
    information = load(ROOT / "solutions/15-training-moe.py").mutual_information
    bank = reference.mel_filters(24, 256, RATE)

    def seen(data: Labelled) -> Labelled:
        return unfold(data[0], 2, stride=2).mT, data[1]

    def heard(data: Labelled) -> Labelled:
        return reference.log_mel(data[0], bank, 256, 64).mT, data[1]

    n_new = config["new"]
    new_digits = (digits()["test"][0][:n_new], digits()["test"][1][:n_new])
    images, new_images = seen(digits()["train"]), seen(new_digits)
    sounds, new_sounds = heard(vowels(config["sounds"], seed=1)), heard(vowels(n_new, seed=2))
    kind = torch.arange(2).repeat_interleave(n_new * 16)

    def measured(model: SeesAndHears, generator: torch.Generator) -> tuple[list[float], list[float]]:
        """The excess of each layer, and the share of right answers for images and for sounds."""
        with torch.no_grad():
            logits, _ = model([new_images[0], new_sounds[0]])
            experts = [layer.argmax(-1) for layer in model.heard]
        excess = []
        for expert in experts:
            null = [information(kind[torch.randperm(len(kind), generator=generator)], expert) for _ in range(5)]
            excess.append(information(kind, expert) - sum(null) / len(null))
        right = [
            (found.argmax(-1) == label).float().mean().item()
            for found, label in zip(logits, (new_images[1], new_sounds[1]), strict=True)
        ]
        return excess, right

    rows: dict[str, list[tuple[list[float], list[float]]]] = {"untrained": [], **{way: [] for way in WAYS}}
    shares: dict[str, list[list[list[float]]]] = {}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for way in WAYS:
            torch.manual_seed(seed)
            model = SeesAndHears(reference, config["d_model"], config["n_layers"], config["n_experts"])
            if way == "none":
                rows["untrained"].append(measured(model, generator))

            def loss(model: nn.Module, batch: tuple[Labelled, Labelled], way: str = way) -> Tensor:
                assert isinstance(model, SeesAndHears)
                (x, digit), (y, vowel) = batch
                (a, b), entropies = model([x, y])
                pull = {"none": torch.zeros(()), "all": together(model.heard), "each": entropies}[way]
                return cross_entropy(a, digit) + cross_entropy(b, vowel) + config["pull"] * pull

            draw_x = batches(images, batch=config["batch"], seed=seed)
            draw_y = batches(sounds, batch=config["batch"], seed=seed + 50)
            settings = train.Settings(
                steps=config["steps"],
                lr=config["learning_rate"],
                warmup=config["steps"] // 10,
                evaluate_every=config["steps"],
                seed=seed,
                device="cpu",
            )
            train.fit(
                model,
                lambda step, x=draw_x, y=draw_y: (x(step), y(step)),  # type: ignore[misc]
                settings,
                loss=loss,
                quiet=True,
            )
            rows[way].append(measured(model.eval(), generator))
            if way not in shares:  # the first seed's, for a figure
                shares[way] = [
                    [
                        (layer.argmax(-1)[kind == k].bincount(minlength=config["n_experts"]) / (n_new * 16)).tolist()
                        for k in (0, 1)
                    ]
                    for layer in model.heard
                ]
    layers = range(config["n_layers"])
    mean = {way: [sum(excess) / len(excess) for excess, _ in found] for way, found in rows.items()}
    return {
        "largest": math.log(2),
        "excess": {way: [estimate([row[0][i] for row in found]) for i in layers] for way, found in rows.items()},
        "mean_excess": {way: estimate(values) for way, values in mean.items()},
        "all_minus_each": paired(mean["all"], mean["each"]),
        "none_minus_untrained": paired(mean["none"], mean["untrained"]),
        "last_minus_first": {
            way: paired([row[0][-1] for row in found], [row[0][0] for row in found]) for way, found in rows.items()
        },
        "right": {
            way: {name: estimate([row[1][k] for row in rows[way]]) for k, name in enumerate(("images", "sounds"))}
            for way in WAYS
        },
        "shares": shares,
    }


def verdict(found: Results) -> Verdict:
    mean, fall = found["mean_excess"], found["last_minus_first"]
    deeper = all(fall[way]["high"] < 0 for way in ("none", "all"))
    born = all(mean[way]["mean"] < mean["untrained"]["mean"] for way in WAYS)
    told = found["all_minus_each"]["low"] > 0 and mean["each"]["mean"] < 2 / 3 * mean["all"]["mean"]
    if deeper and born and told:
        return "strong"
    return "weak" if found["all_minus_each"]["mean"] > 0 else "null"


EXPERIMENT = Experiment(
    name="c20_experts",
    claim=(
        "Without balancing, and balanced over all tokens, experts split by kind more in the first layer than in the "
        "last. Averaged over the layers no way of training gives more of a split than the untrained router has. "
        "Balanced within each kind, experts tell less than two thirds as much about the kind as balanced over all."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 32,
        "n_layers": 3,
        "n_experts": 6,
        "steps": 200,
        "batch": 16,
        "learning_rate": 0.003,
        "pull": 0.1,
        "sounds": 1000,
        "new": 500,
    },
    reduced={
        "d_model": 16,
        "n_layers": 1,
        "n_experts": 4,
        "steps": 60,
        "batch": 12,
        "learning_rate": 0.01,
        "pull": 0.5,
        "sounds": 200,
        "new": 100,
    },
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
