"""Hidden tests of chapter 22. Expected values come from the shapes of the weights of thirteen families.

autograder.families knows the name and the shape of every weight; tests/test_families.py holds it against transformers,
whose import would cost every grading seconds, and tests/test_calculators_oracle.py proves the sums used here.
"""

import json
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from autograder import families
from autograder.student import Remote, Student
from experiments.published_configs import CONFIGS

RESERVED: dict[str, tuple[str, ...]] = {}

Config = dict[str, Any]
LLAMAS = ("llama", "mistral", "qwen2", "qwen3", "olmo")
GPTS = ("gpt2", "gptj", "gpt_neox", "bloom")
MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")


def small(*kinds: str) -> Iterator[tuple[str, Config]]:
    """Small models of these families, with a sentence's word for each."""
    for kind in kinds:
        for i, config in enumerate(families.TINY[kind]):
            yield f"A small {kind} (number {i + 1})", dict(config)


def everything() -> Iterator[tuple[str, Config]]:
    yield from small(*LLAMAS, *GPTS, *MIXTURES)
    for name in ("GPT-3 175B", "BLOOM 176B", "Llama 3.2 1B", "Qwen2.5 7B", "gpt-oss-20b", "DeepSeek-V3"):
        yield name, CONFIGS[name]


@cache
def _known(config: str) -> tuple[families.Form, dict[str, int]]:
    """The form, and the sizes of the weights: every submission and every mutant is asked about the same models."""
    read = json.loads(config)
    found = {name: math.prod(shape) for name, shape in families.shapes(read).items()}
    return families.form(read), {name: n for name, n in found.items() if "e_score_correction_bias" not in name}


def form(config: Config) -> families.Form:
    return _known(json.dumps(config))[0]


def sizes(config: Config) -> dict[str, int]:
    """How many numbers each weight has; a correction is a buffer."""
    return _known(json.dumps(config))[1]


def mixed(config: Config) -> tuple[int, int]:
    """Experts in a layer, and how many of them a token is sent to."""
    experts = form(config).experts
    return (experts.n_experts, experts.top_k) if experts else (1, 1)


def counted(config: Config) -> tuple[int, int]:
    """The parameters, and the active ones."""
    n, k = mixed(config)
    each = sizes(config)
    routed = sum(size for name, size in each.items() if ".experts." in name)
    return sum(each.values()), sum(each.values()) - routed + routed // n * k


def looked_up(config: Config) -> int:
    """The parameters in tables of which a token reads a row, and computes nothing with the rest."""
    tables = (".wpe.",) if form(config).tied else (".wpe.", "embed_tokens", "embed_in", ".wte.")
    return sum(size for name, size in sizes(config).items() if any(table in f".{name}" for table in tables))


def seen(config: Config, context: int) -> int:
    """Positions, summed over the layers."""
    return sum(context if window is None else min(window, context) for window in form(config).windows)


def flops(config: Config, context: int) -> int:
    f = form(config)
    channels = f.latent.d_nope + f.latent.d_rope + f.latent.d_value if f.latent else 2 * f.d_head
    return 2 * (counted(config)[1] - looked_up(config)) + 2 * f.n_heads * channels * seen(config, context)


def kv_cache(config: Config, length: int, batch: int = 1, bits: int = 16) -> int:
    f = form(config)
    numbers = f.latent.kv_rank + f.latent.d_rope if f.latent else 2 * f.n_kv_heads * f.d_head
    return batch * seen(config, length) * numbers * bits // 8


def kind(value: Any) -> str:
    if value is None:
        return "None (is a `return` missing?)"
    return "an object of a kind of its own" if isinstance(value, Remote) else f"a {type(value).__name__}"


def whole(value: Any, what: str) -> int:
    """An int that is no bool."""
    assert type(value) is int, f"{what} should be an int, not {kind(value)}."
    return value


def number(value: Any, what: str) -> float:
    """A finite float or int."""
    assert type(value) in (int, float), f"{what} should be a number, not {kind(value)}."
    assert math.isfinite(value), f"{what} is {value}."
    return float(value)


def near(found: float, right: float, claim: str) -> None:
    assert math.isclose(found, right, rel_tol=1e-9), f"{claim}: {found:.6g} is wrong."


def answer(value: Any, keys: set[str], what: str) -> dict[str, Any]:
    assert isinstance(value, dict), f"{what} should return a dict, not {kind(value)}."
    assert set(value) == keys, f"The dict of {what} has the keys {sorted(map(str, value))}."
    return value


# -- parameters -------------------------------------------------------------------------------------------------------


def counts(student: Student, config: Any) -> tuple[int, int]:
    found = student.parameters(config)
    assert isinstance(found, tuple | list), f"parameters should return a tuple, not {kind(found)}."
    assert len(found) == 2, f"parameters should return two numbers, not {len(found)}."
    return whole(found[0], "The total"), whole(found[1], "The active count")


@pytest.mark.exercise("parameters", weight=3)
def test_llama_and_its_relatives_are_counted(student: Student) -> None:
    """LLaMA, Mistral, Qwen2 with its biases, Qwen3 with two more gains in a layer, OLMo without any gain."""
    for name, config in small(*LLAMAS):
        total, _ = counts(student, config)
        assert total == counted(config)[0], f"{name} does not have {total:,} parameters in all."


