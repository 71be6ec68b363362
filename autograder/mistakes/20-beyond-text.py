# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% patchify: one reshape
# caught by: test_an_image_becomes_its_squares_in_reading_order, test_the_patches_follow_the_rows_of_the_image
# says: A single reshape cuts the image into strips of neighbouring rows, not into squares: the shape fits and the pixels are mixed.
def patchify(images, patch):
    b, c, h, w = images.shape
    if h % patch or w % patch:
        raise ValueError(f"{patch} does not fit {h}, {w}")
    return images.reshape(b, (h // patch) * (w // patch), c * patch * patch)


def unpatchify(patches, patch, height, width):
    return patches.reshape(len(patches), -1, height, width)


# %% patchify: channels last within a patch
# caught by: test_a_patch_holds_one_channel_after_the_other, test_an_image_becomes_its_squares_in_reading_order
# says: The channels of a pixel stand side by side here; a patch should hold the whole square of channel 0, then that of channel 1.
def patchify(images, patch):
    b, c, h, w = images.shape
    if h % patch or w % patch:
        raise ValueError(f"{patch} does not fit {h}, {w}")
    x = images.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def unpatchify(patches, patch, height, width):
    b, n, d = patches.shape
    x = patches.reshape(b, height // patch, width // patch, patch, patch, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, height, width)


# %% patchify: column by column
# caught by: test_the_patches_follow_the_rows_of_the_image, test_an_image_becomes_its_squares_in_reading_order
# says: The patches go down the columns of the image; they should go along its rows, as one reads.
def patchify(images, patch):
    b, c, h, w = images.shape
    if h % patch or w % patch:
        raise ValueError(f"{patch} does not fit {h}, {w}")
    x = images.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 4, 2, 1, 3, 5).reshape(b, -1, c * patch * patch)


def unpatchify(patches, patch, height, width):
    b, n, d = patches.shape
    x = patches.reshape(b, width // patch, height // patch, -1, patch, patch)
    return x.permute(0, 3, 2, 4, 1, 5).reshape(b, -1, height, width)


# %% patchify: each patch lies on its side
# caught by: test_an_image_becomes_its_squares_in_reading_order
# says: Rows and columns within a patch are exchanged: its pixels should be read row by row.
def patchify(images, patch):
    b, c, h, w = images.shape
    if h % patch or w % patch:
        raise ValueError(f"{patch} does not fit {h}, {w}")
    x = images.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 1, 5, 3).reshape(b, -1, c * patch * patch)


def unpatchify(patches, patch, height, width):
    b, n, d = patches.shape
    x = patches.reshape(b, height // patch, width // patch, -1, patch, patch)
    return x.permute(0, 3, 1, 5, 2, 4).reshape(b, -1, height, width)


# %% patchify: what does not fit is cut off
# caught by: test_patches_that_do_not_fit_are_refused
# says: Pixels that fill no patch are dropped in silence: patchify should raise a ValueError.
def patchify(images, patch):
    x = images.unfold(2, patch, patch).unfold(3, patch, patch)
    return x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def unpatchify(patches, patch, height, width):
    b = len(patches)
    x = patches.reshape(b, height // patch, width // patch, -1, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, height, width)


# %% patchify: only the height is looked at
# caught by: test_patches_that_do_not_fit_are_refused
# says: Only the height is looked at; a patch has to divide the width as well.
def patchify(images, patch):
    if images.shape[2] % patch:
        raise ValueError(f"{patch} does not fit {images.shape[2]}, {images.shape[3]}")
    x = images.unfold(2, patch, patch).unfold(3, patch, patch)
    return x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def unpatchify(patches, patch, height, width):
    b = len(patches)
    x = patches.reshape(b, height // patch, width // patch, -1, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, height, width)


# %% patchify: the areas are divided
# caught by: test_patches_that_do_not_fit_are_refused
# says: The number of pixels is divided by that of a patch: 8 · 6 has room for three of 4 · 4, and they do not fit.
def patchify(images, patch):
    if images.shape[2] * images.shape[3] % patch**2:
        raise ValueError(f"{patch} does not fit {images.shape[2]}, {images.shape[3]}")
    x = images.unfold(2, patch, patch).unfold(3, patch, patch)
    return x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def unpatchify(patches, patch, height, width):
    b = len(patches)
    x = patches.reshape(b, height // patch, width // patch, -1, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, height, width)


# %% patchify: PyTorch's unfold, with its columns
# caught by: test_an_image_becomes_its_squares_in_reading_order
# says: F.unfold puts each patch into a column: the last two dimensions are still to be exchanged.
def patchify(images, patch):
    if images.shape[2] % patch or images.shape[3] % patch:
        raise ValueError(f"{patch} does not fit {images.shape[2]}, {images.shape[3]}")
    return F.unfold(images, patch, stride=patch)


def unpatchify(patches, patch, height, width):
    return F.fold(patches, (height, width), patch, stride=patch)


# %% patchify: by way of float32
# caught by: test_cutting_keeps_dtype_and_gradient
# says: The pixels become float32 on the way, which not every number survives: cutting computes nothing.
def patchify(images, patch):
    if images.shape[2] % patch or images.shape[3] % patch:
        raise ValueError(f"{tuple(images.shape[2:])} pixels do not fit patches of {patch}")
    return F.unfold(images.float(), patch, stride=patch).mT.to(images.dtype)


def unpatchify(patches, patch, height, width):
    return F.fold(patches.mT.double(), (height, width), patch, stride=patch).to(patches.dtype)


# %% patchify: the grid is as wide as it is high
# caught by: test_unpatchify_puts_the_squares_back
# says: The image is put together as if it were square: the number of patches in a row is width / patch.
def patchify(images, patch):
    b, c, h, w = images.shape
    if h % patch or w % patch:
        raise ValueError(f"{patch} does not fit {h}, {w}")
    x = images.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * patch * patch)


def unpatchify(patches, patch, height, width):
    b, n, d = patches.shape
    side = int(math.sqrt(n))
    x = patches[:, : side * side].reshape(b, side, side, -1, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, side * patch, side * patch)


# %% patchify: the grid transposed on the way back
# caught by: test_unpatchify_puts_the_squares_back
# says: unpatchify takes the patches as if they went down the columns.
def patchify(images, patch):
    b, c, h, w = images.shape
    if h % patch or w % patch:
        raise ValueError(f"{patch} does not fit {h}, {w}")
    x = images.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * patch * patch)


def unpatchify(patches, patch, height, width):
    b, n, d = patches.shape
    x = patches.reshape(b, width // patch, height // patch, -1, patch, patch)
    return x.permute(0, 3, 2, 4, 1, 5).reshape(b, -1, height, width)


# %% ViT: post-norm, as the default is
# caught by: test_the_logits_are_those_of_a_vision_transformer
# says: The layers are post-norm, which is nn.TransformerEncoderLayer's default; they should be pre-norm.
class ViT(nn.Module):
    def __init__(self, image_size, patch, channels, d_model, n_heads, n_layers, n_classes):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch**2, d_model)
        self.class_token = nn.Parameter(torch.zeros(d_model))
        self.positions = nn.Parameter(torch.zeros((image_size // patch) ** 2 + 1, d_model))
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": False}
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(d_model, n_heads, 4 * d_model, **options) for _ in range(n_layers)
        )
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, n_classes)

    def forward(self, images):
        x = self.embed(patchify(images, self.patch))
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0]))


# %% ViT: ReLU, as the default is
# caught by: test_the_logits_are_those_of_a_vision_transformer
# says: The layers have ReLU, which is nn.TransformerEncoderLayer's default; they should have GELU.
class ViT(nn.Module):
    def __init__(self, image_size, patch, channels, d_model, n_heads, n_layers, n_classes):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch**2, d_model)
        self.class_token = nn.Parameter(torch.zeros(d_model))
        self.positions = nn.Parameter(torch.zeros((image_size // patch) ** 2 + 1, d_model))
        options = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(d_model, n_heads, 4 * d_model, **options) for _ in range(n_layers)
        )
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, n_classes)

    def forward(self, images):
        x = self.embed(patchify(images, self.patch))
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0]))


