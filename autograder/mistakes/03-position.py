# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% sinusoidal: sines first, then cosines
# caught by: test_sines_and_cosines_alternate, test_each_pair_has_its_frequency
# says: All sines stand in the first half and all cosines in the second; here they alternate.
def sinusoidal(n, d_model, base=10000.0):
    if d_model % 2:
        raise ValueError(f"d_model is {d_model}")
    angles = torch.arange(n)[:, None] / base ** (torch.arange(0, d_model, 2) / d_model)
    return torch.cat([angles.sin(), angles.cos()], -1)


# %% sinusoidal: cosines in the even channels
# caught by: test_sines_and_cosines_alternate, test_each_pair_has_its_frequency
# says: Sine and cosine are swapped: the sine stands in the even channel, the cosine in the odd one.
def sinusoidal(n, d_model, base=10000.0):
    if d_model % 2:
        raise ValueError(f"d_model is {d_model}")
    angles = torch.arange(n)[:, None] / base ** (torch.arange(0, d_model, 2) / d_model)
    return torch.stack([angles.cos(), angles.sin()], -1).flatten(-2)


# %% sinusoidal: the channel's number for the pair's
# caught by: test_each_pair_has_its_frequency
# says: The exponent runs twice as fast as it should: 2i/d_model counts pairs, and your i counts channels.
def sinusoidal(n, d_model, base=10000.0):
    if d_model % 2:
        raise ValueError(f"d_model is {d_model}")
    pe = torch.zeros(n, d_model)
    position = torch.arange(n).float()
    for i in range(0, d_model, 2):
        pe[:, i] = torch.sin(position / base ** (2 * i / d_model))
        pe[:, i + 1] = torch.cos(position / base ** (2 * i / d_model))
    return pe


# %% sinusoidal: the exponent i/d_model
# caught by: test_each_pair_has_its_frequency
# says: The exponent is i/d_model, half of 2i/d_model: the slow pairs turn far too fast.
def sinusoidal(n, d_model, base=10000.0):
    if d_model % 2:
        raise ValueError(f"d_model is {d_model}")
    angles = torch.arange(n)[:, None] / base ** (torch.arange(d_model // 2) / d_model)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


# %% sinusoidal: a frequency for each channel
# caught by: test_sines_and_cosines_alternate, test_each_pair_has_its_frequency
# says: Sine and cosine of a pair have different frequencies: both take the exponent of the pair.
def sinusoidal(n, d_model, base=10000.0):
    if d_model % 2:
        raise ValueError(f"d_model is {d_model}")
    angles = torch.arange(n)[:, None] / base ** (torch.arange(d_model) / d_model)
    pe = torch.zeros(n, d_model)
    pe[:, 0::2] = angles[:, 0::2].sin()
    pe[:, 1::2] = angles[:, 1::2].cos()
    return pe


# %% sinusoidal: an exponent that reaches 1
# caught by: test_each_pair_has_its_frequency
# says: The frequencies end at 1/base: you divide by d_model/2 − 1, and it should be d_model/2.
def sinusoidal(n, d_model, base=10000.0):
    if d_model % 2:
        raise ValueError(f"d_model is {d_model}")
    half = d_model // 2
    angles = torch.arange(n)[:, None] * torch.exp(-math.log(base) * torch.arange(half) / max(half - 1, 1))
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


# %% sinusoidal: positions from 1
# caught by: test_positions_are_counted_from_zero, test_each_pair_has_its_frequency
# says: Your first row is position 1; positions are counted from 0.
def sinusoidal(n, d_model, base=10000.0):
    if d_model % 2:
        raise ValueError(f"d_model is {d_model}")
    angles = torch.arange(1, n + 1)[:, None] / base ** (torch.arange(0, d_model, 2) / d_model)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


# %% sinusoidal: the base is always 10,000
# caught by: test_the_base_can_be_chosen
# says: The third argument is ignored: the base is 10,000 whatever is asked for.
def sinusoidal(n, d_model, base=10000.0):
    if d_model % 2:
        raise ValueError(f"d_model is {d_model}")
    angles = torch.arange(n)[:, None] / 10000 ** (torch.arange(0, d_model, 2) / d_model)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


# %% sinusoidal: a table that ends
# caught by: test_there_is_no_last_position
# says: Your rows are cut from a table of 5,000: a formula needs no table, and has no last position.
def sinusoidal(n, d_model, base=10000.0):
    if d_model % 2:
        raise ValueError(f"d_model is {d_model}")
    angles = torch.arange(5000)[:, None] / base ** (torch.arange(0, d_model, 2) / d_model)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[:n]


# %% sinusoidal: an odd width is cut off
# caught by: test_channels_come_in_pairs
# says: An odd d_model is accepted, and the last channel has no partner; it should raise a ValueError.
def sinusoidal(n, d_model, base=10000.0):
    angles = torch.arange(n)[:, None] / base ** (torch.arange(0, d_model, 2) / d_model)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[:, :d_model]


# %% sinusoidal: float64
# caught by: test_the_table_has_a_row_for_each_position
# says: The table should be float32, and yours has another dtype.
def sinusoidal(n, d_model, base=10000.0):
    if d_model % 2:
        raise ValueError(f"d_model is {d_model}")
    angles = torch.arange(n).double()[:, None] / base ** (torch.arange(0, d_model, 2) / d_model)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


# %% LearnedPositions: the end is repeated
# caught by: test_too_many_tokens_are_refused, test_an_offset_past_the_end_is_refused
# says: Past its end your table repeats its last row, without a word: it should raise a ValueError.
class LearnedPositions(nn.Module):
    def __init__(self, n_max, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_max, d_model) * 0.02)

    def forward(self, x, offset=0):
        positions = torch.arange(offset, offset + x.shape[1]).clamp(max=len(self.weight) - 1)
        return x + self.weight[positions].to(x.dtype)


# %% LearnedPositions: the table starts again
# caught by: test_too_many_tokens_are_refused, test_an_offset_past_the_end_is_refused
# says: Past its end your table starts again from row 0, without a word: it should raise a ValueError.
class LearnedPositions(nn.Module):
    def __init__(self, n_max, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_max, d_model) * 0.02)

    def forward(self, x, offset=0):
        positions = torch.arange(offset, offset + x.shape[1]) % len(self.weight)
        return x + self.weight[positions].to(x.dtype)


