# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% LayerNorm: eps outside the root
# caught by: test_eps_stands_inside_the_root
# says: eps is added to the standard deviation; it belongs inside the root, beside the variance.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).pow(2).mean(-1, keepdim=True)
        return (x - mean) / (variance.sqrt() + self.eps) * self.weight + self.bias


# %% LayerNorm: no eps
# caught by: test_eps_stands_inside_the_root, test_a_position_of_equal_numbers_gives_the_bias
# says: There is no eps in the root: where all numbers are equal this divides 0 by 0.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).pow(2).mean(-1, keepdim=True)
        return (x - mean) / variance.sqrt() * self.weight + self.bias


# %% LayerNorm: eps as given is not used
# caught by: test_eps_stands_inside_the_root
# says: The eps that the constructor is given is not used: a number stands in its place.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        variance = x.var(-1, keepdim=True, correction=0)
        return (x - mean) / (variance + 1e-5).sqrt() * self.weight + self.bias


# %% LayerNorm: the variance of a sample
# caught by: test_a_new_layer_gives_mean_zero_and_variance_one, test_layer_norm_matches_pytorchs
# says: The variance is divided by d_model − 1, as torch.var does by default; here it is divided by d_model.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        variance = x.var(-1, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / torch.sqrt(variance + self.eps) * self.weight + self.bias


# %% LayerNorm: divided by the variance
# caught by: test_a_new_layer_gives_mean_zero_and_variance_one, test_shift_and_size_of_a_position_do_not_matter
# says: This divides by the variance and not by its root, the standard deviation.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


# %% LayerNorm: over the batch
# caught by: test_a_position_is_normalised_by_itself, test_layer_norm_matches_pytorchs
# says: Mean and variance run over the first dimension, the texts of the batch, as in batch normalisation.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        centred = x - x.mean(0, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(0, keepdim=True) + self.eps) * self.weight + self.bias


# %% LayerNorm: over the positions
# caught by: test_a_position_is_normalised_by_itself, test_layer_norm_matches_pytorchs
# says: Mean and variance run over the positions of a text: a norm takes one position by itself, over its features.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        axis = -2 if x.dim() > 1 else -1
        centred = x - x.mean(axis, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(axis, keepdim=True) + self.eps) * self.weight + self.bias


# %% LayerNorm: over the whole text
# caught by: test_a_position_is_normalised_by_itself, test_a_new_layer_gives_mean_zero_and_variance_one
# says: Mean and variance run over positions and features together; each position has its own.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        axes = (-2, -1) if x.dim() > 1 else -1
        centred = x - x.mean(axes, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(axes, keepdim=True) + self.eps) * self.weight + self.bias


# %% LayerNorm: weight and bias never used
# caught by: test_weight_scales_and_bias_shifts_each_channel, test_layer_norm_matches_pytorchs
# says: weight and bias are there and never used.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps)


# %% LayerNorm: the bias before the weight
# caught by: test_weight_scales_and_bias_shifts_each_channel, test_layer_norm_matches_pytorchs
# says: The bias is added before the weight multiplies, so it is scaled too: it comes last.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return (centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps) + self.bias) * self.weight


# %% LayerNorm: 1 added to the weight
# caught by: test_weight_scales_and_bias_shifts_each_channel, test_layer_norm_matches_pytorchs
# says: 1 is added to the weight: a weight of 0 should give the bias alone.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight) + self.bias


# %% LayerNorm: other names
# caught by: test_a_layer_norm_holds_a_weight_and_a_bias
# says: The parameters are called gamma and beta, as in the paper; the state dict should hold weight and bias.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.ones(d_model))
        self.beta = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps) * self.gamma + self.beta


# %% LayerNorm: tensors instead of parameters
# caught by: test_a_layer_norm_holds_a_weight_and_a_bias
# says: weight and bias are plain tensors: only an nn.Parameter is in the state dict and is trained.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = torch.ones(d_model)
        self.bias = torch.zeros(d_model)

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