@pytest.mark.exercise("parameters", weight=3)
def test_the_gpt_line_is_counted(student: Student) -> None:
    """LayerNorms have a bias, feed-forwards two matrices, GPT-2 a table of positions, GPT-J one norm a layer."""
    for name, config in small(*GPTS):
        total, _ = counts(student, config)
        assert total == counted(config)[0], f"{name} does not have {total:,} parameters in all."


@pytest.mark.exercise("parameters", weight=3)
def test_all_experts_are_stored(student: Student) -> None:
    """The total has every expert, a router for each layer that has experts, and dense layers where there are some."""
    for name, config in small(*MIXTURES):
        total, _ = counts(student, config)
        assert total == counted(config)[0], f"{name} does not have {total:,} parameters in all."


@pytest.mark.exercise("parameters", weight=3)
def test_a_token_uses_top_k_experts(student: Student) -> None:
    """Active is everything but the experts to which the token is not sent; the shared expert is used by every token."""
    for name, config in small(*MIXTURES):
        _, active = counts(student, config)
        assert active == counted(config)[1], f"{name} does not have {active:,} active parameters."


@pytest.mark.exercise("parameters")
def test_without_experts_every_parameter_is_active(student: Student) -> None:
    """In a dense model active and total are the same number, the embedding included."""
    for name, config in small("llama", "gpt2", "bloom"):
        total, active = counts(student, config)
        assert total == counted(config)[0], f"{name} does not have {total:,} parameters in all."
        assert active == total, f"{name} is dense, and {total - active:,} of its parameters are said to rest."


@pytest.mark.exercise("parameters", weight=2)
def test_published_models_are_exact_to_the_last_parameter(student: Student) -> None:
    """The config.json of 37 published models, from 124 million to 671 billion parameters: no rounding anywhere."""
    for name, config in CONFIGS.items():
        total, active = counts(student, config)
        right = counted(config)
        assert total == right[0], f"{name} does not have {total:,} parameters."
        assert active == right[1], f"{name} does not have {active:,} active parameters."


@pytest.mark.exercise("parameters")
def test_a_tied_head_is_no_second_table(student: Student) -> None:
    """Tying saves one table of vocabulary · d_model, and nothing else."""
    for kind in ("llama", "qwen3", "mixtral"):
        config = {**families.TINY[kind][0], "tie_word_embeddings": False}
        apart, tied = (counts(student, {**config, "tie_word_embeddings": flag}) for flag in (False, True))
        table = config["vocab_size"] * config["hidden_size"]
        for word, one, other in zip(("total", "active"), apart, tied, strict=True):
            assert one - other == table, f"Tying a small {kind} saves {one - other:,} of its {word} parameters."


@pytest.mark.exercise("parameters")
def test_a_head_of_keys_more_costs_its_two_projections(student: Student) -> None:
    """W_k and W_v have n_kv_heads · d_head rows, and W_q and W_o none the fewer."""
    for kind, biased in (("llama", 0), ("qwen2", 2)):
        config = {**families.TINY[kind][0], "num_attention_heads": 12, "head_dim": 7}
        few, more = (counts(student, {**config, "num_key_value_heads": n})[0] for n in (2, 3))
        right = config["num_hidden_layers"] * (2 * config["hidden_size"] * 7 + biased * 7)
        assert more - few == right, f"One head of keys and values more costs a small {kind} {more - few:,} parameters."


@pytest.mark.exercise("parameters")
def test_one_more_expert_is_stored_and_rests(student: Student) -> None:
    """It adds its matrices to the total of each layer with experts, and to what is active only a row of the router."""
    for kind, field in (
        ("mixtral", "num_local_experts"),
        ("gpt_oss", "num_local_experts"),
        ("qwen3_moe", "num_experts"),
    ):
        config = families.TINY[kind][0]
        more = {**config, field: config[field] + 1}
        before, after = counts(student, config), counts(student, more)
        for word, i in (("total", 0), ("active", 1)):
            right = counted(more)[i] - counted(config)[i]
            found = after[i] - before[i]
            assert found == right, f"One more expert adds {found:,} to the {word} parameters of a small {kind}."


@pytest.mark.exercise("parameters")
def test_queries_may_have_no_latent_of_their_own(student: Student) -> None:
    """With q_lora_rank None one matrix leads to the heads of queries, and there is no norm."""
    for config in families.TINY["deepseek_v3"]:
        for rank in (None, 7):
            given = {**config, "q_lora_rank": rank}
            total, _ = counts(student, given)
            assert total == counted(given)[0], f"With q_lora_rank {rank} it does not have {total:,} parameters."


