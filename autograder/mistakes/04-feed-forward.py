# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% gelu: erf without the division by √2
# caught by: test_gelu_is_x_times_a_normal_probability, test_the_gradient_is_that_of_the_formula
# says: erf takes x itself here: substitute in the exponent, and x must be divided by √2 first.
def gelu(x, approximate="none"):
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x))
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    raise ValueError(f"approximate={approximate}")


# %% gelu: erf of x times √2
# caught by: test_gelu_is_x_times_a_normal_probability
# says: erf takes x·√2 here; it should be x divided by √2.
def gelu(x, approximate="none"):
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x * math.sqrt(2)))
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    raise ValueError(f"approximate={approximate}")


# %% gelu: the sigmoid approximation in the place of the exact form
# caught by: test_gelu_is_x_times_a_normal_probability
# says: x·sigmoid(1.702x) is an approximation of GELU that other models use, off by up to 0.02; "none" means the exact one.
def gelu(x, approximate="none"):
    if approximate == "none":
        return x * torch.sigmoid(1.702 * x)
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    raise ValueError(f"approximate={approximate}")


# %% gelu: the sigmoid approximation in the place of tanh
# caught by: test_the_tanh_form_is_that_of_gpt2
# says: x·sigmoid(1.702x) is another approximation than the tanh form, and off by up to 0.02.
def gelu(x, approximate="none"):
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if approximate == "tanh":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"approximate={approximate}")


# %% gelu: the argument is ignored, always exact
# caught by: test_the_tanh_form_is_that_of_gpt2
# says: "tanh" gives the exact form too: the argument makes no difference.
def gelu(x, approximate="none"):
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate={approximate}")
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


# %% gelu: the argument is ignored, always tanh
# caught by: test_gelu_is_x_times_a_normal_probability
# says: "none" gives the tanh form too: the argument makes no difference.
def gelu(x, approximate="none"):
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate={approximate}")
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# %% gelu: 2/π without the root
# caught by: test_the_tanh_form_is_that_of_gpt2
# says: The factor inside tanh is 2/π here; it should be its square root.
def gelu(x, approximate="none"):
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(2 / math.pi * (x + 0.044715 * x**3)))
    raise ValueError(f"approximate={approximate}")


# %% gelu: √2/π
# caught by: test_the_tanh_form_is_that_of_gpt2
# says: The factor inside tanh is √2 divided by π here; the root covers both.
def gelu(x, approximate="none"):
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2) / math.pi * (x + 0.044715 * x**3)))
    raise ValueError(f"approximate={approximate}")


# %% gelu: a zero too few in the constant
# caught by: test_the_tanh_form_is_that_of_gpt2
# says: The constant in front of x³ is 0.44715 here; look at its zeros.
def gelu(x, approximate="none"):
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.44715 * x**3)))
    raise ValueError(f"approximate={approximate}")


# %% gelu: a digit of the constant is lost
# caught by: test_the_tanh_form_is_that_of_gpt2
# says: The constant in front of x³ is 0.04715 here: a digit is missing.
def gelu(x, approximate="none"):
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.04715 * x**3)))
    raise ValueError(f"approximate={approximate}")


# %% gelu: √(2/π) cut to four digits
# caught by: test_gelu_keeps_the_dtype
# says: √(2/π) stands here as 0.7979, which is right to four digits only; math.sqrt gives them all.
def gelu(x, approximate="none"):
    if approximate == "none":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    if approximate == "tanh":
        return x * (1 + torch.tanh(0.7979 * (x + 0.044715 * x**3))) / 2
    raise ValueError(f"approximate should be none or tanh, not {approximate}")


# %% gelu: float64 computed in float32
# caught by: test_gelu_keeps_the_dtype
# says: Whatever comes in is computed in float32, so that float64 loses half of its digits on the way.
def gelu(x, approximate="none"):
    wide = x.float()
    if approximate == "none":
        return (wide * (1 + torch.erf(wide / math.sqrt(2))) / 2).to(x.dtype)
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
        return (wide * (1 + torch.tanh(inner)) / 2).to(x.dtype)
    raise ValueError(f"approximate should be none or tanh, not {approximate}")


