# %% helpers
def grid_of(height, width, patch):
    """Rows and columns of patches, or a ValueError."""
    if height % patch or width % patch:
        raise ValueError(f"A patch of {patch} pixels divides neither or only one of height {height} and width {width}.")
    return height // patch, width // patch


def encoder_layer(d_model, n_heads):
    # the defaults are those of 2017, so all four are named
    return nn.TransformerEncoderLayer(
        d_model,
        n_heads,
        dim_feedforward=4 * d_model,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )


# %% patchify
def patchify(images, patch):
    rows, cols = grid_of(images.shape[2], images.shape[3], patch)
    pieces = [
        images[:, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].reshape(len(images), -1)
        for r in range(rows)
        for c in range(cols)
    ]
    return torch.stack(pieces, dim=1)


def unpatchify(patches, patch, height, width):
    rows, cols = grid_of(height, width, patch)
    squares = patches.reshape(patches.shape[0], rows, cols, -1, patch, patch)
    lines = torch.cat([squares[:, :, c] for c in range(cols)], dim=-1)
    return torch.cat([lines[:, r] for r in range(rows)], dim=-2)


# %% ViT
class ViT(nn.Module):
    def __init__(self, image_size, patch, channels, d_model, n_heads, n_layers, n_classes):
        super().__init__()
        self.patch = patch
        n_patches = (image_size // patch) ** 2
        self.embed = nn.Linear(channels * patch**2, d_model)
        self.class_token = nn.Parameter(torch.randn(d_model) * 0.02)
        self.positions = nn.Parameter(torch.randn(n_patches + 1, d_model) * 0.02)
        self.layers = nn.ModuleList([encoder_layer(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, n_classes)

    def forward(self, images):
        patches = self.embed(patchify(images, self.patch))
        token = self.class_token.repeat(len(images), 1, 1)
        x = torch.cat([token, patches], dim=1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0, :]))


# %% log_mel
def mel_filters(n_mels, n_fft, sample_rate):
    top = math.log10(1 + sample_rate / 2 / 700)
    edges = [700 * (10 ** (i * top / (n_mels + 1)) - 1) for i in range(n_mels + 2)]
    freqs = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft
    rows = []
    for low, mid, high in zip(edges, edges[1:], edges[2:]):
        rise = (freqs - low) / (mid - low)
        fall = (high - freqs) / (high - mid)
        rows.append(torch.minimum(rise, fall).clamp(min=0))
    return torch.stack(rows).float()


def log_mel(wave, filters, n_fft, hop):
    half = n_fft // 2
    n = wave.shape[-1]
    flat = wave.reshape(-1, n)
    left, right = flat[:, 1 : half + 1].flip(-1), flat[:, n - half - 1 : n - 1].flip(-1)
    padded = torch.cat([left, flat, right], dim=-1)
    i = torch.arange(n_fft, dtype=wave.dtype)
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * i / n_fft)
    frames = torch.stack([padded[:, t * hop : t * hop + n_fft] for t in range(n // hop)], dim=1) * window
    spectrum = torch.fft.rfft(frames)
    power = spectrum.real**2 + spectrum.imag**2
    log = torch.log10(torch.clamp(power @ filters.T, min=1e-10)).transpose(1, 2)
    loudest = log.amax(dim=(1, 2), keepdim=True)
    out = (torch.maximum(log, loudest - 8) + 4) / 4
    return out.reshape(*wave.shape[:-1], *out.shape[1:])


# %% ConvStem
class ConvStem(nn.Module):
    def __init__(self, n_mels, d_model):
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(d_model, d_model, kernel_size=3, stride=2, padding=1)

    def forward(self, mel):
        x = F.gelu(self.conv1(mel))
        x = F.gelu(self.conv2(x))
        return x.transpose(1, 2)


# %% HybridBlock
class HybridBlock(nn.Module):
    def __init__(self, d_model, n_heads, local, kernel=5):
        super().__init__()
        self.is_conv = local == "conv"
        if self.is_conv:
            self.local = nn.Conv1d(d_model, d_model, kernel, padding=(kernel - 1) // 2, groups=d_model)
        else:
            self.local = nn.GRU(d_model, d_model, batch_first=True)
        self.attention = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.norms = nn.ModuleList([nn.LayerNorm(d_model) for _ in range(3)])

    def forward(self, x, real):
        zero = torch.zeros((), dtype=x.dtype)
        keep = real[:, :, None]
        h = torch.where(keep, self.norms[0](x), zero)
        if self.is_conv:
            h = self.local(h.transpose(1, 2)).transpose(1, 2)
        else:
            h, _ = self.local(h)
        x = x + h
        h = self.norms[1](x)
        h, _ = self.attention(h, h, h, key_padding_mask=~real, need_weights=False)
        x = x + h
        x = x + self.feed_forward(self.norms[2](x))
        return torch.where(keep, x, zero)


# %% SharedMoE
class SharedMoE(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model))
                for _ in range(n_experts)
            ]
        )

    def forward(self, images, sounds):
        d = images.shape[-1]
        n = images.shape[0] * images.shape[1]
        tokens = torch.cat([images.reshape(n, d), sounds.reshape(-1, d)], dim=0)
        logp = F.log_softmax(self.router(tokens), dim=-1)
        p = logp.exp()
        best = logp.argmax(dim=-1)
        out = torch.zeros_like(tokens)
        for e in range(len(self.experts)):
            rows = (best == e).nonzero().flatten()
            if len(rows):
                out = out.index_copy(0, rows, p[rows, e].unsqueeze(1) * self.experts[e](tokens[rows]))
        loss = torch.zeros(())
        for part in (slice(0, n), slice(n, None)):
            each = -(p[part] * logp[part]).sum(dim=-1).mean()
            mean = p[part].mean(dim=0)
            whole = -(mean * mean.clamp(min=1e-20).log()).sum()
            loss = loss + each - whole
        return out[:n].reshape(images.shape), out[n:].reshape(sounds.shape), loss