@pytest.mark.exercise("parameters")
def test_biases_stand_where_the_shape_says(student: Student) -> None:
    """attention_bias gives a LLaMA a bias for each of its four projections: as wide as what the projection makes."""
    for kind in ("llama", "qwen3"):
        config = {**families.TINY[kind][-1], "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 5}
        with_it, without = (counts(student, {**config, "attention_bias": flag})[0] for flag in (True, False))
        right = config["num_hidden_layers"] * ((6 + 2 + 2) * 5 + config["hidden_size"])
        assert with_it - without == right, f"attention_bias adds {with_it - without:,} parameters to a small {kind}."


@pytest.mark.exercise("parameters", weight=0.5)
def test_the_config_stays_as_it_was(student: Student) -> None:
    """Counting changes nothing in what it is given, and counting twice gives the same."""
    for kind in ("llama", "qwen2"):
        config = dict(families.TINY[kind][0])
        kept = student.put(config)
        first, second = counts(student, kept), counts(student, kept)
        assert first == second == counted(config), f"Twice the same small {kind}: {first} and {second}."
        assert kept.get() == config, "parameters changes the config that it is given."


# -- flops_per_token --------------------------------------------------------------------------------------------------


def work(student: Student, config: Config, context: int, **more: Any) -> int:
    return whole(student.flops_per_token(config, context, **more), "The result of flops_per_token")


@pytest.mark.exercise("flops_per_token", weight=3)
def test_every_weight_that_computes_takes_two(student: Student) -> None:
    """Without context there are two FLOPs for each active parameter, but for the tables that are only looked up."""
    for name, config in small(*LLAMAS, *MIXTURES):
        found = work(student, config, 0)
        assert found == flops(config, 0), f"{name} without context does not take {found:,} FLOPs."


@pytest.mark.exercise("flops_per_token", weight=2)
def test_learned_positions_and_a_tied_embedding(student: Student) -> None:
    """GPT-2's positions are looked up, and its embedding is the head as well: that table computes, once."""
    for name, config in small(*GPTS):
        found = work(student, config, 0)
        assert found == flops(config, 0), f"{name} without context does not take {found:,} FLOPs."


@pytest.mark.exercise("flops_per_token", weight=2)
def test_each_position_costs_every_head_of_queries(student: Student) -> None:
    """A score and a share of the blend for each head of queries, also where they share keys."""
    for name, config in small("llama", "qwen3", "bloom", "qwen3_moe"):
        for context in (1, 9, 4001):
            found = work(student, config, context)
            assert found == flops(config, context), f"{name} with {context} positions does not take {found:,} FLOPs."


@pytest.mark.exercise("flops_per_token")
def test_behind_its_window_a_layer_sees_nothing(student: Student) -> None:
    """A layer with a window sees that many positions at most; one without a window sees all."""
    for name, config in small("mistral", "qwen2", "gpt_oss"):
        for context in (1, 3, 4, 5, 1000):
            found = work(student, config, context)
            assert found == flops(config, context), f"{name} with {context} positions does not take {found:,} FLOPs."


@pytest.mark.exercise("flops_per_token")
def test_the_heads_of_a_latent_have_keys_and_values_of_their_own_width(student: Student) -> None:
    """With a latent a score takes d_nope + d_rope channels, the blend d_value."""
    for name, config in small("deepseek_v3"):
        for context in (2, 17):
            found = work(student, config, context)
            assert found == flops(config, context), f"{name} with {context} positions does not take {found:,} FLOPs."


@pytest.mark.exercise("flops_per_token", weight=2)
def test_backward_takes_twice_as_much_as_forward(student: Student) -> None:
    """In training each product has two more behind it, those of attention too; training is off unless asked for."""
    for name, config in small("llama", "gpt2", "qwen3_moe"):
        for context in (0, 11):
            found = work(student, config, context, training=True)
            assert found == 3 * flops(config, context), f"{name} in training does not take {found:,} FLOPs."
            found = work(student, config, context, training=False)
            assert found == flops(config, context), f"{name} not in training does not take {found:,} FLOPs."


@pytest.mark.exercise("flops_per_token")
def test_published_models_at_four_thousand_positions(student: Student) -> None:
    """The FLOPs of 37 published models for a token behind 4,095 others, to the last one."""
    for name, config in CONFIGS.items():
        found = work(student, config, 4096)
        assert found == flops(config, 4096), f"{name} does not take {found:,} FLOPs."


# -- kv_bytes and fits ------------------------------------------------------------------------------------------------

PARTS = {"weights", "cache", "activations", "total", "fits", "batch"}


def kept(student: Student, config: Config, length: int, **more: Any) -> int:
    return whole(student.kv_bytes(config, length, **more), "The result of kv_bytes")


def memory(student: Student, config: Config, room: float, length: int, **more: Any) -> dict[str, Any]:
    return answer(student.fits(config, room, length, **more), PARTS, "fits")


def widest(config: Config) -> int:
    """Bytes of the widest moment for one token."""
    f = form(config)
    hidden = [] if f.experts and len(f.experts.layers) == f.n_layers else [f.d_hidden]
    if f.experts and f.experts.layers:
        hidden.append(f.experts.top_k * f.experts.d_hidden + f.experts.d_shared)
    return 2 * (2 * f.d_model + (2 if f.gated else 1) * max(hidden))


def one_text(config: Config, length: int, bits: int = 16) -> tuple[int, int]:
    """Bytes of a text's cache, and of its activations."""
    busy = min(length, 512) * widest(config) + 4 * form(config).vocabulary
    return kv_cache(config, length, bits=bits), busy


@pytest.mark.exercise("fits", weight=2)
def test_a_token_of_published_models(student: Student) -> None:
    """Keys and values of the heads that keep some, in all layers: 37 published models, one token."""
    for name, config in CONFIGS.items():
        found = kept(student, config, 1)
        assert found == kv_cache(config, 1), f"A token of {name} does not take {found:,} bytes."


@pytest.mark.exercise("fits", weight=2)
def test_a_window_bounds_the_cache_of_its_layer(student: Student) -> None:
    """A layer with a window keeps that many positions at most, its neighbour without one keeps all."""
    for name, config in small("mistral", "qwen2", "gpt_oss", "llama"):
        for length in (0, 1, 3, 4, 5, 100):
            found = kept(student, config, length)
            assert found == kv_cache(config, length), f"{name}: {length} positions do not take {found:,} bytes."


@pytest.mark.exercise("fits")
def test_a_latent_is_kept_in_the_place_of_heads(student: Student) -> None:
    """With a latent a layer keeps kv_rank + d_rope numbers for a position, whatever the heads."""
    for name, config in small("deepseek_v3"):
        for heads in (1, config["num_attention_heads"]):
            found = kept(student, {**config, "num_key_value_heads": heads}, 10)
            assert found == kv_cache(config, 10), f"{name}: 10 positions do not take {found:,} bytes."


@pytest.mark.exercise("fits")
def test_texts_and_bits_multiply_the_cache(student: Student) -> None:
    """Seven texts take seven times as much; 8 bits half of 16, 4 bits a quarter."""
    for name, config in small("qwen3", "gpt2", "deepseek_v3", "gpt_oss"):
        for batch, bits in ((7, 16), (3, 8), (2, 4), (5, 32)):
            found = kept(student, config, 3, batch=batch, bits=bits)
            right = kv_cache(config, 3, batch, bits)
            assert found == right, f"{name}: {batch} texts of 3 positions in {bits} bits do not take {found:,} bytes."


@pytest.mark.exercise("fits", weight=2)
def test_all_weights_have_to_be_there(student: Student) -> None:
    """Every parameter, the experts that rest too, in weight_bits bits, rounded up to a whole byte."""
    for name, config in everything():
        for bits in (16, 8, 4.127, 3):
            found = whole(memory(student, config, 10**6, 3, weight_bits=bits)["weights"], "weights")
            assert found == math.ceil(counted(config)[0] * bits / 8), f"{name} in {bits} bits: not {found:,} bytes."


@pytest.mark.exercise("fits", weight=2)
def test_the_cache_of_all_texts_is_a_part_of_it(student: Student) -> None:
    """ "cache" is what kv_bytes says of this length, batch and kv_bits, however the weights are stored."""
    for name, config in everything():
        found = memory(student, config, 10**6, 700, batch=3, weight_bits=4, kv_bits=8)["cache"]
        assert whole(found, "cache") == kv_cache(config, 700, 3, 8), f"{name}: the cache does not take {found:,} bytes."
        found = memory(student, config, 10**6, 7)["cache"]
        assert whole(found, "cache") == kv_cache(config, 7), f"{name}: a short text does not take {found:,} bytes."


@pytest.mark.exercise("fits", weight=2)
def test_what_is_computed_is_the_widest_moment(student: Student) -> None:
    """At most 512 tokens of each text with their hidden channels, wide as the widest layer, and one row of logits."""
    for name, config in everything():
        for length, batch in ((1, 1), (300, 2), (512, 1), (513, 3), (9000, 1)):
            found = memory(student, config, 10**6, length, batch=batch)["activations"]
            right = batch * one_text(config, length)[1]
            assert whole(found, "activations") == right, f"{name}, {batch} of {length} tokens: not {found:,} bytes."


@pytest.mark.exercise("fits")
def test_a_wide_dense_layer_among_experts_counts(student: Student) -> None:
    """Where some layers are dense and some have experts, the wider kind decides, and what no layer has does not."""
    base = dict(families.TINY["qwen3_moe"][0], num_experts_per_tok=2, moe_intermediate_size=11)
    base |= {"mlp_only_layers": [], "decoder_sparse_step": 1}
    for step, width in ((1, 500), (2, 500), (2, 5), (1, 5), (9, 500), (9, 5)):
        config = {**base, "decoder_sparse_step": step, "intermediate_size": width}
        found = memory(student, config, 10**6, 10)["activations"]
        right = one_text(config, 10)[1]
        assert found == right, f"Experts in every {step}. layer, dense ones of {width}: not {found:,} bytes."


@pytest.mark.exercise("fits", weight=2)
def test_it_fits_up_to_the_last_byte(student: Student) -> None:
    """The total is the sum of the three, and it fits if it is at most the memory."""
    for name, config in small("llama", "gpt2", "gpt_oss"):
        weights = 2 * counted(config)[0]
        total = weights + 2 * sum(one_text(config, 40))
        for room, right in ((total, True), (total - 1, False), (total + 0.5, True), (total * 3, True), (1, False)):
            found = memory(student, config, room, 40, batch=2)
            assert whole(found["total"], "total") == total, f"{name}: the total is not {found['total']:,} bytes."
            assert type(found["fits"]) is bool, f"fits should be a bool, not a {type(found['fits']).__name__}."
            assert found["fits"] is right, (
                f"{name}: {total:,} bytes in a memory of {room:,}, and fits is {found['fits']}."
            )


@pytest.mark.exercise("fits", weight=2)
def test_the_largest_batch_is_what_is_left_for_texts(student: Student) -> None:
    """The weights are there once, and each text takes its cache and its activations; 0 if there is no room for one."""
    for name, config in small("llama", "mixtral", "deepseek_v3"):
        weights, text = 2 * counted(config)[0], sum(one_text(config, 30, 8))
        for room, right in (
            (weights + 5 * text, 5),
            (weights + 5 * text - 0.5, 4),
            (weights + text - 1, 0),
            (weights, 0),
            (weights // 2, 0),
            (weights + 2.5 * text, 2),
        ):
            for batch in (1, 7):
                found = memory(student, config, room, 30, batch=batch, kv_bits=8)["batch"]
                assert whole(found, "batch") == right, f"{name} in {room:,.0f} bytes: not {found} texts of 30 tokens."


# -- decode_roofline --------------------------------------------------------------------------------------------------

STEP = {"bytes", "flops", "seconds", "tokens_per_second", "bound"}


def step(student: Student, config: Config, batch: int, context: int, *machine: float, **more: Any) -> dict[str, Any]:
    return answer(student.decode_roofline(config, batch, context, *machine, **more), STEP, "decode_roofline")


def fetched(config: Config, batch: int, context: int, weight_bits: float = 16, kv_bits: int = 16) -> float:
    n, k = mixed(config)
    total, active = counted(config)
    expert = (total - active) / (n - k) if n > k else 0.0
    some = sum(math.comb(batch, i) * (k / n) ** i * (1 - k / n) ** (batch - i) for i in range(1, batch + 1)) * n
    weights = active - looked_up(config) + (some - k) * expert
    return weights * weight_bits / 8 + kv_cache(config, context, batch, kv_bits)


@pytest.mark.exercise("decode_roofline", weight=2)
def test_one_text_fetches_the_weights_that_compute(student: Student) -> None:
    """Active parameters without the tables that are only looked up, and the cache of the text."""
    for name, config in everything():
        for context in (1, 90):
            found = number(step(student, config, 1, context, 1e9, 1e12)["bytes"], "bytes")
            near(found, fetched(config, 1, context), f"{name}, bytes with {context} positions")


@pytest.mark.exercise("decode_roofline", weight=2)
def test_the_weights_are_fetched_once_for_all_texts(student: Student) -> None:
    """A second text adds its cache to what is fetched, and no weight of a dense model."""
    for name, config in small("llama", "gpt2", "mistral"):
        for batch in (2, 33):
            found = number(step(student, config, batch, 50, 1e9, 1e12)["bytes"], "bytes")
            near(found, fetched(config, batch, 50), f"{name}, bytes with {batch} texts")


@pytest.mark.exercise("decode_roofline", weight=2)
def test_several_texts_touch_more_experts(student: Student) -> None:
    """Of E experts B texts are expected to need E(1 − (1 − k/E)^B): fewer than B · k, for two may need the same."""
    many = {**families.TINY["mixtral"][0], "num_local_experts": 31, "num_experts_per_tok": 3}
    for name, config in [("A small mixtral with 31 experts", many), *small(*MIXTURES)]:
        for batch in (5, 2, 60):
            found = number(step(student, config, batch, 4, 1e9, 1e12)["bytes"], "bytes")
            near(found, fetched(config, batch, 4), f"{name}, bytes with {batch} texts")


@pytest.mark.exercise("decode_roofline")
def test_where_a_token_uses_every_expert_there_are_no_more_to_fetch(student: Student) -> None:
    """With top_k equal to n_experts a batch touches what one text touches."""
    config = {**families.TINY["mixtral"][0], "num_local_experts": 3, "num_experts_per_tok": 3}
    for batch in (1, 8):
        found = number(step(student, config, batch, 4, 1e9, 1e12)["bytes"], "bytes")
        near(found, fetched(config, batch, 4), f"3 of 3 experts, bytes with {batch} texts")


@pytest.mark.exercise("decode_roofline")
def test_weights_and_cache_have_bits_of_their_own(student: Student) -> None:
    """weight_bits for what is fetched of the weights, kv_bits for the caches."""
    for name, config in small("llama", "gpt_oss"):
        for weight_bits, kv_bits in ((4.5, 16), (16, 8), (8, 4)):
            more = {"weight_bits": weight_bits, "kv_bits": kv_bits}
            found = number(step(student, config, 3, 20, 1e9, 1e12, **more)["bytes"], "bytes")
            near(
                found,
                fetched(config, 3, 20, weight_bits, kv_bits),
                f"{name}, bytes with {weight_bits} and {kv_bits} bits",
            )


@pytest.mark.exercise("decode_roofline")
def test_every_text_computes_its_token(student: Student) -> None:
    """FLOPs grow with the texts and with what they attend to, whatever the bits."""
    for name, config in everything():
        for batch, context in ((1, 7), (13, 600)):
            found = whole(step(student, config, batch, context, 1e9, 1e12, weight_bits=4)["flops"], "flops")
            near(found, batch * flops(config, context), f"{name}, FLOPs with {batch} texts")


@pytest.mark.exercise("decode_roofline", weight=2)
def test_the_slower_of_the_two_decides(student: Student) -> None:
    """Fetching and computing happen at once, so a step takes the longer of the two, and the bound is named after it."""
    config = dict(families.TINY["llama"][1])
    even = (fetched(config, 3, 12), float(3 * flops(config, 12)))  # both take exactly a second
    machines = ((1, 1e3, 1e9), (1, 1e9, 1e3), (40, 5e5, 1e6), (40, 2e5, 4e6), (9, 1e12, 1e13), (3, *even))
    for batch, bandwidth, peak in machines:
        found = step(student, config, batch, 12, bandwidth, peak)
        fetching, computing = fetched(config, batch, 12) / bandwidth, batch * flops(config, 12) / peak
        claim = f"{batch} texts, {bandwidth:.0e} bytes and {peak:.0e} FLOPs a second"
        near(number(found["seconds"], "seconds"), max(fetching, computing), f"{claim}, seconds")
        right = "memory" if fetching >= computing else "compute"
        assert found["bound"] == right, f"{claim}: the bound is not {found['bound']!r}."


@pytest.mark.exercise("decode_roofline")
def test_the_tokens_of_all_texts_count(student: Student) -> None:
    """Tokens a second: a step writes one token for each text."""
    config = dict(families.TINY["mixtral"][0])
    for batch, bandwidth, peak in ((1, 1e6, 1e9), (24, 1e6, 1e9), (24, 1e12, 1e6)):
        found = step(student, config, batch, 12, bandwidth, peak)["tokens_per_second"]
        seconds = max(fetched(config, batch, 12) / bandwidth, batch * flops(config, 12) / peak)
        near(number(found, "tokens_per_second"), batch / seconds, f"{batch} texts, tokens a second")


# -- energy_and_cost --------------------------------------------------------------------------------------------------

BILL = {"flops", "device_hours", "kwh", "kg_co2", "cost"}
PLANT = {"peak": 312e12, "mfu": 0.37, "watts": 410.0, "pue": 1.13, "carbon": 0.29, "price": 1.7}


def bill(student: Student, config: Config, tokens: int, **more: Any) -> dict[str, float]:
    found = answer(student.energy_and_cost(config, tokens, **{**PLANT, **more}), BILL, "energy_and_cost")
    return {name: number(value, name) for name, value in found.items()}


def hours(config: Config, tokens: int) -> float:
    return 3 * tokens * flops(config, 0) / (PLANT["peak"] * PLANT["mfu"]) / 3600


@pytest.mark.exercise("energy_and_cost", weight=2)
def test_training_takes_six_for_each_weight_and_token(student: Student) -> None:
    """6ND: N the active parameters that compute, and forward and backward for each token."""
    for name, config in everything():
        for tokens in (1000, 2 * 10**12):
            found = bill(student, config, tokens)["flops"]
            near(found, 3 * tokens * flops(config, 0), f"{name} on {tokens:.0e} tokens, FLOPs")


@pytest.mark.exercise("energy_and_cost")
def test_attention_is_added_for_a_context(student: Student) -> None:
    """With a context the FLOPs of attention count as well, forward and backward; without one it is 0."""
    for name, config in small("llama", "mistral"):
        found = bill(student, config, 10**9, context=1024)["flops"]
        near(found, 3 * 10**9 * flops(config, 1024), f"{name} at 1,024 positions, FLOPs")


@pytest.mark.exercise("energy_and_cost", weight=2)
def test_hours_follow_from_what_is_reached_of_the_peak(student: Student) -> None:
    """A device reaches mfu · peak FLOPs a second, and an hour has 3,600 of them."""
    for name, config in small("llama", "mixtral"):
        near(bill(student, config, 10**15)["device_hours"], hours(config, 10**15), f"{name}, device-hours")
    config = CONFIGS["LLaMA 7B"]
    one, other = (bill(student, config, 10**12, mfu=share)["device_hours"] for share in (0.2, 0.6))
    near(one / other, 3.0, "Device-hours at a third of the utilisation, over those at three times as much")


@pytest.mark.exercise("energy_and_cost", weight=2)
def test_the_building_takes_pue_times_what_its_devices_take(student: Student) -> None:
    """Kilowatt-hours: device-hours, watts over a thousand, times pue."""
    for config in (CONFIGS["LLaMA 7B"], CONFIGS["gpt-oss-20b"]):
        right = hours(config, 10**12) * PLANT["watts"] / 1000 * PLANT["pue"]
        near(bill(student, config, 10**12)["kwh"], right, "Kilowatt-hours")
        near(bill(student, config, 10**12, pue=2.26)["kwh"], 2 * right, "Kilowatt-hours at twice the pue")


@pytest.mark.exercise("energy_and_cost")
def test_carbon_goes_by_energy_and_money_by_hours(student: Student) -> None:
    """CO₂ is paid for each kilowatt-hour, the price for each device-hour, and neither changes the other."""
    config = CONFIGS["Qwen3 8B"]
    spent = hours(config, 10**12)
    kwh = spent * PLANT["watts"] / 1000 * PLANT["pue"]
    near(bill(student, config, 10**12)["kg_co2"], kwh * PLANT["carbon"], "Kilograms of CO₂")
    near(bill(student, config, 10**12)["cost"], spent * PLANT["price"], "Cost")
    other = bill(student, config, 10**12, watts=820.0, pue=1.5, carbon=0.0)
    near(other["cost"], spent * PLANT["price"], "Cost at other watts")
    assert other["kg_co2"] == 0, f"With a carbon of 0 there are {other['kg_co2']} kg of CO₂."


# -- recommend --------------------------------------------------------------------------------------------------------

REASONS = ("task", "memory", "speed", "context", "languages", "licence", "adaptation")
SHAPES = {
    "classify": ("encoder", "decoder", "encoder-decoder"),
    "embed": ("encoder",),
    "translate": ("encoder-decoder", "decoder"),
    "chat": ("decoder",),
}
LEARNING = {"none": 0.0, "qlora": 0.52, "lora": 2.0, "full": 16.0}
MODEL: dict[str, Any] = {
    "name": "alder",
    "shape": "decoder",
    "parameters": 3000,
    "active": 1000,
    "kv_bytes": 10,
    "context": 512,
    "languages": {"en", "ja"},
    "licence": "Apache 2.0",
    "uses": {"commercial", "research"},
}
NEED: dict[str, Any] = {
    "task": "chat",
    "memory": 20_000,
    "bandwidth": 60_000,
    "tokens_per_second": 10,
    "context": 100,
    "languages": {"ja"},
    "use": "commercial",
    "weight_bits": 16,
    "adaptation": "qlora",
}


def rows(student: Student, models: list[dict[str, Any]], need: dict[str, Any], *kept: Any) -> list[dict[str, Any]]:
    """What is recommended; `kept`: the models and the need in the student's process."""
    found = student.recommend(*(kept or (models, need)))
    assert isinstance(found, list), f"recommend should return a list, not {kind(found)}."
    for row in found:
        assert isinstance(row, dict), f"The list should hold a dict for each model, not {kind(row)}."
        answer(row, {"name", "reasons", "bytes"}, "each model")
        assert isinstance(row["reasons"], dict), f"reasons should be a dict, not {kind(row['reasons'])}."
    named = sorted(str(row["name"]) for row in found)
    assert named == sorted(model["name"] for model in models), f"The names in the list are {named}."
    return found


def against(student: Student, model: dict[str, Any], need: dict[str, Any]) -> list[str]:
    return list(rows(student, [model], need)[0]["reasons"])


def told(student: Student, model: dict[str, Any], need: dict[str, Any], reason: str) -> tuple[Any, Any]:
    found = rows(student, [model], need)[0]["reasons"]
    assert reason in found, f"The reasons are {list(found)}, and {reason} is missing."
    pair = found[reason]
    assert isinstance(pair, tuple | list), f"A reason should have two values, not {kind(pair)}."
    assert len(pair) == 2, f"A reason should have two values, not {len(pair)}."
    return pair[0], pair[1]


FAILS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # what to change in MODEL and in NEED
    "task": ({"shape": "encoder"}, {}),
    "memory": ({}, {"memory": 6999}),
    "speed": ({}, {"tokens_per_second": 20.1}),
    "context": ({"context": 99}, {}),
    "languages": ({}, {"languages": {"ja", "sw", "ar"}}),
    "licence": ({"uses": {"research"}, "licence": "for research"}, {}),
    "adaptation": ({}, {"adaptation": "full"}),
}


@pytest.mark.exercise("recommend", weight=3)
def test_each_reason_alone_is_found(student: Student) -> None:
    """A model that fails for one reason has that reason against it, and no other."""
    for reason, (model, need) in FAILS.items():
        found = against(student, {**MODEL, **model}, {**NEED, **need})
        assert found == [reason], f"A model fails for its {reason}, and the reasons are {found}."
    found = against(student, {**MODEL, "uses": {"commercial"}}, {**NEED, "use": "research"})
    assert found == ["licence"], f"A licence does not allow research, and the reasons against it are {found}."


@pytest.mark.exercise("recommend", weight=2)
def test_a_model_that_does_all_has_no_reason_against_it(student: Student) -> None:
    """Nothing fails, nothing is said; what is exactly enough is enough."""
    exactly = {"memory": 7000, "tokens_per_second": 20, "context": 100}
    cases: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
        ({}, {}),
        ({}, exactly),
        ({"context": 100}, {}),
        ({}, {"languages": set()}),
        ({}, {"use": "research"}),
    )
    for model, need in cases:
        found = against(student, {**MODEL, **model}, {**NEED, **need})
        assert found == [], f"With {sorted(need)} that are just enough the reasons are {found}."
        # the same model fails where something is missing
        found = against(student, {**MODEL, **model}, {**NEED, **need, "use": "resale"})
        assert found == ["licence"], f"Where the licence alone is missing the reasons are {found}."