# %% LayerNorm: mean of squares minus squared mean
# caught by: test_numbers_far_from_zero_keep_their_spread
# says: Mean of squares minus squared mean takes the difference of two large numbers and loses its digits.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        variance = (x.pow(2).mean(-1, keepdim=True) - mean.pow(2)).clamp_min(0)
        return (x - mean) / torch.sqrt(variance + self.eps) * self.weight + self.bias


# %% LayerNorm: statistics detached
# caught by: test_layer_norm_lets_gradients_through
# says: Mean and variance are detached, as if they did not depend on x: the gradient of x misses two of its parts.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        with torch.no_grad():
            mean = x.mean(-1, keepdim=True)
            scale = torch.rsqrt((x - mean).pow(2).mean(-1, keepdim=True) + self.eps)
        return (x - mean) * scale * self.weight + self.bias


# %% LayerNorm: the mean stays
# caught by: test_a_new_layer_gives_mean_zero_and_variance_one, test_shift_and_size_of_a_position_do_not_matter
# says: The mean is not subtracted: this is RMSNorm with a bias.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


# %% LayerNorm: always float32
# caught by: test_layer_norm_keeps_the_dtype
# says: The result is float32 whatever came in: cast it back to the dtype of x.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        x = x.float()
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps)
        return scaled * self.weight.float() + self.bias.float()


# %% LayerNorm: x changed in place
# caught by: test_a_call_of_layer_norm_changes_nothing
# says: x -= mean changes the caller's x: write x = x - mean.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        if x.requires_grad:
            x = x - mean
        else:
            x -= mean
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


# %% LayerNorm: running statistics
# caught by: test_a_call_of_layer_norm_changes_nothing, test_a_layer_norm_holds_a_weight_and_a_bias
# says: Running statistics are kept for evaluation, as batch normalisation does: a layer norm remembers nothing.
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))
        self.register_buffer("running_mean", torch.zeros(1))
        self.register_buffer("running_var", torch.ones(1))

    def forward(self, x):
        if self.training:
            mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
            with torch.no_grad():
                self.running_mean += 0.1 * (mean.mean() - self.running_mean)
                self.running_var += 0.1 * (variance.mean() - self.running_var)
        else:
            mean, variance = self.running_mean, self.running_var
        return (x - mean) / torch.sqrt(variance + self.eps) * self.weight + self.bias


# %% RMSNorm: the mean subtracted
# caught by: test_the_mean_stays, test_rms_norm_matches_pytorchs
# says: The mean is subtracted first, which makes it a LayerNorm without bias: RMSNorm leaves the mean where it is.
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        wide = x.float() if x.dtype.itemsize == 2 else x
        wide = wide - wide.mean(-1, keepdim=True)
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


# %% RMSNorm: eps outside the root
# caught by: test_eps_stands_beside_the_mean_square
# says: eps is added to the root; it belongs inside, beside the mean square.
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        wide = x.float() if x.dtype.itemsize == 2 else x
        return (wide / (wide.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)).to(x.dtype) * self.weight


# %% RMSNorm: no eps
# caught by: test_eps_stands_beside_the_mean_square
# says: There is no eps in the root: a position of zeros is divided by zero.
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        wide = x.float() if x.dtype.itemsize == 2 else x
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True))).to(x.dtype) * self.weight


