"""Does the roofline predict how long a decoder takes to write a token, from two numbers of the machine?

Two microbenchmarks know nothing of decoders: one reads a large tensor (bytes a second), one multiplies two large square
matrices (FLOPs a second). Then LLaMA-like decoders of several sizes write one token behind a filled cache for 1 to 64
texts, and the time is compared with the reference's decode_roofline at these two numbers. In some models heads share
keys, one has experts, so that a batch touches more weights than a text. The caches are made in advance, and keys are
not copied for the heads that share them.

In writing, products are thin: a matrix meets as many vectors as there are texts. So a second prediction takes for the
peak what one large matrix reaches with so many vectors, which is measured too.

A tensor that is read is as large as a model. A round has its own microbenchmarks, taken anew for each comparison, its
own weights and its own texts: one round is one seed. Reported are ratios: measured over predicted.
"""

import math
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load


def seconds(function: Callable[[], object], repeats: int) -> float:
    """The median of `repeats` runs, after one that does not count; CPU time on one thread."""
    times = []
    for repeat in range(repeats + 1):
        start = time.process_time()
        function()
        if repeat:
            times.append(time.process_time() - start)
    return median(times)


class Machine:
    """Bytes a second of reading, FLOPs a second of multiplying square matrices, and thin ones."""

    def __init__(self, config: Config) -> None:
        self.repeats = config["repeats"]
        self.large, n = torch.ones(config["read_mib"] * 2**18), config["matrix"]
        self.a, self.b = torch.randn(n, n), torch.randn(n, n)

    def bandwidth(self) -> float:
        return self.large.nbytes / seconds(self.large.sum, self.repeats)

    def peak(self) -> float:
        return 2 * len(self.a) ** 3 / seconds(lambda: self.a @ self.b, self.repeats)

    def thin(self, rows: int) -> float:
        weights, x = self.large.view(-1, 1024)[:8192], self.a[:rows, :1024]
        return 2 * rows * weights.numel() / seconds(lambda: F.linear(x, weights), self.repeats)


