"""A small Mixture of Experts that one can train: on a laptop in minutes, on a GPU in half an hour, on several GPUs.

    from ichimon import moe
    run = moe.run("cpu", parts="mine")

The model is transformers' Mixtral at a small size; with `parts="mine"` its experts, their router and the balancing
loss are a student's own, from their notebooks of chapters 13 and 14. `python -m ichimon.train` is the same on a
command line.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import torch
import typer
from jaxtyping import Float, Int
from torch import Tensor, nn
from typer import Argument, Option

from ichimon import corpus, train
from ichimon.parts import NotYet, mine
from ichimon.train import TrainingError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from tokenizers import Tokenizer

Kind = Literal["moe", "dense"]
Parts = Literal["transformers", "mine"]
Device = Literal["auto", "cpu", "cuda", "mps"]
SPLITS: tuple[corpus.Split, ...] = ("train", "validation")
TRAINED = Path(__file__).with_name("trained")


@dataclass(frozen=True)
class Preset:
    """One size of model, its text and how it is trained. A dense model has the same FLOPs a token: one feed-forward of
    `top_k` · `d_hidden` channels."""

    d_model: int
    d_hidden: int  # of one expert
    n_experts: int
    top_k: int
    n_layers: int
    n_heads: int
    length: int  # tokens of a window
    batch: int  # windows of a step, for each process and each of `accumulate`
    training: train.Settings
    text: Literal["library", "enwik8"] = "library"
    vocabulary: int = corpus.VOCABULARY
    router_std: float = 0.2  # a router that begins decided learns faster: experiments/moe-against-dense.py
    balance: float = 0.01  # weight of the balancing loss, which is 1 for each layer at balance


_LARGE = Preset(
    d_model=768,
    d_hidden=768,
    n_experts=16,
    top_k=2,
    n_layers=12,
    n_heads=12,
    length=512,
    batch=64,
    training=train.Settings(steps=8000, lr=6e-4, warmup=400, evaluate_every=200, compiled="measure"),
    text="enwik8",
    vocabulary=8192,
)
PRESETS = {
    # for tests, and to see that everything is there: seconds
    "fast": Preset(
        d_model=16,
        d_hidden=16,
        n_experts=4,
        top_k=2,
        n_layers=2,
        n_heads=2,
        length=32,
        batch=4,
        training=train.Settings(steps=20, lr=4e-3, warmup=2, evaluate_every=10, evaluate_batches=1),
    ),
    # two cores: under three minutes
    "cpu": Preset(
        d_model=64,
        d_hidden=64,
        n_experts=16,
        top_k=4,
        n_layers=3,
        n_heads=4,
        length=128,
        batch=8,
        training=train.Settings(steps=1200, lr=4e-3, warmup=100),
    ),
    # one data-centre GPU: half an hour at 70 · 10¹² operations a second
    "gpu": _LARGE,
    # several, under torchrun: as many tokens on two as "gpu" on one, in steps twice as large
    "multi-gpu": replace(_LARGE, training=replace(_LARGE.training, steps=4000)),
}


@dataclass
class Run:
    """A trained model and how its training went. `shares` are pairs (steps done, share [layers][n_experts])."""

    model: nn.Module
    preset: Preset
    kind: Kind
    history: train.History
    shares: list[tuple[int, list[list[float]]]] = field(default_factory=list)
    flops: float = 0.0  # of the whole training


def run(
    preset: str | Preset,
    *,
    kind: Kind = "moe",
    parts: Parts = "transformers",
    checkpoint: Path | str | None = None,
    quiet: bool = False,
    steps: int | None = None,
    device: Device = "auto",
    compiled: train.Compiled | None = None,
    accumulate: int = 1,
    seed: int = 0,
) -> Run:
    """Train a small MoE, or the dense model of the same FLOPs a token, and say how it went.

    With `checkpoint`, a folder, Ctrl-C keeps the run there, and the same call goes on with it. With `accumulate`, each
    batch is computed in so many pieces: steps of as many tokens in less memory. Raises TrainingError, NotYet or
    corpus.CorpusError, each with a sentence that says what to do.
    """
    if isinstance(preset, str) and preset not in PRESETS:
        raise TrainingError(f"There is no preset {preset!r}; there is {', '.join(PRESETS)}.")
    chosen = PRESETS[preset] if isinstance(preset, str) else preset
    settings = replace(chosen.training, device=device, seed=seed, compiled=compiled or chosen.training.compiled)
    if steps is not None:
        settings = replace(settings, steps=steps, warmup=min(settings.warmup, max(0, steps - 1)))
    if chosen.batch % accumulate:
        raise TrainingError(f"A batch of {chosen.batch} windows cannot be cut into {accumulate} equal pieces.")
    settings = replace(settings, accumulate=settings.accumulate * accumulate)
    chosen = _with_text(replace(chosen, batch=chosen.batch // accumulate, training=settings))
    ids = {split: _ids(chosen, split) for split in SPLITS}
    draw = partial(train.windows, batch=chosen.batch, length=chosen.length)
    torch.manual_seed(seed)
    model = build(chosen, kind, parts)
    watch = Shares(chosen) if kind == "moe" else None
    balancing = _balancing(parts) if kind == "moe" else None
    history = train.fit(
        model,
        draw(ids["train"], seed=seed),
        settings,
        loss=partial(_loss, chosen, balancing, watch),
        validation=draw(ids["validation"], seed=seed + 1),
        checkpoint=checkpoint,
        quiet=quiet,
        watch=watch,
    )
    return Run(
        model, chosen, kind, history, watch.seen if watch else [], history.tokens * flops_per_token(model, chosen)
    )


def build(preset: Preset, kind: Kind = "moe", parts: Parts = "transformers") -> nn.Module:
    """The untrained model: token ids [batch, n] to an output with `logits` [batch, n, vocabulary]."""
    from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM
    from transformers.integrations.moe import ExpertsInterface

    shape: dict[str, Any] = {
        "vocab_size": preset.vocabulary,
        "hidden_size": preset.d_model,
        "num_hidden_layers": preset.n_layers,
        "num_attention_heads": preset.n_heads,
        "num_key_value_heads": preset.n_heads,
        "max_position_embeddings": preset.length,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if kind == "dense":
        return MistralForCausalLM(MistralConfig(intermediate_size=preset.top_k * preset.d_hidden, **shape))
    config = MixtralConfig(
        intermediate_size=preset.d_hidden,
        num_local_experts=preset.n_experts,
        num_experts_per_tok=preset.top_k,
        **shape,
    )
    model = MixtralForCausalLM(config)
    ExpertsInterface.register("grouped_mm_in_autocast", _as_autocast_would)
    model.set_experts_implementation("grouped_mm_in_autocast")
    for block in model.model.layers:
        nn.init.normal_(block.mlp.gate.weight, std=preset.router_std)
    if parts == "mine":
        layer = mine("13-router").MoELayer
        for block in model.model.layers:
            theirs, own = block.mlp, layer(preset.d_model, preset.d_hidden, preset.n_experts, preset.top_k)
            own.load_state_dict(  # the same beginning, so that the two can be compared
                {
                    "router.weight": theirs.gate.weight,
                    "gate_up": theirs.experts.gate_up_proj,
                    "down": theirs.experts.down_proj,
                }
            )
            block.mlp = own
    return model


def routers(model: nn.Module) -> list[nn.Module]:
    """The module of each layer whose output is, or begins with, the router's logits [tokens, n_experts]."""
    feed_forwards = [block.mlp for block in cast(Any, model).model.layers]
    if not hasattr(feed_forwards[0], "gate_up") and not hasattr(feed_forwards[0], "experts"):
        return []  # dense
    return [own.gate if hasattr(own, "experts") else own.router for own in feed_forwards]


