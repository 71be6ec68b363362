"""Hidden tests of chapter 11. Expected values come from autograder.families, which tests/test_families.py proves equal
to transformers; checkpoints are written by the package safetensors itself.

Every weight is drawn anew, gains and biases too: at 1 and 0 they hide what was forgotten.
"""

import json
import math
import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from autograder import families
from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import first_difference, gradients, normal

Json = dict[str, Any]
State = dict[str, Tensor]

RESERVED = {
    "read_safetensors": (
        "safetensors.safe_open",
        "safetensors.deserialize",
        "safetensors.torch.load",
        "safetensors.torch.load_file",
        "safetensors.torch.safe_open",
        "safetensors.numpy.load",
        "safetensors.numpy.load_file",
    )
}


# -- the oracle: a model of a family, its weights, and what each of its parts gives -----------------------------------


class Case:
    """A small model with random weights, run on a text."""

    def __init__(self, config: Json, seed: int, length: int = 9, padding: Sequence[int] = (0, 0)) -> None:
        self.config, self.form = config, families.form(config)
        self.theirs = families.random_state(config, seed)
        self.state = families.course_state(config, self.theirs)
        self.ids = some_ids(self.form.vocabulary, len(padding), length, seed)
        self.mask = torch.arange(length) >= torch.tensor(padding)[:, None]
        self.trace: State = {}
        self.logits = families.logits(config, self.theirs, self.ids, self.mask, self.trace)

    def __str__(self) -> str:
        f = self.form
        what = [f"{self.config['model_type']} with {f.n_heads} heads of {f.d_head} on {f.n_kv_heads} keys"]
        what += ["tied"] * f.tied
        what += [f"windows {list(f.windows)}"] * any(window is not None for window in f.windows)
        return ", ".join(what)

    def part(self, name: str) -> State:
        """The weights of a sub-layer."""
        return {key.removeprefix(f"{name}."): value for key, value in self.state.items() if key.startswith(f"{name}.")}


@cache
def case(family: str, number: int, length: int = 9, padding: tuple[int, ...] = (0, 0)) -> Case:
    return Case(families.TINY[family][number], 10 + number, length, padding)


def cases(*names: str, padding: tuple[int, ...] = (0, 0)) -> Iterator[Case]:
    for family in names or ("llama", "mistral", "qwen2", "qwen3"):
        for number in range(len(families.TINY[family])):
            yield case(family, number, padding=padding)


def some_ids(vocabulary: int, batch: int, n: int, seed: int) -> Tensor:
    return torch.randint(vocabulary, (batch, n), generator=torch.Generator().manual_seed(seed))


# -- modules of students ----------------------------------------------------------------------------------------------


def config_of(student: Student, case: Case, **changes: Any) -> Remote:
    """The DecoderConfig of a case, in the student's process."""
    f, scaling = case.form, case.config.get("rope_scaling")
    sizes = ("vocabulary", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_hidden", "windows", "tied")
    fields = {name: getattr(f, name) for name in sizes}
    if scaling:
        numbers = [scaling[key] for key in ("factor", "low_freq_factor", "high_freq_factor")]
        fields["rope_scaling"] = student.RopeScaling(*numbers, scaling["original_max_position_embeddings"])
    fields |= {"norm_eps": f.eps, "rope_theta": case.config.get("rope_theta", 10_000.0)}
    fields |= {"qkv_bias": "qkv" in f.biases, "qk_norm": bool(f.qk_norm)}
    return student.DecoderConfig(**fields | changes)


def state_of(module: Any, name: str) -> State:
    assert isinstance(module, Remote), f"{name} should give a module."
    state = module.state_dict()
    assert isinstance(state, dict), f"The state_dict() should be a dict: is {name} an nn.Module?"
    return {str(key): tensor(value, name=str(key)) for key, value in state.items()}


def loaded(module: Any, weights: Mapping[str, Tensor], name: str) -> Remote:
    """The module with those of these weights that it has. The rest is zeroed: there is a test for both."""
    state = state_of(module, name)
    known = {key: value for key, value in weights.items() if key in state}
    module.load_state_dict({key: torch.zeros_like(value) for key, value in state.items()} | known)
    return module.eval()


def attention_of(student: Student, case: Case, layer: int, **changes: Any) -> Remote:
    module = student.Attention(config_of(student, case, **changes), layer)
    return loaded(module, case.part(f"blocks.{layer}.attention"), "Attention")


def decoder_of(student: Student, case: Case) -> Remote:
    return loaded(student.Decoder(config_of(student, case)), case.state, "Decoder")


def check_state(student: Student, module: Any, weights: Mapping[str, Tensor], name: str) -> None:
    state = state_of(module, name)
    assert set(state) == set(weights), (
        f"Too many in the state dict: {sorted(set(state) - set(weights))}; "
        f"missing: {sorted(set(weights) - set(state))}."
    )
    for key, value in weights.items():
        tensor(state[key], shape=value.shape, dtype=torch.float32, name=key)
        assert state[key].isfinite().all(), f"{key} is not finite in a new module: was it never initialised?"
    trained = set(student.grads(module))
    assert trained == set(weights), f"Of the state dict these are not trained: {sorted(set(weights) - trained)}."


def raised_by(call: Any, *args: Any) -> StudentError | None:
    """What the student's code raises; an exercise without an answer stays one."""
    try:
        call(*args)
    except Unfinished:
        raise
    except StudentError as error:
        return error
    return None


def check_refused(student: Student, exercise: str, argument: Any, what: str, *words: str) -> None:
    """It raises a ValueError whose sentence has these words."""
    error = raised_by(getattr(student, exercise), argument)
    kind = error.types[0] if error else "nothing"
    assert isinstance(error, ValueError), f"{what}: that raises {kind}, and it should raise a ValueError."
    for word in words:
        assert word.lower() in str(error).lower(), f"{what}: the sentence does not say {word!r}: {error}"


def answered(student: Student, exercise: str, argument: Any, what: str) -> Any:
    """What the exercise gives for an argument that it should take."""
    error, found = None, None
    try:
        found = getattr(student, exercise)(argument)
    except Unfinished:
        raise
    except StudentError as raised:
        error = raised
    assert error is None, f"{what}: that is right, and it raises {error and error.sentence[:300]}"
    return found


# -- read_config ------------------------------------------------------------------------------------------------------

_SIZES = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "float16",
    "max_position_embeddings": 4096,
}
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA1: Json = {"model_type": "llama", **_SIZES, "architectures": ["LlamaForCausalLM"]}
LLAMA2: Json = LLAMA1 | {
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "pretraining_tp": 1,
}
LLAMA31: Json = LLAMA2 | {
    "rope_theta": 500000.0,
    "rope_scaling": _LLAMA3 | {"rope_type": "llama3"},
    "attention_bias": False,
    "mlp_bias": False,
}
MISTRAL: Json = {**_SIZES, "model_type": "mistral", "num_key_value_heads": 8, "sliding_window": 4096}
QWEN2: Json = {
    **_SIZES,
    "model_type": "qwen2",
    "num_key_value_heads": 4,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "sliding_window": 131072,
    "max_window_layers": 3,
    "tie_word_embeddings": True,
}
QWEN3: Json = {
    **_SIZES,
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "head_dim": 96,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "attention_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 4,
}