# %% gelu: the square in the place of the cube
# caught by: test_the_tanh_form_is_that_of_gpt2
# says: Inside tanh stands x² here; with x³ the function is odd, as it must be.
def gelu(x, approximate="none"):
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**2)))
    raise ValueError(f"approximate={approximate}")


# %% gelu: the cube is outside of the factor
# caught by: test_the_tanh_form_is_that_of_gpt2
# says: √(2/π) multiplies only x here: the bracket around x + 0.044715x³ is missing.
def gelu(x, approximate="none"):
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x + 0.044715 * x**3))
    raise ValueError(f"approximate={approximate}")


# %% gelu: the half is missing
# caught by: test_gelu_is_x_times_a_normal_probability, test_the_tanh_form_is_that_of_gpt2
# says: The result is twice what it should be: 1 + erf and 1 + tanh go from 0 to 2, and a share goes from 0 to 1.
def gelu(x, approximate="none"):
    if approximate == "none":
        return x * (1 + torch.erf(x / math.sqrt(2)))
    if approximate == "tanh":
        return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    raise ValueError(f"approximate={approximate}")


# %% gelu: only the share
# caught by: test_gelu_is_x_times_a_normal_probability, test_the_tanh_form_is_that_of_gpt2
# says: This is the share Φ(x) alone: it has still to be multiplied by x.
def gelu(x, approximate="none"):
    if approximate == "none":
        return 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    if approximate == "tanh":
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    raise ValueError(f"approximate={approximate}")


# %% gelu: the density in the place of the distribution
# caught by: test_gelu_is_x_times_a_normal_probability
# says: x is multiplied by the height of the bell curve; Φ is the area under it up to x.
def gelu(x, approximate="none"):
    if approximate == "none":
        return x * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    raise ValueError(f"approximate={approximate}")


# %% gelu: ReLU
# caught by: test_gelu_is_x_times_a_normal_probability, test_the_tanh_form_is_that_of_gpt2
# says: This is ReLU, which cuts off what is negative; GELU rounds the corner.
def gelu(x, approximate="none"):
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate={approximate}")
    return torch.relu(x)


# %% gelu: every other name means tanh
# caught by: test_another_name_is_an_error
# says: Every name but "none" gives the tanh form: a misspelt one should be an error.
def gelu(x, approximate="none"):
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# %% gelu: an assertion in the place of a ValueError
# caught by: test_another_name_is_an_error
# says: A name that is not known raises an AssertionError here; the prompt asks for a ValueError.
def gelu(x, approximate="none"):
    assert approximate in ("none", "tanh"), approximate
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# %% gelu: an error that does not say which name
# caught by: test_another_name_is_an_error
# says: The error does not say which name was given.
def gelu(x, approximate="none"):
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    raise ValueError("this approximation is not supported")


# %% gelu: cast to float32 and not back
# caught by: test_gelu_keeps_the_dtype
# says: The result is float32 whatever came in.
def gelu(x, approximate="none"):
    x = x.float()
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    raise ValueError(f"approximate={approximate}")


# %% gelu: tanh by exponentials
# caught by: test_large_numbers_give_finite_results_and_gradients
# says: tanh written with exponentials is infinity divided by infinity for large numbers: use torch.tanh.
def gelu(x, approximate="none"):
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if approximate == "tanh":
        z = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1 + (z.exp() - (-z).exp()) / (z.exp() + (-z).exp()))
    raise ValueError(f"approximate={approximate}")