@contextmanager
def router_logits(model: nn.Module) -> Iterator[list[Float[Tensor, "tokens n_experts"]]]:
    """What the routers say in the forward passes inside: one entry for each layer and pass, in order."""
    heard: list[Tensor] = []

    @torch.compiler.disable  # a compiled model calls it, and does not take it for a part of itself
    def hear(module: nn.Module, inputs: Any, output: Any) -> None:
        logits = output[0] if isinstance(output, tuple) else output
        heard.append(logits.flatten(0, -2))

    hooks = [router.register_forward_hook(hear) for router in routers(model)]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def experts_of(model: nn.Module, ids: Int[Tensor, "batch n"]) -> Int[Tensor, "layers tokens top_k"]:
    """The experts that each token goes to, the likeliest first, layer by layer."""
    with router_logits(model) as heard:
        model(ids.to(next(model.parameters()).device))
    return torch.stack([logits.topk(cast(Any, model).config.num_experts_per_tok, -1).indices for logits in heard])


def flops_per_token(model: nn.Module, preset: Preset) -> int:
    """Floating-point operations of training on one token: 6 a weight that it meets, and causal attention's own."""
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    if routers(model):
        idle = preset.n_layers * 3 * preset.d_model * preset.d_hidden * (preset.n_experts - preset.top_k)
        weights -= idle
    return 6 * (weights + preset.n_layers * preset.length * preset.d_model)