@pytest.mark.exercise("recommend", weight=2)
def test_all_reasons_are_told_in_their_order(student: Student) -> None:
    """A model that fails for seven reasons has seven, from task to adaptation; with some mended the others stay."""
    model: dict[str, Any] = {key: value for changed, _ in FAILS.values() for key, value in changed.items()}
    need: dict[str, Any] = {key: value for _, changed in FAILS.values() for key, value in changed.items()}
    found = against(student, {**MODEL, **model}, {**NEED, **need})
    assert found == list(REASONS), f"A model that fails for all seven has the reasons {found}."
    found = against(student, {**MODEL, **model, "shape": "decoder", "context": 512}, {**NEED, **need})
    right = [reason for reason in REASONS if reason not in ("task", "context")]
    assert found == right, f"With its task and its context mended the reasons are {found}."


@pytest.mark.exercise("recommend")
def test_the_shapes_that_a_task_can_use(student: Student) -> None:
    """TASKS says which shapes will do: an encoder embeds, a decoder chats, either of them classifies."""
    for task, shapes in SHAPES.items():
        for shape in ("encoder", "decoder", "encoder-decoder"):
            found = against(student, {**MODEL, "shape": shape}, {**NEED, "task": task})
            assert found == ([] if shape in shapes else ["task"]), f"{task} with a shape of {shape}: {found}."