class Model:
    """Weights and caches of a config.json, and one step of writing: random numbers, a real model's work."""

    def __init__(self, config: Config, context: int) -> None:
        self.config, self.context = config, context
        d, self.heads, self.kv_heads = (
            config["hidden_size"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
        )
        self.d_head, hidden = d // self.heads, config["intermediate_size"]
        self.experts, self.top_k = config.get("num_local_experts", 1), config.get("num_experts_per_tok", 1)
        width = (self.heads + 2 * self.kv_heads) * self.d_head

        pool = torch.randn(
            2**20
        )  # the same numbers again and again: drawing all of them would take longer than the run

        def matrix(*shape: int) -> Tensor:
            size = math.prod(shape)
            return (pool.repeat(size // len(pool) + 1)[:size] * shape[-1] ** -0.5).view(shape)

        self.tokens, self.head = matrix(config["vocab_size"], d), matrix(config["vocab_size"], d)
        self.layers = [
            {
                "qkv": matrix(width, d),
                "o": matrix(d, d),
                "router": matrix(self.experts, d),
                "up": matrix(self.experts, 2 * hidden, d),
                "down": matrix(self.experts, d, hidden),
            }
            for _ in range(config["num_hidden_layers"])
        ]

    def fill(self, batch: int) -> None:
        """Texts, and the caches of what they have read."""
        self.ids = torch.randint(self.config["vocab_size"], (batch,))
        for layer in self.layers:
            for letter in "kv":
                layer[letter] = torch.randn(batch, self.kv_heads, self.context, self.d_head)

    def step(self) -> Tensor:
        x = self.tokens[self.ids]
        for layer in self.layers:
            x = x + self.attend(layer, F.rms_norm(x, x.shape[-1:]))
            x = x + self.feed_forward(layer, F.rms_norm(x, x.shape[-1:]))
        return F.linear(F.rms_norm(x, x.shape[-1:]), self.head).argmax(-1)

    def attend(self, layer: dict[str, Tensor], x: Tensor) -> Tensor:
        n_q, n_kv = self.heads * self.d_head, self.kv_heads * self.d_head
        q, k, v = F.linear(x, layer["qkv"]).split((n_q, n_kv, n_kv), -1)
        layer["k"][:, :, -1], layer["v"][:, :, -1] = (t.view(len(x), -1, self.d_head) for t in (k, v))
        q = q.view(len(x), self.kv_heads, -1, self.d_head)  # the queries of a group read one head of keys
        shares = (q @ layer["k"].mT * self.d_head**-0.5).softmax(-1)
        return F.linear((shares @ layer["v"]).flatten(1), layer["o"])

    def feed_forward(self, layer: dict[str, Tensor], x: Tensor) -> Tensor:
        if self.experts == 1:
            return self.expert(layer, 0, x)
        scores, chosen = F.linear(x, layer["router"]).topk(self.top_k)
        weights, out = scores.softmax(-1), torch.zeros_like(x)
        for e in chosen.unique().tolist():
            row, place = (chosen == e).nonzero(as_tuple=True)
            out.index_add_(0, row, self.expert(layer, e, x[row]) * weights[row, place, None])
        return out

    @staticmethod
    def expert(layer: dict[str, Tensor], e: int, x: Tensor) -> Tensor:
        gate, up = F.linear(x, layer["up"][e]).chunk(2, -1)
        return F.linear(F.silu(gate) * up, layer["down"][e])


@torch.no_grad()
def run(config: Config, seeds: Sequence[int]) -> Results:
    roofline = load(ROOT / "solutions/22-choosing.py").decode_roofline
    context, batches, models = config["context"], config["batches"], config["models"]
    ratios: dict[str, dict[str, dict[int, list[float]]]] = {
        kind: {name: {b: [] for b in batches} for name in models} for kind in ("square", "thin")
    }
    bounds: dict[str, list[str]] = {name: [] for name in models}
    balance: list[float] = []
    medians: dict[str, list[float]] = {"square": [], "thin": []}
    reached: dict[int, list[float]] = {b: [] for b in batches}
    for seed in seeds:
        torch.manual_seed(seed)
        machine, ridge = Machine(config), []
        for name, sizes in models.items():
            whole, bounds[name] = {**config["common"], **sizes}, []
            model = Model(whole, context)
            for batch in batches:
                model.fill(batch)
                bandwidth, peak, thin = machine.bandwidth(), machine.peak(), machine.thin(batch)
                measured = seconds(model.step, config["steps"])
                for kind, flops in (("square", peak), ("thin", thin)):
                    told = roofline(whole, batch, context, bandwidth, flops, weight_bits=32, kv_bits=32)
                    ratios[kind][name][batch].append(measured / told["seconds"])
                    if kind == "square":
                        bounds[name].append(told["bound"])
                ridge.append(peak / bandwidth)
                reached[batch].append(thin / peak)
        balance.append(median(ridge))
        for kind, found in ratios.items():
            medians[kind].append(median(values[-1] for rows in found.values() for values in rows.values()))
    every = {
        kind: sorted(median(values) for rows in found.values() for values in rows.values())
        for kind, found in ratios.items()
    }
    return {
        "batches": batches,
        "context": context,
        "measured_over_predicted": {
            kind: {name: [estimate(rows[b]) for b in batches] for name, rows in found.items()}
            for kind, found in ratios.items()
        },
        "bounds": bounds,
        "flops_a_byte": estimate(balance),
        "median_ratio": {kind: estimate(values) for kind, values in medians.items()},
        "smallest_ratio": {kind: values[0] for kind, values in every.items()},
        "largest_ratio": {kind: values[-1] for kind, values in every.items()},
        "within_half": {kind: sum(2 / 3 <= r <= 1.5 for r in values) / len(values) for kind, values in every.items()},
        "largest_for_one_text": max(median(rows[batches[0]]) for rows in ratios["square"].values()),
        "thin_over_peak": [estimate(reached[b][:: len(models)]) for b in batches],
        "comparisons": len(every["thin"]),
    }


def verdict(found: Results) -> Verdict:
    smallest, largest, middle = found["smallest_ratio"]["square"], found["largest_ratio"], found["median_ratio"]
    thin = middle["thin"]["high"] < middle["square"]["mean"]
    if smallest > 0.9 and found["largest_for_one_text"] < 1.75 and largest["square"] < 3.5 and thin:
        return "strong"
    return "weak" if smallest > 0.75 and largest["square"] < 6 else "null"


MODELS: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 1408,
    },
    "small, shared keys": {
        "hidden_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 1408,
    },
    "wide": {
        "hidden_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "intermediate_size": 2816,
    },
    "experts": {
        "model_type": "mixtral",
        "hidden_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 1024,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
}
REDUCED = {"wide": MODELS["wide"] | {"num_hidden_layers": 2}, "experts": MODELS["experts"] | {"num_hidden_layers": 2}}
EXPERIMENT = Experiment(
    name="c22_roofline",
    claim=(
        "No decoder writes faster than its roofline. A text alone takes less than 1.75 times the predicted time, and a "
        "step of up to 64 texts less than 3.5 times. With the speed of thin products in the place of the peak, the "
        "predictions come nearer to what is measured."
    ),
    run=run,
    verdict=verdict,
    config={
        "common": {
            "model_type": "llama",
            "vocab_size": 8192,
            "tie_word_embeddings": False,
            "rms_norm_eps": 1e-5,
        },
        "models": MODELS,
        "batches": [1, 4, 16, 64],
        "context": 512,
        "read_mib": 128,
        "matrix": 1024,
        "repeats": 5,
        "steps": 5,
    },
    reduced={"models": REDUCED, "batches": [1, 16], "read_mib": 64, "steps": 2, "repeats": 2},
    seeds=(10, 11, 12, 13, 14),
)

if __name__ == "__main__":
    main(EXPERIMENT)
