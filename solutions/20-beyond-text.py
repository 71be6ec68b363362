# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   ichimon:
#     assignment: 20-beyond-text
# ---

# %% [markdown]
# # 20 · Beyond text
#
# **One question: how does a model that reads words come to see and to hear?**
#
# A Transformer never saw a word. It saw a row of vectors, and a table had made a vector of each token. So whatever can
# be cut into a row of vectors can be read: an image in patches, a sound in short frames. Attention does not know the
# difference.
#
# You will cut an image and build the model that reads it, turn a sound into the picture that Whisper listens to, put a
# convolution or a recurrent network beside attention, and let images and sounds share one set of experts. Nothing is
# downloaded: the images are scikit-learn's digits, the sounds are made on the spot. The page of the book that goes
# with this notebook is `book/20-beyond-text`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `patchify` | ●●○ | 15 | 4 |
# | `ViT` | ●●○ | 25 | 6 |
# | `log_mel` | ●●● | 30 | 6 |
# | `ConvStem` | ●○○ | 10 | 2 |
# | `HybridBlock` | ●●● | 20 | 4 |
# | `SharedMoE` | ●●● | 20 | 3 |
#
# ## Conventions
#
# - **Images** are `(batch, channels, height, width)`, as PyTorch's convolutions take them. **Sounds** are rows of
#   samples, `(..., samples)`. **What a Transformer reads** is `(batch, n, d_model)`.
# - **A mask is boolean, and `True` means "may be attended to".** PyTorch's `key_padding_mask` means the opposite.
# - **What comes in goes out**: the result has the dtype of the input, and an input is never changed in place.
# - **Parts of earlier chapters are PyTorch's own here**: `nn.TransformerEncoderLayer`, `nn.MultiheadAttention` and
#   `nn.LayerNorm` may be used. You have built all of them.

# %% role="set-up"
import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

# %% [markdown]
# ## 1 · `patchify` ●●○
#
# A page of text is cut into tokens. An image is cut into squares, called patches, and each of them becomes one row of
# numbers. `patchify(images, patch)` does it, and `unpatchify(patches, patch, height, width)` puts the squares together
# again. Both stand in the cell below.
#
# | | shape |
# |---|---|
# | `images` | `(batch, channels, height, width)`, any dtype |
# | `patch` | the side of a square, in pixels |
# | `patches` | `(batch, n_patches, channels · patch · patch)` |
#
# - `n_patches` is `(height / patch) · (width / patch)`.
# - **The order of the patches** is that of reading: the first row of squares from left to right, then the second.
# - **The order within a patch** is that of `images`: the whole square of channel 0, row by row, then that of channel 1.
#   So a patch is the slice `images[b, :, top:top + patch, left:left + patch]`, made flat. A convolution's kernel has
#   the same order.
# - If `patch` does not divide the height or the width, `patchify` raises a `ValueError` whose sentence names all three
#   numbers. `unpatchify` may rely on sizes that fit.
# - Height and width may differ. Nothing is computed: any dtype passes unchanged, and so does a gradient.
# - The trap: a single `reshape` gives the right shape and the wrong pixels.


# %% exercise="patchify" section="An image is a row of patches"
def patchify(
    images: Shaped[Tensor, "batch channels height width"], patch: int
) -> Shaped[Tensor, "batch n_patches patch_dim"]:
    """Cut images into squares of patch · patch pixels, in reading order. Raises ValueError if they do not fit.

    Source: Dosovitskiy et al. 2021 (arXiv 2010.11929), section 3.1.
    """
    ### BEGIN SOLUTION
    batch, channels, height, width = images.shape
    if height % patch or width % patch:
        raise ValueError(f"patches of {patch} · {patch} pixels do not fill an image of {height} · {width}")
    squares = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    ### END SOLUTION


def unpatchify(
    patches: Shaped[Tensor, "batch n_patches patch_dim"], patch: int, height: int, width: int
) -> Shaped[Tensor, "batch channels height width"]:
    """Put the squares together again: the inverse of patchify."""
    ### BEGIN SOLUTION
    grid = patches.unflatten(1, (height // patch, width // patch)).unflatten(-1, (-1, patch, patch))
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    ### END SOLUTION


# %% check="patchify" points=4
images = torch.arange(32).reshape(1, 2, 4, 4)  # channel c, row y, column x holds 16c + 4y + x
patches = patchify(images, 2)
assert isinstance(patches, torch.Tensor), f"patchify should return a tensor, not {type(patches).__name__}."
assert patches.shape == (1, 4, 8), (
    f"Two channels of 4 · 4 pixels make 4 patches of 8 numbers, (1, 4, 8), not {tuple(patches.shape)}."
)
assert patches[0, 0, :4].tolist() == [0, 1, 4, 5], (
    f"The first patch should begin with the upper left square of channel 0, [0, 1, 4, 5], not "
    f"{patches[0, 0, :4].tolist()}."
)
assert patches[0, 1, 0] == 2, "The second patch stands to the right of the first, so it begins with pixel 2."
back = unpatchify(patches, 2, 4, 4)
assert back.shape == images.shape, f"unpatchify should give back {tuple(images.shape)}, not {tuple(back.shape)}."
assert torch.equal(back, images), "unpatchify should undo patchify, pixel by pixel."
try:
    patchify(images, 3)
    message = ""
except ValueError as error:
    message = str(error)
assert all(number in message for number in ("3", "4")), (
    "Patches of 3 do not fill 4 · 4 pixels: patchify(images, 3) should raise a ValueError that names the numbers."
)
print("The visible checks of patchify pass.")

# %% see="patchify"
# A handwritten digit as you see it, and as a model reads it: one patch after the other. Change the size of a patch.
# With which one could you still tell the digit from the row?
try:
    import matplotlib.pyplot as plt
    from sklearn.datasets import load_digits

    patch = 4
    image = torch.tensor(load_digits().images[3])[None, None]
    row = patchify(image, patch)[0]
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), width_ratios=(1, 2.4), facecolor="white")
    left.imshow(image[0, 0], cmap="gray_r")
    for cut in range(patch, 8, patch):
        left.axhline(cut - 0.5, color="#D55E00")
        left.axvline(cut - 0.5, color="#D55E00")
    gap = torch.zeros(patch, 1, dtype=row.dtype)
    right.imshow(torch.cat([torch.cat([piece.reshape(patch, patch), gap], 1) for piece in row], 1), cmap="gray_r")
    left.set(title="8 · 8 pixels", xticks=[], yticks=[])
    right.set(title=f"{len(row)} patches in a row", xticks=[], yticks=[])
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    print("Finish patchify first, then run this cell again.")
except ImportError as error:
    print(f"This cell draws scikit-learn's digits: {error}")