@pytest.mark.exercise("recommend", weight=2)
def test_a_reason_says_what_was_asked_and_what_is_there(student: Student) -> None:
    """Two values for each reason, (asked, there), so that one sees how much is missing."""
    model = {**MODEL, "languages": {"ja", "en", "de"}}
    right: dict[str, tuple[Any, Any]] = {
        "task": (("decoder",), "encoder"),
        "memory": (7000, 6999),
        "speed": (20.1, 20),
        "context": (100, 99),
        "languages": (["ar", "sw"], ["de", "en", "ja"]),
        "licence": ("commercial", "for research"),
        "adaptation": (48_000, 20_000),
    }
    for reason, (asked, there) in right.items():
        changed, need = FAILS[reason]
        found = told(student, {**model, **changed}, {**NEED, **need}, reason)
        for word, value, wanted in (("asked", found[0], asked), ("there", found[1], there)):
            if isinstance(wanted, int | float):
                near(number(value, word), wanted, f"{reason}, {word}")
            elif isinstance(wanted, str):
                assert value == wanted, f"{reason}, {word}: {value!r} is wrong."
            else:
                assert isinstance(value, tuple | list), f"{reason}, {word}: {kind(value)} is wrong."
                assert list(value) == list(wanted), f"{reason}, {word}: {value!r} is wrong."