class Shares:
    """How the tokens of the steps since the last look were shared out among the experts, layer by layer."""

    def __init__(self, preset: Preset) -> None:
        self.seen: list[tuple[int, list[list[float]]]] = []
        self._top_k, self._n_experts = preset.top_k, preset.n_experts
        self._counts = [torch.zeros(preset.n_experts) for _ in range(preset.n_layers)]

    def count(self, logits: Sequence[Float[Tensor, "tokens n_experts"]]) -> None:
        """Add what the routers of all layers said of a batch."""
        for layer, said in enumerate(logits):
            chosen = said.detach().topk(self._top_k, -1).indices.view(-1)
            counts = self._counts[layer].to(chosen.device)
            self._counts[layer] = counts.index_add(0, chosen, counts.new_ones(len(chosen)))

    def look(self, step: int) -> str:
        rows = [(counts / counts.sum().clamp(min=1)).tolist() for counts in self._counts]
        self.seen.append((step, rows))
        self._counts = [torch.zeros_like(counts) for counts in self._counts]
        return "busiest expert " + " ".join(f"{max(row):.0%}" for row in rows)

    def draw(self, ax: Axes) -> None:
        """The share of each expert, a row for each layer, as the last look found it."""
        rows = self.seen[-1][1] if self.seen else [[0.0] * self._n_experts for _ in self._counts]
        drawn = ax.imshow(rows, aspect="auto", cmap="Blues", vmin=0, vmax=max(2 / self._n_experts, max(map(max, rows))))
        ax.set(title="Share of each expert", xlabel="expert", ylabel="layer", yticks=range(len(rows)))
        ax.grid(False)
        ax.figure.colorbar(drawn, ax=ax, label="of the tokens")


def save(run: Run, path: Path) -> None:
    """The trained weights in bfloat16, with what it takes to build the model and to read text, in a safetensors file.

    The tokeniser goes along: another Python carries other texts, which make another one.
    """
    from safetensors.torch import save_file

    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in _own(run.model).items()}
    told = {
        "kind": run.kind,
        "preset": json.dumps(asdict(run.preset)),
        "validation": str(run.history.validation[-1][1]),
        "tokenizer": _tokenizer(run.preset).to_str(),
    }
    save_file(weights, path, metadata=told)


def load_trained(kind: Kind = "moe") -> tuple[nn.Module, Tokenizer]:
    """The model that ships with the course, trained by `python -m ichimon.train --preset cpu`, and its tokeniser."""
    from safetensors import safe_open
    from tokenizers import Tokenizer

    with safe_open(TRAINED / f"{kind}.safetensors", "pt") as file:
        told, bpe = json.loads(file.metadata()["preset"]), Tokenizer.from_str(file.metadata()["tokenizer"])
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (it is no dict)
    settings = train.Settings(**{**told.pop("training"), "betas": (0.9, 0.95)})
    model = build(Preset(**told, training=settings), kind)
    model.load_state_dict(weights, strict=False)  # the read-out is the embedding, and is kept once
    return model.eval(), bpe


# -- the parts --------------------------------------------------------------------------------------------------------


def _as_autocast_would(
    experts: nn.Module,
    x: Float[Tensor, "tokens d_model"],
    chosen: Int[Tensor, "tokens top_k"],
    weights: Float[Tensor, "tokens top_k"],
) -> Float[Tensor, "tokens d_model"]:
    """Grouped products take no part in autocast, and would run in float32: give the experts its dtype."""
    from transformers.integrations.moe import grouped_mm_experts_forward

    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind)
    if not torch.is_autocast_enabled(kind) or next(experts.parameters()).dtype == dtype:
        return grouped_mm_experts_forward(experts, x, chosen, weights)
    own = {name: weight.to(dtype) for name, weight in experts.named_parameters()}
    return torch.func.functional_call(experts, own, (x, chosen, weights))  # which comes here again, in that dtype