def fields(student: Student, config: Json) -> Json:
    """What read_config makes of a config.json."""
    found = student.read_config(config)
    assert isinstance(found, Remote), f"read_config should return a DecoderConfig, not a {type(found).__name__}."
    try:
        as_dict = student.asdict(found)
    except StudentError as error:
        raise AssertionError(f"read_config should return a DecoderConfig: {error}") from None
    assert isinstance(as_dict, dict), "read_config should return a DecoderConfig."
    return as_dict


def check_fields(student: Student, config: Json, claim: str, **wanted: Any) -> None:
    found = fields(student, config)
    for name, value in wanted.items():
        got = found.get(name)
        same = repr(got) == repr(value)
        assert same, f"{claim}: the field {name} is {str(got)[:90]}, which is not what the file says."


@pytest.mark.exercise("read_config", weight=2)
def test_sizes_are_read(student: Student) -> None:
    """Vocabulary, widths, layers, heads and eps are what the file says, for all four families."""
    for i, config in enumerate((LLAMA2, MISTRAL, QWEN2, QWEN3)):
        config = config | {"vocab_size": 1001 + i, "hidden_size": 320, "num_hidden_layers": 5 + i, "head_dim": 24 + i}
        config |= {"num_attention_heads": 10, "num_key_value_heads": 5, "intermediate_size": 77, "rms_norm_eps": 3e-6}
        wanted = {"vocabulary": 1001 + i, "d_model": 320, "n_layers": 5 + i, "d_head": 24 + i, "norm_eps": 3e-6}
        check_fields(student, config, config["model_type"], n_heads=10, n_kv_heads=5, d_hidden=77, **wanted)


@pytest.mark.exercise("read_config")
def test_absent_keys_mean_the_first_llama(student: Student) -> None:
    """Without groups, head size, base or tying: as many keys as heads, heads that share the width, 10 000, untied."""
    nulls = {"num_key_value_heads": None, "head_dim": None, "tie_word_embeddings": None}
    bare = {key: value for key, value in LLAMA1.items() if key != "hidden_act"}
    for claim, config in (("absent", LLAMA1), ("null", LLAMA1 | nulls), ("absent", bare | {"hidden_size": 2048})):
        d_head = config["hidden_size"] // 32
        wanted = {"n_kv_heads": 32, "d_head": d_head, "rope_theta": 10_000.0, "rope_scaling": None, "tied": False}
        check_fields(student, config, f"LLaMA 1, {claim} keys", qkv_bias=False, qk_norm=False, **wanted)
    check_fields(student, LLAMA1 | {"rms_norm_eps": 1}, "an eps that is an integer", norm_eps=1.0)
    check_fields(student, MISTRAL | {"hidden_size": 5120, "head_dim": 128}, "32 heads of 128 in 5120", d_head=128)
    check_fields(student, QWEN3 | {"hidden_size": 2048, "head_dim": None}, "Qwen3, a null head_dim", d_head=64)


@pytest.mark.exercise("read_config")
def test_rope_is_read_from_old_files(student: Student) -> None:
    """rope_theta at the top, rope_scaling beside it: null, or with its type under rope_type, or under type."""
    stretched = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_length": 8192}
    check_fields(student, QWEN2, "Qwen2", rope_theta=1e6, rope_scaling=None)
    check_fields(student, QWEN3, "Qwen3, whose theta is an integer", rope_theta=1e6, rope_scaling=None)
    check_fields(student, LLAMA31, "LLaMA 3.1", rope_theta=5e5, rope_scaling=stretched)
    early = LLAMA31 | {"rope_scaling": _LLAMA3 | {"type": "llama3", "factor": 32, "low_freq_factor": 2}}
    wanted = stretched | {"factor": 32.0, "low_freq_factor": 2.0}
    check_fields(student, early, "a type under the key type, and integers", rope_theta=5e5, rope_scaling=wanted)
    check_fields(student, LLAMA31 | {"rope_scaling": {"rope_type": "default"}}, "type default", rope_scaling=None)


@pytest.mark.exercise("read_config")
def test_rope_is_read_from_new_files(student: Student) -> None:
    """rope_parameters holds the base, the type and its numbers, all in one dict."""
    bare = {key: value for key, value in LLAMA2.items() if not key.startswith("rope")}
    new = bare | {"rope_parameters": {"rope_theta": 250000.0, "rope_type": "default"}}
    check_fields(student, new, "rope_parameters of the type default", rope_theta=2.5e5, rope_scaling=None)
    parameters = {**_LLAMA3, "factor": 16.0, "rope_type": "llama3", "rope_theta": 500000}
    stretched = {"factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_length": 8192}
    new = bare | {"rope_parameters": parameters}
    check_fields(student, new, "rope_parameters of the type llama3", rope_theta=5e5, rope_scaling=stretched)
    new = bare | {"rope_parameters": {"rope_type": "default"}}
    check_fields(student, new, "rope_parameters without a base", rope_theta=1e4, rope_scaling=None)


@pytest.mark.exercise("read_config")
def test_the_family_says_where_there_is_a_bias_or_a_norm(student: Student) -> None:
    """A bias on q, k and v is Qwen2's, a norm on q and k is Qwen3's; LLaMA and Mistral have neither."""
    for config in (LLAMA2, MISTRAL, QWEN2, QWEN3):
        family = config["model_type"]
        check_fields(student, config, family, qkv_bias=family == "qwen2", qk_norm=family == "qwen3")
    check_fields(student, QWEN2, "qwen2", tied=True)
    check_fields(student, QWEN2 | {"attention_bias": False}, "qwen2 with attention_bias false", qkv_bias=True)
    check_fields(student, QWEN3 | {"tie_word_embeddings": False}, "qwen3", tied=False)
    for config in (MISTRAL, QWEN2, QWEN3):
        bare = {key: value for key, value in config.items() if key != "tie_word_embeddings"}
        check_fields(student, bare, f"{config['model_type']} without tie_word_embeddings", tied=False)


@pytest.mark.exercise("read_config")
def test_mistral_has_one_window_for_all(student: Student) -> None:
    """Version 0.1 has a window of 4096 in every layer; from 0.2 on it is null, and there is none."""
    check_fields(student, MISTRAL, "Mistral 0.1", windows=(4096,) * 4)
    check_fields(student, MISTRAL | {"sliding_window": None}, "Mistral 0.2", windows=(None,) * 4)
    absent = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    check_fields(student, absent | {"num_hidden_layers": 3}, "Mistral without the key", windows=(None,) * 3)
    told = {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0}
    check_fields(student, LLAMA2 | told, "LLaMA, which never has one", windows=(None,) * 4)


@pytest.mark.exercise("read_config", weight=1.5)
def test_qwen_has_windows_only_where_it_uses_them(student: Student) -> None:
    """Only with use_sliding_window, and then only in the layers from max_window_layers on, or as layer_types says."""
    for config in (QWEN2, QWEN3 | {"sliding_window": 4096}):
        family = config["model_type"]
        check_fields(student, config, f"{family} that does not use its window", windows=(None,) * 4)
        using = config | {"use_sliding_window": True, "sliding_window": 512}
        for first in (0, 1, 3, 4, 7):
            wanted = tuple(512 if i >= first else None for i in range(4))
            claim = f"{family} with max_window_layers {first} of 4"
            check_fields(student, using | {"max_window_layers": first}, claim, windows=wanted)
        kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
        listed = using | {"layer_types": kinds}
        check_fields(student, listed, f"{family} with layer_types", windows=(512, None, None, 512))
        unused = config | {"layer_types": ["full_attention"] * 4, "sliding_window": None}
        check_fields(student, unused, f"{family} with layer_types and no window", windows=(None,) * 4)
    absent = {key: value for key, value in QWEN2.items() if key != "use_sliding_window"}
    check_fields(student, absent, "Qwen2 without use_sliding_window", windows=(None,) * 4)