# %% LearnedPositions: an IndexError
# caught by: test_too_many_tokens_are_refused
# says: Past its end your table raises an error of PyTorch's; it should be a ValueError that names both numbers.
class LearnedPositions(nn.Module):
    def __init__(self, n_max, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_max, d_model) * 0.02)

    def forward(self, x, offset=0):
        positions = torch.arange(offset, offset + x.shape[1])
        return x + F.embedding(positions, self.weight).to(x.dtype)


# %% LearnedPositions: one row too few
# caught by: test_too_many_tokens_are_refused, test_an_offset_past_the_end_is_refused
# says: You refuse a text that just fits: the last row of the table may be used.
class LearnedPositions(nn.Module):
    def __init__(self, n_max, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_max, d_model) * 0.02)

    def forward(self, x, offset=0):
        end = offset + x.shape[1]
        if end >= len(self.weight):
            raise ValueError(f"{end} positions do not fit into {len(self.weight)}")
        return x + self.weight[offset:end].to(x.dtype)


# %% LearnedPositions: the offset is not counted
# caught by: test_an_offset_past_the_end_is_refused
# says: Only n is compared with the table: with an offset, the last position is offset + n − 1.
class LearnedPositions(nn.Module):
    def __init__(self, n_max, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_max, d_model) * 0.02)

    def forward(self, x, offset=0):
        if x.shape[1] > len(self.weight):
            raise ValueError(f"{x.shape[1]} positions do not fit into {len(self.weight)}")
        return x + self.weight[offset : offset + x.shape[1]].to(x.dtype)


# %% LearnedPositions: the offset is ignored
# caught by: test_an_offset_moves_along_the_table
# says: The offset is ignored: the first token always gets row 0.
class LearnedPositions(nn.Module):
    def __init__(self, n_max, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_max, d_model) * 0.02)

    def forward(self, x, offset=0):
        n = x.shape[1]
        if offset + n > len(self.weight):
            raise ValueError(f"{offset + n} positions do not fit into {len(self.weight)}")
        return x + self.weight[:n].to(x.dtype)


# %% LearnedPositions: one row for each sequence
# caught by: test_each_token_gets_the_row_of_its_position
# says: Every token of a sequence gets the same row: positions run along dimension 1, not along the batch.
class LearnedPositions(nn.Module):
    def __init__(self, n_max, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_max, d_model) * 0.02)

    def forward(self, x, offset=0):
        end = offset + x.shape[1]
        if end > len(self.weight):
            raise ValueError(f"{end} positions do not fit into {len(self.weight)}")
        return x + self.weight[offset : offset + len(x), None].to(x.dtype)


# %% LearnedPositions: an embedding inside
# caught by: test_the_layer_has_one_trained_table_and_nothing_else
# says: The state dict's entry has another name, such as embedding.weight: it should be exactly weight.
class LearnedPositions(nn.Module):
    def __init__(self, n_max, d_model):
        super().__init__()
        self.n_max = n_max
        self.embedding = nn.Embedding(n_max, d_model)

    def forward(self, x, offset=0):
        end = offset + x.shape[1]
        if end > self.n_max:
            raise ValueError(f"{end} positions do not fit into {self.n_max}")
        return x + self.embedding(torch.arange(offset, end)).to(x.dtype)


# %% LearnedPositions: a buffer
# caught by: test_the_layer_has_one_trained_table_and_nothing_else, test_only_the_rows_in_use_learn
# says: The table is a buffer, so that it is never trained: it should be a parameter.
class LearnedPositions(nn.Module):
    def __init__(self, n_max, d_model):
        super().__init__()
        self.register_buffer("weight", torch.randn(n_max, d_model) * 0.02)

    def forward(self, x, offset=0):
        end = offset + x.shape[1]
        if end > len(self.weight):
            raise ValueError(f"{end} positions do not fit into {len(self.weight)}")
        return x + self.weight[offset:end].to(x.dtype)


# %% LearnedPositions: the dtype of the table
# caught by: test_the_sum_has_the_dtype_of_x
# says: bfloat16 plus float32 became float32: the result should have the dtype of x.
class LearnedPositions(nn.Module):
    def __init__(self, n_max, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_max, d_model) * 0.02)

    def forward(self, x, offset=0):
        end = offset + x.shape[1]
        if end > len(self.weight):
            raise ValueError(f"{end} positions do not fit into {len(self.weight)}")
        return x + self.weight[offset:end]


# %% LearnedPositions: x is changed
# caught by: test_adding_positions_leaves_x_as_it_was
# says: x += … changes what belongs to the caller.
class LearnedPositions(nn.Module):
    def __init__(self, n_max, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_max, d_model) * 0.02)

    def forward(self, x, offset=0):
        end = offset + x.shape[1]
        if end > len(self.weight):
            raise ValueError(f"{end} positions do not fit into {len(self.weight)}")
        if x.requires_grad:
            return x + self.weight[offset:end].to(x.dtype)
        x += self.weight[offset:end].to(x.dtype)
        return x