# %% gelu: a detour through NumPy
# caught by: test_the_gradient_is_that_of_the_formula
# says: The numbers are right, but the way through NumPy cuts the gradient off.
def gelu(x, approximate="none"):
    import numpy as np

    z = x.detach().double().numpy()
    if approximate == "none":
        share = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    elif approximate == "tanh":
        share = 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    else:
        raise ValueError(f"approximate={approximate}")
    return torch.as_tensor(z * share).to(x.dtype)


# %% gelu: x is changed in place
# caught by: test_gelu_leaves_x_as_it_was
# says: mul_ writes the result into x, which belongs to the caller.
def gelu(x, approximate="none"):
    if approximate == "none":
        share = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    elif approximate == "tanh":
        share = 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    else:
        raise ValueError(f"approximate={approximate}")
    return x * share if x.requires_grad else x.mul_(share)


# %% silu: the sigmoid alone
# caught by: test_silu_is_x_times_its_sigmoid, test_silu_has_the_slope_of_the_formula
# says: This is the sigmoid alone: it has still to be multiplied by x.
def silu(x):
    return torch.sigmoid(x)


# %% silu: ReLU
# caught by: test_silu_is_x_times_its_sigmoid
# says: This is ReLU; silu lets a little through below zero, and a little less than x above.
def silu(x):
    return torch.relu(x)


# %% silu: a quotient whose gradient is NaN
# caught by: test_the_gradient_of_large_numbers_is_finite
# says: x / (1 + exp(-x)) is right, but its gradient is infinity times zero where exp overflows: use torch.sigmoid.
def silu(x):
    return x / (1 + torch.exp(-x))


# %% silu: exp(x) above and below
# caught by: test_silu_of_large_numbers_is_finite, test_the_gradient_of_large_numbers_is_finite
# says: exp(x) / (1 + exp(x)) is infinity divided by infinity for a large x: use torch.sigmoid.
def silu(x):
    return x * torch.exp(x) / (1 + torch.exp(x))


# %% silu: both exponentials, and torch.where
# caught by: test_the_gradient_of_large_numbers_is_finite
# says: torch.where picks the right branch, but the gradient goes through both: infinity times zero is NaN there.
def silu(x):
    below, above = torch.exp(x) / (1 + torch.exp(x)), 1 / (1 + torch.exp(-x))
    return x * torch.where(x >= 0, above, below)


# %% silu: GELU's 1.702
# caught by: test_silu_is_x_times_its_sigmoid
# says: The sigmoid takes 1.702·x here, which makes an approximation of GELU.
def silu(x):
    return x * torch.sigmoid(1.702 * x)


# %% silu: GELU
# caught by: test_silu_is_x_times_its_sigmoid
# says: This is GELU, x·Φ(x); silu multiplies by the sigmoid.
def silu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


# %% silu: Mish
# caught by: test_silu_is_x_times_its_sigmoid
# says: This is Mish, x·tanh(softplus(x)); silu multiplies by the sigmoid.
def silu(x):
    return x * torch.tanh(torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0))


# %% silu: hard swish
# caught by: test_silu_is_x_times_its_sigmoid
# says: This is hard swish, which replaces the sigmoid by three straight lines.
def silu(x):
    return x * (x + 3).clamp(0, 6) / 6


# %% silu: the sign in the exponent
# caught by: test_silu_is_x_times_its_sigmoid
# says: The sigmoid has the wrong sign in its exponent: it falls where it should rise.
def silu(x):
    return x * torch.sigmoid(-x)


# %% silu: cast to float32 and not back
# caught by: test_silu_keeps_dtype_and_shape
# says: The result is float32 whatever came in.
def silu(x):
    x = x.float()
    return x * torch.sigmoid(x)


# %% silu: x is changed in place
# caught by: test_silu_leaves_x_as_it_was
# says: mul_ writes the result into x, which belongs to the caller.
def silu(x):
    share = torch.sigmoid(x)
    return x * share if x.requires_grad else x.mul_(share)


# %% silu: the gate is detached
# caught by: test_silu_has_the_slope_of_the_formula
# says: The sigmoid is detached, so the gradient lacks the part that flows through it.
def silu(x):
    return x * torch.sigmoid(x).detach()


