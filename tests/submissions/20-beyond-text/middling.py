# %% patchify
def patchify(images, patch):
    # right, except that nothing is checked
    b, c, h, w = images.shape
    x = images.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * patch * patch)


def unpatchify(patches, patch, height, width):
    # only for square images
    b, n, _ = patches.shape
    side = int(n**0.5)
    x = patches.reshape(b, side, side, -1, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, side * patch, side * patch)


# %% ViT
class ViT(nn.Module):
    def __init__(self, image_size, patch, channels, d_model, n_heads, n_layers, n_classes):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, d_model)
        self.class_token = nn.Parameter(torch.zeros(d_model))
        self.positions = nn.Parameter(torch.zeros((image_size // patch) ** 2 + 1, d_model))
        # forgot norm_first
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(d_model, n_heads, 4 * d_model, 0.0, "gelu", batch_first=True)
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, n_classes)

    def forward(self, images):
        x = self.embed(patchify(images, self.patch))
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0]))


# %% log_mel
def mel_filters(n_mels, n_fft, sample_rate):
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    hz = 700 * (10 ** (torch.linspace(0, top, n_mels + 2) / 2595) - 1)
    f = torch.arange(n_fft // 2 + 1) * sample_rate / n_fft
    up = (f - hz[:-2, None]) / (hz[1:-1] - hz[:-2])[:, None]
    down = (hz[2:, None] - f) / (hz[2:] - hz[1:-1])[:, None]
    return torch.minimum(up, down).clamp(min=0)


def log_mel(wave, filters, n_fft, hop):
    # one ceiling for the whole batch, and only one dimension before the samples
    x = wave if wave.dim() == 2 else wave[None]
    x = F.pad(x, (n_fft // 2, n_fft // 2), mode="reflect")
    frames = x.unfold(-1, n_fft, hop)[:, :-1] * torch.hann_window(n_fft)
    power = torch.fft.rfft(frames).abs() ** 2
    log = (filters @ power.transpose(1, 2)).clamp(min=1e-10).log10()
    out = (torch.maximum(log, log.max() - 8) + 4) / 4
    return out if wave.dim() == 2 else out[0]


# %% ConvStem
class ConvStem(nn.Module):
    def __init__(self, n_mels, d_model):
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(d_model, d_model, 3, stride=2, padding=1)

    def forward(self, mel):
        return F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)


# %% HybridBlock
class HybridBlock(nn.Module):
    def __init__(self, d_model, n_heads, local, kernel=5):
        super().__init__()
        self.conv = local == "conv"
        self.local = (
            nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=d_model)
            if self.conv
            else nn.GRU(d_model, d_model, batch_first=True)
        )
        self.attention = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))

    def forward(self, x, real):
        # attention knows the padding, the convolution does not
        h = self.norms[0](x)
        x = x + (self.local(h.transpose(1, 2)).transpose(1, 2) if self.conv else self.local(h)[0])
        h = self.norms[1](x)
        x = x + self.attention(h, h, h, key_padding_mask=~real)[0]
        x = x + self.feed_forward(self.norms[2](x))
        return x * real[:, :, None]