# %% [markdown]
# ## 2 · `ViT` ●●○
#
# The *Vision Transformer* is the encoder of chapter 08 on patches. Each patch goes through one linear layer, which is
# what an embedding table does for a word. A learned vector, the **class token**, is put in front of them. It stands for
# nothing; it is a place in which the model can gather what it needs to answer. Then learned positions are added, the
# layers run, and the class token's vector alone goes to the head.
#
# $$x = [\,c;\ E\,p_1;\ \dots;\ E\,p_N\,] + P, \qquad
# \text{logits} = W\,\mathrm{LayerNorm}(x^{(L)}_0) + b$$
#
# `ViT(image_size, patch, channels, d_model, n_heads, n_layers, n_classes)` is an `nn.Module` that takes
# `(batch, channels, image_size, image_size)` and returns logits `(batch, n_classes)`. Its state dict has:
#
# | entry | shape | |
# |---|---|---|
# | `embed.weight`, `embed.bias` | | an `nn.Linear` from a patch to `d_model` |
# | `class_token` | `(d_model,)` | comes first in the row |
# | `positions` | `(n_patches + 1, d_model)` | row 0 is the class token's |
# | `layers.0.…`, `layers.1.…` | | `n_layers` times `nn.TransformerEncoderLayer` |
# | `norm.weight`, `norm.bias` | | a last `nn.LayerNorm` |
# | `head.weight`, `head.bias` | | an `nn.Linear` to the classes |
#
# - The layers are **pre-norm**, with GELU (the exact one), a hidden width of `4 * d_model`, and **no dropout**.
#   Everything else about them is PyTorch's default. The other LayerNorm too has PyTorch's default eps.
# - You may rely on `image_size` being divisible by `patch`. `n_layers` may be 0. How you initialise the parameters is
#   up to you; positions and class token are learned. (On the page you see what positions that begin at zero cost.)
# - The trap: `nn.TransformerEncoderLayer` has defaults of 2017. Four of them are not what you need here.
#
# Call your `patchify` by its name. When this part is marked, a right one stands in for it.


# %% exercise="ViT" section="An image is a row of patches"
class ViT(nn.Module):
    """A Vision Transformer with a class token and learned positions.

    Source: Dosovitskiy et al. 2021 (arXiv 2010.11929), section 3.1.
    """

    def __init__(
        self, image_size: int, patch: int, channels: int, d_model: int, n_heads: int, n_layers: int, n_classes: int
    ) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, d_model)
        self.class_token = nn.Parameter(torch.zeros(d_model))
        self.positions = nn.Parameter(torch.randn((image_size // patch) ** 2 + 1, d_model))
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(d_model, n_heads, 4 * d_model, **options) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, n_classes)
        ### END SOLUTION

    def forward(
        self, images: Float[Tensor, "batch channels image_size image_size"]
    ) -> Float[Tensor, "batch n_classes"]:
        """The logits of the classes, read from the class token."""
        ### BEGIN SOLUTION
        x = self.embed(patchify(images, self.patch))
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0]))
        ### END SOLUTION


# %% check="ViT" points=6
model = ViT(8, 4, 1, d_model=12, n_heads=3, n_layers=2, n_classes=10)
shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if not name.startswith("layers.")}
wanted = {
    "embed.weight": (12, 16),
    "embed.bias": (12,),
    "class_token": (12,),
    "positions": (5, 12),
    "norm.weight": (12,),
    "norm.bias": (12,),
    "head.weight": (10, 12),
    "head.bias": (10,),
}
assert shapes == wanted, f"Beside its layers, ViT(8, 4, 1, 12, 3, 2, 10) should hold {wanted}, and it holds {shapes}."
assert "layers.1.norm2.weight" in model.state_dict(), "Two layers should be called layers.0 and layers.1."
images = torch.randn(3, 1, 8, 8)
assert model(images).shape == (3, 10), f"3 images and 10 classes give (3, 10), not {tuple(model(images).shape)}."
with torch.no_grad():
    nn.init.normal_(model.head.weight)
    assert not torch.allclose(*model(images[:2]), atol=1e-4), (
        "Two images got the same logits: the class token should see the patches of its own image."
    )
    short = ViT(8, 4, 1, d_model=12, n_heads=3, n_layers=0, n_classes=10)
    begin = nn.init.normal_(short.class_token) + nn.init.normal_(short.positions)[0]
    assert torch.allclose(short(images), short.head(short.norm(begin)).expand(3, 10), atol=1e-4), (
        "Without layers, all that the last norm and the head see is the class token with row 0 of the positions."
    )
    swapped = images.clone()
    swapped[:, :, :, :4], swapped[:, :, :, 4:] = images[:, :, :, 4:], images[:, :, :, :4]
    model.positions.zero_()
    assert torch.allclose(model(swapped), model(images), atol=1e-4), (
        "Without positions a model cannot know where a patch stood: swapped halves should give the same logits."
    )
