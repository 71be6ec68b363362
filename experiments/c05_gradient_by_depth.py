"""How large is the gradient at the start, with the norm before each sub-layer, and with the norm after the sum?

Xiong et al. 2020 (arXiv:2002.04745) bound the gradient of the last feed-forward matrix at initialisation: with the norm
after the sum (post) the bound does not shrink with depth, with the norm before the sub-layer (pre) it shrinks as
1/√n_layers (theorem 1). We measure that gradient, and those of all other layers, in models that have not been trained.

The model is the course's small decoder at the paper's initialisation: Xavier for every matrix, no smaller one for those
that write into the residual stream, embeddings times √d_model, so that the stream begins at size one. GPT-2's smaller
initialisation was made for pre-norm and would hide what is asked.

Judged by: the norm of the gradient of each block's last feed-forward matrix, one batch of text a seed. Kept beside it:
the size of the residual stream (root mean square of its entries) after each block.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from experiments.decoder import Decoder
from ichimon import corpus, train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load


class Scale(nn.Module):
    """x · factor. Vaswani et al. 2017 (section 3.4) multiply embeddings by √d_model."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def xavier(
    vocabulary: int, n_layers: int, config: Config, *, norm: Callable[[int], nn.Module], pre_norm: bool
) -> Decoder:
    """A decoder as the first Transformers began: Xavier for all matrices, embeddings of size one in the stream."""
    d_model = config["d_model"]
    model = Decoder(
        vocabulary,
        d_model=d_model,
        n_layers=n_layers,
        norm=norm,
        pre_norm=pre_norm,
        positions=Scale(d_model**0.5),
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    nn.init.normal_(model.tokens.weight, std=d_model**-0.5)
    return model


def run(config: Config, seeds: Sequence[int]) -> Results:
    layer_norm = load(ROOT / "solutions/05-normalisation.py").LayerNorm
    ids = corpus.tokens(corpus.PROSE, "train", config["vocabulary"])

    def measures(pre_norm: bool, n_layers: int, seed: int) -> tuple[list[float], list[float]]:
        torch.manual_seed(seed)
        model = xavier(config["vocabulary"], n_layers, config, norm=layer_norm, pre_norm=pre_norm)
        sizes: list[float] = []
        for block in model.blocks:
            block.register_forward_hook(lambda _, __, out: sizes.append(out.detach().square().mean().sqrt().item()))
        batch = train.windows(ids, batch=config["batch"], length=config["length"], seed=seed)(0)
        train.next_token(model, batch).backward()
        named = dict(model.named_parameters())
        grads = [named[f"blocks.{i}.sublayers.1.2.weight"].grad for i in range(n_layers)]
        return [grad.norm().item() for grad in grads if grad is not None], sizes

    found: Results = {"n_layers": config["n_layers"], "gradient": {}, "last_gradient": {}, "stream": {}}
    for name, pre_norm in {"pre": True, "post": False}.items():
        found["last_gradient"][name] = []
        for n_layers in config["n_layers"]:
            by_seed = [measures(pre_norm, n_layers, seed) for seed in seeds]
            gradient, stream = (
                [estimate(row) for row in zip(*rows, strict=True)] for rows in zip(*by_seed, strict=True)
            )
            found["last_gradient"][name].append(gradient[-1])
        found["gradient"][name], found["stream"][name] = gradient, stream  # of the deepest model, layer by layer
    return found


def verdict(found: Results) -> Verdict:
    depths = found["n_layers"]
    fall = {name: rows[0]["mean"] / rows[-1]["mean"] for name, rows in found["last_gradient"].items()}
    root = (depths[-1] / depths[0]) ** 0.5
    tilt = {name: rows[-1]["mean"] / rows[0]["mean"] for name, rows in found["gradient"].items()}
    as_proved = root / 1.5 <= fall["pre"] <= root * 1.5 and fall["post"] <= 1.1
    larger = found["last_gradient"]["post"][-1]["low"] > 3 * found["last_gradient"]["pre"][-1]["high"]
    if as_proved and larger:
        return "strong"
    return "weak" if fall["pre"] > fall["post"] and tilt["post"] > tilt["pre"] else "null"


EXPERIMENT = Experiment(
    name="c05_gradient_by_depth",
    claim=(
        "Before training, the gradient of the last feed-forward matrix falls as 1/√n_layers in a pre-norm model, "
        "within a factor of 1.5 between 2 and 32 layers, and does not fall in a post-norm model. At 32 layers the "
        "post-norm model's is more than three times the pre-norm model's."
    ),
    run=run,
    verdict=verdict,
    config={"n_layers": [2, 4, 8, 16, 32], "d_model": 32, "vocabulary": 257, "batch": 8, "length": 64},
    reduced={"n_layers": [2, 8, 32], "batch": 2},
)

if __name__ == "__main__":
    main(EXPERIMENT)