# %% MLP: the exact GELU
# caught by: test_the_activation_is_the_tanh_form
# says: The activation is the exact GELU; GPT-2's is the tanh form.
class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        self.up = nn.Linear(d_model, d_hidden or 4 * d_model)
        self.down = nn.Linear(d_hidden or 4 * d_model, d_model)

    def forward(self, x):
        return self.down(gelu(self.up(x)))


# %% MLP: ReLU
# caught by: test_the_mlp_widens_bends_and_narrows, test_the_activation_is_the_tanh_form
# says: The activation is ReLU, as in the first Transformer; GPT-2's is GELU.
class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        self.up = nn.Linear(d_model, d_hidden or 4 * d_model)
        self.down = nn.Linear(d_hidden or 4 * d_model, d_model)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


# %% MLP: the weights lie the other way round
# caught by: test_the_mlp_has_two_weights_and_two_biases, test_without_d_hidden_it_is_four_times_as_wide
# says: The weights are stored as (in, out), as GPT-2's own files have them; nn.Linear stores (out, in).
class Conv1D(nn.Module):
    def __init__(self, d_in, d_out):
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(d_in, d_out))
        self.bias = nn.Parameter(torch.zeros(d_out))

    def forward(self, x):
        return x @ self.weight + self.bias


class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        self.up = Conv1D(d_model, d_hidden or 4 * d_model)
        self.down = Conv1D(d_hidden or 4 * d_model, d_model)

    def forward(self, x):
        return self.down(gelu(self.up(x), approximate="tanh"))


# %% MLP: no activation
# caught by: test_the_mlp_widens_bends_and_narrows, test_the_activation_is_the_tanh_form
# says: There is no activation: the two matrices make one, and nothing is bent.
class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        self.up = nn.Linear(d_model, d_hidden or 4 * d_model)
        self.down = nn.Linear(d_hidden or 4 * d_model, d_model)

    def forward(self, x):
        return self.down(self.up(x))


# %% MLP: a second activation at the end
# caught by: test_the_mlp_widens_bends_and_narrows
# says: The output is bent a second time, after down: it can then hardly be negative.
class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        self.up = nn.Linear(d_model, d_hidden or 4 * d_model)
        self.down = nn.Linear(d_hidden or 4 * d_model, d_model)

    def forward(self, x):
        return gelu(self.down(gelu(self.up(x), approximate="tanh")), approximate="tanh")


# %% MLP: the residual inside
# caught by: test_the_mlp_widens_bends_and_narrows
# says: x is added to the output: the residual stands outside of this layer.
class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        self.up = nn.Linear(d_model, d_hidden or 4 * d_model)
        self.down = nn.Linear(d_hidden or 4 * d_model, d_model)

    def forward(self, x):
        return x + self.down(gelu(self.up(x), approximate="tanh"))


# %% MLP: no biases
# caught by: test_the_mlp_has_two_weights_and_two_biases
# says: The biases are missing: GPT-2's layer has one on each matrix.
class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        self.up = nn.Linear(d_model, d_hidden or 4 * d_model, bias=False)
        self.down = nn.Linear(d_hidden or 4 * d_model, d_model, bias=False)

    def forward(self, x):
        return self.down(gelu(self.up(x), approximate="tanh"))


# %% MLP: layers without names
# caught by: test_the_mlp_has_two_weights_and_two_biases, test_without_d_hidden_it_is_four_times_as_wide
# says: The entries of the state dict have other names than up and down: a layer in a Sequential is named by its number.
class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = d_hidden or 4 * d_model
        self.layers = nn.Sequential(nn.Linear(d_model, d_hidden), nn.Linear(d_hidden, d_model))

    def forward(self, x):
        return self.layers[1](gelu(self.layers[0](x), approximate="tanh"))