print("The visible checks of ViT pass.")

# %% stand_in="ViT"
import torch  # noqa: E402


def patchify(images, patch):
    if images.shape[-2] % patch or images.shape[-1] % patch:
        raise ValueError(f"patches of {patch} do not fill {tuple(images.shape[-2:])}")
    return torch.nn.functional.unfold(images, patch, stride=patch).transpose(1, 2)


# %% see="ViT"
# Your model learns to read digits from scratch, in about a quarter of a minute. Then: which positions moved the same
# way as it learned? Each small picture belongs to one place of the image; the darker another place, the more alike. Is
# it the neighbours? Nobody told it that the places lie on a grid, and with so few images it need not find out.
try:
    import os

    import matplotlib.pyplot as plt
    from sklearn.datasets import load_digits

    fast = os.environ.get("ICHIMON_FAST") == "1"
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images))
    train_on, test_on = order[:1400], order[1400:]
    model = ViT(8, 2, 1, d_model=48, n_heads=4, n_layers=3, n_classes=10)
    steps, begin = 20 if fast else 800, model.positions.detach().clone()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(steps):
        batch = train_on[torch.randint(len(train_on), (64,))]
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    model.eval()
    with torch.no_grad():
        right = (model(images[test_on]).argmax(-1) == labels[test_on]).float().mean()
        places = F.normalize((model.positions - begin)[1:], dim=-1)
    fig, axes = plt.subplots(4, 4, figsize=(4.2, 4.6), facecolor="white")
    for place, ax in enumerate(axes.flat):
        ax.imshow((places @ places[place]).view(4, 4), cmap="cividis_r", vmin=-0.3, vmax=0.6)
        ax.set(xticks=[], yticks=[])
    fig.suptitle(f"Places that it finds alike\n({right:.1%} of new digits right)")
    plt.show()
except NotImplementedError:
    print("Finish patchify and ViT first, then run this cell again.")
except ImportError as error:
    print(f"This cell learns scikit-learn's digits: {error}")

# %% [markdown]
# ## 3 · `log_mel` ●●●
#
# A microphone gives thousands of numbers a second, and no single one of them means anything. What we hear is which
# frequencies are in the sound, and how that changes. So a sound is first made into a picture: time from left to right,
# frequency from bottom to top. Whisper reads nothing else.
#
# There are two functions to write.
#
# **`mel_filters(n_mels, n_fft, sample_rate)`** returns float32 `(n_mels, n_fft / 2 + 1)`. We hear 200 Hz and 300 Hz as
# far apart, 5000 Hz and 5100 Hz as nearly the same. The **mel scale** has steps that sound alike, and this chapter uses
# HTK's:
#
# $$\mathrm{mel}(f) = 2595\,\log_{10}\!\left(1 + \frac{f}{700}\right)$$
#
# Take `n_mels + 2` points, equally far apart in mel, from 0 Hz to half the sample rate, and turn them back into Hz:
# $f_0, \dots, f_{n_\text{mels}+1}$. Row $m$ is a triangle over frequency: 0 at $f_m$, 1 at $f_{m+1}$, 0 again at
# $f_{m+2}$, straight lines between (straight in Hz), and 0 elsewhere. Column $k$ is this triangle at the frequency of
# bin $k$, which is `k * sample_rate / n_fft` Hz. `n_fft` is even. The triangles are not scaled by their area.
#
# **`log_mel(wave, filters, n_fft, hop)`** takes `wave` `(..., samples)` and returns `(..., n_mels, samples // hop)`:
#
# 1. Reflect half a window, `n_fft // 2` samples, at each end of the sound: the first frame is then centred on the first
#    sample.
# 2. Cut frames of `n_fft` samples, a new one every `hop` samples, and drop the last: `samples // hop` are left.
# 3. Multiply each with a **Hann window**, $\tfrac12 - \tfrac12\cos(2\pi i / n_\text{fft})$ for $i = 0, 1, \dots$ (the
#    *periodic* one), and take the squared size of its Fourier transform, `torch.fft.rfft`.
# 4. Multiply with `filters`, `(n_mels, n_fft / 2 + 1)`, of the same dtype as `wave`.
# 5. Take $\log_{10}$ of at least $10^{-10}$. Then raise what lies more than 8 below the **sound's own** largest value
#    to that line, add 4 and divide by 4.
#
# These steps are Whisper's. With its own filters your function is its ear.
#
# - `wave` is float32 or float64, with any number of dimensions before `samples`, also none. It has more than
#   `n_fft // 2` and at least `hop` samples; `n_fft` is even. Silence gives finite numbers.
# - Gradients flow to `wave`.
# - The trap: two sounds in one batch must not change each other.
#
# `torch.stft` raises an error while your work is marked: building it is the exercise.


