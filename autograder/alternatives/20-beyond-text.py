# Right answers written differently: each must get full marks. The set-up cell of the chapter runs before each of them.


# %% patchify: einops
def patchify(images, patch):
    from einops import rearrange

    h, w = images.shape[-2:]
    if h % patch != 0 or w % patch != 0:
        raise ValueError(f"An image of {h}x{w} cannot be cut into {patch}x{patch}.")
    return rearrange(images, "b c (y p) (x q) -> b (y x) (c p q)", p=patch, q=patch)


def unpatchify(patches, patch, height, width):
    from einops import rearrange

    return rearrange(patches, "b (y x) (c p q) -> b c (y p) (x q)", y=height // patch, p=patch, q=patch)


# %% patchify: a loop over squares
def patchify(images, patch):
    height, width = images.size(2), images.size(3)
    if not (height % patch == 0 and width % patch == 0):
        raise ValueError(f"height={height}, width={width}, patch={patch}: no fit")
    squares = []
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            squares.append(images[:, :, top : top + patch, left : left + patch].flatten(1))
    return torch.stack(squares, dim=1)


def unpatchify(patches, patch, height, width):
    per_row = width // patch
    rows = []
    for r in range(height // patch):
        row = patches[:, r * per_row : (r + 1) * per_row].unbind(1)
        rows.append(torch.cat([p.reshape(len(patches), -1, patch, patch) for p in row], dim=3))
    return torch.cat(rows, dim=2)


# %% patchify: windows, and a table of places on the way back
def patchify(images, patch):
    if any(size % patch for size in images.shape[2:]):
        raise ValueError(f"{patch} divides {images.shape[2]} or {images.shape[3]} with a rest")
    x = images.unfold(2, patch, patch).unfold(3, patch, patch).movedim(1, 3)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], -1)