# %% ViT: dropout, as the default is
# caught by: test_a_training_model_computes_what_an_evaluating_one_does
# says: The layers drop out a tenth of their numbers in training, which is nn.TransformerEncoderLayer's default.
class ViT(nn.Module):
    def __init__(self, image_size, patch, channels, d_model, n_heads, n_layers, n_classes):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch**2, d_model)
        self.class_token = nn.Parameter(torch.zeros(d_model))
        self.positions = nn.Parameter(torch.zeros((image_size // patch) ** 2 + 1, d_model))
        options = {"activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(d_model, n_heads, 4 * d_model, **options) for _ in range(n_layers)
        )
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, n_classes)

    def forward(self, images):
        x = self.embed(patchify(images, self.patch))
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0]))


# %% ViT: batch and positions exchanged, as the default is
# caught by: test_images_of_a_batch_do_not_meet, test_the_logits_are_those_of_a_vision_transformer
# says: The layers take the batch for the sequence, which is nn.TransformerEncoderLayer's default: images attend to each other.
class ViT(nn.Module):
    def __init__(self, image_size, patch, channels, d_model, n_heads, n_layers, n_classes):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch**2, d_model)
        self.class_token = nn.Parameter(torch.zeros(d_model))
        self.positions = nn.Parameter(torch.zeros((image_size // patch) ** 2 + 1, d_model))
        options = {"dropout": 0.0, "activation": "gelu", "norm_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(d_model, n_heads, 4 * d_model, **options) for _ in range(n_layers)
        )
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, n_classes)

    def forward(self, images):
        x = self.embed(patchify(images, self.patch))
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0]))


# %% ViT: the approximation of GELU
# caught by: test_a_model_in_float64_gives_float64
# says: This is GELU's tanh approximation; the prompt asks for the exact one.
class ViT(nn.Module):
    def __init__(self, image_size, patch, channels, d_model, n_heads, n_layers, n_classes):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch**2, d_model)
        self.class_token = nn.Parameter(torch.zeros(d_model))
        self.positions = nn.Parameter(torch.zeros((image_size // patch) ** 2 + 1, d_model))
        options = {"dropout": 0.0, "activation": nn.GELU("tanh"), "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(d_model, n_heads, 4 * d_model, **options) for _ in range(n_layers)
        )
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, n_classes)

    def forward(self, images):
        x = self.embed(patchify(images, self.patch))
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0]))


# %% ViT: no positions
# caught by: test_a_patch_is_known_by_its_position
# says: The positions are never added: the model sees a bag of patches.
class ViT(nn.Module):
    def __init__(self, image_size, patch, channels, d_model, n_heads, n_layers, n_classes):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch**2, d_model)
        self.class_token = nn.Parameter(torch.zeros(d_model))
        self.positions = nn.Parameter(torch.zeros((image_size // patch) ** 2 + 1, d_model))
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(d_model, n_heads, 4 * d_model, **options) for _ in range(n_layers)
        )
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, n_classes)

    def forward(self, images):
        x = self.embed(patchify(images, self.patch))
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0]))


# %% ViT: the class token without a position
# caught by: test_the_logits_are_those_of_a_vision_transformer, test_the_class_token_stands_first_and_answers
# says: The class token gets no position of its own, and the patches use the rows from 1 on: row 0 belongs to it.
class ViT(nn.Module):
    def __init__(self, image_size, patch, channels, d_model, n_heads, n_layers, n_classes):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch**2, d_model)
        self.class_token = nn.Parameter(torch.zeros(d_model))
        self.positions = nn.Parameter(torch.zeros((image_size // patch) ** 2 + 1, d_model))
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(d_model, n_heads, 4 * d_model, **options) for _ in range(n_layers)
        )
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, n_classes)

    def forward(self, images):
        x = self.embed(patchify(images, self.patch)) + self.positions[1:]
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0]))


# %% ViT: the class token at the end
# caught by: test_the_class_token_stands_first_and_answers
# says: The class token stands at the end of the row; it should come first, with row 0 of the positions.
class ViT(nn.Module):
    def __init__(self, image_size, patch, channels, d_model, n_heads, n_layers, n_classes):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch**2, d_model)
        self.class_token = nn.Parameter(torch.zeros(d_model))
        self.positions = nn.Parameter(torch.zeros((image_size // patch) ** 2 + 1, d_model))
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(d_model, n_heads, 4 * d_model, **options) for _ in range(n_layers)
        )
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, n_classes)

    def forward(self, images):
        x = self.embed(patchify(images, self.patch))
        x = torch.cat([x, self.class_token.expand(len(x), 1, -1)], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, -1]))