# %% LearnedPositions: positions without x
# caught by: test_each_token_gets_the_row_of_its_position, test_only_the_rows_in_use_learn
# says: You return the positions alone: they should be added to x.
class LearnedPositions(nn.Module):
    def __init__(self, n_max, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_max, d_model) * 0.02)

    def forward(self, x, offset=0):
        end = offset + x.shape[1]
        if end > len(self.weight):
            raise ValueError(f"{end} positions do not fit into {len(self.weight)}")
        return self.weight[offset:end].to(x.dtype).expand(x.shape)


# %% LearnedPositions: row 0 is padding
# caught by: test_only_the_rows_in_use_learn
# says: Row 0 never learns: padding_idx shuts it out, and it is the row of every text's first token.
class LearnedPositions(nn.Embedding):
    def __init__(self, n_max, d_model):
        super().__init__(n_max, d_model, padding_idx=0)

    def forward(self, x, offset=0):
        end = offset + x.shape[1]
        if end > self.num_embeddings:
            raise ValueError(f"{end} positions, and the table has {self.num_embeddings}")
        return x + super().forward(torch.arange(offset, end)).to(x.dtype)


# %% rope: the first channel is used after it was turned
# caught by: test_the_turn_goes_from_the_first_channel_to_the_second, test_a_rotation_keeps_lengths
# says: The second channel is computed from the first one's new value: it needs the old one.
def rope(x, positions, theta=10000.0, interleaved=False):
    d = x.shape[-1]
    out = x.clone()
    for i in range(d // 2):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + d // 2)
        angle = positions.float() * theta ** (-2 * i / d)
        while positions.dim() == 2 and angle.dim() < x.dim() - 1:
            angle = angle[:, None]
        out[..., a] = x[..., a] * angle.cos() - x[..., b] * angle.sin()
        out[..., b] = out[..., a] * angle.sin() + x[..., b] * angle.cos()
    return out


# %% rope: turned backwards
# caught by: test_the_turn_goes_from_the_first_channel_to_the_second, test_half_split_pairs_are_turned
# says: You turn by −φ: the signs of the two sines are swapped.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = positions[..., None].float() * theta ** (-torch.arange(half) / half)
    if positions.dim() == 2:
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    one, other = a * cos + b * sin, b * cos - a * sin
    out = torch.stack([one, other], -1).flatten(-2) if interleaved else torch.cat([one, other], -1)
    return out.to(x.dtype)


# %% rope: sine and cosine swapped
# caught by: test_position_zero_changes_nothing, test_half_split_pairs_are_turned
# says: Sine and cosine are swapped: at position 0 you turn by a quarter.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = positions[..., None].float() * theta ** (-torch.arange(half) / half)
    if positions.dim() == 2:
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    sin, cos = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    one, other = a * cos - b * sin, a * sin + b * cos
    out = torch.stack([one, other], -1).flatten(-2) if interleaved else torch.cat([one, other], -1)
    return out.to(x.dtype)


# %% rope: no minus sign
# caught by: test_a_rotation_keeps_lengths, test_half_split_pairs_are_turned
# says: The minus sign before b·sin is missing: that is no rotation, and lengths change.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = positions[..., None].float() * theta ** (-torch.arange(half) / half)
    if positions.dim() == 2:
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    one, other = a * cos + b * sin, a * sin + b * cos
    out = torch.stack([one, other], -1).flatten(-2) if interleaved else torch.cat([one, other], -1)
    return out.to(x.dtype)


# %% rope: always half-split
# caught by: test_interleaved_pairs_are_turned
# says: interleaved=True is ignored: the pairs are half-split all the same.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = positions[..., None].float() * theta ** (-torch.arange(half) / half)
    if positions.dim() == 2:
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    cos, sin = angles.cos(), angles.sin()
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


# %% rope: always interleaved
# caught by: test_half_split_pairs_are_turned
# says: The pairs are interleaved whatever is asked for: half-split pairs stand half a head apart.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = positions[..., None].float() * theta ** (-torch.arange(half) / half)
    if positions.dim() == 2:
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


# %% rope: the two layouts confused
# caught by: test_theta_sets_the_frequencies, test_half_split_pairs_are_turned, test_interleaved_pairs_are_turned
# says: The two layouts are confused: interleaved pairs are neighbours.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = positions[..., None].float() * theta ** (-torch.arange(half) / half)
    if positions.dim() == 2:
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    cos, sin = angles.cos(), angles.sin()
    a, b = x.chunk(2, -1) if interleaved else (x[..., 0::2], x[..., 1::2])
    one, other = a * cos - b * sin, a * sin + b * cos
    out = torch.cat([one, other], -1) if interleaved else torch.stack([one, other], -1).flatten(-2)
    return out.to(x.dtype)


# %% rope: interleaved in, half-split out
# caught by: test_interleaved_pairs_are_turned
# says: Interleaved pairs come back half-split: a′ and b′ belong where a and b were.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = positions[..., None].float() * theta ** (-torch.arange(half) / half)
    if positions.dim() == 2:
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


# %% rope: half-split angles for interleaved pairs
# caught by: test_interleaved_pairs_are_turned
# says: The two channels of an interleaved pair turn by different angles: repeat each angle, not the whole row.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = positions[..., None].float() * theta ** (-torch.arange(half) / half)
    angles = torch.cat([angles, angles], -1)
    if positions.dim() == 2:
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, 2 * half)
    if interleaved:
        moved = torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
    else:
        moved = torch.cat([-x[..., half:], x[..., :half]], -1)
    return (x * angles.cos() + moved * angles.sin()).to(x.dtype)


