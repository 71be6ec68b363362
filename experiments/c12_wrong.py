"""What does one wrong ingredient change, and would a comparison notice it?

Chapter 12's decoder and transformers get the same weights, as in c12_table, but one field of ours is set wrong: tanh
GELU for the exact one, a window of one more, sinks left out. We note the largest difference of a logit, and the share
of positions where another token becomes the likeliest. This is done twice: with every parameter drawn at random, and
with the weights that transformers gives a new model, where gains are 1 and biases 0.
"""

from collections.abc import Sequence
from typing import Any

import torch

from autograder import families
from experiments import gpt_line
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load

WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "exact GELU in GPT-2": ("GPT-2 small", {"mlp": "gelu"}),
    "halves turn in GPT-J": ("GPT-J 6B", {"interleaved": False}),
    "all channels turn in GPT-J": ("GPT-J 6B", {"d_rotary": None}),
    "no read-out bias in GPT-J": ("GPT-J 6B", {"head_bias": False}),
    "tanh GELU in Pythia": ("Pythia 6.9B", {"mlp": "gelu_tanh"}),
    "all channels turn in Pythia": ("Pythia 6.9B", {"d_rotary": None}),
    "Pythia in sequence": ("Pythia 6.9B", {"residual": "sequential"}),
    "BLOOM without its token norm": ("BLOOM 176B", {"tokens_norm": False}),
    "BLOOM with RoPE": ("BLOOM 176B", {"positions": "rope"}),
    "RMSNorm in OLMo": ("OLMo 7B", {"norm": "rms"}),
    "no clipping in OLMo": ("OLMo 7B 0424", {"clip_qkv": None}),
    "gpt-oss without sinks": ("gpt-oss-20b", {"sinks": False}),
    "gpt-oss without windows": ("gpt-oss-20b", {"windows": ()}),
    "a window of one more in gpt-oss": ("gpt-oss-20b", {"windows": (5, None)}),
    "gpt-oss without YaRN": ("gpt-oss-20b", {"yarn": None}),
    "plain SwiGLU in gpt-oss": ("gpt-oss-20b", {"mlp": "swiglu"}),
    "another θ in Llama 3": ("Llama 3 8B", {"rope_theta": 10_000.0}),
    "no q, k, v bias in Qwen2.5": ("Qwen2.5 7B", {"qkv_bias": False}),
    "no QK norm in Qwen3": ("Qwen3 8B", {"qk_norm": False}),
}


@torch.no_grad()
def moved(parts: Any, name: str, seed: int, n: int, drawn: bool) -> tuple[float, float]:
    """The largest difference of a logit, and the share of positions whose likeliest token is another one."""
    model, wrong = WRONG[name]
    config = gpt_line.small(gpt_line.PUBLISHED[model], *gpt_line.SMALL[0])
    torch.manual_seed(seed)
    theirs = gpt_line.theirs(config)
    if drawn:
        theirs.load_state_dict(families.random_state(config, seed), strict=False)
    ours = gpt_line.ours(parts, config, theirs.state_dict(), **wrong)
    ids = torch.randint(config["vocab_size"], (8, n), generator=torch.Generator().manual_seed(seed))
    expected, found = theirs(ids).logits, ours(ids)
    changed = (found.argmax(-1) != expected.argmax(-1)).float().mean()
    return (found - expected).abs().max().item(), changed.item()


def run(config: Config, seeds: Sequence[int]) -> Results:
    parts = load(ROOT / "solutions/12-gpt-line.py")
    rows: dict[str, Any] = {}
    for name in list(WRONG)[:: config["every"]]:
        found: dict[str, Any] = {}
        for kind in ("drawn", "initial"):
            pairs = [moved(parts, name, seed, config["n"], kind == "drawn") for seed in seeds]
            found[kind] = {
                "difference": estimate([pair[0] for pair in pairs]),
                "smallest": min(pair[0] for pair in pairs),
                "largest": max(pair[0] for pair in pairs),
                "another_token": estimate([pair[1] for pair in pairs]),
            }
        rows[name] = {"model": WRONG[name][0], **found}
    initial = [row["initial"]["largest"] for row in rows.values()]
    return {
        "rows": rows,
        "smallest_drawn": min(row["drawn"]["smallest"] for row in rows.values()),
        "missed": sum(size < config["usual"] for size in initial) / len(rows),
        "invisible": sum(size < 1e-6 for size in initial),
        "wrong": len(rows),
        "usual": config["usual"],
    }


def verdict(found: Results) -> Verdict:
    if found["smallest_drawn"] <= 3e-4:
        return "null"
    return "strong" if found["missed"] >= 0.25 and found["invisible"] else "weak"


EXPERIMENT = Experiment(
    name="c12_wrong",
    claim=(
        "With every parameter drawn at random each wrong ingredient moves some logit by more than 3e-4, which a "
        "tolerance of 1e-4 catches. With the weights of a new model at least a quarter of them stay below 1e-3, and at "
        "least one changes nothing at all."
    ),
    run=run,
    verdict=verdict,
    config={"n": 17, "usual": 1e-3, "every": 1},
    reduced={"every": 4},
)

if __name__ == "__main__":
    main(EXPERIMENT)