# %% ViT: the mean of all positions
# caught by: test_the_class_token_stands_first_and_answers
# says: The head reads the mean of all positions, which some models do; here it should read the class token alone.
class ViT(nn.Module):
    def __init__(self, image_size, patch, channels, d_model, n_heads, n_layers, n_classes):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch**2, d_model)
        self.class_token = nn.Parameter(torch.zeros(d_model))
        self.positions = nn.Parameter(torch.zeros((image_size // patch) ** 2 + 1, d_model))
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(d_model, n_heads, 4 * d_model, **options) for _ in range(n_layers)
        )
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, n_classes)

    def forward(self, images):
        x = self.embed(patchify(images, self.patch))
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


# %% ViT: no last norm
# caught by: test_the_logits_are_those_of_a_vision_transformer, test_the_class_token_stands_first_and_answers
# says: The last LayerNorm is never applied: pre-norm layers leave their sum as large as it grew.
class ViT(nn.Module):
    def __init__(self, image_size, patch, channels, d_model, n_heads, n_layers, n_classes):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch**2, d_model)
        self.class_token = nn.Parameter(torch.zeros(d_model))
        self.positions = nn.Parameter(torch.zeros((image_size // patch) ** 2 + 1, d_model))
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(d_model, n_heads, 4 * d_model, **options) for _ in range(n_layers)
        )
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, n_classes)

    def forward(self, images):
        x = self.embed(patchify(images, self.patch))
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


# %% ViT: positions that are a buffer
# caught by: test_the_model_has_the_entries_that_were_asked_for
# says: The positions are kept and never learned: they should be an nn.Parameter.
class ViT(nn.Module):
    def __init__(self, image_size, patch, channels, d_model, n_heads, n_layers, n_classes):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch**2, d_model)
        self.class_token = nn.Parameter(torch.zeros(d_model))
        self.register_buffer("positions", torch.randn((image_size // patch) ** 2 + 1, d_model))
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(d_model, n_heads, 4 * d_model, **options) for _ in range(n_layers)
        )
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, n_classes)

    def forward(self, images):
        x = self.embed(patchify(images, self.patch))
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0]))