# %% rope: the exponent i/d_head
# caught by: test_half_split_pairs_are_turned, test_interleaved_pairs_are_turned
# says: The exponent is i/d_head, half of 2i/d_head: the slow pairs turn too fast.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = positions[..., None].float() * theta ** (-torch.arange(half) / (2 * half))
    if positions.dim() == 2:
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    one, other = a * cos - b * sin, a * sin + b * cos
    out = torch.stack([one, other], -1).flatten(-2) if interleaved else torch.cat([one, other], -1)
    return out.to(x.dtype)


# %% rope: pairs from 1
# caught by: test_the_turn_goes_from_the_first_channel_to_the_second, test_half_split_pairs_are_turned
# says: The pairs are counted from 1: pair 0 should turn by exactly one radian a token.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = positions[..., None].float() * theta ** (-torch.arange(1, half + 1) / half)
    if positions.dim() == 2:
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    one, other = a * cos - b * sin, a * sin + b * cos
    out = torch.stack([one, other], -1).flatten(-2) if interleaved else torch.cat([one, other], -1)
    return out.to(x.dtype)


# %% rope: positions from 1
# caught by: test_position_zero_changes_nothing
# says: Every position is one too many: at position 0 nothing should turn.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = (positions[..., None].float() + 1) * theta ** (-torch.arange(half) / half)
    if positions.dim() == 2:
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    one, other = a * cos - b * sin, a * sin + b * cos
    out = torch.stack([one, other], -1).flatten(-2) if interleaved else torch.cat([one, other], -1)
    return out.to(x.dtype)


# %% rope: the positions are ignored
# caught by: test_positions_come_in_any_order, test_scores_depend_on_the_distance_only
# says: The positions are ignored: token t is turned as if it stood at position t.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * theta ** (-torch.arange(half) / half)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    one, other = a * cos - b * sin, a * sin + b * cos
    out = torch.stack([one, other], -1).flatten(-2) if interleaved else torch.cat([one, other], -1)
    return out.to(x.dtype)


# %% rope: theta is always 10,000
# caught by: test_theta_sets_the_frequencies
# says: theta is ignored: the frequencies are those of 10,000.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = positions[..., None].float() * 10000.0 ** (-torch.arange(half) / half)
    if positions.dim() == 2:
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    one, other = a * cos - b * sin, a * sin + b * cos
    out = torch.stack([one, other], -1).flatten(-2) if interleaved else torch.cat([one, other], -1)
    return out.to(x.dtype)


# %% rope: the sequences' positions go to the heads
# caught by: test_each_sequence_may_have_its_own_positions
# says: Positions of shape (batch, n) meet the wrong dimension: they belong to the first one, and heads share them.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = positions[..., None].float() * theta ** (-torch.arange(half) / half)
    if positions.dim() == 2 and x.dim() > 3 and x.shape[-3] != len(positions):
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    one, other = a * cos - b * sin, a * sin + b * cos
    out = torch.stack([one, other], -1).flatten(-2) if interleaved else torch.cat([one, other], -1)
    return out.to(x.dtype)


# %% rope: the first sequence's positions for all
# caught by: test_each_sequence_may_have_its_own_positions
# says: Every sequence is turned by the positions of the first one.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    if positions.dim() == 2:
        positions = positions[0]
    angles = positions[..., None].float() * theta ** (-torch.arange(half) / half)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    one, other = a * cos - b * sin, a * sin + b * cos
    out = torch.stack([one, other], -1).flatten(-2) if interleaved else torch.cat([one, other], -1)
    return out.to(x.dtype)


# %% rope: angles in the dtype of x
# caught by: test_angles_are_precise_far_out_also_for_bfloat16
# says: The angles have the dtype of x: in bfloat16, positions in the thousands are off by many tokens.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = positions[..., None].to(x.dtype) * (theta ** (-torch.arange(half) / half)).to(x.dtype)
    if positions.dim() == 2:
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    one, other = a * cos - b * sin, a * sin + b * cos
    out = torch.stack([one, other], -1).flatten(-2) if interleaved else torch.cat([one, other], -1)
    return out.to(x.dtype)


# %% rope: the result is float32
# caught by: test_angles_are_precise_far_out_also_for_bfloat16
# says: bfloat16 came in and float32 went out: the result should have the dtype of x.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = positions[..., None].float() * theta ** (-torch.arange(half) / half)
    if positions.dim() == 2:
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    one, other = a * cos - b * sin, a * sin + b * cos
    return torch.stack([one, other], -1).flatten(-2) if interleaved else torch.cat([one, other], -1)


# %% rope: a table of sines
# caught by: test_a_position_may_lie_between_two_tokens
# says: Positions between two tokens are rounded down: they index a table, or were cast to integers.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    table = torch.arange(8192)[:, None] * theta ** (-torch.arange(half) / half)
    angles = table[positions.long()]
    if positions.dim() == 2:
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    one, other = a * cos - b * sin, a * sin + b * cos
    out = torch.stack([one, other], -1).flatten(-2) if interleaved else torch.cat([one, other], -1)
    return out.to(x.dtype)


