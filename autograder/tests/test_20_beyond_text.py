"""Hidden tests of chapter 20. Expected values come from PyTorch's own operations and NumPy; none from the reference.

Transformers' ViT, its mel filters and Whisper's front end would cost every grading seconds to import:
tests/test_vit_oracle.py proves the arithmetic here equal to theirs.
"""

import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import gradients, normal

RESERVED: dict[str, tuple[str, ...]] = {
    "log_mel": (
        "torch.stft",
        "torch.functional.stft",
        "torch._VF.stft",
        "torch.Tensor.stft",
        "torch.ops.aten.stft",
    ),
}

Weights = dict[str, Tensor]


def state(module: Remote) -> Weights:
    """A module's state dict, as tensors."""
    assert isinstance(module, Remote), "Creating the module should give an nn.Module."
    found = module.state_dict()
    assert isinstance(found, dict), "state_dict() should give a dict: is the class an nn.Module?"
    return {str(name): tensor(value, name=str(name)) for name, value in found.items()}


def loaded(module: Remote, weights: Weights) -> Remote:
    """The module with these weights, in evaluation. What it has beside them is zeroed: another test sees to names."""
    own = state(module)
    module.load_state_dict({name: torch.zeros_like(value) for name, value in own.items()} | weights)
    module.eval()
    return module


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> Weights:
    """Every weight drawn anew, gains and biases too; matrices are kept small enough not to blow up."""
    return {
        name: normal(*shape, seed=seed + i) * (0.5 if len(shape) < 2 else math.prod(shape[1:]) ** -0.5)
        for i, (name, shape) in enumerate(shapes.items())
    }


def has_entries(student: Student, module: Remote, shapes: dict[str, tuple[int, ...]]) -> None:
    own = state(module)
    assert set(own) == set(shapes), (
        f"Missing from the state dict: {sorted(set(shapes) - set(own)) or 'nothing'}; not asked for: "
        f"{sorted(set(own) - set(shapes)) or 'nothing'}."
    )
    for name, shape in shapes.items():
        tensor(own[name], shape=shape, dtype=torch.float32, name=name)
        assert own[name].isfinite().all(), f"{name} is not finite in a new module: was it never initialised?"
    trained = set(student.grads(module))
    assert trained == set(shapes), f"These entries are no parameters: {sorted(set(shapes) - trained)}."


def same_gradients(
    student: Student,
    module: Remote,
    run: Callable[[], Tensor],
    oracle: Callable[[Weights], Tensor],
    weights: Weights,
    inputs: dict[str, Tensor],
    upstream: Tensor,
) -> None:
    """The gradients of the inputs and of every weight are the oracle's."""
    ours = {name: value.clone().requires_grad_() for name, value in weights.items()}
    expected = gradients(oracle(ours), upstream, **inputs, **{name.replace(".", "_"): w for name, w in ours.items()})
    found: dict[str, Any] = {**gradients(run(), upstream, **inputs), **student.grads(module)}
    for name in (*inputs, *weights):
        assert found.get(name) is not None, f"No gradient reaches {name}."
        right = expected[name.replace(".", "_")]
        scale = float(right.abs().max()) + 1e-6
        assert_close(found[name] / scale, right / scale, atol=2e-3, rtol=2e-3, name=f"the gradient of {name}")


# -- patchify -------------------------------------------------------------------------------------------------------


def cut(images: Tensor, patch: int) -> Tensor:
    """PyTorch's own cutting, which puts all places of a patch into a column."""
    return functional.unfold(images, patch, stride=patch).transpose(1, 2).contiguous()


SIZES = ((2, 1, 8, 8, 2), (3, 3, 6, 12, 3), (1, 2, 20, 5, 5), (2, 4, 4, 8, 4), (2, 3, 3, 5, 1))


@pytest.mark.exercise("patchify", weight=2)
def test_an_image_becomes_its_squares_in_reading_order(student: Student) -> None:
    """First row of squares from left to right, then the second; within a square channel by channel, row by row."""
    for seed, (batch, channels, height, width, patch) in enumerate(SIZES):
        images = normal(batch, channels, height, width, seed=seed)
        claim = f"images {tuple(images.shape)}, patch {patch}"
        assert_close(student.patchify(images, patch), cut(images, patch), atol=0, rtol=0, claim=claim)