@pytest.mark.exercise("recommend", weight=2)
def test_bytes_and_speed_count_bits_and_context(student: Student) -> None:
    """All parameters have to be in memory, the active ones are fetched, and the cache of the context is both."""
    for bits, context, kv in ((16, 100, 10), (4.5, 100, 10), (8, 300, 7), (16, 0, 10)):
        model, need = {**MODEL, "kv_bytes": kv}, {**NEED, "weight_bits": bits, "context": context}
        size, fetched_ = 3000 * bits / 8 + context * kv, 1000 * bits / 8 + context * kv
        found = number(rows(student, [model], need)[0]["bytes"], "bytes")
        near(found, size, f"{bits} bits, {context} positions, bytes")
        need |= {"tokens_per_second": 1e9}
        near(
            number(told(student, model, need, "speed")[1], "speed"),
            60_000 / fetched_,
            f"{bits} bits, {context} positions",
        )


@pytest.mark.exercise("recommend")
def test_adapting_takes_memory_of_its_own(student: Student) -> None:
    """ADAPTATION says how many bytes a parameter takes while the model learns; without adapting it takes none."""
    for adaptation, each in LEARNING.items():
        for room in (7000, 3000 * each - 1, 3000 * each):
            need = {**NEED, "adaptation": adaptation, "memory": max(room, 1), "context": 0, "weight_bits": 0.001}
            found = against(student, MODEL, {**need, "tokens_per_second": 0})
            right = ["adaptation"] if 3000 * each > need["memory"] else []
            assert found == right, f"{adaptation} in {need['memory']:,.0f} bytes: {found}."


