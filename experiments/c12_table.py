"""Is chapter 12's one decoder really GPT-2, GPT-J, GPT-NeoX, BLOOM, OLMo, gpt-oss, LLaMA, Mistral and Qwen?

Each row of the page's table is a published model: its ingredients are read from the values of its config.json. The
row is proved by small models of the same make: transformers' and ours get the same weights, every parameter drawn at
random, and read the same texts, with and without padding on the left, longer than any window. The largest difference
of their logits must stay below 1e-4. Then both are made in the published size on the meta device, where weights take
no memory, and their parameters are counted. gpt-oss stands with one dense layer in the place of its experts; the
experts and their router are added by arithmetic.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from autograder import families
from experiments import gpt_line
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load


@torch.no_grad()
def difference(parts: Any, config: Mapping[str, Any], seed: int, n: int) -> float:
    """The largest difference of a logit, over texts with and without padding."""
    theirs = gpt_line.theirs(config)
    state = families.random_state(config, seed)
    theirs.load_state_dict(state, strict=False)  # a tied read-out is there under a second name
    ours = gpt_line.ours(parts, config, state)
    ids = torch.randint(config["vocab_size"], (3, n), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(n) >= torch.tensor([[0], [3], [n - 2]])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    more = {} if config["model_type"] == "bloom" else {"position_ids": positions}  # BLOOM counts them itself
    whole = (ours(ids) - theirs(ids).logits).abs().max()
    padded = (ours(ids, mask) - theirs(ids, attention_mask=mask.long(), **more).logits).abs()[mask].max()
    return max(whole.item(), padded.item())


def ingredients(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the table shows, read from the fields of the decoder's configuration."""
    c = gpt_line.settings(config)
    turned = c["d_rotary"] or c["d_head"]
    position = {"learned": "learned", "alibi": "ALiBi"}.get(c["positions"], "RoPE")
    if position == "RoPE":
        position += f" on {turned} of {c['d_head']}" if turned < c["d_head"] else ""
        position += ", neighbours" if c["interleaved"] else ""
        position += ", YaRN" if c["yarn"] else ""
    group = c["n_heads"] // c["n_kv_heads"]
    windows = [window for window in c["windows"] if window]
    seen = "all" if not windows else f"{windows[0]} in {len(windows)} of {c['n_layers']} layers"
    biases = {"q, k, v": "qkv_bias", "o": "o_bias", "feed-forward": "mlp_bias", "read-out": "head_bias"}
    norms = {"rms": "RMSNorm", "layer": "LayerNorm", "plain": "LayerNorm without parameters"}
    activations = {"gelu": "GELU", "gelu_tanh": "GELU (tanh)", "swiglu": "SwiGLU", "clamped": "clamped SwiGLU"}
    shapes = {"sequential": "in sequence", "parallel": "parallel", "shared": "parallel, one norm"}
    extra = {"sinks": c["sinks"], "QK norm": c["qk_norm"], "token norm": c["tokens_norm"], "clipping": c["clip_qkv"]}
    return {
        "position": position,
        "norm": norms[c["norm"]],
        "feed_forward": activations[c["mlp"]],
        "block": shapes[c["residual"]],
        "query_heads_a_key": group,
        "sees": seen,
        "biases": [name for name, field in biases.items() if c[field]],
        "extra": [name for name, there in extra.items() if there],
        "tied": c["tied"],
        "experts": config.get("num_local_experts", 1),
        "kv_bytes": 4 * c["n_layers"] * c["n_kv_heads"] * c["d_head"],
    }


def parameters(parts: Any, config: Mapping[str, Any]) -> tuple[int, int]:
    """Transformers' count of the published size, and ours."""
    with torch.device("meta"):
        theirs, ours = gpt_line.count(gpt_line.theirs(config)), gpt_line.count(gpt_line.ours(parts, config))
    experts = config.get("num_local_experts", 1)
    if experts > 1:  # ours has one of them, and no router
        d, hidden, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
        one = 3 * d * hidden + 2 * hidden + d
        ours += layers * ((experts - 1) * one + experts * (d + 1))
    return theirs, ours


def run(config: Config, seeds: Sequence[int]) -> Results:
    parts = load(ROOT / "solutions/12-gpt-line.py")
    rows = {}
    for name in config["models"]:
        published = gpt_line.PUBLISHED[name]
        makes = [gpt_line.small(published, *sizes) for sizes in gpt_line.SMALL[: config["makes"]]]
        worst = [max(difference(parts, make, seed, config["n"]) for make in makes) for seed in seeds]
        theirs, ours = parameters(parts, published)
        rows[name] = {
            **ingredients(published),
            "difference": estimate(worst),
            "largest": max(worst),
            "parameters": theirs,
            "ours": ours,
            "green": max(worst) < config["tolerance"] and theirs == ours,
        }
    largest = [max(rows[name]["difference"]["values"][i] for name in rows) for i in range(len(seeds))]
    green = sum(row["green"] for row in rows.values())
    return {"rows": rows, "largest": estimate(largest), "green": green, "models": len(rows), "makes": config["makes"]}


def verdict(found: Results) -> Verdict:
    if found["green"] == found["models"]:
        return "strong"
    return "weak" if found["green"] >= 0.8 * found["models"] else "null"


EXPERIMENT = Experiment(
    name="c12_table",
    claim=(
        "One decoder, set by configuration, is every model of the table: for each, small models of the same make with "
        "random weights give transformers' logits to 1e-4, with and without padding, and the published size has as "
        "many parameters as transformers counts, to the last one."
    ),
    run=run,
    verdict=verdict,
    config={"models": list(gpt_line.PUBLISHED), "makes": len(gpt_line.SMALL), "n": 17, "tolerance": 1e-4},
    reduced={"models": ["GPT-2 small", "GPT-J 6B", "Pythia 6.9B", "BLOOM 176B", "gpt-oss-20b"], "makes": 1},
)

if __name__ == "__main__":
    main(EXPERIMENT)