# %% exercise="log_mel" section="A sound becomes a picture first"
def mel_filters(n_mels: int, n_fft: int, sample_rate: int) -> Float[Tensor, "n_mels bins"]:
    """Triangles that are equally wide on HTK's mel scale, each of height 1, for the bins of a Fourier transform."""
    ### BEGIN SOLUTION
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    points = 700 * (10 ** (torch.linspace(0, top, n_mels + 2, dtype=torch.float64) / 2595) - 1)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = torch.arange(n_fft // 2 + 1) * sample_rate / n_fft
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0).float()
    ### END SOLUTION


def log_mel(
    wave: Float[Tensor, "... samples"], filters: Float[Tensor, "n_mels bins"], n_fft: int, hop: int
) -> Float[Tensor, "... n_mels frames"]:
    """Whisper's log-mel spectrogram of a sound, with the filters that are given.

    Source: Radford et al. 2022 (arXiv 2212.04356), section 2.2; the steps are those of its published code.
    """
    ### BEGIN SOLUTION
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (n_fft // 2, n_fft // 2), mode="reflect")
    frames = rows.unfold(-1, n_fft, hop)[:, :-1] * torch.hann_window(n_fft, dtype=wave.dtype)
    power = torch.fft.rfft(frames).abs().square()
    logs = (filters @ power.mT).clamp(min=1e-10).log10()
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8)
    return ((logs + 4) / 4).view(*wave.shape[:-1], *logs.shape[-2:])
    ### END SOLUTION


# %% check="log_mel" points=6
filters = mel_filters(4, 64, 8000)
assert isinstance(filters, torch.Tensor), f"mel_filters should return a tensor, not {type(filters).__name__}."
assert filters.shape == (4, 33), f"4 filters for 64 samples have 33 bins each, (4, 33), not {tuple(filters.shape)}."
assert filters.dtype == torch.float32, f"The filters should be float32, not {filters.dtype}."
wide = [int((row > 0).sum()) for row in filters]
assert wide == sorted(wide), (
    f"A step in mel is more Hz the higher it lies, so later filters are wider; yours cover {wide} bins."
)
time = torch.arange(8000) / 8000
tone = torch.sin(2 * math.pi * 1000 * time)
picture = log_mel(tone, mel_filters(20, 256, 8000), n_fft=256, hop=80)
assert picture.shape == (20, 100), (
    f"20 filters and 8000 samples at a hop of 80 give (20, 100), not {tuple(picture.shape)}."
)
louder = log_mel(10 * tone, mel_filters(20, 256, 8000), n_fft=256, hop=80)
assert abs((louder - picture).max() - 0.5) < 1e-3, (
    "Ten times the size is a hundred times the power, which adds 2 to its log10, and 2 / 4 = 0.5 to the picture."
)
silence = log_mel(torch.zeros(1000), filters, n_fft=64, hop=50)
assert torch.allclose(silence, torch.tensor(-1.5)), (
    f"Silence should be (log10(10⁻¹⁰) + 4) / 4 = −1.5 everywhere; yours goes from {silence.min():g} to "
    f"{silence.max():g}."
)
print("The visible checks of log_mel pass.")

# %% see="log_mel"
# The five vowels of Japanese, made on the spot: a buzz of many harmonics, in which two or three bands (formants) are
# louder. Listen, and find the bands. What changes from vowel to vowel, and what if you change the pitch?
try:
    import matplotlib.pyplot as plt
    from IPython.display import Audio, display

    rate = 8000
    formants = {"a": (800, 1250), "i": (300, 2300), "u": (350, 1350), "e": (480, 1950), "o": (480, 850)}

    def vowel(name, pitch, seconds=0.45):
        time = torch.arange(int(seconds * rate)) / rate
        harmonics = torch.arange(1, int(3800 / pitch) + 1) * pitch
        size = sum(1 / (1 + ((harmonics - f) / 90) ** 2) for f in (*formants[name], 2900)) / harmonics**0.5
        fade = (time / 0.03).clamp(max=1) * ((seconds - time) / 0.03).clamp(max=1)
        sound = (size[:, None] * torch.sin(2 * math.pi * harmonics[:, None] * time)).sum(0) * fade
        return 0.5 * sound / sound.abs().max()

    spoken = torch.cat([vowel(name, pitch=130) for name in formants])
    picture = log_mel(spoken, mel_filters(40, 256, rate), n_fft=256, hop=64)
    fig, ax = plt.subplots(figsize=(8, 3), facecolor="white")
    ax.imshow(picture, origin="lower", aspect="auto", cmap="magma", extent=(0, len(spoken) / rate, 0, 40))
    for i, name in enumerate(formants):
        ax.text(0.45 * i + 0.2, 41, name, fontsize=14)
    ax.set(xlabel="seconds", ylabel="mel band", title=" ")
    fig.tight_layout()
    plt.show()
    display(Audio(spoken.numpy(), rate=rate))
except NotImplementedError:
    print("Finish mel_filters and log_mel first, then run this cell again.")

