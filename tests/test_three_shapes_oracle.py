"""The arithmetic that chapter 08's hidden tests expect is that of transformers' T5 and BERT, every weight at random."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from autograder.testing import normal, randomise
from ichimon.notebook import cells, load

ROOT = Path(__file__).resolve().parents[1]
N_HEADS, D_MODEL, D_HIDDEN, VOCABULARY = 3, 12, 20, 30


@pytest.fixture(scope="module")
def hidden() -> ModuleType:
    """The hidden tests, as a module."""
    path = ROOT / "autograder/tests/test_08_three_shapes.py"
    spec = importlib.util.spec_from_file_location("hidden_tests_of_chapter_08", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOURCE = ROOT / "solutions/08-three-shapes.py"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The reference solution, and the model that the notebook puts together from it in one of its own cells."""
    module = load(SOURCE)
    given = next(cell.source for cell in cells(SOURCE) if "class EncoderDecoder" in cell.source)
    exec(given[: given.index("\ntry:")], vars(module))
    return module


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=D_MODEL,
        d_kv=D_MODEL // N_HEADS,
        num_heads=N_HEADS,
        d_ff=D_HIDDEN,
        num_layers=2,
        dropout_rate=0.0,
    )
    model = T5ForConditionalGeneration(config).eval()
    randomise(model, seed=1)
    return model


def bert(*, decoder: bool) -> nn.Module:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    config = BertConfig(
        hidden_size=D_MODEL,
        num_attention_heads=N_HEADS,
        intermediate_size=D_HIDDEN,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=decoder,
        add_cross_attention=decoder,
        attn_implementation="eager",
    )
    layer = BertLayer(config).eval()
    randomise(layer, seed=2)
    return layer