@pytest.mark.exercise("read_config")
def test_other_families_are_refused(student: Student) -> None:
    """A model_type that this decoder does not know raises a ValueError that names it; so does none at all."""
    fields(student, LLAMA2)
    for name in ("bert", "mixtral", "qwen2_moe", "gemma2"):
        check_refused(student, "read_config", LLAMA2 | {"model_type": name}, f"model_type {name}", name, "model_type")
    nameless = {key: value for key, value in LLAMA2.items() if key != "model_type"}
    check_refused(student, "read_config", nameless, "no model_type", "model_type")


@pytest.mark.exercise("read_config")
def test_what_the_decoder_cannot_do_is_refused(student: Student) -> None:
    """Another activation, biases elsewhere, another stretching of RoPE: a ValueError that names key and value."""
    fields(student, QWEN3)
    for act in ("gelu", "gelu_pytorch_tanh"):
        check_refused(student, "read_config", LLAMA2 | {"hidden_act": act}, f"hidden_act {act}", "hidden_act", act)
    for key in ("attention_bias", "mlp_bias"):
        check_refused(student, "read_config", LLAMA31 | {key: True}, f"{key} true", key, "true")
    for kind in ("yarn", "linear"):
        for key in ("rope_type", "type"):
            scaled = QWEN2 | {"rope_scaling": {key: kind, "factor": 4.0}}
            check_refused(student, "read_config", scaled, f"rope_scaling of the type {kind}", kind)
    new = LLAMA1 | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}
    check_refused(student, "read_config", new, "rope_parameters of the type dynamic", "dynamic")


@pytest.mark.exercise("read_config", weight=0.5)
def test_the_dict_is_left_as_it_was(student: Student) -> None:
    """The config belongs to the caller, and reading it twice gives the same."""
    for config in (LLAMA31, QWEN2):
        kept = student.put(config)
        check_fields(student, config, "at first", n_kv_heads=config["num_key_value_heads"], n_layers=4)
        student.read_config(kept)
        assert kept.get() == config, "After the call the dict is another one."


# -- rope_frequencies -------------------------------------------------------------------------------------------------


def frequencies(d_head: int, theta: float, scaling: Mapping[str, Any] | None = None) -> Tensor:
    """Those of the oracle."""
    config = LLAMA2 | {"head_dim": d_head, "rope_theta": theta}
    return torch.tensor(
        families.form(config | {"rope_scaling": {**scaling, "rope_type": "llama3"} if scaling else None}).frequencies
    )


def stretched(
    student: Student, d_head: int, theta: float, factor: float, low: float, high: float, length: float
) -> Any:
    return student.rope_frequencies(d_head, theta, student.RopeScaling(factor, low, high, length))


def scaling_of(factor: float, low: float, high: float, length: float) -> Json:
    numbers = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    return numbers | {"original_max_position_embeddings": length}


@pytest.mark.exercise("rope_frequencies")
def test_plain_frequencies_fall_from_one(student: Student) -> None:
    """Without scaling they are powers of theta, for any base and any even head size."""
    for d_head, theta in ((8, 1e4), (6, 5e5), (10, 1e6), (2, 1e4), (128, 5e5), (80, 100.0)):
        found = student.rope_frequencies(d_head, theta)
        assert_close(found, frequencies(d_head, theta), atol=0, rtol=1e-4, claim=f"d_head {d_head}, theta {theta:g}")


@pytest.mark.exercise("rope_frequencies", weight=2)
def test_stretched_frequencies_are_those_of_llama(student: Student) -> None:
    """With the numbers of LLaMA 3.1 and 3.2, and with others, each pair turns as it does in the published model."""
    sizes = ((128, 5e5, 8.0, 1.0, 4.0, 8192), (64, 5e5, 32.0, 1.0, 4.0, 8192), (10, 1e4, 4.0, 1.5, 6.0, 50))
    for d_head, theta, *numbers in (*sizes, (36, 1e4, 3.0, 1.0, 2.0, 300)):
        found = stretched(student, d_head, theta, *numbers)
        expected = frequencies(d_head, theta, scaling_of(*numbers))
        assert_close(found, expected, atol=0, rtol=1e-4, claim=f"d_head {d_head}, theta {theta:g}, {numbers}")


@pytest.mark.exercise("rope_frequencies")
def test_fast_pairs_stay_and_slow_ones_slow_down(student: Student) -> None:
    """Below T/h nothing changes, above T/l everything is divided by the factor, and between lies a mixture."""
    plain, factor, low, high, length = frequencies(64, 1e4), 5.0, 1.0, 4.0, 2048
    found = tensor(stretched(student, 64, 1e4, factor, low, high, length), shape=(32,))
    wavelength = 2 * math.pi / plain
    fast, slow = wavelength < length / high, wavelength > length / low
    assert_close(found[fast], plain[fast], atol=0, rtol=1e-5, claim="wavelengths below T/h", name="the frequencies")
    assert_close(
        found[slow], plain[slow] / factor, atol=0, rtol=1e-5, claim="wavelengths above T/l", name="the frequencies"
    )
    between = ~fast & ~slow
    share = found[between] / plain[between]
    assert ((share > 1 / factor) & (share < 1)).all(), "Between the two the frequencies should be a mixture."
    assert (share.diff() < 0).all(), "Between the two, the slower a pair is, the more it should slow down."