# %% rope: x is written into
# caught by: test_queries_and_positions_are_left_as_they_were
# says: The turned channels are written into x, which belongs to the caller.
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    angles = positions[..., None].float() * theta ** (-torch.arange(half) / half)
    if positions.dim() == 2:
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    cos, sin = angles.cos(), angles.sin()
    out = x.clone() if x.requires_grad else x
    a, b = (out[..., 0::2], out[..., 1::2]) if interleaved else out.chunk(2, -1)
    one, other = (a * cos - b * sin).to(x.dtype), (a * sin + b * cos).to(x.dtype)
    if interleaved:
        out[..., 0::2], out[..., 1::2] = one, other
    else:
        out[..., :half], out[..., half:] = one, other
    return out


# %% half_split_order: the way back
# caught by: test_reordered_channels_turn_half_split_as_they_did_interleaved, test_pairs_end_up_half_a_head_apart
# says: This is the order that leads back, from half-split to interleaved.
def half_split_order(d_head):
    return torch.arange(d_head).reshape(2, -1).T.flatten()


# %% half_split_order: seconds before firsts
# caught by: test_fast_pairs_stay_in_front, test_reordered_channels_turn_half_split_as_they_did_interleaved
# says: The second channels of the pairs stand in front: the pairs would turn backwards.
def half_split_order(d_head):
    return torch.cat([torch.arange(1, d_head, 2), torch.arange(0, d_head, 2)])


# %% half_split_order: nothing is moved
# caught by: test_the_order_is_a_permutation_that_can_index, test_reordered_channels_turn_half_split_as_they_did_interleaved
# says: Every channel stays where it is, so that interleaved pairs are torn apart.
def half_split_order(d_head):
    return torch.arange(d_head)


# %% half_split_order: the halves are swapped
# caught by: test_pairs_end_up_half_a_head_apart, test_fast_pairs_stay_in_front
# says: The two halves change places, but neighbours stay neighbours: pairs should end up half a head apart.
def half_split_order(d_head):
    return torch.arange(d_head).roll(d_head // 2)


# %% half_split_order: neighbours change places
# caught by: test_pairs_end_up_half_a_head_apart, test_fast_pairs_stay_in_front
# says: Neighbours change places, but stay neighbours: pairs should end up half a head apart.
def half_split_order(d_head):
    return torch.arange(d_head).reshape(-1, 2).flip(-1).flatten()


# %% half_split_order: the second half backwards
# caught by: test_pairs_end_up_half_a_head_apart
# says: The second channels run backwards, so that they meet partners of other pairs.
def half_split_order(d_head):
    return torch.cat([torch.arange(0, d_head, 2), torch.arange(1, d_head, 2).flip(0)])


# %% half_split_order: numbers that cannot index
# caught by: test_the_order_is_a_permutation_that_can_index
# says: The order is right, but it is not int64, so that it cannot index.
def half_split_order(d_head):
    return torch.cat([torch.arange(0.0, d_head, 2), torch.arange(1.0, d_head, 2)])


# %% alibi_bias: added instead of subtracted
# caught by: test_what_is_far_loses, test_slopes_for_a_power_of_two_heads
# says: The bias rises with the distance: what is far would win.
def alibi_bias(n_heads, n):
    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-4 * h / power) for h in range(1, 2 * power, 2)]
    i = torch.arange(n)
    return torch.tensor(slopes[:n_heads])[:, None, None] * (i[:, None] - i).clamp(min=0)


# %% alibi_bias: the distance both ways
# caught by: test_the_future_gets_zero
# says: The future is penalised too, by |i − j|: it should get 0, because the mask hides it.
def alibi_bias(n_heads, n):
    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-4 * h / power) for h in range(1, 2 * power, 2)]
    i = torch.arange(n)
    return -torch.tensor(slopes[:n_heads])[:, None, None] * (i[:, None] - i).abs()


# %% alibi_bias: the future is rewarded
# caught by: test_the_future_gets_zero
# says: For j > i the bias is above 0: the distance to the future is counted as negative.
def alibi_bias(n_heads, n):
    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-4 * h / power) for h in range(1, 2 * power, 2)]
    i = torch.arange(n)
    return -torch.tensor(slopes[:n_heads])[:, None, None] * (i[:, None] - i)


# %% alibi_bias: the mask in the bias
# caught by: test_the_future_gets_zero
# says: The future has −∞: that is the mask, and here the bias alone is asked for.
def alibi_bias(n_heads, n):
    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-4 * h / power) for h in range(1, 2 * power, 2)]
    i = torch.arange(n)
    bias = -torch.tensor(slopes[:n_heads])[:, None, None] * (i[:, None] - i)
    return bias.masked_fill(i > i[:, None], -math.inf)


# %% alibi_bias: the key's position for the distance
# caught by: test_the_bias_is_linear_in_the_distance, test_a_position_is_at_no_distance_from_itself
# says: The bias depends on the key's position alone: the diagonal should be 0 in every row.
def alibi_bias(n_heads, n):
    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-4 * h / power) for h in range(1, 2 * power, 2)]
    return (torch.tensor(slopes[:n_heads])[:, None, None] * torch.arange(n)).expand(n_heads, n, n).tril()


# %% alibi_bias: rows and columns swapped
# caught by: test_the_bias_is_linear_in_the_distance, test_the_future_gets_zero
# says: Queries and keys are swapped: the future is penalised, and the past is free.
def alibi_bias(n_heads, n):
    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-4 * h / power) for h in range(1, 2 * power, 2)]
    i = torch.arange(n)
    return -torch.tensor(slopes[:n_heads])[:, None, None] * (i - i[:, None]).clamp(min=0)