# %% see="log_mel"
# And back? The picture keeps how strong each frequency is, and forgets its phase: where in its swing it was. Griffin
# and Lim's method guesses: start with any phase, make a sound of it, look which phase that sound has, and repeat. Below
# it goes back from the full spectrum, and from your 40 mel bands, which have forgotten the harmonics too. What is lost?
try:
    import os

    from IPython.display import Audio, display

    fast = os.environ.get("ICHIMON_FAST") == "1"
    n_fft, hop, window = 256, 64, torch.hann_window(256)

    def spectrum(wave):
        return torch.stft(wave, n_fft, hop, window=window, return_complex=True)

    def sound_of(spectra):
        return torch.istft(spectra, n_fft, hop, window=window, length=len(spoken))

    def griffin_lim(size, rounds):
        torch.manual_seed(0)
        phase = torch.exp(2j * math.pi * torch.rand(size.shape))
        for _ in range(rounds):
            phase = torch.exp(1j * spectrum(sound_of(size * phase)).angle())
        return sound_of(size * phase)

    size = spectrum(spoken).abs()
    bands = mel_filters(40, n_fft, rate)
    power = 10 ** (4 * log_mel(spoken, bands, n_fft, hop) - 4)
    power = torch.cat([power, power[:, -1:]], 1)
    spread = bands / bands.sum(0).clamp(min=1e-3)  # each bin gets a share of the bands that cover it
    from_bands = (spread.T @ (power / bands.sum(1, keepdim=True))).sqrt()
    rounds = 4 if fast else 60
    for title, back in (
        ("with its own phase", sound_of(spectrum(spoken))),
        (f"phase guessed in {rounds} rounds", griffin_lim(size, rounds)),
        ("from 40 mel bands", griffin_lim(from_bands, rounds)),
    ):
        away = (log_mel(back, bands, n_fft, hop) - log_mel(spoken, bands, n_fft, hop)).abs().mean()
        wrong = (back - spoken).norm() / spoken.norm()
        print(f"{title}: the samples are off by {wrong:.0%} of their size, the picture by {away:.3f} on average.")
        display(Audio(back.numpy(), rate=rate))
except NotImplementedError:
    print("Finish mel_filters and log_mel first, then run this cell again.")

# %% [markdown]
# ## 4 · `ConvStem` ●○○
#
# A hundred frames a second are many, and neighbours are alike. Whisper's encoder begins with two convolutions over
# time. They let each frame look at its neighbours, and the second one takes a step of two, so that half as many vectors
# are left.
#
# `ConvStem(n_mels, d_model)` is an `nn.Module` with the entries `conv1.weight`, `conv1.bias`, `conv2.weight` and
# `conv2.bias` of two `nn.Conv1d`. It takes `(batch, n_mels, frames)` and returns `(batch, n, d_model)`, where `n` is
# `frames / 2`, rounded up.
#
# - Both have a kernel of 3 and one frame of zeros at each end; the first goes from `n_mels` to `d_model` with a step of
#   1, the second from `d_model` to `d_model` with a step of 2.
# - The exact GELU follows each of them.
# - The trap: a convolution wants channels before time, a Transformer wants them after it, and a `reshape` does not turn
#   one into the other.