# %% log_mel: points that are equally far apart in Hz
# caught by: test_the_filters_are_triangles_on_the_mel_scale
# says: The points are equally far apart in Hz, so all filters are equally wide: they should be equally far apart in mel.
def mel_filters(n_mels, n_fft, sample_rate):
    points = torch.linspace(0, sample_rate / 2, n_mels + 2)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = torch.arange(n_fft // 2 + 1) * sample_rate / n_fft
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def log_mel(wave, filters, n_fft, hop):
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (n_fft // 2, n_fft // 2), mode="reflect")
    frames = rows.unfold(-1, n_fft, hop)[:, :-1] * torch.hann_window(n_fft, dtype=wave.dtype)
    logs = (filters @ torch.fft.rfft(frames).abs().square().mT).clamp(min=1e-10).log10()
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8)
    return ((logs + 4) / 4).reshape(*wave.shape[:-1], *logs.shape[-2:])


# %% log_mel: filters scaled by their area
# caught by: test_the_filters_are_triangles_on_the_mel_scale, test_every_frequency_between_two_peaks_counts_once
# says: Each filter is divided by its width, as Slaney's and Whisper's are; here a triangle should be 1 at its peak.
def mel_filters(n_mels, n_fft, sample_rate):
    top = 2595 * math.log10(1 + sample_rate / 1400)
    points = 700 * (10 ** (torch.linspace(0, top, n_mels + 2) / 2595) - 1)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = torch.arange(n_fft // 2 + 1) * sample_rate / n_fft
    bank = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)
    return bank * 2 / (high - low)


def log_mel(wave, filters, n_fft, hop):
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (n_fft // 2, n_fft // 2), mode="reflect")
    frames = rows.unfold(-1, n_fft, hop)[:, :-1] * torch.hann_window(n_fft, dtype=wave.dtype)
    logs = (filters @ torch.fft.rfft(frames).abs().square().mT).clamp(min=1e-10).log10()
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8)
    return ((logs + 4) / 4).reshape(*wave.shape[:-1], *logs.shape[-2:])


# %% log_mel: triangles that are straight in mel
# caught by: test_the_filters_are_triangles_on_the_mel_scale
# says: The sides of the triangles are straight over mel; they should be straight over Hz.
def mel_filters(n_mels, n_fft, sample_rate):
    def mel(f):
        return 2595 * torch.log10(1 + f / 700)

    points = torch.linspace(0, mel(torch.tensor(sample_rate / 2)), n_mels + 2)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = mel(torch.arange(n_fft // 2 + 1) * sample_rate / n_fft)
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def log_mel(wave, filters, n_fft, hop):
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (n_fft // 2, n_fft // 2), mode="reflect")
    frames = rows.unfold(-1, n_fft, hop)[:, :-1] * torch.hann_window(n_fft, dtype=wave.dtype)
    logs = (filters @ torch.fft.rfft(frames).abs().square().mT).clamp(min=1e-10).log10()
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8)
    return ((logs + 4) / 4).reshape(*wave.shape[:-1], *logs.shape[-2:])


# %% log_mel: points rounded to bins
# caught by: test_the_filters_are_triangles_on_the_mel_scale
# says: The points are rounded to bins before the triangles are drawn; they should keep their frequencies.
def mel_filters(n_mels, n_fft, sample_rate):
    top = 2595 * math.log10(1 + sample_rate / 1400)
    points = 700 * (10 ** (torch.linspace(0, top, n_mels + 2) / 2595) - 1)
    edges = (points * (n_fft + 1) / sample_rate).floor().long().tolist()
    bank = torch.zeros(n_mels, n_fft // 2 + 1)
    for m in range(n_mels):
        low, centre, high = edges[m : m + 3]
        for k in range(low, min(high + 1, n_fft // 2 + 1)):
            bank[m, k] = (k - low) / max(centre - low, 1) if k <= centre else (high - k) / max(high - centre, 1)
    return bank


def log_mel(wave, filters, n_fft, hop):
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (n_fft // 2, n_fft // 2), mode="reflect")
    frames = rows.unfold(-1, n_fft, hop)[:, :-1] * torch.hann_window(n_fft, dtype=wave.dtype)
    logs = (filters @ torch.fft.rfft(frames).abs().square().mT).clamp(min=1e-10).log10()
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8)
    return ((logs + 4) / 4).reshape(*wave.shape[:-1], *logs.shape[-2:])


# %% log_mel: the size instead of its square
# caught by: test_the_picture_is_the_one_that_whisper_reads
# says: The size of the Fourier transform is used, not its square: the picture should show power.
def mel_filters(n_mels, n_fft, sample_rate):
    top = 2595 * math.log10(1 + sample_rate / 1400)
    points = 700 * (10 ** (torch.linspace(0, top, n_mels + 2) / 2595) - 1)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = torch.arange(n_fft // 2 + 1) * sample_rate / n_fft
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def log_mel(wave, filters, n_fft, hop):
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (n_fft // 2, n_fft // 2), mode="reflect")
    frames = rows.unfold(-1, n_fft, hop)[:, :-1] * torch.hann_window(n_fft, dtype=wave.dtype)
    logs = (filters @ torch.fft.rfft(frames).abs().mT).clamp(min=1e-10).log10()
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8)
    return ((logs + 4) / 4).reshape(*wave.shape[:-1], *logs.shape[-2:])


# %% log_mel: a symmetric window
# caught by: test_a_sound_in_float64_stays_in_float64, test_the_picture_is_the_one_that_whisper_reads
# says: This is the symmetric Hann window, whose last sample is 0 as well; the periodic one was asked for.
def mel_filters(n_mels, n_fft, sample_rate):
    top = 2595 * math.log10(1 + sample_rate / 1400)
    points = 700 * (10 ** (torch.linspace(0, top, n_mels + 2) / 2595) - 1)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = torch.arange(n_fft // 2 + 1) * sample_rate / n_fft
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def log_mel(wave, filters, n_fft, hop):
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (n_fft // 2, n_fft // 2), mode="reflect")
    frames = rows.unfold(-1, n_fft, hop)[:, :-1] * torch.hann_window(n_fft, periodic=False, dtype=wave.dtype)
    logs = (filters @ torch.fft.rfft(frames).abs().square().mT).clamp(min=1e-10).log10()
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8)
    return ((logs + 4) / 4).reshape(*wave.shape[:-1], *logs.shape[-2:])


# %% log_mel: a window in float32
# caught by: test_a_sound_in_float64_stays_in_float64
# says: The window is made in float32, so the result is right to seven digits only: a sound in float64 needs a window in float64.
def mel_filters(n_mels, n_fft, sample_rate):
    top = 2595 * math.log10(1 + sample_rate / 1400)
    points = 700 * (10 ** (torch.linspace(0, top, n_mels + 2) / 2595) - 1)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = torch.arange(n_fft // 2 + 1) * sample_rate / n_fft
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def log_mel(wave, filters, n_fft, hop):
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (n_fft // 2, n_fft // 2), mode="reflect")
    frames = rows.unfold(-1, n_fft, hop)[:, :-1] * torch.hann_window(n_fft).to(wave.dtype)
    logs = (filters @ torch.fft.rfft(frames).abs().square().mT).clamp(min=1e-10).log10()
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8)
    return ((logs + 4) / 4).reshape(*wave.shape[:-1], *logs.shape[-2:])


# %% log_mel: no window
# caught by: test_the_picture_is_the_one_that_whisper_reads
# says: The frames are cut with hard edges: each should be multiplied with the Hann window.
def mel_filters(n_mels, n_fft, sample_rate):
    top = 2595 * math.log10(1 + sample_rate / 1400)
    points = 700 * (10 ** (torch.linspace(0, top, n_mels + 2) / 2595) - 1)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = torch.arange(n_fft // 2 + 1) * sample_rate / n_fft
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def log_mel(wave, filters, n_fft, hop):
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (n_fft // 2, n_fft // 2), mode="reflect")
    frames = rows.unfold(-1, n_fft, hop)[:, :-1]
    logs = (filters @ torch.fft.rfft(frames).abs().square().mT).clamp(min=1e-10).log10()
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8)
    return ((logs + 4) / 4).reshape(*wave.shape[:-1], *logs.shape[-2:])


# %% log_mel: the loudest sound of the batch
# caught by: test_a_sound_keeps_its_own_ceiling_in_a_batch
# says: The ceiling is the largest value of the whole batch: a loud sound changes the picture of a soft one.
def mel_filters(n_mels, n_fft, sample_rate):
    top = 2595 * math.log10(1 + sample_rate / 1400)
    points = 700 * (10 ** (torch.linspace(0, top, n_mels + 2) / 2595) - 1)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = torch.arange(n_fft // 2 + 1) * sample_rate / n_fft
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def log_mel(wave, filters, n_fft, hop):
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (n_fft // 2, n_fft // 2), mode="reflect")
    frames = rows.unfold(-1, n_fft, hop)[:, :-1] * torch.hann_window(n_fft, dtype=wave.dtype)
    logs = (filters @ torch.fft.rfft(frames).abs().square().mT).clamp(min=1e-10).log10()
    logs = torch.maximum(logs, logs.max() - 8)
    return ((logs + 4) / 4).reshape(*wave.shape[:-1], *logs.shape[-2:])


# %% log_mel: the loudest band of each frame
# caught by: test_the_floor_lies_eight_below_the_ceiling
# says: The ceiling is taken frame by frame; it should be the largest value of the whole sound.
def mel_filters(n_mels, n_fft, sample_rate):
    top = 2595 * math.log10(1 + sample_rate / 1400)
    points = 700 * (10 ** (torch.linspace(0, top, n_mels + 2) / 2595) - 1)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = torch.arange(n_fft // 2 + 1) * sample_rate / n_fft
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def log_mel(wave, filters, n_fft, hop):
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (n_fft // 2, n_fft // 2), mode="reflect")
    frames = rows.unfold(-1, n_fft, hop)[:, :-1] * torch.hann_window(n_fft, dtype=wave.dtype)
    logs = (filters @ torch.fft.rfft(frames).abs().square().mT).clamp(min=1e-10).log10()
    logs = torch.maximum(logs, logs.amax(-2, keepdim=True) - 8)
    return ((logs + 4) / 4).reshape(*wave.shape[:-1], *logs.shape[-2:])


# %% log_mel: no floor under the logarithm
# caught by: test_silence_is_finite
# says: The logarithm of 0 is −∞: the power should be at least 10⁻¹⁰ before it.
def mel_filters(n_mels, n_fft, sample_rate):
    top = 2595 * math.log10(1 + sample_rate / 1400)
    points = 700 * (10 ** (torch.linspace(0, top, n_mels + 2) / 2595) - 1)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = torch.arange(n_fft // 2 + 1) * sample_rate / n_fft
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def log_mel(wave, filters, n_fft, hop):
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (n_fft // 2, n_fft // 2), mode="reflect")
    frames = rows.unfold(-1, n_fft, hop)[:, :-1] * torch.hann_window(n_fft, dtype=wave.dtype)
    logs = (filters @ torch.fft.rfft(frames).abs().square().mT).log10()
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8)
    return ((logs + 4) / 4).reshape(*wave.shape[:-1], *logs.shape[-2:])


# %% log_mel: the floor added instead of applied
# caught by: test_the_floor_lies_eight_below_the_ceiling
# says: 10⁻¹⁰ is added to the power; it should only replace what is smaller.
def mel_filters(n_mels, n_fft, sample_rate):
    top = 2595 * math.log10(1 + sample_rate / 1400)
    points = 700 * (10 ** (torch.linspace(0, top, n_mels + 2) / 2595) - 1)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = torch.arange(n_fft // 2 + 1) * sample_rate / n_fft
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def log_mel(wave, filters, n_fft, hop):
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (n_fft // 2, n_fft // 2), mode="reflect")
    frames = rows.unfold(-1, n_fft, hop)[:, :-1] * torch.hann_window(n_fft, dtype=wave.dtype)
    logs = (filters @ torch.fft.rfft(frames).abs().square().mT + 1e-10).log10()
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8)
    return ((logs + 4) / 4).reshape(*wave.shape[:-1], *logs.shape[-2:])


# %% log_mel: the first frame begins with the sound
# caught by: test_a_frame_is_centred_on_its_sample
# says: The first frame begins with the first sample: it should be centred on it, which needs half a window before it.
def mel_filters(n_mels, n_fft, sample_rate):
    top = 2595 * math.log10(1 + sample_rate / 1400)
    points = 700 * (10 ** (torch.linspace(0, top, n_mels + 2) / 2595) - 1)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = torch.arange(n_fft // 2 + 1) * sample_rate / n_fft
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def log_mel(wave, filters, n_fft, hop):
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (0, n_fft))
    frames = rows.unfold(-1, n_fft, hop)[:, : wave.shape[-1] // hop] * torch.hann_window(n_fft, dtype=wave.dtype)
    logs = (filters @ torch.fft.rfft(frames).abs().square().mT).clamp(min=1e-10).log10()
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8)
    return ((logs + 4) / 4).reshape(*wave.shape[:-1], *logs.shape[-2:])


# %% log_mel: zeros at the ends
# caught by: test_the_picture_is_the_one_that_whisper_reads
# says: The ends are filled with zeros; the sound should be reflected there.
def mel_filters(n_mels, n_fft, sample_rate):
    top = 2595 * math.log10(1 + sample_rate / 1400)
    points = 700 * (10 ** (torch.linspace(0, top, n_mels + 2) / 2595) - 1)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = torch.arange(n_fft // 2 + 1) * sample_rate / n_fft
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def log_mel(wave, filters, n_fft, hop):
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (n_fft // 2, n_fft // 2))
    frames = rows.unfold(-1, n_fft, hop)[:, :-1] * torch.hann_window(n_fft, dtype=wave.dtype)
    logs = (filters @ torch.fft.rfft(frames).abs().square().mT).clamp(min=1e-10).log10()
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8)
    return ((logs + 4) / 4).reshape(*wave.shape[:-1], *logs.shape[-2:])


# %% log_mel: the last frame kept
# caught by: test_the_picture_is_the_one_that_whisper_reads
# says: There is one frame too many: the last one should be dropped.
def mel_filters(n_mels, n_fft, sample_rate):
    top = 2595 * math.log10(1 + sample_rate / 1400)
    points = 700 * (10 ** (torch.linspace(0, top, n_mels + 2) / 2595) - 1)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = torch.arange(n_fft // 2 + 1) * sample_rate / n_fft
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def log_mel(wave, filters, n_fft, hop):
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (n_fft // 2, n_fft // 2), mode="reflect")
    frames = rows.unfold(-1, n_fft, hop) * torch.hann_window(n_fft, dtype=wave.dtype)
    logs = (filters @ torch.fft.rfft(frames).abs().square().mT).clamp(min=1e-10).log10()
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8)
    return ((logs + 4) / 4).reshape(*wave.shape[:-1], *logs.shape[-2:])


# %% log_mel: the natural logarithm
# caught by: test_the_picture_is_the_one_that_whisper_reads
# says: This is the natural logarithm; it should be the one to base 10.
def mel_filters(n_mels, n_fft, sample_rate):
    top = 2595 * math.log10(1 + sample_rate / 1400)
    points = 700 * (10 ** (torch.linspace(0, top, n_mels + 2) / 2595) - 1)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = torch.arange(n_fft // 2 + 1) * sample_rate / n_fft
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def log_mel(wave, filters, n_fft, hop):
    rows = F.pad(wave.reshape(-1, wave.shape[-1]), (n_fft // 2, n_fft // 2), mode="reflect")
    frames = rows.unfold(-1, n_fft, hop)[:, :-1] * torch.hann_window(n_fft, dtype=wave.dtype)
    logs = (filters @ torch.fft.rfft(frames).abs().square().mT).clamp(min=1e-10).log()
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8)
    return ((logs + 4) / 4).reshape(*wave.shape[:-1], *logs.shape[-2:])


# %% ConvStem: a reshape for a transpose
# caught by: test_a_vector_hears_five_frames, test_the_stem_gives_what_the_two_convolutions_give
# says: A reshape gives the right shape and mixes channels with frames: exchange the two dimensions.
class ConvStem(nn.Module):
    def __init__(self, n_mels, d_model):
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(d_model, d_model, 3, stride=2, padding=1)

    def forward(self, mel):
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel))))
        return x.reshape(x.shape[0], x.shape[2], x.shape[1])


# %% ConvStem: no GELU after the second
# caught by: test_the_stem_gives_what_the_two_convolutions_give
# says: GELU follows the first convolution only; it should follow both.
class ConvStem(nn.Module):
    def __init__(self, n_mels, d_model):
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(d_model, d_model, 3, stride=2, padding=1)

    def forward(self, mel):
        return self.conv2(F.gelu(self.conv1(mel))).transpose(1, 2)


# %% ConvStem: no GELU at all
# caught by: test_the_stem_gives_what_the_two_convolutions_give
# says: There is no GELU: two convolutions in a row are one convolution.
class ConvStem(nn.Module):
    def __init__(self, n_mels, d_model):
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(d_model, d_model, 3, stride=2, padding=1)

    def forward(self, mel):
        return self.conv2(self.conv1(mel)).transpose(1, 2)


# %% ConvStem: the step in the first convolution
# caught by: test_a_vector_hears_five_frames, test_the_stem_gives_what_the_two_convolutions_give
# says: The first convolution takes the step of two; it should be the second one.
class ConvStem(nn.Module):
    def __init__(self, n_mels, d_model):
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, d_model, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(d_model, d_model, 3, padding=1)

    def forward(self, mel):
        return F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)


# %% ConvStem: no padding
# caught by: test_the_stem_gives_what_the_two_convolutions_give
# says: Without a zero at each end frames are lost: the convolutions need padding=1.
class ConvStem(nn.Module):
    def __init__(self, n_mels, d_model):
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, d_model, 3)
        self.conv2 = nn.Conv1d(d_model, d_model, 3, stride=2)

    def forward(self, mel):
        return F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)


# %% ConvStem: GELU's approximation
# caught by: test_a_stem_in_float64_gives_float64
# says: This is GELU's tanh approximation; the prompt asks for the exact one.
class ConvStem(nn.Module):
    def __init__(self, n_mels, d_model):
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(d_model, d_model, 3, stride=2, padding=1)

    def forward(self, mel):
        x = F.gelu(self.conv1(mel), approximate="tanh")
        return F.gelu(self.conv2(x), approximate="tanh").transpose(1, 2)


# %% HybridBlock: zeros before the norm
# caught by: test_padding_has_no_say
# says: The padding is zeroed before the LayerNorm, whose bias makes it something else again: zero what the convolution reads.
class HybridBlock(nn.Module):
    def __init__(self, d_model, n_heads, local, kernel=5):
        super().__init__()
        self.kind = local
        self.local = (
            nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=d_model)
            if local == "conv"
            else nn.GRU(d_model, d_model, batch_first=True)
        )
        self.attention = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))

    def forward(self, x, real):
        x = x.masked_fill(~real[..., None], 0)
        h = self.norms[0](x)
        x = x + (self.local(h.mT).mT if self.kind == "conv" else self.local(h)[0])
        h = self.norms[1](x)
        x = x + self.attention(h, h, h, key_padding_mask=~real)[0]
        return (x + self.feed_forward(self.norms[2](x))) * real[..., None]


# %% HybridBlock: attention sees the padding
# caught by: test_padding_has_no_say
# says: Attention is not told what is padding: pass key_padding_mask.
class HybridBlock(nn.Module):
    def __init__(self, d_model, n_heads, local, kernel=5):
        super().__init__()
        self.kind = local
        self.local = (
            nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=d_model)
            if local == "conv"
            else nn.GRU(d_model, d_model, batch_first=True)
        )
        self.attention = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))

    def forward(self, x, real):
        h = self.norms[0](x) * real[..., None]
        x = x + (self.local(h.mT).mT if self.kind == "conv" else self.local(h)[0])
        h = self.norms[1](x)
        x = x + self.attention(h, h, h)[0]
        return (x + self.feed_forward(self.norms[2](x))) * real[..., None]


# %% HybridBlock: PyTorch's mask the wrong way round
# caught by: test_padding_has_no_say, test_every_real_position_notices_every_other
# says: key_padding_mask is read the other way round: in it True means "is padding".
class HybridBlock(nn.Module):
    def __init__(self, d_model, n_heads, local, kernel=5):
        super().__init__()
        self.kind = local
        self.local = (
            nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=d_model)
            if local == "conv"
            else nn.GRU(d_model, d_model, batch_first=True)
        )
        self.attention = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))

    def forward(self, x, real):
        h = self.norms[0](x) * real[..., None]
        x = x + (self.local(h.mT).mT if self.kind == "conv" else self.local(h)[0])
        h = self.norms[1](x)
        x = x + torch.nan_to_num(self.attention(h, h, h, key_padding_mask=real)[0])
        return (x + self.feed_forward(self.norms[2](x))) * real[..., None]


# %% HybridBlock: padding is left as it comes out
# caught by: test_padding_gives_zeros
# says: At padding something is left in the result; it should be zero there.
class HybridBlock(nn.Module):
    def __init__(self, d_model, n_heads, local, kernel=5):
        super().__init__()
        self.kind = local
        self.local = (
            nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=d_model)
            if local == "conv"
            else nn.GRU(d_model, d_model, batch_first=True)
        )
        self.attention = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))

    def forward(self, x, real):
        h = self.norms[0](x) * real[..., None]
        x = x + (self.local(h.mT).mT if self.kind == "conv" else self.local(h)[0])
        h = self.norms[1](x)
        x = x + self.attention(h, h, h, key_padding_mask=~real)[0]
        return x + self.feed_forward(self.norms[2](x))


# %% HybridBlock: as long as the longest
# caught by: test_padding_gives_zeros
# says: The result ends with the longest sequence: where all of them are padded, positions are missing.
class HybridBlock(nn.Module):
    def __init__(self, d_model, n_heads, local, kernel=5):
        super().__init__()
        self.kind = local
        self.local = (
            nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=d_model)
            if local == "conv"
            else nn.GRU(d_model, d_model, batch_first=True)
        )
        self.attention = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))

    def forward(self, x, real):
        n = int(real.sum(1).max())
        x, real = x[:, :n], real[:, :n]
        h = self.norms[0](x) * real[..., None]
        x = x + (self.local(h.mT).mT if self.kind == "conv" else self.local(h)[0])
        h = self.norms[1](x)
        x = x + self.attention(h, h, h, key_padding_mask=~real)[0]
        return (x + self.feed_forward(self.norms[2](x))) * real[..., None]