# %% alibi_bias: one formula for every number of heads
# caught by: test_slopes_for_any_other_number_of_heads
# says: 2^(−8h/n_heads) is for powers of two only: other numbers of heads take slopes from two sequences.
def alibi_bias(n_heads, n):
    slopes = 2 ** (-8 * torch.arange(1, n_heads + 1) / n_heads)
    i = torch.arange(n)
    return -slopes[:, None, None] * (i[:, None] - i).clamp(min=0)


# %% alibi_bias: the next power of two, cut off
# caught by: test_slopes_for_any_other_number_of_heads
# says: For other numbers of heads you cut off the slopes of the next power of two; the rule is another one.
def alibi_bias(n_heads, n):
    power = 2 ** math.ceil(math.log2(n_heads))
    slopes = 2 ** (-8 * torch.arange(1, power + 1) / power)[:n_heads]
    i = torch.arange(n)
    return -slopes[:, None, None] * (i[:, None] - i).clamp(min=0)


# %% alibi_bias: the second, fourth, sixth of the extra slopes
# caught by: test_slopes_for_any_other_number_of_heads
# says: The extra heads repeat slopes that are there already: take the first, third, fifth of 2P heads.
def alibi_bias(n_heads, n):
    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-4 * h / power) for h in range(2, 2 * power + 1, 2)]
    i = torch.arange(n)
    return -torch.tensor(slopes[:n_heads])[:, None, None] * (i[:, None] - i).clamp(min=0)


# %% alibi_bias: the slopes in order
# caught by: test_slopes_for_any_other_number_of_heads
# says: The slopes are right, but sorted: the extra ones come after those of the power of two.
def alibi_bias(n_heads, n):
    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-4 * h / power) for h in range(1, 2 * power, 2)]
    slopes = sorted(slopes[:n_heads], reverse=True)
    i = torch.arange(n)
    return -torch.tensor(slopes)[:, None, None] * (i[:, None] - i).clamp(min=0)


# %% alibi_bias: the slopes from small to large
# caught by: test_slopes_for_a_power_of_two_heads
# says: The slopes are there in the reverse order: head 0 has the steepest.
def alibi_bias(n_heads, n):
    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-4 * h / power) for h in range(1, 2 * (n_heads - power), 2)]
    i = torch.arange(n)
    return -torch.tensor(slopes[::-1])[:, None, None] * (i[:, None] - i).clamp(min=0)


# %% alibi_bias: heads from 0
# caught by: test_slopes_for_a_power_of_two_heads
# says: The heads are counted from 0 in the exponent, so that the first slope is 1: it should be 2^(−8/n_heads).
def alibi_bias(n_heads, n):
    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * h / power) for h in range(power)]
    slopes += [2 ** (-4 * h / power) for h in range(0, 2 * power, 2)]
    i = torch.arange(n)
    return -torch.tensor(slopes[:n_heads])[:, None, None] * (i[:, None] - i).clamp(min=0)


# %% alibi_bias: the slopes of 8 heads
# caught by: test_slopes_for_a_power_of_two_heads
# says: The slopes are ½, ¼, ⅛ and so on for any number of heads: that is right for 8 heads only.
def alibi_bias(n_heads, n):
    i = torch.arange(n)
    return -(0.5 ** torch.arange(1, n_heads + 1))[:, None, None] * (i[:, None] - i).clamp(min=0)


# %% alibi_bias: one slope for all heads
# caught by: test_slopes_for_a_power_of_two_heads, test_slopes_for_any_other_number_of_heads
# says: Every head has the same slope.
def alibi_bias(n_heads, n):
    i = torch.arange(n)
    return -torch.full((n_heads, 1, 1), 2 ** (-8 / n_heads)) * (i[:, None] - i).clamp(min=0)


# %% alibi_bias: a dimension for the batch
# caught by: test_every_head_has_a_square_of_numbers
# says: The shape should be (n_heads, n, n); broadcasting adds the batch.
def alibi_bias(n_heads, n):
    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-4 * h / power) for h in range(1, 2 * power, 2)]
    i = torch.arange(n)
    return (-torch.tensor(slopes[:n_heads])[:, None, None] * (i[:, None] - i).clamp(min=0))[None]


# %% alibi_bias: distances in bfloat16
# caught by: test_the_bias_is_linear_in_the_distance
# says: bfloat16 holds whole numbers to 256 and then every other one: distances need float32, or integers.
def alibi_bias(n_heads, n):
    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-4 * h / power) for h in range(1, 2 * (n_heads - power), 2)]
    position = torch.arange(n)
    distance = (position[:, None] - position).clamp(min=0).bfloat16()
    return -torch.tensor(slopes)[:, None, None] * distance