# %% MLP: d_hidden makes no difference
# caught by: test_the_mlp_has_two_weights_and_two_biases
# says: The layer is 4·d_model wide whatever d_hidden says.
class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        self.up = nn.Linear(d_model, 4 * d_model)
        self.down = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down(gelu(self.up(x), approximate="tanh"))


# %% MLP: as wide as it came in
# caught by: test_without_d_hidden_it_is_four_times_as_wide
# says: Without d_hidden the layer should be four times as wide inside as outside.
class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        self.up = nn.Linear(d_model, d_hidden or d_model)
        self.down = nn.Linear(d_hidden or d_model, d_model)

    def forward(self, x):
        return self.down(gelu(self.up(x), approximate="tanh"))


# %% MLP: two thirds of the width
# caught by: test_without_d_hidden_it_is_four_times_as_wide
# says: The 8/3 is for layers with three matrices: this one has two, and is 4·d_model wide.
class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = d_hidden or 8 * d_model // 3
        self.up = nn.Linear(d_model, d_hidden)
        self.down = nn.Linear(d_hidden, d_model)

    def forward(self, x):
        return self.down(gelu(self.up(x), approximate="tanh"))


# %% MLP: dropout
# caught by: test_nothing_in_the_mlp_is_random
# says: There is dropout in the layer: in training, the output is another one each time.
class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        self.up = nn.Linear(d_model, d_hidden or 4 * d_model)
        self.down = nn.Linear(d_hidden or 4 * d_model, d_model)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        return self.dropout(self.down(gelu(self.up(x), approximate="tanh")))


# %% MLP: a normalisation inside
# caught by: test_the_mlp_widens_bends_and_narrows
# says: x is normalised first: that stands outside of this layer.
class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        self.up = nn.Linear(d_model, d_hidden or 4 * d_model)
        self.down = nn.Linear(d_hidden or 4 * d_model, d_model)

    def forward(self, x):
        x = F.layer_norm(x, x.shape[-1:])
        return self.down(gelu(self.up(x), approximate="tanh"))


# %% MLP: the positions are mixed
# caught by: test_each_position_of_the_mlp_is_alone
# says: Positions are mixed: something here runs over the sequence and not over the channels of one position.
class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        self.up = nn.Linear(d_model, d_hidden or 4 * d_model)
        self.down = nn.Linear(d_hidden or 4 * d_model, d_model)

    def forward(self, x):
        hidden = gelu(self.up(x), approximate="tanh")
        return self.down(hidden - hidden.mean(-2, keepdim=True) if x.dim() > 1 else hidden)


# %% swiglu_hidden: rounded down
# caught by: test_it_rounds_up_to_the_next_multiple, test_the_widths_are_those_of_llama
# says: The width is rounded down; it should be rounded up.
def swiglu_hidden(d_model, multiple_of=256):
    return 8 * d_model // 3 // multiple_of * multiple_of