# %% RMSNorm: the sum of squares
# caught by: test_a_new_layer_gives_mean_square_one, test_rms_norm_matches_pytorchs
# says: This divides by the length of the vector: the squares are summed and not averaged.
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        wide = x.float() if x.dtype.itemsize == 2 else x
        return (wide * torch.rsqrt(wide.pow(2).sum(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


# %% RMSNorm: no root
# caught by: test_a_new_layer_gives_mean_square_one, test_rms_norm_matches_pytorchs
# says: This divides by the mean square and not by its root.
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        wide = x.float() if x.dtype.itemsize == 2 else x
        return (wide / (wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


# %% RMSNorm: over positions and features
# caught by: test_a_position_is_divided_by_its_own_rms, test_rms_norm_matches_pytorchs
# says: The mean square runs over positions and features together; each position has its own.
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        wide = x.float() if x.dtype.itemsize == 2 else x
        axes = (-2, -1) if x.dim() > 1 else -1
        return (wide * torch.rsqrt(wide.pow(2).mean(axes, keepdim=True) + self.eps)).to(x.dtype) * self.weight


# %% RMSNorm: over the batch
# caught by: test_a_position_is_divided_by_its_own_rms, test_rms_norm_matches_pytorchs
# says: The mean square runs over the first dimension, the texts of the batch; each position has its own.
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        wide = x.float() if x.dtype.itemsize == 2 else x
        return (wide * torch.rsqrt(wide.pow(2).mean(0, keepdim=True) + self.eps)).to(x.dtype) * self.weight


# %% RMSNorm: the weight never used
# caught by: test_the_weight_multiplies_as_it_is, test_rms_norm_matches_pytorchs
# says: weight is there and never used.
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        wide = x.float() if x.dtype.itemsize == 2 else x
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


# %% RMSNorm: Gemma's weight
# caught by: test_the_weight_multiplies_as_it_is, test_an_rms_norm_holds_a_weight_only
# says: This multiplies by 1 + weight, as Gemma does; here the weight multiplies as it is and begins at ones.
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        wide = x.float() if x.dtype.itemsize == 2 else x
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * (1 + self.weight)


# %% RMSNorm: a bias
# caught by: test_an_rms_norm_holds_a_weight_only
# says: There is a bias, as in LayerNorm: RMSNorm has a weight only.
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        wide = x.float() if x.dtype.itemsize == 2 else x
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight + self.bias


# %% RMSNorm: computed in the dtype of x
# caught by: test_half_precision_is_computed_in_float32
# says: The squares are taken in half precision, where they lose digits or become infinite: turn x into float32 first.
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


# %% RMSNorm: only the mean square in float32
# caught by: test_half_precision_is_computed_in_float32
# says: The mean square is taken in float32, but cast back before the division: the quotient is to be float32 too.
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        wide = x.float() if x.dtype.itemsize == 2 else x
        root = torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps).to(x.dtype)
        return x / root * self.weight


# %% RMSNorm: cast after the weight
# caught by: test_the_cast_comes_before_the_weight
# says: The weight multiplies in float32 and the cast comes last; LLaMA casts first and multiplies after that.
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        wide = x.float() if x.dtype.itemsize == 2 else x
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight.to(wide.dtype)).to(x.dtype)


# %% RMSNorm: float32 out
# caught by: test_rms_norm_keeps_the_dtype, test_half_precision_is_computed_in_float32
# says: The result is float32 whatever came in: cast the quotient back to the dtype of x.
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight.float()


# %% RMSNorm: the root detached
# caught by: test_rms_norm_lets_gradients_through
# says: The root is detached, as if it did not depend on x: the gradient of x misses a part.
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        wide = x.float() if x.dtype.itemsize == 2 else x
        root = torch.sqrt(wide.detach().pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide / root).to(x.dtype) * self.weight


# %% RMSNorm: x changed in place
# caught by: test_a_call_of_rms_norm_changes_nothing
# says: The caller's x is changed: the name of an operation that works in place ends in _.
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        wide = x.float() if x.dtype.itemsize == 2 else x
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        wide = wide * scale if x.requires_grad else wide.mul_(scale)
        return wide.to(x.dtype) * self.weight


# %% PreNormBlock: post instead of pre
# caught by: test_a_pre_norm_block_matches_pytorchs, test_attention_reads_a_normalised_copy, test_the_stream_passes_untouched
# says: The norms stand after the sums: this is the post-norm block.
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.feed_forward(x))


# %% PreNormBlock: residual from the normed input
# caught by: test_the_stream_passes_untouched, test_each_sublayer_adds_to_the_stream
# says: x is replaced by its norm before the sum, so what is added to is the normalised copy and not the stream.
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = self.norm1(x)
        x = x + self.attention(x)
        x = self.norm2(x)
        return x + self.feed_forward(x)


# %% PreNormBlock: no residual
# caught by: test_the_stream_passes_untouched, test_each_sublayer_adds_to_the_stream
# says: Each sub-layer replaces the stream: its result should be added to it.
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        return self.feed_forward(self.norm2(self.attention(self.norm1(x))))


# %% PreNormBlock: one residual for both
# caught by: test_a_pre_norm_block_matches_pytorchs, test_each_sublayer_adds_to_the_stream
# says: There is one residual connection: the second sub-layer should add to the stream as well, and replaces it.
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        h = x + self.attention(self.norm1(x))
        return self.feed_forward(self.norm2(h))


# %% PreNormBlock: x added again instead of h
# caught by: test_each_sublayer_adds_to_the_stream, test_a_pre_norm_block_matches_pytorchs
# says: The second sum starts from the block's input, so what attention added is lost.
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        h = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(h))


# %% PreNormBlock: both sub-layers read x
# caught by: test_feed_forward_reads_the_stream_after_attention_normalised, test_a_pre_norm_block_matches_pytorchs
# says: Both sub-layers read the block's input side by side, as in GPT-J; here the second reads what the first added to.
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        return x + self.attention(self.norm1(x)) + self.feed_forward(self.norm2(x))


# %% PreNormBlock: the norm on the branch, after the sub-layer
# caught by: test_attention_reads_a_normalised_copy, test_each_sublayer_adds_to_the_stream
# says: The norm stands after the sub-layer, on the branch: the sub-layer should read a normalised copy.
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = x + self.norm1(self.attention(x))
        return x + self.norm2(self.feed_forward(x))


# %% PreNormBlock: one norm for both
# caught by: test_a_pre_norm_block_holds_two_norms
# says: norm1 and norm2 are the same object, so they share their parameters: make two.
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1 = LayerNorm(d_model)
        self.norm2 = self.norm1
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


# %% PreNormBlock: norm1 used twice
# caught by: test_feed_forward_reads_the_stream_after_attention_normalised, test_a_pre_norm_block_matches_pytorchs
# says: norm1 is used before both sub-layers, and norm2 never.
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm1(x))