# %% exercise="ConvStem" section="A sound becomes a picture first"
class ConvStem(nn.Module):
    """Whisper's two convolutions: from a log-mel spectrogram to half as many vectors.

    Source: Radford et al. 2022 (arXiv 2212.04356), section 2.2.
    """

    def __init__(self, n_mels: int, d_model: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.conv1 = nn.Conv1d(n_mels, d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(d_model, d_model, 3, stride=2, padding=1)
        ### END SOLUTION

    def forward(self, mel: Float[Tensor, "batch n_mels frames"]) -> Float[Tensor, "batch n d_model"]:
        """One vector for every two frames."""
        ### BEGIN SOLUTION
        return F.gelu(self.conv2(F.gelu(self.conv1(mel)))).mT
        ### END SOLUTION


# %% check="ConvStem" points=2
stem = ConvStem(5, 8)
shapes = {name: tuple(value.shape) for name, value in stem.state_dict().items()}
wanted = {"conv1.weight": (8, 5, 3), "conv1.bias": (8,), "conv2.weight": (8, 8, 3), "conv2.bias": (8,)}
assert shapes == wanted, f"The state dict of ConvStem(5, 8) should hold {wanted}, and it holds {shapes}."
assert stem(torch.randn(2, 5, 10)).shape == (2, 5, 8), (
    f"10 frames should give 5 vectors of width 8, (2, 5, 8), not {tuple(stem(torch.randn(2, 5, 10)).shape)}."
)
mel = torch.randn(2, 5, 10)
other = torch.cat([mel[:, :, :3], torch.randn(2, 5, 1), mel[:, :, 4:]], 2)  # frame 3 is another one
moved = ((stem(other) - stem(mel)).abs().amax((0, 2)) > 1e-4).nonzero().flatten().tolist()
assert moved == [1, 2], f"Frame 3 should be heard by the vectors 1 and 2, counted from 0, and by no other: not {moved}."
print("The visible checks of ConvStem pass.")

# %% see="ConvStem"
# How many frames does one vector see? A single frame is changed, one after the other; bright is where the output moves.
# Guess before you run it: the first convolution sees 3 frames, and the second sees 3 of those.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    stem, mel = ConvStem(10, 16), torch.randn(1, 10, 24)
    with torch.no_grad():
        moved = torch.zeros(12, 24)
        for frame in range(24):
            other = mel.clone()
            other[:, :, frame] += 1
            moved[:, frame] = (stem(other) - stem(mel)).abs().sum(-1)[0]
    fig, ax = plt.subplots(figsize=(7, 3.4), facecolor="white")
    ax.imshow(moved.sqrt(), cmap="cividis")
    ax.set(xlabel="frame that changed", ylabel="vector", title="Each vector sees five frames")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish ConvStem first, then run this cell again.")

# %% [markdown]
# ## 5 · `HybridBlock` ●●●
#
# Attention compares every place with every other and knows nothing about neighbours. A convolution knows only
# neighbours. A recurrent network goes from left to right with a memory. A *hybrid* takes one of these for what is near,
# and attention for what is far.
#
# `HybridBlock(d_model, n_heads, local, kernel=5)` is an `nn.Module` of three sub-layers, each pre-norm with a residual
# around it, in this order:
#
# 1. **`local`**. If `local` is `"conv"`: an `nn.Conv1d` in which every channel has a kernel of its own (depthwise),
#    with as many zeros at the ends as keep the length; `kernel` is odd. If it is `"gru"`: an `nn.GRU` of one layer and
#    one direction, of width `d_model`. It begins at the first position.
# 2. **`attention`**: an `nn.MultiheadAttention`, not causal.
# 3. **`feed_forward`**: an `nn.Sequential` of an `nn.Linear` to `4 * d_model`, an `nn.GELU`, and an `nn.Linear` back.
#
# `norms.0`, `norms.1` and `norms.2` are their LayerNorms, in an `nn.ModuleList`. So the state dict's names begin with
# `local.`, `attention.`, `feed_forward.` and `norms.`.
#
# Recordings differ in length, so a batch is padded. `forward(x, real)` takes `x` of shape `(batch, n, d_model)` and
# `real`, boolean, of shape `(batch, n)`: `True` where a position is real, `False` where it is padding.
#
# - Every row of `real` begins with at least one `True`; padding stands at the end.
# - **The result at a real position is what it would be if the padding were cut off.** The padding holds any finite
#   numbers.
# - At padding the result is zero.
# - There is no dropout.
# - The trap: padding comes in through two doors. Zeros at the entrance do not stay zeros behind a LayerNorm.


# %% exercise="HybridBlock" section="What is near, and what is far"
class HybridBlock(nn.Module):
    """What is near by a convolution or a recurrent network, what is far by attention.

    Source: after Gulati et al. 2020 (arXiv 2005.08100), whose Conformer has more in its convolution.
    """

    def __init__(self, d_model: int, n_heads: int, local: Literal["conv", "gru"], kernel: int = 5) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        if local == "conv":
            self.local: nn.Module = nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=d_model)
        else:
            self.local = nn.GRU(d_model, d_model, batch_first=True)
        self.attention = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))
        ### END SOLUTION

    def forward(
        self, x: Float[Tensor, "batch n d_model"], real: Bool[Tensor, "batch n"]
    ) -> Float[Tensor, "batch n d_model"]:
        """Three sub-layers; padding has no say in any of them, and gives zeros."""
        ### BEGIN SOLUTION
        padding = ~real
        h = self.norms[0](x).masked_fill(padding[..., None], 0)
        x = x + (self.local(h)[0] if isinstance(self.local, nn.GRU) else self.local(h.mT).mT)
        h = self.norms[1](x)
        x = x + self.attention(h, h, h, key_padding_mask=padding, need_weights=False)[0]
        x = x + self.feed_forward(self.norms[2](x))
        return x.masked_fill(padding[..., None], 0)
        ### END SOLUTION


# %% check="HybridBlock" points=4
x, real = torch.randn(2, 6, 8), torch.ones(2, 6, dtype=torch.bool)
for local, weight in (("conv", "local.weight"), ("gru", "local.weight_ih_l0")):
    block = HybridBlock(8, 2, local)
    names = {name.split(".")[0] for name in block.state_dict()}
    assert names == {"local", "attention", "feed_forward", "norms"}, (
        f"The names should begin with local, attention, feed_forward and norms; yours begin with {sorted(names)}."
    )
    assert weight in block.state_dict(), f"With local={local!r} the state dict should have the entry {weight}."
    assert block(x, real).shape == x.shape, f"The output should have the shape of x, not {tuple(block(x, real).shape)}."
    for value in block.parameters():
        nn.init.normal_(value, std=0.3)
    other = torch.cat([x[:, :5], torch.randn(2, 1, 8)], 1)
    assert not torch.allclose(block(x, real)[:, 0], block(other, real)[:, 0]), (
        f"local={local!r}: attention is not causal, so the first position should notice that the last one changed."
    )
assert HybridBlock(8, 2, "conv").state_dict()["local.weight"].shape == (8, 1, 5), (
    "A depthwise convolution of 8 channels and kernel 5 has a weight of shape (8, 1, 5)."
)
with torch.no_grad():
    for value in (still := HybridBlock(8, 2, "conv")).parameters():
        value.zero_()
assert torch.equal(still(x, real), x), "If no sub-layer adds anything, the residuals should hand x on as it is."
print("The visible checks of HybridBlock pass.")