def _own(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model without what it shares with another entry."""
    return {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}


Balancing = Callable[[Sequence[Tensor], int, int], Tensor]  # logits of each layer, n_experts, top_k: their loss


def _balancing(parts: Parts) -> Balancing:
    """The balancing loss, averaged over layers: 1 at balance."""
    if parts == "mine":
        own = mine("14-balance").load_balancing_loss
        return lambda logits, n_experts, top_k: torch.stack([own(layer, top_k) for layer in logits]).mean()
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    def theirs(logits: Sequence[Tensor], n_experts: int, top_k: int) -> Tensor:
        each = [torch.as_tensor(load_balancing_loss_func((layer,), n_experts, top_k)) for layer in logits]
        return torch.stack(each).mean() / top_k

    return theirs


def _loss(preset: Preset, balancing: Balancing | None, watch: Shares | None, model: nn.Module, batch: Tensor) -> Tensor:
    if balancing is None or not model.training:
        return train.next_token(model, batch)
    whole = getattr(model, "module", model)  # torch.distributed wraps it
    with router_logits(whole) as heard:
        value = train.next_token(model, batch)
    if watch is not None:
        watch.count(heard)
    return value + preset.balance * balancing(heard, preset.n_experts, preset.top_k)


def _tokenizer(preset: Preset) -> Tokenizer:
    if preset.text == "library":
        return corpus.tokenizer(preset.vocabulary, corpus.PROSE + corpus.CODE)
    return corpus.downloaded_tokenizer(preset.text, preset.vocabulary)


def _ids(preset: Preset, split: corpus.Split) -> Any:
    if preset.text == "library":
        return corpus.tokens(corpus.PROSE + corpus.CODE, split, preset.vocabulary)
    return corpus.downloaded_tokens(preset.text, split, preset.vocabulary)


def _with_text(preset: Preset) -> Preset:
    """The preset, with the library's text and a warning where its own cannot be had."""
    if preset.text == "library":
        return preset
    try:
        corpus.downloaded_tokens(preset.text, "train", preset.vocabulary)
    except corpus.CorpusError as error:
        warnings.warn(
            f"{error} Training on the text that Python carries instead, which this preset reads many times over: "
            "the loss on validation data will turn up.",
            stacklevel=3,
        )
        return replace(preset, text="library")
    return preset


# -- python -m ichimon.train ------------------------------------------------------------------------------------------


def main() -> None:
    typer.run(_command)


def _command(
    kind: Annotated[Kind, Argument(help="moe, or dense: the same FLOPs a token in one feed-forward.")] = "moe",
    preset: Annotated[str, Option(help=f"{', '.join(PRESETS)}; multi-gpu is for torchrun.")] = "cpu",
    parts: Annotated[Parts, Option(help="mine: the layer and its loss from your own notebooks.")] = "transformers",
    checkpoint: Annotated[Path | None, Option(help="A folder: kept there, and gone on with from there.")] = None,
    steps: Annotated[int | None, Option(min=1, help="Fewer or more steps than the preset's.")] = None,
    device: Annotated[Device, Option(help="What to train on.")] = "auto",
    compiled: Annotated[
        train.Compiled | None,
        Option("--compile", help="measure: if its first steps are faster for it. Left out: as the preset."),
    ] = None,
    accumulate: Annotated[int, Option(min=1, help="Steps of as many tokens, in so many pieces: less memory.")] = 1,
    seed: Annotated[int, Option(help="Of the weights and of the order of the text.")] = 0,
    save_to: Annotated[Path | None, Option("--save", help="Where to write the weights, as safetensors.")] = None,
) -> None:
    """Train a small Mixture of Experts on whatever there is: two cores, one GPU, or several under torchrun.

    Ctrl-C ends it; with --checkpoint the same command goes on where it stopped.
    """
    try:
        done = run(
            preset,
            kind=kind,
            parts=parts,
            checkpoint=checkpoint,
            steps=steps,
            device=device,
            compiled=compiled,
            accumulate=accumulate,
            seed=seed,
        )
    except (TrainingError, NotYet, corpus.CorpusError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    if int(os.environ.get("RANK", "0")):  # torchrun: one of several
        return
    history = done.history
    loss = f", validation loss {history.validation[-1][1]:.3f}" if history.validation else ""
    typer.echo(
        f"{len(history.losses)} steps, {history.tokens:,} tokens and {done.flops:.2e} FLOPs in {history.seconds:.0f} s "
        f"on {history.device} in {history.precision}{', compiled' if history.compiled else ''}{loss}"
    )
    left = done.preset.training.steps - len(history.losses)
    if left:
        on = f"the same command goes on from {checkpoint}" if checkpoint else "name a --checkpoint to be able to go on"
        typer.echo(f"Stopped with {left} steps left: {on}.")
    if save_to:
        save(done, save_to)
        typer.echo(f"Written: {save_to}")