def unpatchify(patches, patch, height, width):
    batch, n, dim = patches.shape
    channels = dim // patch**2
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    which = (y // patch) * (width // patch) + x // patch
    place = (y % patch) * patch + x % patch
    return torch.stack([patches[:, which, c * patch**2 + place] for c in range(channels)], 1)


# %% ViT: a convolution's arithmetic, positions added in two places
class ViT(nn.Module):
    def __init__(self, image_size, patch, channels, d_model, n_heads, n_layers, n_classes):
        super().__init__()
        self.p = patch
        self.embed = nn.Linear(patch * patch * channels, d_model)
        self.class_token = nn.Parameter(torch.randn(d_model))
        self.positions = nn.Parameter(torch.randn(1 + (image_size // patch) * (image_size // patch), d_model))
        self.layers = nn.ModuleList()
        for _ in range(n_layers):
            layer = nn.TransformerEncoderLayer(
                d_model, n_heads, dim_feedforward=d_model * 4, dropout=0, activation=F.gelu, norm_first=True,
                batch_first=True,
            )  # fmt: skip
            self.layers.append(layer)
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, n_classes)

    def forward(self, images):
        kernel = self.embed.weight.unflatten(1, (-1, self.p, self.p))
        patches = F.conv2d(images, kernel, self.embed.bias, stride=self.p).flatten(2).transpose(1, 2)
        x = torch.empty(len(images), len(self.positions), patches.shape[-1], dtype=images.dtype)
        x[:, 0] = self.class_token + self.positions[0]
        x[:, 1:] = patches + self.positions[1:]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


# %% ViT: sequence first
class ViT(nn.Module):
    def __init__(self, image_size, patch, channels, d_model, n_heads, n_layers, n_classes):
        super().__init__()
        self.patch = patch
        per_side = image_size // patch
        self.register_parameter("class_token", nn.Parameter(torch.full((d_model,), 0.1)))
        self.positions = nn.Parameter(torch.zeros(per_side * per_side + 1, d_model))
        self.embed = nn.Linear(channels * patch * patch, d_model)
        self.layers = nn.Sequential(
            *[
                nn.TransformerEncoderLayer(d_model, n_heads, 4 * d_model, 0.0, nn.GELU(), norm_first=True)
                for _ in range(n_layers)
            ]
        )
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, n_classes)

    def forward(self, images):
        x = self.embed(patchify(images, self.patch)).transpose(0, 1)
        cls = self.class_token.repeat(1, images.shape[0], 1)
        x = torch.cat((cls, x)) + self.positions[:, None]
        return self.head(self.norm(self.layers(x)[0]))


# %% ViT: PyTorch's encoder keeps the layers
class ViT(nn.Module):
    def __init__(self, image_size, patch, channels, d_model, n_heads, n_layers, n_classes):
        super().__init__()
        self.patch = patch
        layer = [
            nn.TransformerEncoderLayer(
                d_model, n_heads, 4 * d_model, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(n_layers)
        ]
        self.layers = nn.ModuleList(layer)
        self.embed, self.norm = nn.Linear(channels * patch**2, d_model), nn.LayerNorm(d_model)
        self.class_token = nn.Parameter(torch.empty(d_model).normal_())
        self.positions = nn.Parameter(torch.empty((image_size**2) // (patch**2) + 1, d_model).normal_())
        self.head = nn.Linear(d_model, n_classes)

    def forward(self, images):
        embedded = F.pad(self.embed(patchify(images, self.patch)), (0, 0, 1, 0))
        first = F.one_hot(torch.tensor(0), len(self.positions)).to(embedded)[:, None] * self.class_token
        x = embedded + first + self.positions
        for layer in self.layers:
            x = x + layer.self_attn(*[layer.norm1(x)] * 3, need_weights=False)[0]
            x = x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
        return self.head(self.norm(x.select(1, 0)))


# %% log_mel: loops and interpolation
def mel_filters(n_mels, n_fft, sample_rate):
    def mel(hz):
        return 2595 * math.log10(1 + hz / 700)

    def hz(mel):
        return 700 * (10 ** (mel / 2595) - 1)

    step = mel(sample_rate / 2) / (n_mels + 1)
    bank = torch.zeros(n_mels, n_fft // 2 + 1)
    for m in range(n_mels):
        low, peak, high = hz(m * step), hz((m + 1) * step), hz((m + 2) * step)
        for k in range(n_fft // 2 + 1):
            f = k * sample_rate / n_fft
            if low < f <= peak:
                bank[m, k] = (f - low) / (peak - low)
            elif peak < f < high:
                bank[m, k] = (high - f) / (high - peak)
    return bank


def log_mel(wave, filters, n_fft, hop):
    if wave.dim() > 1:
        return torch.stack([log_mel(one, filters, n_fft, hop) for one in wave])
    half = n_fft // 2
    long = torch.cat([wave[1 : half + 1].flip(0), wave, wave[-half - 1 : -1].flip(0)])
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(n_fft, dtype=wave.dtype) / n_fft)
    columns = []
    for t in range(len(wave) // hop):
        spectrum = torch.fft.rfft(window * long[t * hop : t * hop + n_fft])
        columns.append(filters @ (spectrum.real**2 + spectrum.imag**2))
    log = torch.stack(columns, 1).clamp_min(1e-10).log10()
    return log.clamp_min(log.max().item() - 8) / 4 + 1


# %% log_mel: sines and cosines in two products
def mel_filters(n_mels, n_fft, sample_rate):
    edges = 700 * torch.expm1(torch.linspace(0, math.log(1 + sample_rate / 1400), n_mels + 2, dtype=torch.float64))
    f = torch.fft.rfftfreq(n_fft, 1 / sample_rate, dtype=torch.float64)
    slope = (f - edges[:, None]) / 1.0
    rising = slope[:-2] / edges.diff()[:-1, None]
    falling = -slope[2:] / edges.diff()[1:, None]
    return torch.relu(torch.where(rising < falling, rising, falling)).to(torch.float32)


def log_mel(wave, filters, n_fft, hop):
    lead, half = wave.shape[:-1], n_fft // 2
    flat = wave.reshape(-1, 1, wave.shape[-1])
    angles = 2 * math.pi * torch.arange(half + 1).double()[:, None] * torch.arange(n_fft).double() / n_fft
    window = torch.hann_window(n_fft, dtype=torch.float64)
    kernels = torch.cat([angles.cos() * window, angles.sin() * window]).to(wave.dtype)[:, None]
    both = F.conv1d(F.pad(flat, (half, half), "reflect"), kernels, stride=hop)[..., :-1]
    power = both[:, : half + 1] ** 2 + both[:, half + 1 :] ** 2
    mel = torch.einsum("mf,bft->bmt", filters, power)
    log = torch.log10(torch.where(mel > 1e-10, mel, torch.full_like(mel, 1e-10)))
    ceiling = log.flatten(1).max(-1).values[:, None, None]
    return (torch.maximum(log, ceiling - 8.0) * 0.25 + 1.0).reshape(*lead, *log.shape[1:])


# %% ConvStem: modules
class ConvStem(nn.Module):
    def __init__(self, n_mels, d_model):
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, d_model, kernel_size=3, padding="same")
        self.conv2 = nn.Conv1d(d_model, d_model, kernel_size=3, stride=2, padding=1)
        self.act = nn.GELU()

    def forward(self, mel):
        return self.act(self.conv2(self.act(self.conv1(mel)))).permute(0, 2, 1).contiguous()


# %% ConvStem: products of frames and kernels
class ConvStem(nn.Module):
    def __init__(self, n_mels, d_model):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(n_mels, d_model, 3), nn.Conv1d(d_model, d_model, 3)

    def forward(self, mel):
        x = mel
        for conv, step in ((self.conv1, 1), (self.conv2, 2)):
            near = F.pad(x, (1, 1)).unfold(-1, 3, step)
            x = F.gelu(torch.einsum("bctk,dck->bdt", near, conv.weight) + conv.bias[:, None])
        return torch.einsum("bdt->btd", x)


# %% HybridBlock: torch.where, and a convolution by shifts
class HybridBlock(nn.Module):
    def __init__(self, d_model, n_heads, local, kernel=5):
        super().__init__()
        self.kind, self.kernel = local, kernel
        if local == "conv":
            self.local = nn.Conv1d(d_model, d_model, kernel, groups=d_model)
        else:
            self.local = nn.GRU(input_size=d_model, hidden_size=d_model, num_layers=1)
        self.attention = nn.MultiheadAttention(d_model, n_heads)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, d_model * 4), nn.GELU(), nn.Linear(d_model * 4, d_model))
        self.norms = nn.ModuleList([nn.LayerNorm(d_model), nn.LayerNorm(d_model), nn.LayerNorm(d_model)])

    def forward(self, x, real):
        keep, n = real.unsqueeze(-1), x.shape[1]
        h = torch.where(keep, self.norms[0](x), torch.zeros_like(x))
        if self.kind == "conv":
            half = self.kernel // 2
            wide = F.pad(h, (0, 0, half, half))
            taps = [wide[:, k : k + n] * self.local.weight[:, 0, k] for k in range(self.kernel)]
            y = x + sum(taps) + self.local.bias
        else:
            y = x + self.local(h.transpose(0, 1))[0].transpose(0, 1)
        h = self.norms[1](y).transpose(0, 1)
        y = y + self.attention(h, h, h, real.logical_not())[0].transpose(0, 1)
        y = y + self.feed_forward(self.norms[2](y))
        return torch.where(keep, y, torch.zeros_like(y))


# %% HybridBlock: a float mask, and packed sequences
class HybridBlock(nn.Module):
    def __init__(self, d_model, n_heads, local, kernel=5):
        super().__init__()
        made = {
            "conv": lambda: nn.Conv1d(d_model, d_model, kernel, padding="same", groups=d_model),
            "gru": lambda: nn.GRU(d_model, d_model, batch_first=True),
        }
        self.local = made[local]()
        self.recurrent = local == "gru"
        self.attention = nn.MultiheadAttention(d_model, n_heads, dropout=0.0, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))
        self.n_heads = n_heads

    def near(self, h, real):
        if not self.recurrent:
            return self.local((h * real[..., None]).transpose(1, 2)).transpose(1, 2)
        pack = nn.utils.rnn.pack_padded_sequence(h, real.sum(1), batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.local(pack)[0], batch_first=True, total_length=h.shape[1])[0]

    def forward(self, x, real):
        first, second, third = self.norms
        x = x.masked_fill(~real[..., None], 0.0)
        x = x + self.near(first(x), real)
        bias = torch.zeros(real.shape, dtype=x.dtype).masked_fill(~real, -math.inf)
        h = second(x)
        x = x + self.attention(h, h, h, key_padding_mask=bias, need_weights=True)[0]
        x = x + self.feed_forward(third(x))
        return x * real[..., None]


# %% SharedMoE: log-softmax
class SharedMoE(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList()
        for _ in range(n_experts):
            self.experts.append(nn.Sequential(nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model)))

    def forward(self, images, sounds):
        rows = [x.reshape(-1, x.shape[-1]) for x in (images, sounds)]
        logits = self.router(torch.vstack(rows))
        outs, loss, start = [], torch.zeros(()), 0
        for x, tokens in zip((images, sounds), rows, strict=True):
            own = logits[start : start + len(tokens)]
            start += len(tokens)
            logp = own.log_softmax(-1)
            best, expert = logp.max(-1)
            out = torch.zeros_like(tokens)
            for e in expert.unique().tolist():
                out[expert == e] = best[expert == e].exp()[:, None] * self.experts[e](tokens[expert == e])
            outs.append(out.view(x.shape))
            mean = torch.logsumexp(logp, 0) - math.log(len(tokens))
            loss = loss - (logp.exp() * logp).sum(-1).mean() + (mean.exp() * mean).sum()
        return outs[0], outs[1], loss


# %% SharedMoE: one token after the other
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

    @staticmethod
    def entropy(p):
        safe = torch.where(p > 0, p, torch.ones_like(p))
        return -(safe * safe.log()).sum(-1)

    def forward(self, images, sounds):
        tokens = torch.cat((images.flatten(end_dim=1), sounds.flatten(end_dim=1)))
        p = torch.softmax(self.router(tokens), dim=1)
        out = torch.stack([row.max() * self.experts[int(row.argmax())](x) for row, x in zip(p, tokens, strict=True)])
        n = images.shape[0] * images.shape[1]
        loss = sum(self.entropy(part).mean() - self.entropy(part.mean(dim=0)) for part in (p[:n], p[n:]))
        return out[:n].view(images.shape), out[n:].view(sounds.shape), loss