# %% HybridBlock: the padding of x is zeroed in place
# caught by: test_x_and_real_are_left_as_they_were
# says: The padding is zeroed in x itself, which belongs to the caller: use masked_fill without an underscore.
class HybridBlock(nn.Module):
    def __init__(self, d_model, n_heads, local, kernel=5):
        super().__init__()
        self.kind = local
        self.local = (
            nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=d_model)
            if local == "conv"
            else nn.GRU(d_model, d_model, batch_first=True)
        )
        self.attention = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))

    def forward(self, x, real):
        with torch.no_grad():
            x[~real] = 0
        h = self.norms[0](x) * real[..., None]
        x = x + (self.local(h.mT).mT if self.kind == "conv" else self.local(h)[0])
        h = self.norms[1](x)
        x = x + self.attention(h, h, h, key_padding_mask=~real)[0]
        return (x + self.feed_forward(self.norms[2](x))) * real[..., None]


# %% HybridBlock: a full convolution
# caught by: test_the_block_has_three_sub_layers_and_their_norms
# says: This convolution mixes the channels; in a depthwise one each channel has a kernel of its own (groups=d_model).
class HybridBlock(nn.Module):
    def __init__(self, d_model, n_heads, local, kernel=5):
        super().__init__()
        self.kind = local
        self.local = (
            nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2)
            if local == "conv"
            else nn.GRU(d_model, d_model, batch_first=True)
        )
        self.attention = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))

    def forward(self, x, real):
        h = self.norms[0](x) * real[..., None]
        x = x + (self.local(h.mT).mT if self.kind == "conv" else self.local(h)[0])
        h = self.norms[1](x)
        x = x + self.attention(h, h, h, key_padding_mask=~real)[0]
        return (x + self.feed_forward(self.norms[2](x))) * real[..., None]