@pytest.mark.exercise("patchify")
def test_the_patches_follow_the_rows_of_the_image(student: Student) -> None:
    """Patch number r · columns + c is the square in row r and column c."""
    for height, width, patch in ((4, 6, 2), (9, 3, 3)):
        rows = (torch.arange(height) // patch)[:, None].expand(height, width)
        columns = (torch.arange(width) // patch)[None].expand(height, width)
        found = tensor(student.patchify((100 * rows + columns).expand(2, 1, height, width), patch))
        numbers = [100 * r + c for r in range(height // patch) for c in range(width // patch)]
        expected = torch.tensor(numbers)[:, None].expand(2, -1, patch * patch)
        assert_close(found, expected, claim=f"{height} · {width} pixels that hold row and column of their patch")


@pytest.mark.exercise("patchify")
def test_a_patch_holds_one_channel_after_the_other(student: Student) -> None:
    """Within a patch the whole square of channel 0 comes first, then that of channel 1."""
    images = torch.arange(3.0)[:, None, None].expand(2, 3, 4, 4)
    expected = torch.arange(3.0).repeat_interleave(4).expand(2, 4, 12)
    assert_close(student.patchify(images, 2), expected, claim="where each pixel holds the number of its channel")


@pytest.mark.exercise("patchify")
def test_patches_that_do_not_fit_are_refused(student: Student) -> None:
    """A patch that does not divide height or width raises a ValueError that names all three numbers."""
    tensor(student.patchify(normal(1, 1, 6, 9, seed=1), 3), shape=(1, 6, 9))
    for height, width, patch in ((7, 12, 4), (12, 7, 4), (5, 5, 10), (8, 6, 4)):
        raised: StudentError | None = None
        try:
            student.patchify(torch.zeros(1, 2, height, width), patch)
        except Unfinished:
            raise
        except StudentError as error:
            raised = error
        what = f"patchify of {height} · {width} pixels in patches of {patch} raises"
        assert isinstance(raised, ValueError), f"{what} {raised.types[0] if raised else 'nothing'}: not a ValueError."
        named = {int(number) for number in re.findall(r"\d+", str(raised))}
        assert {height, width, patch} <= named, f"The sentence does not name all three numbers: {raised}"


@pytest.mark.exercise("patchify", weight=2)
def test_unpatchify_puts_the_squares_back(student: Student) -> None:
    """Patches in that order become the image they were cut from, also one that is not square."""
    for seed, (batch, channels, height, width, patch) in enumerate(SIZES):
        images = normal(batch, channels, height, width, seed=seed)
        found = student.unpatchify(cut(images, patch), patch, height, width)
        assert_close(found, images, atol=0, rtol=0, claim=f"images {tuple(images.shape)}, patch {patch}")


@pytest.mark.exercise("patchify")
def test_cutting_keeps_dtype_and_gradient(student: Student) -> None:
    """Nothing is computed: bytes, bfloat16 and large int64 pass unchanged, both ways, and so does the gradient."""
    for dtype, first in ((torch.uint8, 0), (torch.bfloat16, 0), (torch.int64, 2**40)):
        images = (first + torch.arange(2 * 3 * 4 * 6)).reshape(2, 3, 4, 6).to(dtype)
        patches = cut(images.double(), 2).to(dtype)
        assert_close(student.patchify(images, 2), patches, name=f"the patches of {str(dtype)[6:]}")
        assert_close(student.unpatchify(patches, 2, 4, 6), images, name=f"the images of {str(dtype)[6:]}")
    x, upstream = normal(2, 3, 4, 6, seed=1).requires_grad_(), normal(2, 6, 12, seed=2)
    grad = gradients(student.patchify(x, 2), upstream, x=x)["x"]
    back = functional.fold(upstream.transpose(1, 2), (4, 6), 2, stride=2)
    assert_close(grad, back, name="the gradient of the images")


# -- ViT ------------------------------------------------------------------------------------------------------------

Size = tuple[int, int, int, int, int, int, int]  # as the arguments of ViT
SMALL: Size = (6, 3, 2, 8, 2, 2, 5)


def vit_shapes(size: Size) -> dict[str, tuple[int, ...]]:
    image, patch, channels, d_model, _, n_layers, n_classes = size
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (d_model, channels * patch**2),
        "embed.bias": (d_model,),
        "class_token": (d_model,),
        "positions": ((image // patch) ** 2 + 1, d_model),
    }
    for i in range(n_layers):
        shapes |= {
            f"layers.{i}.{name}": shape
            for name, shape in {
                "self_attn.in_proj_weight": (3 * d_model, d_model),
                "self_attn.in_proj_bias": (3 * d_model,),
                "self_attn.out_proj.weight": (d_model, d_model),
                "self_attn.out_proj.bias": (d_model,),
                "linear1.weight": (4 * d_model, d_model),
                "linear1.bias": (4 * d_model,),
                "linear2.weight": (d_model, 4 * d_model),
                "linear2.bias": (d_model,),
                "norm1.weight": (d_model,),
                "norm1.bias": (d_model,),
                "norm2.weight": (d_model,),
                "norm2.bias": (d_model,),
            }.items()
        }
    shapes |= {"norm.weight": (d_model,), "norm.bias": (d_model,)}
    return shapes | {"head.weight": (n_classes, d_model), "head.bias": (n_classes,)}


def attend(x: Tensor, w: Weights, prefix: str, n_heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention with the weights of nn.MultiheadAttention; True in the mask means "may attend"."""
    qkv = functional.linear(x, w[f"{prefix}in_proj_weight"], w[f"{prefix}in_proj_bias"]).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (n_heads, -1)).transpose(1, 2) for part in qkv)
    heads = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2)
    return functional.linear(heads, w[f"{prefix}out_proj.weight"], w[f"{prefix}out_proj.bias"])


def norm(x: Tensor, w: Weights, name: str) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def vit(images: Tensor, w: Weights, size: Size) -> Tensor:
    """The logits, step by step in PyTorch's functions."""
    _, patch, _, d_model, n_heads, n_layers, _ = size
    x = linear(cut(images, patch), w, "embed")
    x = torch.cat([w["class_token"].expand(len(x), 1, d_model), x], 1) + w["positions"]
    for i in range(n_layers):
        x = x + attend(norm(x, w, f"layers.{i}.norm1"), w, f"layers.{i}.self_attn.", n_heads)
        hidden = functional.gelu(linear(norm(x, w, f"layers.{i}.norm2"), w, f"layers.{i}.linear1"))
        x = x + linear(hidden, w, f"layers.{i}.linear2")
    return linear(norm(x[:, 0], w, "norm"), w, "head")


def vit_of(student: Student, size: Size, seed: int = 1) -> tuple[Remote, Weights]:
    weights = drawn(vit_shapes(size), seed)
    return loaded(student.ViT(*size), weights), weights


@pytest.mark.exercise("ViT")
def test_the_model_has_the_entries_that_were_asked_for(student: Student) -> None:
    """Patch embedding, class token, a position for it and for each patch, layers, a last norm and a head."""
    for size in (SMALL, (8, 2, 1, 12, 4, 3, 10)):
        has_entries(student, student.ViT(*size), vit_shapes(size))


@pytest.mark.exercise("ViT", weight=4)
def test_the_logits_are_those_of_a_vision_transformer(student: Student) -> None:
    """With every parameter drawn anew the logits agree, over sizes of image, patch, width, heads and depth."""
    sizes: tuple[tuple[int, Size], ...] = (
        (3, SMALL),
        (2, (8, 2, 1, 12, 3, 1, 10)),
        (1, (6, 2, 3, 10, 5, 3, 4)),
        (5, (4, 4, 1, 8, 1, 1, 2)),
    )
    for seed, (batch, size) in enumerate(sizes):
        model, weights = vit_of(student, size, seed=100 * seed)
        images = normal(batch, size[2], size[0], size[0], seed=seed)
        with torch.no_grad():
            assert_close(model(images), vit(images, weights, size), claim=f"ViT{size}, images {tuple(images.shape)}")


@pytest.mark.exercise("ViT")
def test_the_class_token_stands_first_and_answers(student: Student) -> None:
    """The head reads position 0, which holds the class token and row 0 of the positions."""
    size: Size = (6, 3, 2, 8, 2, 0, 5)  # without layers nothing of a patch can reach the class token
    model, w = vit_of(student, size, seed=5)
    expected = linear(norm(w["class_token"] + w["positions"][0], w, "norm"), w, "head").expand(3, -1)
    with torch.no_grad():
        found = model(normal(3, 2, 6, 6, seed=6))
    assert_close(found, expected, claim="in a model without layers, whose answer the images cannot change")


@pytest.mark.exercise("ViT")
def test_a_patch_is_known_by_its_position(student: Student) -> None:
    """Patches that move change the answer, unless the rows of their positions move with them."""
    model, weights = vit_of(student, SMALL, seed=7)
    images = normal(2, 2, 6, 6, seed=8)
    moved = images.roll(3, -1)  # two patches a row: each takes the other's place
    with torch.no_grad():
        before, after = tensor(model(images), shape=(2, 5)), tensor(model(moved), shape=(2, 5))
        assert (after - before).abs().max() > 1e-3, "The patches of a row changed places and the logits did not move."
        swapped = weights["positions"][[0, 2, 1, 4, 3]]
        both = loaded(model, weights | {"positions": swapped})(moved)
    assert_close(both, before, claim="where patches and positions moved together")


@pytest.mark.exercise("ViT")
def test_images_of_a_batch_do_not_meet(student: Student) -> None:
    """An image gives the same logits alone and in company."""
    model, _ = vit_of(student, SMALL, seed=9)
    images = normal(3, 2, 6, 6, seed=10)
    with torch.no_grad():
        together = tensor(model(images), shape=(3, 5))
        assert together.std(0).min() > 1e-4, "Different images give the same logits."
        for i in range(3):
            assert_close(model(images[i : i + 1]), together[i : i + 1], claim=f"image {i} alone")


@pytest.mark.exercise("ViT")
def test_a_training_model_computes_what_an_evaluating_one_does(student: Student) -> None:
    """There is no dropout: nothing is random, in training or in evaluation."""
    model, weights = vit_of(student, SMALL, seed=11)
    images = normal(2, 2, 6, 6, seed=12)
    expected = vit(images, weights, SMALL)
    model.train()
    assert_close(model(images), expected, claim="in training")
    model.eval()
    assert_close(model(images), expected, claim="in evaluation")


@pytest.mark.exercise("ViT", weight=2)
def test_gradients_reach_the_images_and_every_parameter(student: Student) -> None:
    """Everything learns, class token and positions too, with the gradients that PyTorch's functions give."""
    model, weights = vit_of(student, SMALL, seed=13)
    images, upstream = normal(2, 2, 6, 6, seed=14).requires_grad_(), normal(2, 5, seed=15)
    same_gradients(
        student,
        model,
        lambda: model(images),
        lambda w: vit(images, w, SMALL),
        weights,
        {"images": images},
        upstream,
    )


@pytest.mark.exercise("ViT", weight=0.5)
def test_a_model_in_float64_gives_float64(student: Student) -> None:
    """A model turned to float64 takes and gives float64, to its precision."""
    model, weights = vit_of(student, SMALL, seed=16)
    model.double()
    images = normal(2, 2, 6, 6, seed=17).double()
    expected = vit(images, {name: value.double() for name, value in weights.items()}, SMALL)
    assert_close(model(images), expected, atol=1e-9, rtol=1e-9)


# -- log_mel --------------------------------------------------------------------------------------------------------


@cache
def triangles(n_mels: int, n_fft: int, sample_rate: int) -> Tensor:
    """The filter bank by NumPy's interpolation between three points."""
    mel = np.linspace(0, np.log1p(sample_rate / 2 / 700), n_mels + 2)  # any base of the logarithm gives the same points
    hz = 700 * np.expm1(mel)
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)
    rows = [np.interp(bins, hz[m : m + 3], [0, 1, 0], left=0, right=0) for m in range(n_mels)]
    return torch.tensor(np.stack(rows), dtype=torch.float32)


def whispers(wave: Tensor, filters: Tensor, n_fft: int, hop: int) -> Tensor:
    """Whisper's front end with PyTorch's short-time Fourier transform; a sound at a time."""
    if wave.dim() > 1:
        return torch.stack([whispers(sound, filters, n_fft, hop) for sound in wave])
    window = torch.hann_window(n_fft, dtype=wave.dtype)
    spectra = torch.stft(wave, n_fft, hop, window=window, return_complex=True)[:, :-1]
    logs = (filters @ (spectra.real**2 + spectra.imag**2)).clamp(min=1e-10).log10()
    return (torch.maximum(logs, logs.max() - 8) + 4) / 4


BANKS = ((5, 64, 8000), (80, 400, 16000), (13, 256, 11025), (1, 32, 8000))


@pytest.mark.exercise("log_mel", weight=2)
def test_the_filters_are_triangles_on_the_mel_scale(student: Student) -> None:
    """Each filter rises and falls in straight lines over Hz between points that are equally far apart in mel."""
    for bank in BANKS:
        n_mels, n_fft, _ = bank
        found = tensor(student.mel_filters(*bank), shape=(n_mels, n_fft // 2 + 1), dtype=torch.float32)
        assert_close(found, triangles(*bank), atol=1e-3, claim=f"mel_filters{bank}", name="the bank of filters")


@pytest.mark.exercise("log_mel")
def test_every_frequency_between_two_peaks_counts_once(student: Student) -> None:
    """Where one triangle falls the next one rises: between the first and the last peak the filters sum to 1."""
    for n_mels, n_fft, rate in ((6, 512, 8000), (20, 1024, 16000)):
        bank = tensor(student.mel_filters(n_mels, n_fft, rate), shape=(n_mels, n_fft // 2 + 1))
        mels = torch.linspace(0, math.log1p(rate / 2 / 700), n_mels + 2, dtype=torch.float64)
        bins = (torch.arange(n_fft // 2 + 1) * rate / n_fft / 700).log1p()
        inside = bank[:, (bins > mels[1]) & (bins < mels[-2])].sum(0)
        assert (inside - 1).abs().max() < 1e-3, f"In mel_filters({n_mels}, {n_fft}, {rate}) they do not sum to 1."
        assert bank.min() >= 0, "A filter is negative somewhere."
        assert bank[:, 0].abs().max() < 1e-6, "A filter hears 0 Hz, where the first triangle only begins."


@pytest.mark.exercise("log_mel", weight=3)
def test_the_picture_is_the_one_that_whisper_reads(student: Student) -> None:
    """Frames, window, power, filters and logarithm agree with torch.stft's over sizes, hops and any filters."""
    for seed, (shape, n_fft, hop) in enumerate(
        [((1, 800), 64, 16), ((3, 1001), 100, 30), ((2, 333), 32, 32), ((2, 517), 50, 77)]
    ):
        wave, filters = normal(*shape, seed=seed), normal(7, n_fft // 2 + 1, seed=seed + 50).abs()
        claim = f"wave {shape}, n_fft {n_fft}, hop {hop}"
        assert_close(student.log_mel(wave, filters, n_fft, hop), whispers(wave, filters, n_fft, hop), claim=claim)


@pytest.mark.exercise("log_mel")
def test_any_number_of_dimensions_before_the_samples(student: Student) -> None:
    """One sound alone, a batch, a batch of pairs: the last dimension is time, and the others stay."""
    filters = triangles(6, 64, 8000)
    for lead in ((), (3,), (2, 3), (2, 1, 2)):
        wave = normal(*lead, 450, seed=len(lead))
        assert_close(student.log_mel(wave, filters, 64, 20), whispers(wave, filters, 64, 20), claim=f"{lead} sounds")


@pytest.mark.exercise("log_mel")
def test_a_frame_is_centred_on_its_sample(student: Student) -> None:
    """A click at sample t · hop is loudest in frame t, the first frame included."""
    filters = torch.ones(1, 33)
    for frame in (0, 1, 4, 9):
        wave = 1e-3 * normal(800, seed=frame)
        wave[80 * frame] = 1
        picture = tensor(student.log_mel(wave, filters, 64, 80), shape=(1, 10))
        assert picture[0].argmax() == frame, f"A click at sample {80 * frame} is loudest in frame {picture.argmax()}."


@pytest.mark.exercise("log_mel")
def test_a_sound_keeps_its_own_ceiling_in_a_batch(student: Student) -> None:
    """What is raised is measured from the sound's own largest value: a loud neighbour changes nothing."""
    filters = triangles(6, 64, 8000)
    wave = normal(3, 400, seed=1) * torch.tensor([300.0, 1.0, 1e-3])[:, None]
    together = tensor(student.log_mel(wave, filters, 64, 40), shape=(3, 6, 10))
    for i in range(3):
        right = whispers(wave[i], filters, 64, 40)
        assert_close(together[i], right, claim=f"sound {i} of three, one of them very loud")


@pytest.mark.exercise("log_mel")
def test_the_floor_lies_eight_below_the_ceiling(student: Student) -> None:
    """No value lies more than 8 below the largest before the division by 4, and none below 10⁻¹⁰'s logarithm."""
    wave = torch.zeros(2, 640)
    wave[0, :200] = normal(200, seed=1)  # then silence
    wave[1, :200] = 3e-6 * normal(200, seed=2)  # so soft that 10⁻¹⁰ is met before the 8
    filters = triangles(6, 64, 8000)
    picture = tensor(student.log_mel(wave, filters, 64, 40), shape=(2, 6, 16))
    assert picture.isfinite().all(), "Where it is silent the picture is not finite."
    assert_close(picture, whispers(wave, filters, 64, 40), claim="sounds that end in silence")


@pytest.mark.exercise("log_mel")
def test_silence_is_finite(student: Student) -> None:
    """A sound of zeros gives one finite number everywhere, and gradients that are finite too."""
    wave, filters = torch.zeros(2, 300, requires_grad=True), triangles(6, 64, 8000)
    picture = student.log_mel(wave, filters, 64, 30)
    assert_close(picture.detach(), whispers(wave.detach(), filters, 64, 30), claim="two sounds of zeros")
    loud = normal(300, seed=1)
    assert_close(student.log_mel(loud, filters, 64, 30), whispers(loud, filters, 64, 30), claim="a sound that is none")
    grad = gradients(picture, torch.ones(2, 6, 10), wave=wave)["wave"]
    assert grad.isfinite().all(), "The gradient of a silent sound is NaN or infinite."


@pytest.mark.exercise("log_mel")
def test_a_gradient_reaches_the_sound(student: Student) -> None:
    """The picture can be differentiated: the gradient of the samples is that through torch.stft."""
    filters = triangles(6, 64, 8000)
    wave, upstream = normal(2, 401, seed=1).requires_grad_(), normal(2, 6, 10, seed=2)
    right = gradients(whispers(wave, filters, 64, 40), upstream, wave=wave)["wave"]
    found = gradients(student.log_mel(wave, filters, 64, 40), upstream, wave=wave)["wave"]
    assert_close(found, right, atol=1e-3, rtol=1e-3, name="the gradient of the sound")


@pytest.mark.exercise("log_mel")
def test_a_sound_in_float64_stays_in_float64(student: Student) -> None:
    """float64 in, float64 out, to its precision: the window too."""
    wave, filters = normal(2, 400, seed=1).double(), triangles(6, 64, 8000).double()
    found = student.log_mel(wave, filters, 64, 40)
    assert_close(found, whispers(wave, filters, 64, 40), atol=1e-9, rtol=1e-9)


@pytest.mark.exercise("log_mel", weight=0.5)
def test_the_sound_is_left_as_it_was(student: Student) -> None:
    """Sound and filters belong to the caller."""
    wave, filters = normal(2, 400, seed=1), triangles(6, 64, 8000)
    kept, bank = student.put(wave), student.put(filters)
    assert_close(student.log_mel(kept, bank, 64, 40), whispers(wave, filters, 64, 40))
    assert_close(kept.get(), wave, atol=0, rtol=0, claim="after the call", name="the sound")
    assert_close(bank.get(), filters, atol=0, rtol=0, claim="after the call", name="the bank of filters")


# -- ConvStem -------------------------------------------------------------------------------------------------------


def stem_shapes(n_mels: int, d_model: int) -> dict[str, tuple[int, ...]]:
    return {
        "conv1.weight": (d_model, n_mels, 3),
        "conv1.bias": (d_model,),
        "conv2.weight": (d_model, d_model, 3),
        "conv2.bias": (d_model,),
    }


def stem(mel: Tensor, w: Weights) -> Tensor:
    x = functional.gelu(functional.conv1d(mel, w["conv1.weight"], w["conv1.bias"], padding=1))
    x = functional.gelu(functional.conv1d(x, w["conv2.weight"], w["conv2.bias"], stride=2, padding=1))
    return x.transpose(1, 2).contiguous()


def stem_of(student: Student, n_mels: int, d_model: int, seed: int) -> tuple[Remote, Weights]:
    weights = drawn(stem_shapes(n_mels, d_model), seed)
    return loaded(student.ConvStem(n_mels, d_model), weights), weights


@pytest.mark.exercise("ConvStem", weight=0.5)
def test_the_stem_has_two_convolutions(student: Student) -> None:
    """conv1 and conv2, each with a kernel of 3 and a bias, and nothing else."""
    for n_mels, d_model in ((5, 8), (9, 4)):
        has_entries(student, student.ConvStem(n_mels, d_model), stem_shapes(n_mels, d_model))


@pytest.mark.exercise("ConvStem", weight=2)
def test_the_stem_gives_what_the_two_convolutions_give(student: Student) -> None:
    """Convolution, GELU, convolution with a step of two, GELU; then time before channels; any number of frames."""
    for seed, (batch, n_mels, frames, d_model) in enumerate(((2, 5, 10, 8), (3, 7, 11, 6), (1, 4, 1, 4), (2, 6, 6, 3))):
        module, weights = stem_of(student, n_mels, d_model, seed=10 * seed)
        mel = 2 * normal(batch, n_mels, frames, seed=seed)
        assert_close(module(mel), stem(mel, weights), claim=f"mel {tuple(mel.shape)}, d_model {d_model}")


@pytest.mark.exercise("ConvStem")
def test_a_vector_hears_five_frames(student: Student) -> None:
    """Vector i is made of the frames 2i − 2 to 2i + 2, and of no other."""
    module, _ = stem_of(student, 4, 6, seed=40)
    mel = normal(1, 4, 13, seed=41)
    before = tensor(module(mel), shape=(1, 7, 6)).detach()
    for frame in (0, 5, 6, 12):
        other = mel.clone()
        other[:, :, frame] += 3
        moved = (tensor(module(other), shape=(1, 7, 6)).detach() != before).any(-1)[0]
        hears = torch.tensor([abs(2 * i - frame) <= 2 for i in range(7)])
        assert not (moved & ~hears).any(), f"A vector that lies too far away hears frame {frame}."
        assert (moved | ~hears).all(), f"A vector that should hear frame {frame} does not."


@pytest.mark.exercise("ConvStem")
def test_gradients_pass_the_stem(student: Student) -> None:
    """The gradients of the picture and of all four entries are PyTorch's."""
    module, weights = stem_of(student, 4, 6, seed=50)
    mel, upstream = normal(2, 4, 9, seed=51).requires_grad_(), normal(2, 5, 6, seed=52)
    same_gradients(student, module, lambda: module(mel), lambda w: stem(mel, w), weights, {"mel": mel}, upstream)


@pytest.mark.exercise("ConvStem", weight=0.5)
def test_a_stem_in_float64_gives_float64(student: Student) -> None:
    """A stem turned to float64 takes and gives float64."""
    module, weights = stem_of(student, 4, 6, seed=60)
    module.double()
    mel = normal(2, 4, 9, seed=61).double()
    expected = stem(mel, {name: value.double() for name, value in weights.items()})
    assert_close(module(mel), expected, atol=1e-9, rtol=1e-9)


# -- HybridBlock ----------------------------------------------------------------------------------------------------

KINDS = ("conv", "gru")


def hybrid_shapes(d_model: int, local: str, kernel: int = 5) -> dict[str, tuple[int, ...]]:
    d = d_model
    first: dict[str, tuple[int, ...]] = (
        {"local.weight": (d, 1, kernel), "local.bias": (d,)}
        if local == "conv"
        else {
            f"local.{kind}_{to}h_l0": (3 * d, d)[: 1 + (kind == "weight")] for kind in ("weight", "bias") for to in "ih"
        }
    )
    norms = {f"norms.{i}.{kind}": (d,) for i in range(3) for kind in ("weight", "bias")}
    return {
        **first,
        "attention.in_proj_weight": (3 * d, d),
        "attention.in_proj_bias": (3 * d,),
        "attention.out_proj.weight": (d, d),
        "attention.out_proj.bias": (d,),
        "feed_forward.0.weight": (4 * d, d),
        "feed_forward.0.bias": (4 * d,),
        "feed_forward.2.weight": (d, 4 * d),
        "feed_forward.2.bias": (d,),
        **norms,
    }


def gru(x: Tensor, w: Weights) -> Tensor:
    """A gated recurrent unit, a position at a time, as PyTorch's documentation writes it."""
    h, out = torch.zeros_like(x[:, 0]), []
    for now in x.unbind(1):
        r_x, z_x, n_x = functional.linear(now, w["local.weight_ih_l0"], w["local.bias_ih_l0"]).chunk(3, -1)
        r_h, z_h, n_h = functional.linear(h, w["local.weight_hh_l0"], w["local.bias_hh_l0"]).chunk(3, -1)
        z, n = (z_x + z_h).sigmoid(), (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
        h = (1 - z) * n + z * h
        out.append(h)
    return torch.stack(out, 1)


def hybrid(x: Tensor, w: Weights, n_heads: int, local: str, lengths: list[int] | None = None) -> Tensor:
    """The block; each sequence is cut to its length, computed alone, and filled up with zeros."""
    if lengths is not None:
        rows = [
            functional.pad(hybrid(row[None, :n], w, n_heads, local), (0, 0, 0, x.shape[1] - n))
            for row, n in zip(x, lengths, strict=True)
        ]
        return torch.cat(rows)
    h = norm(x, w, "norms.0")
    if local == "conv":
        kernel = w["local.weight"].shape[-1]
        channels = functional.conv1d(
            h.transpose(1, 2), w["local.weight"], w["local.bias"], padding=kernel // 2, groups=x.shape[-1]
        )
        x = x + channels.transpose(1, 2)
    else:
        x = x + gru(h, w)
    x = x + attend(norm(x, w, "norms.1"), w, "attention.", n_heads)
    hidden = functional.gelu(linear(norm(x, w, "norms.2"), w, "feed_forward.0"))
    return x + linear(hidden, w, "feed_forward.2")


def hybrid_of(
    student: Student, d_model: int, n_heads: int, local: str, seed: int, kernel: int | None = None
) -> tuple[Remote, Weights]:
    weights = drawn(hybrid_shapes(d_model, local, kernel or 5), seed)
    sizes = (d_model, n_heads, local) if kernel is None else (d_model, n_heads, local, kernel)
    return loaded(student.HybridBlock(*sizes), weights), weights


def padded(lengths: list[int], n: int) -> Tensor:
    return torch.arange(n) < torch.tensor(lengths)[:, None]


@pytest.mark.exercise("HybridBlock")
def test_the_block_has_three_sub_layers_and_their_norms(student: Student) -> None:
    """local (depthwise convolution or GRU), attention, feed_forward and three norms, and nothing else."""
    for d_model, n_heads, local, kernel in ((8, 2, "conv", 5), (6, 3, "conv", 3), (8, 2, "gru", 5)):
        has_entries(
            student, student.HybridBlock(d_model, n_heads, local, kernel), hybrid_shapes(d_model, local, kernel)
        )


@pytest.mark.exercise("HybridBlock", weight=1.5)
def test_the_convolution_block_computes_its_three_sub_layers(student: Student) -> None:
    """Depthwise convolution, attention, feed-forward: each pre-norm, each with a residual, in this order."""
    for seed, (batch, n, d_model, n_heads, kernel) in enumerate(((2, 7, 8, 2, None), (3, 4, 6, 3, 3), (1, 1, 4, 1, 7))):
        block, weights = hybrid_of(student, d_model, n_heads, "conv", seed=100 * seed, kernel=kernel)
        x = normal(batch, n, d_model, seed=seed)
        with torch.no_grad():
            found = block(x, torch.ones(batch, n, dtype=torch.bool))
        claim = f"x {tuple(x.shape)}, {n_heads} heads, kernel {kernel or 5}"
        assert_close(found, hybrid(x, weights, n_heads, "conv"), claim=claim)


@pytest.mark.exercise("HybridBlock", weight=1.5)
def test_the_recurrent_block_computes_its_three_sub_layers(student: Student) -> None:
    """GRU from left to right, attention, feed-forward: each pre-norm, each with a residual, in this order."""
    for seed, (batch, n, d_model, n_heads) in enumerate(((2, 7, 8, 2), (3, 4, 6, 3), (1, 1, 4, 1))):
        block, weights = hybrid_of(student, d_model, n_heads, "gru", seed=100 * seed)
        x = normal(batch, n, d_model, seed=seed)
        with torch.no_grad():
            found = block(x, torch.ones(batch, n, dtype=torch.bool))
        assert_close(found, hybrid(x, weights, n_heads, "gru"), claim=f"x {tuple(x.shape)}, {n_heads} heads")


@pytest.mark.exercise("HybridBlock", weight=2)
def test_padding_has_no_say(student: Student) -> None:
    """What is real comes out as if the padding were cut off, whatever finite numbers stand there."""
    lengths = [7, 4, 1]
    for local in KINDS:
        block, weights = hybrid_of(student, 8, 2, local, seed=7)
        x = normal(3, 7, 8, seed=8)
        expected = hybrid(x, weights, 2, local, lengths)
        for what, filling in (("zeros", 0.0), ("numbers", 1.0), ("large numbers", 1e4)):
            real = padded(lengths, 7)
            filled = torch.where(real[..., None], x, filling * normal(3, 7, 8, seed=9))
            with torch.no_grad():
                found = tensor(block(filled, real), shape=x.shape)
            assert_close(found[real], expected[real], claim=f"{local}, {what} as padding", name="what is real")


@pytest.mark.exercise("HybridBlock", weight=0.5)
def test_padding_gives_zeros(student: Student) -> None:
    """At padding the result is zero, whatever stood there, also where every sequence is shorter than the batch."""
    for local in KINDS:
        block, weights = hybrid_of(student, 8, 2, local, seed=17)
        for lengths, n in (([5, 2], 5), ([4, 1], 6)):
            x, real = normal(2, n, 8, seed=18), padded(lengths, n)
            with torch.no_grad():
                found = block(x, real)
            assert_close(found, hybrid(x, weights, 2, local, lengths), claim=f"{local}, {lengths} of {n} are real")
        block.double()
        x, weights = normal(2, 5, 8, seed=19).double(), {name: value.double() for name, value in weights.items()}
        with torch.no_grad():
            found = block(x, padded([5, 2], 5))
        assert_close(found, hybrid(x, weights, 2, local, [5, 2]), atol=1e-9, rtol=1e-9, claim=f"{local} in float64")


@pytest.mark.exercise("HybridBlock")
def test_every_real_position_notices_every_other(student: Student) -> None:
    """Attention is not causal: a change at the end is noticed at the beginning, in the same sequence only."""
    for local in KINDS:
        block, _ = hybrid_of(student, 8, 2, local, seed=27)
        x, real = normal(2, 9, 8, seed=28), torch.ones(2, 9, dtype=torch.bool)
        with torch.no_grad():
            before = tensor(block(x, real), shape=x.shape)
            for j in (0, 8):
                other = x.clone()
                other[0, j] = normal(8, seed=29)
                moved = (tensor(block(other, real), shape=x.shape) - before).abs().amax(-1) > 1e-6
                assert moved[0].all(), f"{local}: not every position notices a change at position {j}."
                assert not moved[1].any(), f"{local}: a sequence notices a change in another one."


@pytest.mark.exercise("HybridBlock")
def test_gradients_reach_what_is_real_and_every_parameter(student: Student) -> None:
    """All parameters learn, x gets its gradient where it is real, and zero where it is padding."""
    lengths, real = [6, 3], padded([6, 3], 6)
    for local in KINDS:
        block, weights = hybrid_of(student, 8, 2, local, seed=37)
        x, upstream = normal(2, 6, 8, seed=38).requires_grad_(), normal(2, 6, 8, seed=39)
        same_gradients(
            student,
            block,
            lambda block=block, x=x: block(x, real),  # type: ignore[misc]
            lambda w, x=x, local=local: hybrid(x, w, 2, local, lengths),  # type: ignore[misc]
            weights,
            {"x": x},
            upstream,
        )


@pytest.mark.exercise("HybridBlock", weight=0.5)
def test_a_block_in_training_computes_the_same(student: Student) -> None:
    """There is no dropout: in training the block computes what it does in evaluation."""
    real = padded([6, 4], 6)
    for local in KINDS:
        block, weights = hybrid_of(student, 8, 2, local, seed=47)
        x = normal(2, 6, 8, seed=48)
        expected = hybrid(x, weights, 2, local, [6, 4])
        for mode in ("train", "eval", "train"):
            getattr(block, mode)()
            assert_close(block(x, real), expected, claim=f"{local}, after {mode}()")


@pytest.mark.exercise("HybridBlock", weight=0.5)
def test_x_and_real_are_left_as_they_were(student: Student) -> None:
    """x and real belong to the caller: padding is not to be zeroed in them."""
    x, real = normal(2, 5, 8, seed=58), padded([5, 2], 5)
    for local in KINDS:
        block, weights = hybrid_of(student, 8, 2, local, seed=57)
        kept, mask = student.put(x), student.put(real)
        with torch.no_grad():
            assert_close(block(kept, mask), hybrid(x, weights, 2, local, [5, 2]), claim=local)
        assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")
        assert_close(mask.get(), real, claim="after the call", name="real")


# -- SharedMoE ------------------------------------------------------------------------------------------------------


def moe_shapes(d_model: int, d_hidden: int, n_experts: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"router.weight": (n_experts, d_model)}
    for e in range(n_experts):
        shapes |= {
            f"experts.{e}.0.weight": (d_hidden, d_model),
            f"experts.{e}.0.bias": (d_hidden,),
            f"experts.{e}.2.weight": (d_model, d_hidden),
            f"experts.{e}.2.bias": (d_model,),
        }
    return shapes


def expert(x: Tensor, w: Weights, e: int) -> Tensor:
    return linear(functional.gelu(linear(x, w, f"experts.{e}.0")), w, f"experts.{e}.2")


def chosen(x: Tensor, w: Weights) -> Tensor:
    return (x @ w["router.weight"].T).argmax(-1)


def routed(x: Tensor, w: Weights) -> Tensor:
    """Every expert computes every token, and the one with the largest probability is kept."""
    n_experts = len(w["router.weight"])
    p = functional.linear(x, w["router.weight"]).softmax(-1)
    every = torch.stack([expert(x, w, e) for e in range(n_experts)], -2)
    picked = functional.one_hot(chosen(x, w), n_experts)[..., None].to(x.dtype)
    return (p[..., None] * every * picked).sum(-2)


def entropies(kinds: tuple[Tensor, ...], w: Weights) -> Tensor:
    """The mean entropy of a token less the entropy of the mean, for each kind, summed, by PyTorch's distributions."""
    total = torch.zeros((), dtype=kinds[0].dtype)
    for x in kinds:
        each = torch.distributions.Categorical(logits=functional.linear(x.flatten(0, 1), w["router.weight"]))
        total = total + each.entropy().mean() - torch.distributions.Categorical(each.probs.mean(0)).entropy()
    return total


def moe_of(student: Student, d_model: int, d_hidden: int, n_experts: int, seed: int) -> tuple[Remote, Weights]:
    weights = drawn(moe_shapes(d_model, d_hidden, n_experts), seed)
    weights["router.weight"] = weights["router.weight"] * 2
    return loaded(student.SharedMoE(d_model, d_hidden, n_experts), weights), weights


def answers(layer: Remote, images: Tensor, sounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What forward returns, as three tensors of the right shape and dtype."""
    out = layer(images, sounds)
    assert isinstance(out, tuple | list), "forward should return three tensors: images, sounds, loss."
    assert len(out) == 3, f"forward should return three tensors, and it returns {len(out)} values."
    x = tensor(out[0], shape=images.shape, dtype=images.dtype, name="what became of the images")
    y = tensor(out[1], shape=sounds.shape, dtype=sounds.dtype, name="what became of the sounds")
    for came, went, name in ((images, x, "images"), (sounds, y, "sounds")):
        assert not torch.allclose(went.detach(), came, atol=1e-3), f"The {name} come out as they came in."
        assert went.detach().any(), f"All {name} become zero."
    return x, y, tensor(out[2], shape=(), dtype=images.dtype, name="the loss")


@pytest.mark.exercise("SharedMoE", weight=0.5)
def test_the_layer_has_a_router_and_its_experts(student: Student) -> None:
    """router.weight, and two linear layers with biases for each expert; nothing for a kind by itself."""
    for sizes in ((6, 10, 4), (4, 3, 2)):
        has_entries(student, student.SharedMoE(*sizes), moe_shapes(*sizes))


@pytest.mark.exercise("SharedMoE", weight=2)
def test_each_token_gets_its_best_expert_times_its_probability(student: Student) -> None:
    """p of the most probable expert times what that expert makes of the token, for images and for sounds."""
    for seed, (i, s, (d_model, d_hidden, n_experts)) in enumerate(
        (
            ((2, 3), (1, 5), (6, 10, 4)),
            ((3, 4), (3, 4), (4, 5, 7)),
            ((1, 1), (2, 6), (5, 3, 1)),
            ((1, 2), (1, 3), (4, 3, 12)),  # most experts have nothing to do
        )
    ):
        layer, weights = moe_of(student, d_model, d_hidden, n_experts, seed=100 * seed)
        images, sounds = normal(*i, d_model, seed=seed), normal(*s, d_model, seed=seed + 50)
        x, y, _ = answers(layer, images, sounds)
        claim = f"images {tuple(images.shape)}, sounds {tuple(sounds.shape)}, {n_experts} experts"
        assert_close(x.detach(), routed(images, weights), claim=claim, name="what became of the images")
        assert_close(y.detach(), routed(sounds, weights), claim=claim, name="what became of the sounds")


@pytest.mark.exercise("SharedMoE")
def test_an_expert_computes_its_own_tokens_only(student: Student) -> None:
    """An expert whose weights are NaN spoils the tokens that chose it, and no other token."""
    images, sounds = normal(2, 9, 6, seed=1).requires_grad_(), normal(3, 8, 6, seed=2).requires_grad_()
    _, weights = moe_of(student, 6, 5, 4, seed=30)
    for bad in range(4):
        broken = {
            name: value * math.nan if name.startswith(f"experts.{bad}.") else value for name, value in weights.items()
        }
        layer = loaded(student.SharedMoE(6, 5, 4), broken)
        outs = answers(layer, images, sounds)[:2]
        others = [chosen(x, weights) != bad for x in (images, sounds)]
        kept = torch.cat([out[other].flatten() for out, other in zip(outs, others, strict=True)])
        grads = torch.autograd.grad(kept.sum(), [images, sounds])
        for grad, other in zip(grads, others, strict=True):
            assert grad[other].isfinite().all(), (
                f"Expert {bad} is NaN, and so is the gradient of tokens that did not choose it: it computes them too."
            )
        for x, out in zip((images, sounds), outs, strict=True):
            theirs = chosen(x, weights) == bad
            assert_close(
                out.detach()[~theirs],
                routed(x, weights).detach()[~theirs],
                claim=f"expert {bad} is NaN",
                name="what did not choose it",
            )
            assert out.detach()[theirs].isnan().all(), (
                f"A token that chose expert {bad}, which is NaN, does not notice."
            )


@pytest.mark.exercise("SharedMoE", weight=0.5)
def test_one_router_is_asked_once(student: Student) -> None:
    """forward calls self.router a single time, for both kinds together."""
    heard: list[Any] = []
    layer, _ = moe_of(student, 6, 5, 4, seed=40)
    layer.router.register_forward_hook(lambda module, inputs, logits: heard.append(logits))
    answers(layer, normal(2, 3, 6, seed=3), normal(2, 5, 6, seed=4))
    assert len(heard) == 1, f"self.router is called {len(heard)} times in one forward."


@pytest.mark.exercise("SharedMoE", weight=0.5)
def test_the_router_hears_the_images_first(student: Student) -> None:
    """The router gets (tokens, d_model): the images' tokens first, then those of the sounds."""
    heard: list[Any] = []
    layer, weights = moe_of(student, 6, 5, 4, seed=40)
    images, sounds = normal(2, 3, 6, seed=3), normal(2, 5, 6, seed=4)
    layer.router.register_forward_hook(lambda module, inputs, logits: heard.append(logits))
    answers(layer, images, sounds)
    assert heard, "self.router is never called."
    tokens = torch.cat([images.flatten(0, 1), sounds.flatten(0, 1)])
    logits = tensor(heard[0], shape=(16, 4), name="what self.router gives for 6 + 10 tokens").detach()
    assert_close(logits, tokens @ weights["router.weight"].T, name="what self.router gives")


@pytest.mark.exercise("SharedMoE")
def test_tokens_and_kinds_do_not_meet(student: Student) -> None:
    """A token gives the same result alone, among others, and as an image or as a sound."""
    layer, _ = moe_of(student, 6, 5, 4, seed=45)
    images, sounds = normal(2, 4, 6, seed=5), normal(3, 5, 6, seed=6)
    x, y, _ = (part.detach() for part in answers(layer, images, sounds))
    assert x.flatten(0, 1).std(0).gt(1e-3).all(), "All tokens give the same output."
    swapped_y, swapped_x, _ = (part.detach() for part in answers(layer, sounds, images))
    assert_close(swapped_x, x, claim="with images and sounds exchanged", name="what became of the images")
    assert_close(swapped_y, y, claim="with images and sounds exchanged", name="what became of the sounds")
    alone = answers(layer, images[1:, 2:3], sounds[:1])[0].detach()
    assert_close(alone, x[1:, 2:3], claim="one token of the images in other company")


@pytest.mark.exercise("SharedMoE", weight=2)
def test_the_loss_is_the_difference_of_two_entropies_for_each_kind(student: Student) -> None:
    """The mean entropy of the tokens less the entropy of their mean, for images and for sounds, and the two summed."""
    for seed, (i, s, n_experts) in enumerate((((2, 3), (1, 5), 4), ((4, 6), (2, 2), 7), ((1, 2), (3, 9), 2))):
        layer, weights = moe_of(student, 6, 5, n_experts, seed=200 + 10 * seed)
        images, sounds = normal(*i, 6, seed=seed), normal(*s, 6, seed=seed + 50) + 1
        loss = answers(layer, images, sounds)[2].detach()
        assert_close(loss, entropies((images, sounds), weights), claim=f"{n_experts} experts", name="the loss")


@pytest.mark.exercise("SharedMoE")
def test_the_loss_looks_at_each_kind_by_itself(student: Student) -> None:
    """Images all at one expert and sounds all at another is no balance: each kind should be spread."""
    weights = drawn(moe_shapes(4, 3, 4), seed=50) | {"router.weight": 12 * torch.eye(4)}
    layer = loaded(student.SharedMoE(4, 3, 4), weights)
    spread, first, second = torch.eye(4)[None], torch.eye(4)[None, [0] * 4], torch.eye(4)[None, [1] * 4]
    for what, images, sounds in (("split", first, second), ("spread", spread, spread), ("one spread", spread, first)):
        loss = answers(layer, images, sounds)[2].detach()
        assert_close(
            loss, entropies((images, sounds), weights), claim=f"a router that is sure, {what}", name="the loss"
        )


@pytest.mark.exercise("SharedMoE")
def test_a_probability_of_zero_leaves_everything_finite(student: Student) -> None:
    """Where the softmax gives an exact 0, loss and gradients are finite: 0 · ln 0 counts as 0."""
    weights = drawn(moe_shapes(4, 3, 4), seed=60) | {"router.weight": 1e4 * torch.eye(4)}
    layer = loaded(student.SharedMoE(4, 3, 4), weights)
    images, sounds = torch.eye(4)[None, [0, 0, 1]].clone().requires_grad_(), torch.eye(4)[None, [2, 2]].clone()
    x, _, loss = answers(layer, images, sounds)
    expected = torch.tensor(-(math.log(3) - 2 / 3 * math.log(2)))  # two of three tokens at one expert, one at another
    assert_close(loss.detach(), expected, name="the loss")
    (loss + x.sum()).backward()
    assert images.grad is not None, "No gradient reaches the images."
    assert images.grad.isfinite().all(), "The gradient of the images is NaN or infinite."
    router = student.grads(layer).get("router.weight")
    assert router is not None, "No gradient reaches the router."
    assert router.isfinite().all(), "The gradient of the router is NaN or infinite."


@pytest.mark.exercise("SharedMoE")
def test_router_and_experts_learn_from_outputs_and_loss(student: Student) -> None:
    """The gradients of tokens, router and experts are PyTorch's: through p into the router, and through the loss."""
    layer, weights = moe_of(student, 6, 5, 3, seed=73)
    images, sounds = normal(2, 6, 6, seed=7).requires_grad_(), normal(2, 7, 6, seed=8).requires_grad_()
    up = normal(26 * 6 + 1, seed=9) * torch.cat([torch.ones(26 * 6), torch.tensor([20.0])])

    def flat(x: Tensor, y: Tensor, loss: Tensor) -> Tensor:
        return torch.cat([x.flatten(), y.flatten(), loss[None]])

    same_gradients(
        student,
        layer,
        lambda: flat(*answers(layer, images, sounds)),
        lambda w: flat(routed(images, w), routed(sounds, w), entropies((images, sounds), w)),
        weights,
        {"images": images, "sounds": sounds},
        up,
    )


@pytest.mark.exercise("SharedMoE", weight=0.5)
def test_a_layer_in_float64_gives_float64(student: Student) -> None:
    """A layer turned to float64 takes and gives float64, to its precision, loss included."""
    layer, weights = moe_of(student, 6, 5, 4, seed=80)
    layer.double()
    weights = {name: value.double() for name, value in weights.items()}
    images, sounds = normal(2, 4, 6, seed=81).double(), normal(1, 5, 6, seed=82).double()
    x, y, loss = (part.detach() for part in answers(layer, images, sounds))
    for found, kind, name in ((x, images, "images"), (y, sounds, "sounds")):
        assert_close(found, routed(kind, weights), atol=1e-9, rtol=1e-9, name=f"what became of the {name}")
    assert_close(loss, entropies((images, sounds), weights), atol=1e-6, name="the loss")