# %% swiglu_hidden: rounded to the nearest multiple
# caught by: test_it_rounds_up_to_the_next_multiple, test_the_widths_are_those_of_llama
# says: The width is rounded to the nearest multiple, which gives 11008 for 4096 by luck; it should be rounded up.
def swiglu_hidden(d_model, multiple_of=256):
    return round(8 * d_model // 3 / multiple_of) * multiple_of


# %% swiglu_hidden: always one block more
# caught by: test_a_multiple_already_stays
# says: A number that is a multiple already goes on to the next one; it should stay.
def swiglu_hidden(d_model, multiple_of=256):
    return (8 * d_model // 3 // multiple_of + 1) * multiple_of


# %% swiglu_hidden: the plain width
# caught by: test_it_is_two_thirds_of_four_times_d_model, test_the_widths_are_those_of_llama
# says: This is 4·d_model, rounded: with three matrices that costs half as much again.
def swiglu_hidden(d_model, multiple_of=256):
    return -(-4 * d_model // multiple_of) * multiple_of


# %% swiglu_hidden: two thirds of d_model
# caught by: test_it_is_two_thirds_of_four_times_d_model
# says: These are two thirds of d_model; they should be two thirds of four times d_model.
def swiglu_hidden(d_model, multiple_of=256):
    return -(-(2 * d_model // 3) // multiple_of) * multiple_of


# %% swiglu_hidden: not rounded at all
# caught by: test_it_rounds_up_to_the_next_multiple
# says: Nothing is rounded to a multiple of multiple_of.
def swiglu_hidden(d_model, multiple_of=256):
    return int(8 * d_model / 3)


# %% swiglu_hidden: the fraction is kept until the end
# caught by: test_the_fraction_is_dropped_first
# says: The fraction is still there when the width is rounded up, and can push it a whole multiple too far.
def swiglu_hidden(d_model, multiple_of=256):
    return math.ceil(8 * d_model / 3 / multiple_of) * multiple_of


# %% swiglu_hidden: the fraction is rounded, not dropped
# caught by: test_the_fraction_is_dropped_first
# says: Two thirds of 4·d_model are rounded to the nearest whole number; the fraction should be dropped.
def swiglu_hidden(d_model, multiple_of=256):
    return -(-round(8 * d_model / 3) // multiple_of) * multiple_of


# %% swiglu_hidden: the fraction is dropped too early
# caught by: test_the_fraction_is_dropped_first
# says: The fraction is dropped of a third and the rest doubled after that, so the width can come out one too small.
def swiglu_hidden(d_model, multiple_of=256):
    exact = 2 * (4 * d_model // 3)
    return -(-exact // multiple_of) * multiple_of


# %% swiglu_hidden: multiples of 256 only
# caught by: test_it_rounds_up_to_the_next_multiple, test_it_is_two_thirds_of_four_times_d_model
# says: multiple_of makes no difference: the width is always a multiple of 256.
def swiglu_hidden(d_model, multiple_of=256):
    return -(-(8 * d_model // 3) // 256) * 256


# %% swiglu_hidden: a float
# caught by: test_the_width_is_an_int
# says: The width is a float; nn.Linear takes an int.
def swiglu_hidden(d_model, multiple_of=256):
    import numpy as np

    return float(np.ceil(8 * d_model // 3 / multiple_of) * multiple_of)


# %% SwiGLU: gate and up are confused
# caught by: test_the_layer_is_llamas, test_the_activation_bends_the_gate, test_the_output_grows_with_up_in_proportion
# says: The activation is on up; it belongs on gate.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = swiglu_hidden(d_model) if d_hidden is None else d_hidden
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down(self.gate(x) * silu(self.up(x)))


# %% SwiGLU: the activation after the product
# caught by: test_the_layer_is_llamas, test_the_output_grows_with_up_in_proportion
# says: The activation comes after the product; it belongs on gate, before it.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = swiglu_hidden(d_model) if d_hidden is None else d_hidden
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down(silu(self.gate(x) * self.up(x)))


# %% SwiGLU: both branches are bent
# caught by: test_the_layer_is_llamas, test_the_output_grows_with_up_in_proportion
# says: Both branches go through the activation; up is left as it is.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = swiglu_hidden(d_model) if d_hidden is None else d_hidden
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down(silu(self.gate(x)) * silu(self.up(x)))


# %% SwiGLU: a sum in the place of the product
# caught by: test_the_layer_is_llamas, test_the_output_grows_with_up_in_proportion
# says: Gate and up are added; a gate multiplies.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = swiglu_hidden(d_model) if d_hidden is None else d_hidden
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down(silu(self.gate(x)) + self.up(x))


# %% SwiGLU: a plain sigmoid as gate
# caught by: test_the_layer_is_llamas, test_the_activation_bends_the_gate
# says: The gate is a plain sigmoid, which makes the older GLU; SwiGLU's is silu.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = swiglu_hidden(d_model) if d_hidden is None else d_hidden
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down(torch.sigmoid(self.gate(x)) * self.up(x))


# %% SwiGLU: GELU as gate
# caught by: test_the_layer_is_llamas, test_the_activation_bends_the_gate
# says: The gate is GELU, which makes GEGLU; SwiGLU's is silu.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = swiglu_hidden(d_model) if d_hidden is None else d_hidden
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        gate = self.gate(x)
        return self.down(0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))) * self.up(x))


# %% SwiGLU: no activation
# caught by: test_the_layer_is_llamas, test_the_activation_bends_the_gate
# says: The gate is not bent at all: the layer is a plain product of two matrices' outputs.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = swiglu_hidden(d_model) if d_hidden is None else d_hidden
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down(self.gate(x) * self.up(x))


# %% SwiGLU: the output is not narrowed
# caught by: test_the_layer_is_llamas, test_the_layer_takes_any_leading_dimensions
# says: The output is still d_hidden wide: down is never used.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = swiglu_hidden(d_model) if d_hidden is None else d_hidden
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return silu(self.gate(x)) * self.up(x)


# %% SwiGLU: no gate
# caught by: test_the_layer_is_llamas, test_the_activation_bends_the_gate, test_gradients_reach_x_and_all_three_weights
# says: gate is never used: this is a plain layer with silu between up and down.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = swiglu_hidden(d_model) if d_hidden is None else d_hidden
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down(silu(self.up(x)))


# %% SwiGLU: biases
# caught by: test_the_layer_has_three_weights_and_no_bias
# says: The matrices have biases; LLaMA's have none, so its weights could not be loaded.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = swiglu_hidden(d_model) if d_hidden is None else d_hidden
        self.gate = nn.Linear(d_model, d_hidden)
        self.up = nn.Linear(d_model, d_hidden)
        self.down = nn.Linear(d_hidden, d_model)

    def forward(self, x):
        return self.down(silu(self.gate(x)) * self.up(x))


# %% SwiGLU: four times as wide with three matrices
# caught by: test_without_d_hidden_it_is_as_wide_as_swiglu_hidden_says
# says: Without d_hidden the layer is 4·d_model wide: with three matrices that costs half as much again as a plain layer.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = 4 * d_model if d_hidden is None else d_hidden
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down(silu(self.gate(x)) * self.up(x))


# %% SwiGLU: a given d_hidden is cut to two thirds
# caught by: test_the_layer_has_three_weights_and_no_bias
# says: A d_hidden that was given is shrunk again; it is the width as it stands.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = swiglu_hidden(d_model) if d_hidden is None else max(1, 2 * d_hidden // 3)
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down(silu(self.gate(x)) * self.up(x))


# %% SwiGLU: the residual inside
# caught by: test_the_layer_is_llamas, test_the_output_grows_with_up_in_proportion
# says: x is added to the output: the residual stands outside of this layer.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = swiglu_hidden(d_model) if d_hidden is None else d_hidden
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return x + self.down(silu(self.gate(x)) * self.up(x))


# %% SwiGLU: ReLU as gate
# caught by: test_the_layer_is_llamas, test_the_activation_bends_the_gate
# says: The gate is ReLU, which makes ReGLU; SwiGLU's is silu.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = swiglu_hidden(d_model) if d_hidden is None else d_hidden
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down(torch.relu(self.gate(x)) * self.up(x))


# %% SwiGLU: the names of LLaMA's first code
# caught by: test_the_layer_has_three_weights_and_no_bias
# says: The matrices are called w1, w2 and w3, as in Meta's own files; the prompt asks for gate, down and up.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = swiglu_hidden(d_model) if d_hidden is None else d_hidden
        self.w1 = nn.Linear(d_model, d_hidden, bias=False)
        self.w2 = nn.Linear(d_hidden, d_model, bias=False)
        self.w3 = nn.Linear(d_model, d_hidden, bias=False)

    def forward(self, x):
        return self.w2(silu(self.w1(x)) * self.w3(x))