@pytest.mark.exercise("recommend", weight=2)
def test_what_does_all_comes_first_and_the_smallest_of_it_ahead(student: Student) -> None:
    """First those without a reason, by bytes; then the others, those with fewer reasons ahead, and then by bytes."""
    changes: tuple[dict[str, Any], ...] = (
        {"name": "far off", "parameters": 10, "active": 10, "languages": {"fr"}, "uses": set()},
        {"name": "large, one reason", "uses": set()},
        {"name": "large", "parameters": 4000},
        {"name": "small, one reason", "parameters": 2000, "languages": {"fr"}},
        {"name": "small", "parameters": 2500},
        {"name": "three reasons", "parameters": 5, "active": 5, "languages": {"fr"}, "uses": set(), "context": 3},
        {"name": "middle", "parameters": 3500, "active": 1100},
    )
    models = [{**MODEL, **change} for change in changes]
    right = ["small", "middle", "large", "small, one reason", "large, one reason", "far off", "three reasons"]
    for turned in (models, models[::-1]):
        found = [row["name"] for row in rows(student, turned, NEED)]
        assert found == right, f"The order is {found}."


@pytest.mark.exercise("recommend")
def test_models_that_are_alike_stay_in_their_order(student: Student) -> None:
    """A tie is kept as it was given, whatever the names; and an empty shelf gives an empty list."""
    for names in (["c", "a", "b"], ["b", "c", "a"]):
        models = [{**MODEL, "name": name} for name in names]
        for need in (NEED, {**NEED, "use": "resale"}):
            found = [row["name"] for row in rows(student, models, need)]
            assert found == names, f"{names}, all alike, come out as {found}."
    assert rows(student, [], NEED) == [], "An empty shelf gives something."


@pytest.mark.exercise("recommend", weight=0.5)
def test_nothing_that_is_given_changes(student: Student) -> None:
    """Models and need stay what they were, and asking twice gives the same."""
    models, need = [{**MODEL, "name": name, "parameters": size} for name, size in (("b", 9), ("a", 5))], dict(NEED)
    shelf, wish = student.put(models), student.put(need)
    first, second = ([row["name"] for row in rows(student, models, need, shelf, wish)] for _ in range(2))
    assert first == second == ["a", "b"], f"Twice the same question: {first} and {second}."
    assert shelf.get() == models, "recommend changes the models that it is given."
    assert wish.get() == need, "recommend changes the need that it is given."