# %% PreNormBlock: the feed-forward part first
# caught by: test_a_pre_norm_block_calls_each_sublayer_once, test_a_pre_norm_block_matches_pytorchs
# says: The feed-forward part comes before attention.
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = x + self.feed_forward(self.norm1(x))
        return x + self.attention(self.norm2(x))


# %% PreNormBlock: the sum halved
# caught by: test_the_stream_passes_untouched, test_each_sublayer_adds_to_the_stream
# says: The sum is scaled, so that only part of the stream stays: it should pass whole.
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = (x + self.attention(self.norm1(x))) / math.sqrt(2)
        return (x + self.feed_forward(self.norm2(x))) / math.sqrt(2)


# %% PreNormBlock: a norm at the end as well
# caught by: test_the_stream_passes_untouched, test_each_sublayer_adds_to_the_stream
# says: The block ends with a norm on the stream: the last norm of a pre-norm model comes once, after all blocks.
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        x = x + self.feed_forward(self.norm2(x))
        return self.norm2(x)


# %% PreNormBlock: RMSNorm
# caught by: test_a_pre_norm_block_holds_two_norms
# says: The norms are RMSNorms; this block has LayerNorms, each with weight and bias.
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()

        class Norm(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(d_model))

            def forward(self, x):
                return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight

        self.norm1, self.norm2 = Norm(), Norm()
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


# %% PreNormBlock: an eps of its own
# caught by: test_attention_reads_a_normalised_copy, test_feed_forward_reads_the_stream_after_attention_normalised
# says: The norms of the block are given an eps of 1e-12, as BERT has; LayerNorm(d_model) has its own, 1e-5.
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model, eps=1e-12), LayerNorm(d_model, eps=1e-12)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


# %% PreNormBlock: sub-layers in a list
# caught by: test_a_pre_norm_block_holds_its_sublayers
# says: The sub-layers are kept in a plain list, where PyTorch does not find their parameters.
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.parts = [attention, feed_forward]

    def forward(self, x):
        x = x + self.parts[0](self.norm1(x))
        return x + self.parts[1](self.norm2(x))


# %% PreNormBlock: x changed in place
# caught by: test_a_call_of_a_pre_norm_block_changes_nothing
# says: x += ... changes the caller's x: write x = x + ...
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        if x.requires_grad:
            x = x + self.attention(self.norm1(x))
        else:
            x += self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