@pytest.mark.exercise("rope_frequencies", weight=0.5)
def test_frequencies_are_float32_and_half_as_many(student: Student) -> None:
    """d_head / 2 numbers in float32, with and without scaling, also where half of d_head is odd."""
    for d_head in (2, 6, 8, 22):
        for found in (student.rope_frequencies(d_head, 1e4), stretched(student, d_head, 1e4, 8.0, 1.0, 4.0, 64)):
            tensor(found, shape=(d_head // 2,), dtype=torch.float32, name=f"the result for d_head {d_head}")
            assert abs(found[0].item() - 1) < 1e-6, "Pair 0 should turn by one radian a position."
            assert (found.diff() < 0).all(), "Each pair should turn more slowly than the one before it."


# -- Attention --------------------------------------------------------------------------------------------------------


def check_attention(student: Student, case: Case, layers: Sequence[int] = (0, 2)) -> None:
    """An attention layer, given what the oracle's norm gives it."""
    mask = None if case.mask.all() else case.mask
    for layer in layers:
        module = attention_of(student, case, layer)
        x, expected = (case.trace[f"blocks.{layer}.{part}"] for part in ("norm1", "attention"))
        assert_close(module(x, mask), expected, atol=1e-4, rtol=0, claim=f"{case}, layer {layer}")


@pytest.mark.exercise("Attention")
def test_attention_has_the_stated_parameters(student: Student) -> None:
    """Names and shapes are those of the table, for each family; d_head is what the config says."""
    for number, found in enumerate(cases()):
        layer = number % 3
        weights = found.part(f"blocks.{layer}.attention")
        check_state(student, student.Attention(config_of(student, found), layer), weights, str(found))


@pytest.mark.exercise("Attention", weight=2)
def test_attention_is_that_of_llama(student: Student) -> None:
    """With random weights it gives what LLaMA's attention gives: without and with groups, odd sizes, stretched RoPE."""
    for found in cases("llama"):
        check_attention(student, found)


@pytest.mark.exercise("Attention", weight=1.5)
def test_attention_is_that_of_mistral(student: Student) -> None:
    """With a window it sees itself and the W - 1 positions before it; without one, everything."""
    for found in cases("mistral"):
        check_attention(student, found)


@pytest.mark.exercise("Attention")
def test_attention_is_that_of_qwen2(student: Student) -> None:
    """Queries, keys and values have a bias; windows differ from layer to layer."""
    for found in cases("qwen2"):
        check_attention(student, found, (0, 1, 2))


@pytest.mark.exercise("Attention")
def test_attention_is_that_of_qwen3(student: Student) -> None:
    """Queries and keys are normalised head by head, with a gain, before RoPE turns them."""
    for found in cases("qwen3"):
        check_attention(student, found)


@pytest.mark.exercise("Attention")
def test_padding_on_the_left_is_not_seen(student: Student) -> None:
    """Texts of different length in one batch: nobody attends to padding, and what stands on it gets zeros."""
    for found in cases(padding=(0, 4, 8)):
        check_attention(student, found, (1,))


@pytest.mark.exercise("Attention")
def test_a_window_reaches_as_far_as_it_says(student: Student) -> None:
    """A change at j is noticed by the positions j to j + W - 1, and by no other."""
    found = case("llama", 1)
    x = normal(1, 9, found.form.d_model, seed=3)
    for windows, reach in ((((1, 3, 9), 1), 3), (((3, 1, None), 0), 3), (((), 2), 9), (((2, None, 20), 2), 20)):
        module = attention_of(student, found, windows[1], windows=windows[0])
        before = tensor(module(x), shape=x.shape).detach()
        for j in (0, 3, 8):
            changed = x.clone()
            changed[:, j] += normal(found.form.d_model, seed=j)
            moved = (tensor(module(changed), shape=x.shape).detach() - before).abs().amax((0, 2)) > 1e-6
            should = torch.tensor([j <= i < j + reach for i in range(9)])
            far = moved & ~should
            assert not far.any(), (
                f"windows {windows[0]}, layer {windows[1]}: {int(far.sum())} see position {j} who may not."
            )
            blind = should & ~moved
            assert not blind.any(), (
                f"windows {windows[0]}, layer {windows[1]}: {int(blind.sum())} do not see position {j}."
            )


@pytest.mark.exercise("Attention", weight=1.5)
def test_chunks_with_a_cache_give_the_whole(student: Student) -> None:
    """A text in chunks of any sizes, with a cache, gives what it gives as a whole: windows, padding and all."""
    numbered = [
        case("llama", 2),
        case("mistral", 0),
        case("qwen2", 1, padding=(0, 5)),
        case("qwen3", 0, padding=(3, 0)),
    ]
    for found, sizes in zip(numbered, ((4, 1, 4), (1,) * 9, (3, 5, 1), (6, 1, 1, 1)), strict=True):
        module, cache = attention_of(student, found, 1), student.Cache()
        x, expected = (found.trace[f"blocks.1.{part}"] for part in ("norm1", "attention"))
        end, outputs = 0, []
        for chunk in x.split(sizes, 1):
            end += chunk.shape[1]
            mask = None if found.mask.all() else found.mask[:, :end]
            outputs.append(tensor(module(chunk, mask, cache), shape=chunk.shape).detach())
        claim = f"{found}, in chunks of {list(sizes)}"
        assert_close(torch.cat(outputs, 1), expected, atol=1e-4, rtol=0, claim=claim)


@pytest.mark.exercise("Attention")
def test_the_cache_gets_turned_keys_once(student: Student) -> None:
    """In one call the cache gets n positions of its layer: keys after RoPE and values, n_kv_heads of each."""
    found = case("qwen3", 0, padding=(0, 4))
    f, layer = found.form, 2
    module, cache = attention_of(student, found, layer), student.Cache()
    x = found.trace[f"blocks.{layer}.norm1"]
    module(x, found.mask, cache)
    kept = cache.kept
    assert set(kept) == {layer}, f"Layer {layer} put its keys under the numbers {sorted(kept)}."
    keys, values = (
        tensor(part, shape=(2, f.n_kv_heads, 9, f.d_head), name=name)
        for part, name in zip(kept[layer], ("k", "v"), strict=True)
    )
    weights = found.part(f"blocks.{layer}.attention")
    plain = (x @ weights["v_proj.weight"].T).unflatten(-1, (-1, f.d_head)).transpose(1, 2)
    assert_close(values, plain, name="the values in the cache")
    k = (x @ weights["k_proj.weight"].T).unflatten(-1, (-1, f.d_head)).transpose(1, 2)
    k = torch.nn.functional.rms_norm(k, (f.d_head,), weights["k_norm.weight"], f.eps)
    a, b = k.chunk(2, -1)
    angles = (found.mask.cumsum(-1) - 1).clamp(min=0)[:, None, :, None] * torch.tensor(f.frequencies)
    turned = torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)
    assert_close(keys[0], turned[0], name="the keys in the cache")
    assert_close(keys[1, :, 4:], turned[1, :, 4:], claim="behind padding", name="the keys in the cache")


@pytest.mark.exercise("Attention")
def test_gradients_reach_every_weight_of_attention(student: Student) -> None:
    """Everything learns: the gradients of x and of all weights, biases and gains are right."""
    for family in ("qwen2", "qwen3"):
        found = case(family, 0)
        leaves = {name: value.clone().requires_grad_() for name, value in found.theirs.items()}
        trace: State = {}
        families.logits(found.config, leaves, found.ids, None, trace)
        x, output = trace["blocks.1.norm1"], trace["blocks.1.attention"]
        upstream = normal(*output.shape, seed=3)
        names = [name for name in leaves if name.startswith("model.layers.1.self_attn.")]
        inputs = [x, *(leaves[name] for name in names)]
        grads = torch.autograd.grad(output, inputs, upstream)
        expected = {
            name.removeprefix("model.layers.1.self_attn."): grad for name, grad in zip(names, grads[1:], strict=True)
        }
        module, given = attention_of(student, found, 1), x.detach().clone().requires_grad_()
        assert_close(
            gradients(module(given), upstream, x=given)["x"], grads[0], atol=1e-3, rtol=1e-3, name="the gradient of x"
        )
        reached = student.grads(module)
        for name, value in expected.items():
            assert reached.get(name) is not None, f"{found}: no gradient reaches {name}."
            assert_close(reached[name], value, atol=1e-3, rtol=1e-3, claim=str(found), name=f"the gradient of {name}")


@pytest.mark.exercise("Attention", weight=0.5)
def test_angles_are_computed_in_float32(student: Student) -> None:
    """Position 2000 is not the last, and bfloat16 knows where it is: angles are in float32, and cast at the end."""
    config = families.TINY["llama"][1] | {"num_hidden_layers": 1, "rope_theta": 1e4}
    far = Case(config, 5, 2100, (0,))
    result = attention_of(student, far, 0)(far.trace["blocks.0.norm1"])
    assert_close(result, far.trace["blocks.0.attention"], atol=1e-3, rtol=1e-3, claim="a text of 2100 tokens")
    far.state = {name: (2 * value).bfloat16().float() for name, value in far.state.items()}
    module, x = attention_of(student, far, 0), far.trace["blocks.0.norm1"].bfloat16()
    expected = tensor(module(x.float()), shape=x.shape).detach()[:, 1500:]
    module.bfloat16()
    result = tensor(module(x), shape=x.shape, dtype=torch.bfloat16).detach().float()[:, 1500:]
    off = ((result - expected).abs().mean() / expected.abs().mean()).item()
    assert off < 0.03, f"In bfloat16, from position 1500 on, the outputs are off by {off:.0%} on average."
    assert expected.std() > 0.1, "The outputs are nearly all alike."


@pytest.mark.exercise("Attention", weight=0.5)
def test_eps_of_the_qk_norm_is_that_of_the_config(student: Student) -> None:
    """Where queries and keys are tiny, eps decides how large they become."""
    for eps in (1e-5, 1e-2):
        found = Case(families.TINY["qwen3"][0] | {"rms_norm_eps": eps, "num_hidden_layers": 1}, 7)
        small = {**found.theirs, "model.layers.0.input_layernorm.weight": torch.full((found.form.d_model,), 1e-3)}
        families.logits(found.config, small, found.ids, None, found.trace)
        x, expected = (found.trace[f"blocks.0.{part}"] for part in ("norm1", "attention"))
        scale = expected.std()
        result = tensor(attention_of(student, found, 0)(x), shape=x.shape)
        assert_close(result / scale, expected / scale, atol=1e-2, rtol=0, claim=f"norm_eps {eps:g}")


@pytest.mark.exercise("Attention", weight=0.5)
def test_attention_keeps_nothing_and_changes_nothing(student: Student) -> None:
    """The same x gives the same, after other texts too; x and the mask belong to the caller; float64 stays float64."""
    found = case("qwen3", 1, padding=(0, 4))
    x, expected = (found.trace[f"blocks.0.{part}"] for part in ("norm1", "attention"))
    module = attention_of(student, found, 0)
    kept, mask = student.put(x), student.put(found.mask)
    for _ in range(2):
        assert_close(module(kept, mask), expected, atol=1e-4, rtol=0)
        module(normal(1, 5, x.shape[-1], seed=1))
    assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")
    assert_close(mask.get(), found.mask, claim="after the call", name="the mask")
    module.train()
    assert_close(module(x[1:], found.mask[1:]), expected[1:], atol=1e-4, rtol=0, claim="one text alone, in training")
    module.double()
    assert_close(module(x.double(), found.mask), expected.double(), atol=1e-4, rtol=0, claim="in float64")


# -- Decoder ----------------------------------------------------------------------------------------------------------


def check_decoder(model: Remote, found: Case) -> None:
    """The logits at real tokens are the oracle's; if not, say in which sub-layer the model first differs."""
    mask = None if found.mask.all() else found.mask
    result = tensor(model(found.ids, mask), shape=found.logits.shape, dtype=torch.float32, name="the logits").detach()
    expected = found.logits
    if torch.allclose(result[found.mask], expected[found.mask], atol=1e-4, rtol=1e-4):
        return
    where = ""
    with suppress(StudentError):
        trace = found.trace if mask is None else {}  # what stands on padding may be anything
        where = first_difference(model, trace, lambda: model(found.ids, mask))
    try:
        assert_close(result[found.mask], expected[found.mask], claim=str(found), name="the logits")
    except AssertionError as error:
        raise AssertionError(f"{error} {where}".strip()) from None


@pytest.mark.exercise("Decoder")
def test_the_decoder_has_the_stated_parameters(student: Student) -> None:
    """Names and shapes are those of the table; a tied model stores no head."""
    for found in cases():
        check_state(student, student.Decoder(config_of(student, found)), found.state, str(found))


@pytest.mark.exercise("Decoder", weight=2)
def test_the_decoder_is_llama(student: Student) -> None:
    """With random weights, gains too, the logits are LLaMA's; if not, the message says where the models part."""
    for found in cases("llama"):
        check_decoder(decoder_of(student, found), found)


@pytest.mark.exercise("Decoder")
def test_the_decoder_is_mistral(student: Student) -> None:
    """With windows, and without them, the logits are Mistral's."""
    for found in cases("mistral"):
        check_decoder(decoder_of(student, found), found)


@pytest.mark.exercise("Decoder")
def test_the_decoder_is_qwen(student: Student) -> None:
    """Tied and not, with a bias or with norms, with windows in some layers: the logits are Qwen2's and Qwen3's."""
    for found in cases("qwen2", "qwen3"):
        check_decoder(decoder_of(student, found), found)


@pytest.mark.exercise("Decoder")
def test_padding_changes_no_logits(student: Student) -> None:
    """A batch of texts of different length, padded on the left: at real tokens the logits are those of each text."""
    for found in cases(padding=(0, 4, 7)):
        check_decoder(decoder_of(student, found), found)


@pytest.mark.exercise("Decoder", weight=1.5)
def test_a_decoder_with_a_cache_gives_the_whole(student: Student) -> None:
    """In chunks of any sizes, with one cache for all layers, the logits are those of the whole text."""
    numbered = [case("llama", 1), case("mistral", 0), case("qwen2", 1, padding=(0, 5))]
    for found, sizes in zip(numbered, ((4, 1, 4), (1,) * 9, (3, 5, 1)), strict=True):
        model, cache = decoder_of(student, found), student.Cache()
        end, outputs = 0, []
        for chunk in found.ids.split(sizes, 1):
            end += chunk.shape[1]
            mask = None if found.mask.all() else found.mask[:, :end]
            shape = (*chunk.shape, found.form.vocabulary)
            outputs.append(tensor(model(chunk, mask, cache), shape=shape, name="the logits").detach())
        result = torch.cat(outputs, 1)
        claim = f"{found}, in chunks of {list(sizes)}"
        assert_close(result[found.mask], found.logits[found.mask], claim=claim, name="the logits")


@pytest.mark.exercise("Decoder", weight=0.5)
def test_eps_of_every_norm_is_that_of_the_config(student: Student) -> None:
    """Where the stream is tiny, eps decides: in the norms of the blocks and in the last one."""
    for name, silent in (("blocks", ()), ("the last norm", ("o_proj", "down_proj"))):
        for eps in (1e-5, 1e-3):
            found = Case(families.TINY["llama"][0] | {"rms_norm_eps": eps, "num_hidden_layers": 1}, 3)
            theirs = {key: value * 1e-3 if "embed" in key else value for key, value in found.theirs.items()}
            theirs = {
                key: torch.zeros_like(value) if any(part in key for part in silent) else value
                for key, value in theirs.items()
            }
            expected = families.logits(found.config, theirs, found.ids)
            found.state = families.course_state(found.config, theirs)
            claim = f"norm_eps {eps:g}, {name}"
            assert_close(
                decoder_of(student, found)(found.ids), expected, atol=1e-3, rtol=1e-2, claim=claim, name="the logits"
            )


@pytest.mark.exercise("Decoder")
def test_gradients_reach_every_weight_of_the_decoder(student: Student) -> None:
    """Every weight learns as it should. Tied, the table of tokens learns from both of its uses."""
    for found in (case("llama", 0), case("qwen3", 1)):
        leaves = {name: value.clone().requires_grad_() for name, value in found.theirs.items()}
        upstream = normal(*found.logits.shape, seed=1)
        families.logits(found.config, leaves, found.ids).backward(upstream)
        expected = families.course_state(found.config, {n: v.grad for n, v in leaves.items() if v.grad is not None})
        model = decoder_of(student, found)
        result = tensor(model(found.ids), shape=upstream.shape, name="the logits")
        assert result.requires_grad, "No gradient flows through the logits."
        result.backward(upstream)
        reached = student.grads(model)
        for name, value in expected.items():
            assert reached.get(name) is not None, f"{found}: no gradient reaches {name}."
            assert_close(reached[name], value, atol=1e-2, rtol=1e-2, claim=str(found), name=f"the gradient of {name}")


@pytest.mark.exercise("Decoder", weight=0.5)
def test_the_decoder_never_looks_ahead_and_keeps_nothing(student: Student) -> None:
    """A change at a token is noticed there and after it; the same ids give the same, whatever came between."""
    found = case("llama", 2)
    model, ids = decoder_of(student, found), found.ids
    before = tensor(model(ids), shape=found.logits.shape, name="the logits").detach()
    for j in (0, 4, 8):
        changed = ids.clone()
        changed[:, j] = (ids[:, j] + 1) % found.form.vocabulary
        after = tensor(model(changed), shape=before.shape, name="the logits").detach()
        assert_close(after[:, :j], before[:, :j], claim=f"after a change at token {j}", name="what came before it")
        assert (after[:, j:] != before[:, j:]).any(-1).all(), f"Who may see token {j} does not notice that it changed."
    kept = student.put(ids)
    model.train()
    assert_close(model(kept), found.logits, claim="in training", name="the logits")
    assert_close(kept.get(), ids, claim="after the call", name="ids")
    model.bfloat16()
    tensor(model(ids), shape=before.shape, dtype=torch.bfloat16, name="the logits in bfloat16")


# -- read_safetensors -------------------------------------------------------------------------------------------------


def packed(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """A checkpoint as the package safetensors writes it."""
    from safetensors.torch import save

    return save(dict(tensors), metadata)


def by_hand(header: Any, data: bytes, *, length: int | None = None) -> bytes:
    """A file with this header, whether it fits the data or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: Sequence[int], begin: int, end: int) -> Json:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def file_with(student: Student, data: bytes) -> str:
    folder = student.write_folder({"model.safetensors": data})
    assert isinstance(folder, str), "write_folder is not that of the set-up cell any more."
    return f"{folder}/model.safetensors"


def check_tensors(student: Student, data: bytes, expected: Mapping[str, Tensor], claim: str) -> None:
    found = answered(student, "read_safetensors", file_with(student, data), claim)
    assert isinstance(found, dict), f"read_safetensors should return a dict, not a {type(found).__name__}."
    assert set(found) == set(expected), f"{claim}: the tensors are called {sorted(map(str, found))[:5]}."
    for name, value in expected.items():
        got = tensor(found[name], shape=value.shape, dtype=value.dtype, name=name)
        assert_close(got, value, atol=0, rtol=0, claim=claim, name=name)


@pytest.mark.exercise("read_safetensors", weight=2)
def test_a_checkpoint_comes_back_as_it_was(student: Student) -> None:
    """What the package safetensors wrote is read: names, shapes, numbers, float32 and bfloat16."""
    made = {"a.weight": normal(3, 5, seed=1), "b": normal(2, 3, 4, seed=2).bfloat16(), "c": normal(7, seed=3)}
    check_tensors(student, packed(made), made, "three tensors")
    check_tensors(student, packed({"only": made["a.weight"]}), {"only": made["a.weight"]}, "one tensor")


@pytest.mark.exercise("read_safetensors")
def test_every_dtype_is_read(student: Student) -> None:
    """All dtypes of the table, each with its own size and in the byte order of ordinary machines."""
    whole = torch.tensor([[0, 1, 2], [100, 5, 6]])
    kinds = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    made = {str(dtype): whole.to(dtype) for dtype in kinds}
    made |= {
        str(d): normal(2, 3, seed=1, dtype=d) for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    }
    check_tensors(student, packed(made), made, "all dtypes")


@pytest.mark.exercise("read_safetensors")
def test_numbers_and_empty_tensors_are_read(student: Student) -> None:
    """A shape of [] is one number, and a tensor may have no numbers at all."""
    made = {
        "number": torch.tensor(2.5),
        "empty": torch.zeros(0, 3).bfloat16(),
        "one": torch.ones(1),
        "last": torch.zeros(4, 0),
    }
    check_tensors(student, packed(made), made, "a number and empty tensors")
    check_tensors(student, packed({}), {}, "a file without tensors")


@pytest.mark.exercise("read_safetensors")
def test_metadata_and_spaces_are_no_tensors(student: Student) -> None:
    """__metadata__ is left out, the header may end in spaces, and offsets decide, not the order of the entries."""
    made = {"a": normal(3, seed=1), "b": normal(2, 2, seed=2)}
    check_tensors(student, packed(made, {"format": "pt"}), made, "with metadata")
    data = b"".join(value.numpy().tobytes() for value in made.values())
    header = json.dumps({"b": entry("F32", (2, 2), 12, 28), "a": entry("F32", (3,), 0, 12), "__metadata__": {}})
    for spaces in (0, 1, 7):
        found = by_hand(header.encode() + b" " * spaces, data)
        check_tensors(student, found, made, f"entries in another order, {spaces} spaces behind the header")
    named = {"größe.重み": normal(3, seed=1), "__a__": normal(2, seed=2)}
    check_tensors(student, packed(named), named, "names that are not English, or begin with __")


@pytest.mark.exercise("read_safetensors")
def test_a_path_may_be_a_str_or_a_path(student: Student) -> None:
    """Both ways of naming a file give the same, and the file stays as it is."""
    made = {"a": normal(3, 4, seed=1)}
    name = file_with(student, packed(made))
    for path in (name, student.Path(name), name):
        found = student.read_safetensors(path)
        assert isinstance(found, dict), f"read_safetensors should return a dict, not a {type(found).__name__}."
        assert_close(found.get("a"), made["a"], atol=0, rtol=0)
    assert student.Path(name).read_bytes() == packed(made), "The file was changed."


@pytest.mark.exercise("read_safetensors")
def test_a_file_that_was_cut_off_is_refused(student: Student) -> None:
    """No 8 bytes, a header that ends too early or claims more than there is, data that ends too early: a ValueError."""
    whole = packed({"first": normal(4, seed=1), "second": normal(5, seed=2)})
    length = int.from_bytes(whole[:8], "little")
    for size in (0, 5, 8 + length // 2):
        name = file_with(student, whole[:size])
        check_refused(student, "read_safetensors", name, f"{size} of {len(whole)} bytes")
    for size in (8 + length + 16, len(whole) - 1):
        name = file_with(student, whole[:size])
        check_refused(student, "read_safetensors", name, f"{size} of {len(whole)} bytes", "second")
    for claimed in (length + 37, length + 2**56, 2**40, 2**63 - 1, 2**64 - 1):
        name = file_with(student, claimed.to_bytes(8, "little") + whole[8:])
        check_refused(student, "read_safetensors", name, f"a header that claims {claimed} bytes")
    for claimed in (3, 9, 100):
        name = file_with(student, by_hand({}, b"", length=claimed))
        check_refused(student, "read_safetensors", name, f"a header of 2 bytes that claims {claimed}")
    check_tensors(student, whole, {"first": normal(4, seed=1), "second": normal(5, seed=2)}, "the whole file")


@pytest.mark.exercise("read_safetensors", weight=1.5)
def test_offsets_outside_the_data_are_refused(student: Student) -> None:
    """0 ≤ begin ≤ end ≤ the length of the data, or a ValueError that names the tensor."""
    good = entry("F32", (4,), 0, 16)
    data = normal(4, seed=1).numpy().tobytes()
    for begin, end in (
        (4, 20),
        (16, 32),
        (-1, 15),
        (1 << 40, (1 << 40) + 16),
        (-16, 0),
        (-4, 12),
        (16, 0),
        (0, -16),
        (-32, -16),
    ):
        data_file = file_with(student, by_hand({"good": good, "evil": entry("F32", (4,), begin, end)}, data))
        check_refused(student, "read_safetensors", data_file, f"offsets {begin} to {end} of 16 bytes", "evil")
    check_refused(
        student,
        "read_safetensors",
        file_with(student, by_hand({"evil": entry("F32", (0,), 20, 20)}, data)),
        "an empty tensor at 20 of 16 bytes",
        "evil",
    )
    check_tensors(student, by_hand({"good": good}, data), {"good": normal(4, seed=1)}, "offsets that fit")


@pytest.mark.exercise("read_safetensors")
def test_shape_and_bytes_must_fit(student: Student) -> None:
    """More or fewer bytes than shape and dtype need, a negative size, an unknown dtype: a ValueError that names it."""
    data = normal(6, seed=1).numpy().tobytes()
    for dtype, shape, end in (
        ("F32", (5,), 24),
        ("F32", (7,), 24),
        ("F32", (2, 2), 24),
        ("F16", (6,), 24),
        ("F64", (6,), 24),
        ("F32", (), 24),
        ("F32", (6,), 0),
    ):
        found = file_with(student, by_hand({"evil": entry(dtype, shape, 0, end)}, data))
        check_refused(student, "read_safetensors", found, f"{end} bytes for the shape {list(shape)} in {dtype}", "evil")
    for sizes in ((-2, -3), (-2, -3, 1), (-1, -1, 6), (-1,), (-1, 6), (6, -1)):
        found = file_with(student, by_hand({"evil": entry("F32", sizes, 0, 24)}, data))
        check_refused(student, "read_safetensors", found, f"the shape {list(sizes)}", "evil")
    for dtype in ("F3", "float32", ""):
        found = file_with(student, by_hand({"evil": entry(dtype, (6,), 0, 24)}, data))
        check_refused(student, "read_safetensors", found, f"the dtype {dtype!r}", "evil")
    check_tensors(
        student,
        by_hand({"good": entry("F32", (2, 3), 0, 24)}, data),
        {"good": normal(6, seed=1).view(2, 3)},
        "a shape that fits",
    )


# -- load_hf ----------------------------------------------------------------------------------------------------------


def folder_of(student: Student, config: Json, weights: Mapping[str, Tensor], **more: bytes) -> str:
    """A folder with a config and one file of weights, in the student's process."""
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": packed(weights)}
    found = student.write_folder(files | {name.replace("__", "."): data for name, data in more.items()})
    assert isinstance(found, str), "write_folder is not that of the set-up cell any more."
    return found


def sharded(config: Json, weights: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The files of a checkpoint in two pieces and an index."""
    names = sorted(weights)
    half = len(names) // 2
    pieces = {"model-00001-of-00002.safetensors": names[:half], "model-00002-of-00002.safetensors": names[half:]}
    index = {"metadata": {"total_size": 1}, "weight_map": {n: file for file, part in pieces.items() for n in part}}
    files = {file: packed({n: weights[n] for n in part}) for file, part in pieces.items()}
    files |= {"model.safetensors.index.json": json.dumps(index).encode(), "config.json": json.dumps(config).encode()}
    return files


def as_published(found: Case) -> State:
    """A tied model's file has no head."""
    return {name: value for name, value in found.theirs.items() if not (found.form.tied and name == "lm_head.weight")}


def check_loaded(student: Student, folder: Any, found: Case, claim: str = "") -> Remote:
    model = answered(student, "load_hf", folder, f"{found}{claim and ', '}{claim}")
    assert isinstance(model, Remote), "load_hf should return a Decoder."
    result = tensor(model(found.ids), shape=found.logits.shape, dtype=torch.float32, name="the logits")
    assert_close(result, found.logits, claim=f"{found}{claim and ', '}{claim}", name="the logits")
    return model


@pytest.mark.exercise("load_hf", weight=2)
def test_all_four_families_are_loaded(student: Student) -> None:
    """A folder of LLaMA, Mistral, Qwen2 or Qwen3 becomes a model with the published logits."""
    for found in cases():
        check_loaded(student, folder_of(student, found.config, as_published(found)), found)


@pytest.mark.exercise("load_hf")
def test_weights_in_several_files_are_loaded(student: Student) -> None:
    """An index says which tensor is in which file, and all of them are read."""
    for found in (case("llama", 1), case("qwen2", 1)):
        weights = as_published(found)
        folder = student.write_folder(sharded(found.config, weights))
        check_loaded(student, folder, found, "in two files")
        check_loaded(student, f"{folder}/../{folder.rsplit('/', 1)[1]}", found, "in two files, by another path")


@pytest.mark.exercise("load_hf")
def test_a_loaded_model_is_in_float32_and_in_evaluation(student: Student) -> None:
    """Whatever the file has, every parameter is float32; the model is in evaluation; a Path will do."""
    found = case("qwen2", 0)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        weights = {name: value.to(dtype) for name, value in as_published(found).items()}
        folder = student.Path(folder_of(student, found.config, weights))
        model = answered(student, "load_hf", folder, f"{found}, from {dtype}")
        kinds = {value.dtype for value in state_of(model, "load_hf").values()}
        assert kinds == {torch.float32}, f"From a file in {dtype}, the parameters are in {kinds}."
        assert model.training is False, "The model is not in evaluation: was eval() called?"
        expected = families.logits(found.config, {name: value.float() for name, value in weights.items()}, found.ids)
        assert_close(model(found.ids), expected, claim=f"{found}, from {dtype}", name="the logits")


@pytest.mark.exercise("load_hf")
def test_a_tied_model_needs_no_head(student: Student) -> None:
    """Tied, lm_head.weight may be absent or there; untied it must be there."""
    found = case("llama", 2)
    check_loaded(student, folder_of(student, found.config, as_published(found)), found, "without lm_head")
    head = {"lm_head.weight": found.theirs["model.embed_tokens.weight"].clone()}
    model = check_loaded(student, folder_of(student, found.config, as_published(found) | head), found, "with lm_head")
    assert "head.weight" not in state_of(model, "load_hf"), "The tied model has a head of its own."
    found = case("llama", 0)
    headless = {name: value for name, value in found.theirs.items() if name != "lm_head.weight"}
    check_refused(student, "load_hf", folder_of(student, found.config, headless), "untied, no head", "lm_head.weight")


@pytest.mark.exercise("load_hf", weight=0.5)
def test_old_checkpoints_hold_frequencies(student: Student) -> None:
    """The inv_freq of old LLaMA checkpoints is passed over; another tensor that nobody knows is not."""
    found = case("llama", 0)
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": normal(3, seed=i) for i in range(3)}
    check_loaded(student, folder_of(student, found.config, found.theirs | old), found, "with inv_freq")
    for name, like in (("model.layers.1.self_attn.inv_freq_scale", None), ("norm.weight", "model.norm.weight")):
        unknown = normal(*(found.theirs[like].shape if like else (3,)), seed=1)
        folder = folder_of(student, found.config, found.theirs | {name: unknown})
        check_refused(student, "load_hf", folder, f"an unknown tensor, {name}", name)


@pytest.mark.exercise("load_hf", weight=2)
def test_all_that_does_not_fit_is_named_at_once(student: Student) -> None:
    """One ValueError names every tensor that is missing, extra or misshapen, and none that is right."""
    found = case("qwen3", 0)
    alone = "model.layers.1.mlp.up_proj.weight"
    short = {name: value for name, value in found.theirs.items() if name != alone}
    check_refused(student, "load_hf", folder_of(student, found.config, short), "one tensor is missing", alone)
    weights = dict(found.theirs)
    missing = ["model.norm.weight", "model.layers.1.self_attn.q_norm.weight", "model.layers.2.mlp.up_proj.weight"]
    for name in missing:
        del weights[name]
    extra = {
        "model.layers.3.mlp.up_proj.weight": normal(2, 2, seed=1),
        "model.layers.0.self_attn.q_proj.bias": normal(4, seed=2),
    }
    misshapen = {
        "model.layers.0.mlp.down_proj.weight": normal(20, 24, seed=3),
        "model.embed_tokens.weight": normal(39, 24, seed=4),
    }
    for claim, files in (
        (
            "in one file",
            {
                "config.json": json.dumps(found.config).encode(),
                "model.safetensors": packed(weights | extra | misshapen),
            },
        ),
        ("in two files", sharded(found.config, weights | extra | misshapen)),
    ):
        folder = student.write_folder(files)
        named = [*missing, *extra, *misshapen]
        check_refused(student, "load_hf", folder, f"seven tensors that do not fit, {claim}", *named)
        told = str(raised_by(student.load_hf, folder))
        right = [
            name
            for name in found.theirs
            if name not in named and re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", told)
        ]
        assert not right, f"{claim}: {right[:2]} are named, and nothing is wrong with them."
        numbers = set(map(int, re.findall(r"\d+", told)))
        assert {20, 24, 37, 39} <= numbers, f"{claim}: for another shape both shapes should be named: {told[:400]}"
    check_loaded(student, folder_of(student, found.config, found.theirs), found)


@pytest.mark.exercise("load_hf", weight=0.5)
def test_a_tensor_that_the_index_promises_must_be_there(student: Student) -> None:
    """A tensor that stands in the index and in no file is missing."""
    found = case("llama", 1)
    files = sharded(found.config, found.theirs)
    check_loaded(student, student.write_folder(files), found, "in two files")
    last = "model-00002-of-00002.safetensors"
    short = {name: found.theirs[name] for name in sorted(found.theirs)[len(found.theirs) // 2 :]}
    gone = "model.norm.weight"
    files[last] = packed({name: value for name, value in short.items() if name != gone})
    check_refused(student, "load_hf", student.write_folder(files), "a promise in the index", gone)


class _Bomb:
    """Unpickled, it makes a file: a stand-in for what a stranger's program could do."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.exercise("load_hf", weight=1.5)
def test_pickles_are_refused_and_never_run(student: Student) -> None:
    """A folder with pickles alone is refused in words that name the file, and the program in it does not run."""
    found = case("llama", 0)
    for name in ("pytorch_model.bin", "weights.pt", "consolidated.00.pth"):
        marker = f"{student.write_folder({'marker': name.encode()})}/was_run"
        files = {"config.json": json.dumps(found.config).encode(), name: pickle.dumps(_Bomb(marker))}
        check_refused(student, "load_hf", student.write_folder(files), f"only {name}", name, "pickle")
        assert not student.Path(marker).exists(), f"The program in {name} was run."
    error = raised_by(student.load_hf, student.write_folder({"config.json": json.dumps(found.config).encode()}))
    assert isinstance(error, FileNotFoundError), "A folder without weights should raise a FileNotFoundError."
    assert "model.safetensors" in str(error), f"The sentence should name model.safetensors: {error}"


@pytest.mark.exercise("load_hf")
def test_nothing_in_the_folder_is_run(student: Student) -> None:
    """Where safetensors lie beside a pickle and a program that the config names, only the safetensors are read."""
    found = case("mistral", 0)
    marker = f"{student.write_folder({'marker': b'program'})}/was_run"
    config = found.config | {"auto_map": {"AutoModelForCausalLM": "modeling_own.Model"}}
    files = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": packed(found.theirs),
        "modeling_own.py": f"import os\nos.mkdir({marker!r})\nclass Model: pass\n".encode(),
        "pytorch_model.bin": pickle.dumps(_Bomb(marker)),
    }
    check_loaded(student, student.write_folder(files), found, "with a program beside it")
    assert not student.Path(marker).exists(), "A program in the folder was run."


@pytest.mark.exercise("load_hf", weight=1.5)
def test_an_index_may_not_lead_out_of_the_folder(student: Student) -> None:
    """A file above the folder, an absolute path, a link that leads out: a ValueError names it, and nothing is read."""
    found = case("llama", 0)
    outside = student.write_folder({"other.safetensors": packed(found.theirs)})
    name = outside.rsplit("/", 1)[1]
    config = json.dumps(found.config).encode()
    for file in (
        f"../{name}/other.safetensors",
        f"{outside}/other.safetensors",
        "linked.safetensors",
        "beside.safetensors",
        f"x/../../{name}/other.safetensors",
    ):
        index = json.dumps({"weight_map": dict.fromkeys(found.theirs, file)}).encode()
        folder = student.write_folder({"config.json": config, "model.safetensors.index.json": index})
        student.Path(f"{folder}/x").mkdir()
        if file == "linked.safetensors":
            student.Path(f"{folder}/{file}").symlink_to(f"{outside}/other.safetensors")
        if file == "beside.safetensors":  # in a folder whose name begins with that of this one
            student.Path(f"{folder}-2").mkdir(exist_ok=True)
            student.Path(f"{folder}-2/other.safetensors").write_bytes(packed(found.theirs))
            student.Path(f"{folder}/{file}").symlink_to(f"{folder}-2/other.safetensors")
        check_refused(student, "load_hf", folder, f"an index that names {file}", file)
    index = json.dumps({"weight_map": dict.fromkeys(found.theirs, "inner.safetensors")}).encode()
    files = {"config.json": config, "model.safetensors.index.json": index, "inner.safetensors": packed(found.theirs)}
    check_loaded(student, student.write_folder(files), found, "an index that stays inside")


@pytest.mark.exercise("load_hf")
def test_a_loaded_model_writes(student: Student) -> None:
    """With the cache it writes the tokens that a whole forward gives, one text after another and padded in a batch."""
    for found in (case("mistral", 0), case("qwen3", 1), case("llama", 2)):
        folder = folder_of(student, found.config, as_published(found))
        model = answered(student, "load_hf", folder, str(found))
        prompt = found.ids[:, :5]
        for padding in ((0, 0), (0, 3)):
            ids, mask = prompt, torch.arange(5) >= torch.tensor(padding)[:, None]
            for _ in range(6):
                logits = families.logits(found.config, found.theirs, ids, mask)[:, -1]
                ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
                mask = torch.nn.functional.pad(mask, (0, 1), value=True)
            result = student.generate(model, prompt, 6, mask[:, :5])
            assert_close(result, ids[:, 5:], claim=f"{found}, padding {padding}", name="the tokens")


@pytest.mark.exercise("load_hf", weight=0.5)
def test_a_model_of_another_family_is_refused(student: Student) -> None:
    """What read_config refuses is refused here too, before any weight is read."""
    found = case("llama", 0)
    check_loaded(student, folder_of(student, found.config, found.theirs), found)
    folder = folder_of(student, found.config | {"model_type": "gemma"}, found.theirs)
    check_refused(student, "load_hf", folder, "a config of the family gemma", "gemma")