# %% HybridBlock: no residual around the local part
# caught by: test_the_convolution_block_computes_its_three_sub_layers, test_the_recurrent_block_computes_its_three_sub_layers
# says: The local part replaces x; like the other two it should be added to it.
class HybridBlock(nn.Module):
    def __init__(self, d_model, n_heads, local, kernel=5):
        super().__init__()
        self.kind = local
        self.local = (
            nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=d_model)
            if local == "conv"
            else nn.GRU(d_model, d_model, batch_first=True)
        )
        self.attention = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))

    def forward(self, x, real):
        h = self.norms[0](x) * real[..., None]
        x = self.local(h.mT).mT if self.kind == "conv" else self.local(h)[0]
        h = self.norms[1](x)
        x = x + self.attention(h, h, h, key_padding_mask=~real)[0]
        return (x + self.feed_forward(self.norms[2](x))) * real[..., None]


# %% HybridBlock: attention first
# caught by: test_the_convolution_block_computes_its_three_sub_layers, test_the_recurrent_block_computes_its_three_sub_layers
# says: Attention comes before the local part; the order should be local, attention, feed-forward.
class HybridBlock(nn.Module):
    def __init__(self, d_model, n_heads, local, kernel=5):
        super().__init__()
        self.kind = local
        self.local = (
            nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=d_model)
            if local == "conv"
            else nn.GRU(d_model, d_model, batch_first=True)
        )
        self.attention = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))

    def forward(self, x, real):
        h = self.norms[1](x)
        x = x + self.attention(h, h, h, key_padding_mask=~real)[0]
        h = self.norms[0](x) * real[..., None]
        x = x + (self.local(h.mT).mT if self.kind == "conv" else self.local(h)[0])
        return (x + self.feed_forward(self.norms[2](x))) * real[..., None]