def named(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """The state dict of one layer under the course's names."""
    found = {}
    for name, value in state.items():
        for theirs, ours in names.items():
            if name.startswith(theirs):
                found[ours + name.removeprefix(theirs)] = value
    return found


ATTENTION = {letter: f"{letter}_proj" for letter in "qkvo"}
T5_ENCODER = {
    **{f"layer.0.SelfAttention.{letter}.": f"self_attention.{name}." for letter, name in ATTENTION.items()},
    "layer.0.layer_norm": "self_attention_norm",
    "layer.1.DenseReluDense.wi": "feed_forward.up",
    "layer.1.DenseReluDense.wo": "feed_forward.down",
    "layer.1.layer_norm": "feed_forward_norm",
}
T5_DECODER = {
    **{f"layer.0.SelfAttention.{letter}.": f"self_attention.{name}." for letter, name in ATTENTION.items()},
    **{f"layer.1.EncDecAttention.{letter}.": f"cross_attention.{name}." for letter, name in ATTENTION.items()},
    "layer.0.layer_norm": "self_attention_norm",
    "layer.1.layer_norm": "cross_attention_norm",
    "layer.2.DenseReluDense.wi": "feed_forward.up",
    "layer.2.DenseReluDense.wo": "feed_forward.down",
    "layer.2.layer_norm": "feed_forward_norm",
}
BERT = {
    **{
        f"{theirs}.{part}": f"{ours}.{name}"
        for theirs, ours in (("attention", "self_attention"), ("crossattention", "cross_attention"))
        for part, name in {
            "self.query": "q_proj",
            "self.key": "k_proj",
            "self.value": "v_proj",
            "output.dense": "o_proj",
        }.items()
    },
    "attention.output.LayerNorm": "self_attention_norm",
    "crossattention.output.LayerNorm": "cross_attention_norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward_norm",
}


def test_the_oracle_is_transformers_t5(hidden: ModuleType) -> None:
    model = t5()
    source, target = torch.randint(VOCABULARY, (2, 7)), torch.randint(VOCABULARY, (2, 5))
    seen = torch.arange(7) < torch.tensor([[7], [4]])
    with torch.no_grad():
        theirs = model(input_ids=source, attention_mask=seen.long(), decoder_input_ids=target)
        memory = model.shared(source)
        bias = model.encoder.block[0].layer[0].SelfAttention.compute_bias(7, 7)[0]
        for block in model.encoder.block:
            weights = named(block.state_dict(), T5_ENCODER)
            memory = hidden.layer_output(
                "EncoderLayer", "t5", weights, N_HEADS, memory, None, seen[:, None, None], bias
            )
        memory = model.encoder.final_layer_norm(memory)
        torch.testing.assert_close(memory, theirs.encoder_last_hidden_state, atol=1e-4, rtol=1e-4)
        x = model.shared(target)
        bias = model.decoder.block[0].layer[0].SelfAttention.compute_bias(5, 5)[0]
        for block in model.decoder.block:
            weights = named(block.state_dict(), T5_DECODER)
            x = hidden.layer_output("DecoderLayer", "t5", weights, N_HEADS, x, memory, seen[:, None, None], bias)
        logits = model.lm_head(model.decoder.final_layer_norm(x) * D_MODEL**-0.5)
    torch.testing.assert_close(logits, theirs.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("decoder", [False, True], ids=["encoder", "with cross-attention"])
def test_the_oracle_is_transformers_bert(hidden: ModuleType, decoder: bool) -> None:
    layer, x, memory = bert(decoder=decoder), normal(2, 5, D_MODEL, seed=1), normal(2, 7, D_MODEL, seed=2)
    seen = hidden.padding(7, 4) if decoder else hidden.padding(5, 3)
    causal = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -1e30)
    blocked = torch.zeros(seen.shape).masked_fill(~seen, -1e30)
    with torch.no_grad():
        arguments = {"encoder_hidden_states": memory, "encoder_attention_mask": blocked} if decoder else {}
        theirs = layer(x, attention_mask=causal[None, None] if decoder else blocked, **arguments)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    kind, weights = "DecoderLayer" if decoder else "EncoderLayer", named(layer.state_dict(), BERT)
    ours = hidden.layer_output(kind, "bert", weights, N_HEADS, x, memory if decoder else None, seen)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_oracles_buckets_are_transformers(hidden: ModuleType, bidirectional: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    for sizes in hidden.SIZES:
        distances = list(range(-400, 401))
        theirs = T5Attention._relative_position_bucket(torch.tensor(distances), bidirectional, *sizes).tolist()
        ours = [hidden.bucket(distance, bidirectional, *sizes) for distance in distances]
        compared = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
        assert len(compared) > 750
        assert all(a == b for a, b in compared)


def test_the_reference_is_transformers_t5(reference: ModuleType) -> None:
    """The whole of it: the notebook's own EncoderDecoder, its own mapping of names, its own buckets."""
    model = t5()
    ours = reference.EncoderDecoder(VOCABULARY, D_MODEL, N_HEADS, D_HIDDEN, 2)
    shared = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    state = {name: value for name, value in model.state_dict().items() if name not in shared}
    ours.load_state_dict({reference.ours(name): value for name, value in state.items()})
    source, target = torch.randint(VOCABULARY, (2, 40)), torch.randint(VOCABULARY, (2, 5))
    seen = torch.arange(40) < torch.tensor([[40], [17]])
    with torch.no_grad():
        theirs = model(input_ids=source, attention_mask=seen.long(), decoder_input_ids=target).logits
        torch.testing.assert_close(ours(source, target, seen), theirs, atol=1e-4, rtol=1e-4)


def test_the_reference_is_transformers_bert(reference: ModuleType) -> None:
    """A whole encoder, embeddings left out: three layers, a padded batch."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=D_MODEL,
        num_attention_heads=N_HEADS,
        num_hidden_layers=3,
        intermediate_size=D_HIDDEN,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config).eval()
    randomise(model, seed=3)
    ids, seen = torch.randint(VOCABULARY, (2, 9)), torch.arange(9) < torch.tensor([[9], [5]])
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=seen.long()).last_hidden_state
        x = model.embeddings(ids)
        for layer in model.encoder.layer:
            ours = reference.EncoderLayer(D_MODEL, N_HEADS, D_HIDDEN, "bert")
            ours.load_state_dict(named(layer.state_dict(), BERT))
            x = ours(x, seen[:, None, None])
    torch.testing.assert_close(x, theirs, atol=1e-4, rtol=1e-4)