# %% see="HybridBlock"
# A position changes: who notices, and how much? Left only the local part works, right the whole block. What does the
# convolution not see, what the recurrent network?
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    x, real = torch.randn(1, 20, 32), torch.ones(1, 20, dtype=torch.bool)
    fig, axes = plt.subplots(2, 2, figsize=(6.4, 6.4), facecolor="white")
    for row, local in zip(axes, ("conv", "gru"), strict=True):
        block = HybridBlock(32, 4, local)
        for ax, whole in zip(row, (False, True), strict=True):
            with torch.no_grad():
                if not whole:
                    kept = block.attention.out_proj.weight.clone()
                    block.attention.out_proj.weight.zero_()
                moved = torch.zeros(20, 20)
                for j in range(20):
                    other = x.clone()
                    other[:, j] = torch.randn(32)
                    moved[:, j] = (block(other, real) - block(x, real)).abs().sum(-1)[0]
                if not whole:
                    block.attention.out_proj.weight.copy_(kept)
            ax.imshow((moved + 1e-6).log10(), cmap="cividis", vmin=-3, vmax=1.5)
            ax.set(title=local + (" and attention" if whole else " alone"), xlabel="changed", ylabel="notices")
            ax.set(xticks=range(0, 20, 5), yticks=range(0, 20, 5))
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish HybridBlock first, then run this cell again.")

# %% [markdown]
# ## 6 · `SharedMoE` ●●●
#
# One model can see and hear. Patches and frames are both vectors of width `d_model`, so they can go through the same
# layers, and in a Mixture of Experts through the same router. It is not told which is which. Will it give images some
# of the experts, and sounds the others?
#
# `SharedMoE(d_model, d_hidden, n_experts)` is an `nn.Module`. `router` is an `nn.Linear` without bias from `d_model` to
# `n_experts`. `experts` is an `nn.ModuleList` of `n_experts` times an `nn.Sequential`: an `nn.Linear` to `d_hidden`, an
# `nn.GELU`, an `nn.Linear` back. `forward(images, sounds)` takes `(batch, n, d_model)` twice, where batch and length of
# the two may differ, and returns three things: what became of the images, of the sounds (each in its shape), and
# a loss.
#
# - Each token uses **one** expert, that of its largest probability $p_e$ (a softmax over all experts), and its result
#   is $p_e \cdot E_e(x)$. Nothing is added to it: no residual.
# - `forward` calls `self.router` **once**, with the tokens of the images first and then those of the sounds, as
#   `(tokens, d_model)`.
# - An expert computes its own tokens and no others. The tests give an expert weights that are NaN: a token that did not
#   choose it must not notice.
#
# A router can give everything to one expert. To balance all tokens together is not enough here: with half of the
# experts for images and half for sounds it looks perfect. LIMoE therefore looks at each kind $m$ by itself, with two
# entropies:
#
# $$\ell = \sum_{m \,\in\, \{\text{images},\, \text{sounds}\}}
# \Bigg(\frac{1}{n_m} \sum_{i \in m} H(p_i) \;-\; H\Big(\frac{1}{n_m}\sum_{i \in m} p_i\Big)\Bigg),
# \qquad H(p) = -\sum_e p_e \ln p_e$$
#
# - The first term is small where each token is sure of its expert, the second where the kind as a whole uses many of
#   them. This is without LIMoE's thresholds.
# - The loss is one number, a tensor of shape `()`, with gradients. A probability may be exactly 0: loss and gradients
#   stay finite.
# - The trap: the entropy of a mean is not the mean of the entropies.


# %% exercise="SharedMoE" section="One model for both"
class SharedMoE(nn.Module):
    """A layer of experts for images and sounds, with one router, and LIMoE's entropies.

    Source: Mustafa et al. 2022 (arXiv 2206.02770), section 2.
    """

    def __init__(self, d_model: int, d_hidden: int, n_experts: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model))
            for _ in range(n_experts)
        )
        ### END SOLUTION

    def forward(
        self, images: Float[Tensor, "batch_i n_i d_model"], sounds: Float[Tensor, "batch_s n_s d_model"]
    ) -> tuple[Float[Tensor, "batch_i n_i d_model"], Float[Tensor, "batch_s n_s d_model"], Float[Tensor, ""]]:
        """What the experts make of both kinds, and the loss that keeps the router sure and its choice wide."""
        ### BEGIN SOLUTION
        kinds = [images.flatten(0, 1), sounds.flatten(0, 1)]
        tokens = torch.cat(kinds)
        p = self.router(tokens).softmax(-1)
        weight, choice = p.max(-1)
        out = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            mine = torch.where(choice == e)[0]
            out = out.index_add(0, mine, weight[mine, None] * expert(tokens[mine]))

        def entropy(q: Tensor) -> Tensor:
            return -(q * q.clamp(min=1e-30).log()).sum(-1)  # 0 · ln 0 is 0, and has no infinite slope

        parts, out_parts = (x.split([len(kind) for kind in kinds]) for x in (p, out))
        loss = torch.stack([entropy(q).mean() - entropy(q.mean(0)) for q in parts]).sum()
        return out_parts[0].view_as(images), out_parts[1].view_as(sounds), loss
        ### END SOLUTION