# %% HybridBlock: the GRU takes the batch for time
# caught by: test_the_recurrent_block_computes_its_three_sub_layers, test_every_real_position_notices_every_other
# says: nn.GRU takes time first unless it is told batch_first=True: one sequence runs into the next.
class HybridBlock(nn.Module):
    def __init__(self, d_model, n_heads, local, kernel=5):
        super().__init__()
        self.kind = local
        self.local = (
            nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=d_model)
            if local == "conv"
            else nn.GRU(d_model, d_model)
        )
        self.attention = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))

    def forward(self, x, real):
        h = self.norms[0](x) * real[..., None]
        x = x + (self.local(h.mT).mT if self.kind == "conv" else self.local(h)[0])
        h = self.norms[1](x)
        x = x + self.attention(h, h, h, key_padding_mask=~real)[0]
        return (x + self.feed_forward(self.norms[2](x))) * real[..., None]


# %% SharedMoE: the probability is left out
# caught by: test_each_token_gets_its_best_expert_times_its_probability
# says: The expert's result is not multiplied by its probability: nothing would tell the router whether it chose well.
class SharedMoE(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model))
            for _ in range(n_experts)
        )

    def forward(self, images, sounds):
        n, d = images.shape[:2].numel(), images.shape[-1]
        tokens = torch.cat([images.reshape(-1, d), sounds.reshape(-1, d)])
        p = self.router(tokens).softmax(-1)
        choice, out = p.argmax(-1), torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            out[choice == e] = expert(tokens[choice == e])
        loss = 0
        for q in (p[:n], p[n:]):
            mean = q.mean(0)
            loss = loss - (q * (q + 1e-9).log()).sum(-1).mean() + (mean * (mean + 1e-9).log()).sum()
        return out[:n].view_as(images), out[n:].view_as(sounds), loss


# %% SharedMoE: float64 goes through float32
# caught by: test_a_layer_in_float64_gives_float64
# says: The results are gathered in float32, so float64 loses half of its digits.
class SharedMoE(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model))
            for _ in range(n_experts)
        )

    def forward(self, images, sounds):
        n, d = images.shape[:2].numel(), images.shape[-1]
        tokens = torch.cat([images.reshape(-1, d), sounds.reshape(-1, d)])
        p = self.router(tokens).softmax(-1)
        choice, out = p.argmax(-1), torch.zeros(tokens.shape)
        for e, expert in enumerate(self.experts):
            out[choice == e] = (p[choice == e, e, None] * expert(tokens[choice == e])).float()
        out, loss = out.to(tokens.dtype), 0
        for q in (p[:n], p[n:]):
            mean = q.mean(0)
            loss = loss - (q * (q + 1e-9).log()).sum(-1).mean() + (mean * (mean + 1e-9).log()).sum()
        return out[:n].view_as(images), out[n:].view_as(sounds), loss


# %% SharedMoE: one mean over both kinds
# caught by: test_the_loss_looks_at_each_kind_by_itself, test_the_loss_is_the_difference_of_two_entropies_for_each_kind
# says: Both kinds are taken together, so experts split between them look balanced: each kind needs its own two entropies.
class SharedMoE(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model))
            for _ in range(n_experts)
        )

    def forward(self, images, sounds):
        n, d = images.shape[:2].numel(), images.shape[-1]
        tokens = torch.cat([images.reshape(-1, d), sounds.reshape(-1, d)])
        p = self.router(tokens).softmax(-1)
        choice, out = p.argmax(-1), torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            out[choice == e] = p[choice == e, e, None] * expert(tokens[choice == e])
        mean = p.mean(0)
        loss = -(p * (p + 1e-9).log()).sum(-1).mean() + (mean * (mean + 1e-9).log()).sum()
        return out[:n].view_as(images), out[n:].view_as(sounds), loss


# %% SharedMoE: the sign of the loss
# caught by: test_the_loss_is_the_difference_of_two_entropies_for_each_kind
# says: The sign is turned round: this loss makes the router unsure and the choice narrow.
class SharedMoE(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model))
            for _ in range(n_experts)
        )

    def forward(self, images, sounds):
        n, d = images.shape[:2].numel(), images.shape[-1]
        tokens = torch.cat([images.reshape(-1, d), sounds.reshape(-1, d)])
        p = self.router(tokens).softmax(-1)
        choice, out = p.argmax(-1), torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            out[choice == e] = p[choice == e, e, None] * expert(tokens[choice == e])
        loss = 0
        for q in (p[:n], p[n:]):
            mean = q.mean(0)
            loss = loss + (q * (q + 1e-9).log()).sum(-1).mean() - (mean * (mean + 1e-9).log()).sum()
        return out[:n].view_as(images), out[n:].view_as(sounds), loss


# %% SharedMoE: the mean of the two kinds
# caught by: test_the_loss_is_the_difference_of_two_entropies_for_each_kind
# says: The two kinds are averaged; the loss is their sum.
class SharedMoE(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model))
            for _ in range(n_experts)
        )

    def forward(self, images, sounds):
        n, d = images.shape[:2].numel(), images.shape[-1]
        tokens = torch.cat([images.reshape(-1, d), sounds.reshape(-1, d)])
        p = self.router(tokens).softmax(-1)
        choice, out = p.argmax(-1), torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            out[choice == e] = p[choice == e, e, None] * expert(tokens[choice == e])
        loss = 0
        for q in (p[:n], p[n:]):
            mean = q.mean(0)
            loss = loss - (q * (q + 1e-9).log()).sum(-1).mean() / 2 + (mean * (mean + 1e-9).log()).sum() / 2
        return out[:n].view_as(images), out[n:].view_as(sounds), loss