# %% PreNormBlock: dropout
# caught by: test_a_call_of_a_pre_norm_block_changes_nothing
# says: Some of what is added is dropped at random in training: this block has no dropout.
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = x + F.dropout(self.attention(self.norm1(x)), 0.1, self.training)
        return x + F.dropout(self.feed_forward(self.norm2(x)), 0.1, self.training)


# %% PostNormBlock: pre instead of post
# caught by: test_a_post_norm_block_matches_pytorchs, test_attention_reads_the_stream_as_it_is, test_what_leaves_the_block_is_normalised
# says: The norms stand before the sub-layers: this is the pre-norm block.
class PostNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


# %% PostNormBlock: the norm before the sum
# caught by: test_feed_forward_reads_the_normalised_sum, test_what_leaves_the_block_is_normalised
# says: Only what the sub-layer gave is normalised; post-norm takes the norm of the sum.
class PostNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = x + self.norm1(self.attention(x))
        return x + self.norm2(self.feed_forward(x))


# %% PostNormBlock: no residual
# caught by: test_feed_forward_reads_the_normalised_sum, test_what_leaves_the_block_is_normalised
# says: The norm is taken of the sub-layer's result alone: the residual connection is missing.
class PostNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = self.norm1(self.attention(x))
        return self.norm2(self.feed_forward(x))


# %% PostNormBlock: x added again instead of h
# caught by: test_what_leaves_the_block_is_normalised, test_a_post_norm_block_matches_pytorchs
# says: The second sum starts from the block's input, so what the first half did is lost to the stream.
class PostNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        h = self.norm1(x + self.attention(x))
        return self.norm2(x + self.feed_forward(h))


# %% PostNormBlock: one norm at the end
# caught by: test_feed_forward_reads_the_normalised_sum, test_what_leaves_the_block_is_normalised
# says: The stream is normalised once, at the end: the sum after attention needs its norm too.
class PostNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = x + self.attention(x)
        return self.norm2(x + self.feed_forward(x))


# %% PostNormBlock: norms before and after
# caught by: test_attention_reads_the_stream_as_it_is, test_a_post_norm_block_matches_pytorchs
# says: The sub-layers read a normalised copy as well: in post-norm they read the stream as it is.
class PostNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = self.norm1(x + self.attention(self.norm1(x)))
        return self.norm2(x + self.feed_forward(self.norm2(x)))


# %% PostNormBlock: norms swapped
# caught by: test_feed_forward_reads_the_normalised_sum, test_a_post_norm_block_matches_pytorchs
# says: norm2 stands after attention and norm1 after the feed-forward part: it is the other way round.
class PostNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = self.norm2(x + self.attention(x))
        return self.norm1(x + self.feed_forward(x))


# %% PostNormBlock: one norm for both
# caught by: test_a_post_norm_block_holds_two_norms
# says: There is one norm for both places: make norm1 and norm2, each with parameters of its own.
class PostNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm = LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = self.norm(x + self.attention(x))
        return self.norm(x + self.feed_forward(x))


# %% PostNormBlock: an eps of its own
# caught by: test_feed_forward_reads_the_normalised_sum, test_what_leaves_the_block_is_normalised
# says: The norms of the block are given an eps of 1e-12, as BERT has; LayerNorm(d_model) has its own, 1e-5.
class PostNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model, eps=1e-12), LayerNorm(d_model, eps=1e-12)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.feed_forward(x))


# %% PostNormBlock: a sub-layer called twice
# caught by: test_a_post_norm_block_calls_each_sublayer_once
# says: A sub-layer is called twice, which costs twice as much and, with dropout inside, gives two results: keep the first.
class PostNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        if self.attention(x).shape != x.shape:
            raise ValueError("attention changes the shape")
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.feed_forward(x))


# %% PostNormBlock: x changed in place
# caught by: test_a_call_of_a_post_norm_block_changes_nothing
# says: x += ... changes the caller's x: write x = x + ...
class PostNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        if x.requires_grad:
            x = x + self.attention(x)
        else:
            x += self.attention(x)
        h = self.norm1(x)
        return self.norm2(h + self.feed_forward(h))