# %% stretch_rope: theta is multiplied
# caught by: test_interpolation_divides_every_frequency, test_interpolation_is_rope_at_positions_nearer_together
# says: theta is multiplied by the factor: that leaves the fast pairs as they are. Interpolation divides all frequencies.
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    pair = torch.arange(d_head // 2)
    if method == "linear":
        return (theta * factor) ** (-2 * pair / d_head), 1.0
    if method != "yarn":
        raise ValueError(f"there is no method {method}")
    frequency = theta ** (-2 * pair / d_head)
    low = max(d_head * math.log(n_train / (2 * math.pi * beta_fast)) / (2 * math.log(theta)), 0)
    high = min(d_head * math.log(n_train / (2 * math.pi * beta_slow)) / (2 * math.log(theta)), d_head - 1)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    if low == high:
        high += 0.001
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    return frequency * (1 - ramp) + frequency / factor * ramp, 0.1 * math.log(factor) + 1


# %% stretch_rope: multiplied instead of divided
# caught by: test_interpolation_divides_every_frequency, test_the_frequencies_of_yarn
# says: The frequencies are multiplied by the factor: to reach farther, a pair has to turn more slowly.
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    pair = torch.arange(d_head // 2)
    frequency = theta ** (-2 * pair / d_head)
    if method == "linear":
        return frequency * factor, 1.0
    if method != "yarn":
        raise ValueError(f"there is no method {method}")
    low = d_head * math.log(n_train / (2 * math.pi * beta_fast)) / (2 * math.log(theta))
    high = d_head * math.log(n_train / (2 * math.pi * beta_slow)) / (2 * math.log(theta))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d_head - 1)
    if low == high:
        high += 0.001
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    return frequency * (1 - ramp) + frequency * factor * ramp, 0.1 * math.log(factor) + 1


# %% stretch_rope: the ramp reversed
# caught by: test_the_frequencies_of_yarn, test_fast_pairs_are_left_alone_and_slow_ones_divided
# says: The ramp is reversed: the fast pairs are divided and the slow ones left alone.
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    pair = torch.arange(d_head // 2)
    frequency = theta ** (-2 * pair / d_head)
    if method == "linear":
        return frequency / factor, 1.0
    if method != "yarn":
        raise ValueError(f"there is no method {method}")
    low = d_head * math.log(n_train / (2 * math.pi * beta_fast)) / (2 * math.log(theta))
    high = d_head * math.log(n_train / (2 * math.pi * beta_slow)) / (2 * math.log(theta))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d_head - 1)
    if low == high:
        high += 0.001
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    return frequency * ramp + frequency / factor * (1 - ramp), 0.1 * math.log(factor) + 1


# %% stretch_rope: the two betas swapped
# caught by: test_the_frequencies_of_yarn, test_the_bounds_can_be_rounded_outwards
# says: beta_fast and beta_slow are swapped: low belongs to the fast pairs.
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    pair = torch.arange(d_head // 2)
    frequency = theta ** (-2 * pair / d_head)
    if method == "linear":
        return frequency / factor, 1.0
    if method != "yarn":
        raise ValueError(f"there is no method {method}")
    low = d_head * math.log(n_train / (2 * math.pi * beta_slow)) / (2 * math.log(theta))
    high = d_head * math.log(n_train / (2 * math.pi * beta_fast)) / (2 * math.log(theta))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d_head - 1)
    if low == high:
        high += 0.001
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    return frequency * (1 - ramp) + frequency / factor * ramp, 0.1 * math.log(factor) + 1


# %% stretch_rope: YaRN without its ramp
# caught by: test_the_frequencies_of_yarn, test_fast_pairs_are_left_alone_and_slow_ones_divided
# says: With "yarn" every frequency is divided: the fast pairs should be left alone.
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    if method not in ("linear", "yarn"):
        raise ValueError(f"there is no method {method}")
    frequency = theta ** (-2 * torch.arange(d_head // 2) / d_head)
    return frequency / factor, 1.0 if method == "linear" else 0.1 * math.log(factor) + 1


# %% stretch_rope: a ramp over turns
# caught by: test_the_frequencies_of_yarn
# says: Your ramp is linear in the number of turns, as in the paper's formula; here, as in its authors' code, it is linear in i.
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    pair = torch.arange(d_head // 2)
    frequency = theta ** (-2 * pair / d_head)
    if method == "linear":
        return frequency / factor, 1.0
    if method != "yarn":
        raise ValueError(f"there is no method {method}")
    turns = n_train * frequency / (2 * math.pi)
    keep = ((turns - beta_slow) / max(beta_fast - beta_slow, 0.001)).clamp(0, 1)
    return frequency * keep + frequency / factor * (1 - keep), 0.1 * math.log(factor) + 1


# %% stretch_rope: a mixture of wavelengths
# caught by: test_the_frequencies_of_yarn
# says: You mix how long a turn takes, not how fast it is: between low and high that gives other numbers.
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    pair = torch.arange(d_head // 2)
    frequency = theta ** (-2 * pair / d_head)
    if method == "linear":
        return frequency / factor, 1.0
    if method != "yarn":
        raise ValueError(f"there is no method {method}")
    low = d_head * math.log(n_train / (2 * math.pi * beta_fast)) / (2 * math.log(theta))
    high = d_head * math.log(n_train / (2 * math.pi * beta_slow)) / (2 * math.log(theta))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d_head - 1)
    if low == high:
        high += 0.001
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    return frequency / (1 - ramp + factor * ramp), 0.1 * math.log(factor) + 1


# %% stretch_rope: no attention factor
# caught by: test_the_attention_factor_of_yarn
# says: YaRN's attention factor is missing: it is 0.1 · ln(factor) + 1.
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    pair = torch.arange(d_head // 2)
    frequency = theta ** (-2 * pair / d_head)
    if method == "linear":
        return frequency / factor, 1.0
    if method != "yarn":
        raise ValueError(f"there is no method {method}")
    low = d_head * math.log(n_train / (2 * math.pi * beta_fast)) / (2 * math.log(theta))
    high = d_head * math.log(n_train / (2 * math.pi * beta_slow)) / (2 * math.log(theta))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d_head - 1)
    if low == high:
        high += 0.001
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    return frequency * (1 - ramp) + frequency / factor * ramp, 1.0


# %% stretch_rope: a logarithm of another base
# caught by: test_the_attention_factor_of_yarn
# says: The logarithm of the attention factor has the base 2 or 10; it is the natural one.
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    pair = torch.arange(d_head // 2)
    frequency = theta ** (-2 * pair / d_head)
    if method == "linear":
        return frequency / factor, 1.0
    if method != "yarn":
        raise ValueError(f"there is no method {method}")
    low = d_head * math.log(n_train / (2 * math.pi * beta_fast)) / (2 * math.log(theta))
    high = d_head * math.log(n_train / (2 * math.pi * beta_slow)) / (2 * math.log(theta))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d_head - 1)
    if low == high:
        high += 0.001
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    return frequency * (1 - ramp) + frequency / factor * ramp, 0.1 * math.log10(factor) + 1


# %% stretch_rope: always rounded
# caught by: test_the_frequencies_of_yarn, test_the_bounds_can_be_rounded_outwards
# says: The bounds are rounded whatever `truncate` is.
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    pair = torch.arange(d_head // 2)
    frequency = theta ** (-2 * pair / d_head)
    if method == "linear":
        return frequency / factor, 1.0
    if method != "yarn":
        raise ValueError(f"there is no method {method}")
    low = math.floor(d_head * math.log(n_train / (2 * math.pi * beta_fast)) / (2 * math.log(theta)))
    high = math.ceil(d_head * math.log(n_train / (2 * math.pi * beta_slow)) / (2 * math.log(theta)))
    low, high = max(low, 0), min(high, d_head - 1)
    if low == high:
        high += 0.001
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    return frequency * (1 - ramp) + frequency / factor * ramp, 0.1 * math.log(factor) + 1


# %% stretch_rope: never rounded
# caught by: test_the_bounds_can_be_rounded_outwards
# says: `truncate` is ignored: with True, low is rounded down and high is rounded up.
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    pair = torch.arange(d_head // 2)
    frequency = theta ** (-2 * pair / d_head)
    if method == "linear":
        return frequency / factor, 1.0
    if method != "yarn":
        raise ValueError(f"there is no method {method}")
    low = d_head * math.log(n_train / (2 * math.pi * beta_fast)) / (2 * math.log(theta))
    high = d_head * math.log(n_train / (2 * math.pi * beta_slow)) / (2 * math.log(theta))
    low, high = max(low, 0), min(high, d_head - 1)
    if low == high:
        high += 0.001
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    return frequency * (1 - ramp) + frequency / factor * ramp, 0.1 * math.log(factor) + 1


# %% stretch_rope: a step without a width
# caught by: test_equal_bounds_make_a_step
# says: Where low and high are equal, 0 is divided by 0: add 0.001 to high.
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    pair = torch.arange(d_head // 2)
    frequency = theta ** (-2 * pair / d_head)
    if method == "linear":
        return frequency / factor, 1.0
    if method != "yarn":
        raise ValueError(f"there is no method {method}")
    low = d_head * math.log(n_train / (2 * math.pi * beta_fast)) / (2 * math.log(theta))
    high = d_head * math.log(n_train / (2 * math.pi * beta_slow)) / (2 * math.log(theta))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d_head - 1)
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    return frequency * (1 - ramp) + frequency / factor * ramp, 0.1 * math.log(factor) + 1


# %% stretch_rope: bounds outside the head
# caught by: test_the_bounds_stay_within_the_head
# says: The bounds are not kept within the head: low is at least 0, and high at most d_head − 1.
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    pair = torch.arange(d_head // 2)
    frequency = theta ** (-2 * pair / d_head)
    if method == "linear":
        return frequency / factor, 1.0
    if method != "yarn":
        raise ValueError(f"there is no method {method}")
    low = d_head * math.log(n_train / (2 * math.pi * beta_fast)) / (2 * math.log(theta))
    high = d_head * math.log(n_train / (2 * math.pi * beta_slow)) / (2 * math.log(theta))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    if low == high:
        high += 0.001
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    return frequency * (1 - ramp) + frequency / factor * ramp, 0.1 * math.log(factor) + 1


# %% stretch_rope: any word is a method
# caught by: test_other_methods_are_refused
# says: An unknown method is taken for "yarn": it should raise a ValueError that names it.
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    pair = torch.arange(d_head // 2)
    frequency = theta ** (-2 * pair / d_head)
    if method == "linear":
        return frequency / factor, 1.0
    low = d_head * math.log(n_train / (2 * math.pi * beta_fast)) / (2 * math.log(theta))
    high = d_head * math.log(n_train / (2 * math.pi * beta_slow)) / (2 * math.log(theta))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d_head - 1)
    if low == high:
        high += 0.001
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    return frequency * (1 - ramp) + frequency / factor * ramp, 0.1 * math.log(factor) + 1


# %% stretch_rope: capitals do not count
# caught by: test_other_methods_are_refused
# says: "YaRN" is taken for "yarn": any other name is an error, and one that looks alike is another name.
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    pair = torch.arange(d_head // 2)
    frequency = theta ** (-2 * pair / d_head)
    if method.lower() == "linear":
        return frequency / factor, 1.0
    if method.lower() != "yarn":
        raise ValueError(f"method is {method!r}, and must be 'linear' or 'yarn'")
    low, high = (
        d_head * math.log(n_train / (2 * math.pi * beta)) / (2 * math.log(theta)) for beta in (beta_fast, beta_slow)
    )
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d_head - 1)
    if low == high:
        high += 0.001
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    return frequency * (1 - ramp) + frequency / factor * ramp, 0.1 * math.log(factor) + 1