# %% check="SharedMoE" points=3
layer = SharedMoE(6, 10, n_experts=4)
names = {f"experts.{e}.{i}.{kind}" for e in range(4) for i in (0, 2) for kind in ("weight", "bias")} | {"router.weight"}
assert set(layer.state_dict()) == names, (
    f"The state dict should hold {sorted(names)}, and it holds {sorted(layer.state_dict())}."
)
images, sounds = torch.randn(2, 3, 6), torch.randn(1, 5, 6)
out = layer(images, sounds)
assert isinstance(out, tuple), f"forward should return a tuple, not {type(out).__name__}."
assert [tuple(part.shape) for part in out] == [(2, 3, 6), (1, 5, 6), ()], (
    f"The shapes should be (2, 3, 6), (1, 5, 6) and (), not {[tuple(part.shape) for part in out]}."
)
with torch.no_grad():
    layer.router.weight.zero_()
assert abs(layer(images, sounds)[2]) < 1e-5, (
    "If every token finds all experts equally likely, both entropies are ln 4 and the loss is 0."
)
print("The visible checks of SharedMoE pass.")

# %% see="SharedMoE"
# One small model learns digits and vowels at once: a layer of attention and a layer of your experts for both. Then the
# bars show who goes where. `pull` is how much your loss counts. Guess first: will images and sounds share their
# experts? Then set pull to 0.
try:
    import os

    import matplotlib.pyplot as plt
    from sklearn.datasets import load_digits

    fast = os.environ.get("ICHIMON_FAST") == "1"
    pull, steps, rate = 0.02, 20 if fast else 400, 8000
    torch.manual_seed(0)
    digits = load_digits()
    seen = F.unfold(torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1, 2, stride=2).mT
    digit = torch.tensor(digits.target)
    formants = torch.tensor([[800, 1250], [300, 2300], [350, 1350], [480, 1950], [480, 850]])

    def some_vowels(n):
        name, pitch = torch.randint(5, (n,)), 90 + 160 * torch.rand(n, 1)
        harmonics = pitch * torch.arange(1, 42)
        spread = formants[name] * (1 + 0.08 * torch.randn(n, 2))
        size = sum(1 / (1 + ((harmonics - f) / 90) ** 2) for f in spread.T[..., None])
        size = size * (harmonics < 3800)
        waves = 2 * math.pi * (harmonics[..., None] * torch.arange(1024) / rate + torch.rand(n, 41, 1))
        return (size[..., None] * torch.sin(waves)).sum(1) + 0.05 * torch.randn(n, 1024), name

    waves, spoken_vowel = some_vowels(100 if fast else 600)
    heard = log_mel(waves, mel_filters(24, 256, rate), 256, 64).mT  # (n, 16 frames, 24)

    class SeesAndHears(nn.Module):
        def __init__(self, d_model: int = 32) -> None:
            super().__init__()
            self.enter = nn.ModuleList([nn.Linear(4, d_model), nn.Linear(24, d_model)])
            self.positions = nn.Parameter(0.2 * torch.randn(16, d_model))
            self.attention = nn.TransformerEncoderLayer(d_model, 4, 32, dropout=0, batch_first=True, norm_first=True)
            self.norm, self.moe = nn.LayerNorm(d_model), SharedMoE(d_model, 32, n_experts=6)
            self.leave = nn.ModuleList([nn.Linear(d_model, 10), nn.Linear(d_model, 5)])

        def forward(self, *kinds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            x, y = (self.attention(enter(kind) + self.positions) for enter, kind in zip(self.enter, kinds, strict=True))
            to_x, to_y, loss = self.moe(self.norm(x), self.norm(y))
            return self.leave[0]((x + to_x).mean(1)), self.leave[1]((y + to_y).mean(1)), loss

    model = SeesAndHears()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        i, j = torch.randint(1400, (32,)), torch.randint(len(heard) * 3 // 4, (32,))
        a, b, balance = model(seen[i], heard[j])
        (F.cross_entropy(a, digit[i]) + F.cross_entropy(b, spoken_vowel[j]) + pull * balance).backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()
    choices = []
    model.moe.router.register_forward_hook(lambda module, inputs, logits: choices.append(logits.argmax(-1)))
    with torch.no_grad():
        a, b, _ = model(seen[1400:], heard[len(heard) * 3 // 4 :])
    n = 16 * len(seen[1400:])
    share = [part.bincount(minlength=6) / len(part) for part in (choices[0][:n], choices[0][n:])]
    right = [(a.argmax(-1) == digit[1400:]).float().mean(), (b.argmax(-1) == spoken_vowel[-len(b) :]).float().mean()]
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    ax.bar(torch.arange(6) - 0.2, share[0], width=0.4, color="#0072B2", label=f"images ({right[0]:.0%} right)")
    ax.bar(torch.arange(6) + 0.2, share[1], width=0.4, color="#E69F00", label=f"sounds ({right[1]:.0%} right)")
    ax.set(xlabel="expert", ylabel="share of the tokens", ylim=(0, 1.2), title="Who goes where?")
    ax.legend(ncols=2)
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    print("Finish log_mel and SharedMoE first, then run this cell again.")
except ImportError as error:
    print(f"This cell learns scikit-learn's digits: {error}")

# %% [markdown]
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they compare with PyTorch's own operations in outputs and
# in gradients, over random sizes, with every parameter drawn anew, in float32 and float64, with images that are not
# square, sounds of odd length, silence, padding full of large numbers, and experts whose weights are NaN. Each exercise
# is marked by itself, and every test that passes counts.
#
# Before you hand in, run `python -m ichimon check 20-beyond-text.ipynb` in a terminal. It runs your cells and the
# visible checks from top to bottom and says in words what it finds.