# %% SharedMoE: 0 · ln 0
# caught by: test_a_probability_of_zero_leaves_everything_finite
# says: Where a probability is exactly 0 its logarithm is −∞, and 0 · ∞ is NaN.
class SharedMoE(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model))
            for _ in range(n_experts)
        )

    def forward(self, images, sounds):
        n, d = images.shape[:2].numel(), images.shape[-1]
        tokens = torch.cat([images.reshape(-1, d), sounds.reshape(-1, d)])
        p = self.router(tokens).softmax(-1)
        choice, out = p.argmax(-1), torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            out[choice == e] = p[choice == e, e, None] * expert(tokens[choice == e])
        loss = 0
        for q in (p[:n], p[n:]):
            mean = q.mean(0)
            loss = loss - (q * q.log()).sum(-1).mean() + (mean * mean.log()).sum()
        return out[:n].view_as(images), out[n:].view_as(sounds), loss


# %% SharedMoE: an entropy whose slope is infinite
# caught by: test_a_probability_of_zero_leaves_everything_finite
# says: The entropy is finite at a probability of 0, and its slope there is not: the gradients become NaN.
class SharedMoE(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model))
            for _ in range(n_experts)
        )

    def forward(self, images, sounds):
        n, d = images.shape[:2].numel(), images.shape[-1]
        tokens = torch.cat([images.reshape(-1, d), sounds.reshape(-1, d)])
        p = self.router(tokens).softmax(-1)
        choice, out = p.argmax(-1), torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            out[choice == e] = p[choice == e, e, None] * expert(tokens[choice == e])
        loss = 0
        for q in (p[:n], p[n:]):
            loss = loss + torch.special.entr(q).sum(-1).mean() - torch.special.entr(q.mean(0)).sum()
        return out[:n].view_as(images), out[n:].view_as(sounds), loss


# %% SharedMoE: every expert computes every token
# caught by: test_an_expert_computes_its_own_tokens_only
# says: Every expert computes every token and a zero hides the result: nothing is saved, and 0 · NaN is NaN.
class SharedMoE(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model))
            for _ in range(n_experts)
        )

    def forward(self, images, sounds):
        n, d = images.shape[:2].numel(), images.shape[-1]
        tokens = torch.cat([images.reshape(-1, d), sounds.reshape(-1, d)])
        p = self.router(tokens).softmax(-1)
        gate = p * F.one_hot(p.argmax(-1), p.shape[-1])
        out = sum(gate[:, e, None] * expert(tokens) for e, expert in enumerate(self.experts))
        loss = 0
        for q in (p[:n], p[n:]):
            mean = q.mean(0)
            loss = loss - (q * (q + 1e-9).log()).sum(-1).mean() + (mean * (mean + 1e-9).log()).sum()
        return out[:n].view_as(images), out[n:].view_as(sounds), loss


# %% SharedMoE: every expert computes every token, and where picks
# caught by: test_an_expert_computes_its_own_tokens_only
# says: Every expert computes every token and torch.where throws most of it away: nothing is saved, and its gradient is NaN.
class SharedMoE(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model))
            for _ in range(n_experts)
        )

    def forward(self, images, sounds):
        n, d = images.shape[:2].numel(), images.shape[-1]
        tokens = torch.cat([images.reshape(-1, d), sounds.reshape(-1, d)])
        p = self.router(tokens).softmax(-1)
        gate = p * F.one_hot(p.argmax(-1), p.shape[-1])
        out = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            out = torch.where(gate[:, e, None] > 0, gate[:, e, None] * expert(tokens), out)
        loss = 0
        for q in (p[:n], p[n:]):
            mean = q.mean(0)
            loss = loss - (q * (q + 1e-9).log()).sum(-1).mean() + (mean * (mean + 1e-9).log()).sum()
        return out[:n].view_as(images), out[n:].view_as(sounds), loss


# %% SharedMoE: the router is asked for each kind
# caught by: test_one_router_is_asked_once
# says: The router is called twice, once for each kind; it should hear all tokens in one call.
class SharedMoE(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model))
            for _ in range(n_experts)
        )

    def one(self, x):
        tokens = x.flatten(0, 1)
        p = self.router(tokens).softmax(-1)
        choice, out = p.argmax(-1), torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            out[choice == e] = p[choice == e, e, None] * expert(tokens[choice == e])
        mean = p.mean(0)
        loss = -(p * (p + 1e-9).log()).sum(-1).mean() + (mean * (mean + 1e-9).log()).sum()
        return out.view_as(x), loss

    def forward(self, images, sounds):
        (x, a), (y, b) = self.one(images), self.one(sounds)
        return x, y, a + b


# %% SharedMoE: sounds before images
# caught by: test_the_router_hears_the_images_first
# says: The sounds' tokens stand before those of the images.
class SharedMoE(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model))
            for _ in range(n_experts)
        )

    def forward(self, images, sounds):
        n, d = sounds.shape[:2].numel(), images.shape[-1]
        tokens = torch.cat([sounds.reshape(-1, d), images.reshape(-1, d)])
        p = self.router(tokens).softmax(-1)
        choice, out = p.argmax(-1), torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            out[choice == e] = p[choice == e, e, None] * expert(tokens[choice == e])
        loss = 0
        for q in (p[:n], p[n:]):
            mean = q.mean(0)
            loss = loss - (q * (q + 1e-9).log()).sum(-1).mean() + (mean * (mean + 1e-9).log()).sum()
        return out[n:].view_as(images), out[:n].view_as(sounds), loss


# %% SharedMoE: a residual inside
# caught by: test_each_token_gets_its_best_expert_times_its_probability
# says: The token is added to its result: the residual is not part of this layer.
class SharedMoE(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model))
            for _ in range(n_experts)
        )

    def forward(self, images, sounds):
        n, d = images.shape[:2].numel(), images.shape[-1]
        tokens = torch.cat([images.reshape(-1, d), sounds.reshape(-1, d)])
        p = self.router(tokens).softmax(-1)
        choice, out = p.argmax(-1), tokens.clone()
        for e, expert in enumerate(self.experts):
            out[choice == e] += p[choice == e, e, None] * expert(tokens[choice == e])
        loss = 0
        for q in (p[:n], p[n:]):
            mean = q.mean(0)
            loss = loss - (q * (q + 1e-9).log()).sum(-1).mean() + (mean * (mean + 1e-9).log()).sum()
        return out[:n].view_as(images), out[n:].view_as(sounds), loss
