# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% LoRALinear: alpha is not divided by the rank
# caught by: test_the_correction_is_alpha_over_r_times_b_a_x, test_alpha_is_divided_by_the_rank
# says: The correction is multiplied by α, and not by α / r.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha, False
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: alpha over the root of the rank
# caught by: test_the_correction_is_alpha_over_r_times_b_a_x, test_alpha_is_divided_by_the_rank
# says: The correction is multiplied by α / √r: that is rsLoRA, a later variant; LoRA divides by r.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / math.sqrt(rank), False
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: no scale
# caught by: test_the_correction_is_alpha_over_r_times_b_a_x, test_alpha_is_divided_by_the_rank
# says: alpha and the rank play no part: the correction is α / r times B A x.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), 1.0, False
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: no correction in evaluation
# caught by: test_the_correction_is_alpha_over_r_times_b_a_x
# says: In evaluation the correction is left out: what was learnt would be there only while it is learnt.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / rank, False
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged or not self.training:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: both matrices random
# caught by: test_a_new_layer_gives_what_the_given_one_gives
# says: B begins with random numbers, so the layer is another one before it has learnt anything: B should begin as zero.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / rank, False
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.randn(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: both matrices zero
# caught by: test_a_new_layer_gives_what_the_given_one_gives
# says: A and B are both zero: the gradient of each is a multiple of the other, so neither will ever move. Only B should be zero.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / rank, False
        self.lora_A = nn.Parameter(torch.zeros(rank, linear.in_features, dtype=linear.weight.dtype))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: A zero and B random
# caught by: test_a_new_layer_gives_what_the_given_one_gives
# says: A is zero and B is random: the convention is the other way round.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / rank, False
        self.lora_A = nn.Parameter(torch.zeros(rank, linear.in_features, dtype=linear.weight.dtype))
        self.lora_B = nn.Parameter(torch.randn(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: the given layer is still trained
# caught by: test_the_given_layer_is_frozen_and_the_rest_is_trained
# says: The given layer is not frozen: its weight and bias still have requires_grad.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear, alpha / rank, False
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: the bias is still trained
# caught by: test_the_given_layer_is_frozen_and_the_rest_is_trained
# says: The weight is frozen, and the bias was forgotten.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear, alpha / rank, False
        linear.weight.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: a copy of the given layer
# caught by: test_merging_adds_the_correction_to_the_weight_in_place, test_the_given_layer_is_frozen_and_the_rest_is_trained
# says: The layer inside is a copy: freezing and merging should happen to the very layer that was given.
import copy


class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = copy.deepcopy(linear).requires_grad_(False), alpha / rank, False
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: the correction counts twice when merged
# caught by: test_a_merged_layer_gives_the_same_result, test_a_merged_layer_computes_with_the_weight_alone
# says: A merged layer adds its correction to a weight that holds it already: it counts twice.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / rank, False
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: merging makes another tensor
# caught by: test_merging_adds_the_correction_to_the_weight_in_place, test_unmerging_takes_the_correction_off_again
# says: merge() puts a new parameter in the weight's place: whoever holds the old one, an optimiser or a tied layer, does not notice. Change it in place.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / rank, False
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            new = self.linear.weight.data + self.scale * self.lora_B.data @ self.lora_A.data
            self.linear.weight = nn.Parameter(new, requires_grad=False)
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: alpha is divided to a whole number
# caught by: test_the_correction_is_alpha_over_r_times_b_a_x, test_alpha_is_divided_by_the_rank
# says: alpha // rank is a whole number, and 0 where alpha is below the rank: divide with /.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha // rank, False
        weight = linear.weight
        self.lora_A = nn.Parameter(torch.randn(rank, weight.shape[1], dtype=weight.dtype))
        self.lora_B = nn.Parameter(torch.zeros(weight.shape[0], rank, dtype=weight.dtype))

    def forward(self, x):
        y = self.linear(x)
        return y if self.merged else y + self.scale * (x @ self.lora_A.T @ self.lora_B.T)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: merging moves the weight
# caught by: test_merging_adds_the_correction_to_the_weight_in_place, test_unmerging_takes_the_correction_off_again
# says: merge() computes the sum in new memory and hangs it into the parameter: that is room for a second weight, and a view of the first does not notice. Use += or add_.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / rank, False
        weight = linear.weight
        self.lora_A = nn.Parameter(torch.randn(rank, weight.shape[1], dtype=weight.dtype))
        self.lora_B = nn.Parameter(torch.zeros(weight.shape[0], rank, dtype=weight.dtype))

    def forward(self, x):
        y = self.linear(x)
        return y if self.merged else y + self.scale * (x @ self.lora_A.T @ self.lora_B.T)

    def merge(self):
        if not self.merged:
            self.linear.weight.data = self.linear.weight.data + self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data = self.linear.weight.data - self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: merging forgets the scale
# caught by: test_merging_adds_the_correction_to_the_weight_in_place, test_a_merged_layer_gives_the_same_result
# says: merge() adds B A without α / r.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / rank, False
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: merging twice adds twice
# caught by: test_merging_twice_is_merging_once
# says: A second merge() adds the correction again: a merged layer should be left as it is.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / rank, False
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
        self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: unmerging without having merged
# caught by: test_merging_twice_is_merging_once
# says: unmerge() on a layer that is not merged takes off a correction that is not there.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / rank, False
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
        self.merged = False


# %% LoRALinear: unmerging is only said
# caught by: test_unmerging_takes_the_correction_off_again, test_merging_twice_is_merging_once
# says: unmerge() says that the layer is not merged, and leaves the correction in the weight.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / rank, False
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.merged = False


# %% LoRALinear: no gradient through the frozen layer
# caught by: test_gradients_reach_x_and_both_matrices
# says: The frozen layer runs without gradients. Its weight needs none, and x needs the one that passes through it: layers before this one learn from it.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / rank, False
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        with torch.no_grad():
            y = self.linear(x)
        return y + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: float32 matrices in a bfloat16 layer
# caught by: test_a_bfloat16_layer_has_bfloat16_matrices
# says: lora_A and lora_B are float32 whatever the layer is: they should have the dtype of its weight.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / rank, False
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * (self.lora_B.data @ self.lora_A.data).to(self.linear.weight.dtype)
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * (self.lora_B.data @ self.lora_A.data).to(self.linear.weight.dtype)
            self.merged = False


# %% LoRALinear: dropout
# caught by: test_x_is_left_as_it_was_and_nothing_is_random
# says: Some of x is dropped in training: this layer has no dropout.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / rank, False
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(
            F.linear(F.dropout(x, 0.1, self.training), self.lora_A), self.lora_B
        )

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% LoRALinear: no error for a rank of zero
# caught by: test_a_rank_below_one_is_refused
# says: A rank of 0 or below is not refused with a ValueError of its own that names it.
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / max(rank, 1), False
        self.lora_A = nn.Parameter(torch.randn(max(rank, 1), linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, max(rank, 1), dtype=linear.weight.dtype))

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False


# %% inject: any name that contains a target
# caught by: test_the_last_part_of_a_name_decides
# says: A name counts if a target is anywhere in it: proj then means q_proj and out_proj, too. The last part should be the target itself.
def inject(model, targets, rank, alpha):
    found = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and any(target in name for target in targets)
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: any name that ends in a target
# caught by: test_the_last_part_of_a_name_decides
# says: A name counts if it ends like a target: out_proj ends in proj, and its last part is another one.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.endswith(tuple(targets))
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: the rest is still trained
# caught by: test_everything_but_the_adapters_is_frozen
# says: Only the replaced layers are frozen: embeddings, norms and all other layers are still trained.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: the adapters are frozen, too
# caught by: test_everything_but_the_adapters_is_frozen
# says: The model is frozen after the adapters were put in, so that they are frozen with it.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    model.requires_grad_(False)
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: only linear layers are frozen
# caught by: test_everything_but_the_adapters_is_frozen
# says: Parameters outside of linear layers are still trained: embeddings, norms, and those that a module holds itself.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: only the model's own children
# caught by: test_layers_at_any_depth_are_found, test_the_layers_of_these_names_become_lora_layers
# says: Only layers directly in the model are found, not those in its blocks.
def inject(model, targets, rank, alpha):
    found = [
        name
        for name, layer in model.named_children()
        if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: embeddings and norms are named as well
# caught by: test_only_linear_layers_are_replaced
# says: The names of embeddings or norms are returned as if they had been replaced.
def inject(model, targets, rank, alpha):
    found = [name for name, layer in model.named_modules() if name.split(".")[-1] in targets]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    model.requires_grad_(False)
    for name in found:
        if not isinstance(model.get_submodule(name), nn.Linear):
            continue
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: the order of the targets
# caught by: test_the_names_come_in_the_models_order
# says: The names come in the order of the targets: they should come as the model has them.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return sorted(found, key=lambda name: list(targets).index(name.split(".")[-1]))


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: names in alphabetical order
# caught by: test_the_names_come_in_the_models_order
# says: The names are sorted: they should come in the order in which the model has them.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return sorted(found)


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: a fresh layer inside
# caught by: test_the_layers_of_these_names_become_lora_layers, test_the_model_gives_what_it_gave_before
# says: Inside of each LoRALinear is a new linear layer with random weights: it should be the one that stood there.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        old = model.get_submodule(name)
        new = nn.Linear(old.in_features, old.out_features, old.bias is not None)
        setattr(model.get_submodule(parent), last, LoRALinear(new, rank, alpha))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: rank and alpha change places
# caught by: test_the_layers_of_these_names_become_lora_layers
# says: rank and alpha change places on their way to LoRALinear.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), int(alpha) or 1, rank))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: a changed copy of the model
# caught by: test_the_layers_of_these_names_become_lora_layers, test_everything_but_the_adapters_is_frozen
# says: A copy of the model is changed, and the given one is as before.
import copy


def inject(model, targets, rank, alpha):
    model = copy.deepcopy(model)
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: nothing found is no error
# caught by: test_targets_that_no_layer_has_are_refused
# says: Where no layer has the name, nothing is raised: a misspelt target would go unnoticed.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: frozen before it is refused
# caught by: test_targets_that_no_layer_has_are_refused
# says: The model is frozen before the targets are looked at, so a refused call leaves it frozen.
def inject(model, targets, rank, alpha):
    model.requires_grad_(False)
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: the error names one target
# caught by: test_targets_that_no_layer_has_are_refused
# says: The sentence names the first target only.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)[0]}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: every target has to fit
# caught by: test_targets_that_no_layer_has_are_refused
# says: An error is raised where one of several targets fits no layer: one that fits is enough.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not all(any(name.split(".")[-1] == target for name in found) for target in targets):
        raise ValueError(f"no layer is called {list(targets)}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: saving the whole model
# caught by: test_the_adapters_state_is_all_of_it_and_nothing_else
# says: The whole state dict is saved: an adapter's file should hold the adapter and nothing else.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


# %% inject: saving what has lora_A in its name
# caught by: test_the_adapters_state_is_all_of_it_and_nothing_else
# says: A name counts if lora_A or lora_B is anywhere in it, so lora_A_scale is saved, too.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if "lora_A" in k or "lora_B" in k}


# %% inject: saving only B
# caught by: test_the_adapters_state_is_all_of_it_and_nothing_else, test_an_adapter_can_be_loaded_into_another_copy
# says: Only lora_B is saved, and without its lora_A it means nothing.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] == "lora_B"}


# %% inject: saving without a copy
# caught by: test_the_adapters_state_is_a_copy
# says: What is saved shares its memory with the model: it changes as training goes on.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {k: v for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: saving with the gradient
# caught by: test_the_adapters_state_is_a_copy
# says: What is saved still has a gradient: detach it.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {k: v.clone() for k, v in model.named_parameters() if k.split(".")[-1] in ("lora_A", "lora_B")}


# %% inject: saving by the last part of the name
# caught by: test_the_adapters_state_is_all_of_it_and_nothing_else, test_an_adapter_can_be_loaded_into_another_copy
# says: The names are cut to lora_A and lora_B, so that layer after layer overwrites the one before.
def inject(model, targets, rank, alpha):
    found = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets
    ]
    if not found:
        raise ValueError(f"no layer is called {list(targets)}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), rank, alpha))
    return found


def adapter_state(model):
    return {
        k.split(".")[-1]: v.clone() for k, v in model.state_dict().items() if k.split(".")[-1] in ("lora_A", "lora_B")
    }


# %% sft_loss: the token that stands there decides
# caught by: test_the_answers_first_and_last_token_count, test_the_loss_is_the_mean_over_the_answers_tokens
# says: A position counts if an answer's token stands there. What counts is the token that it predicts, the next one.
def sft_loss(logits, ids, prompt_lengths, lengths):
    position = torch.arange(ids.shape[1])[None]
    counts = (position >= prompt_lengths[:, None]) & (position < lengths[:, None])
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    mask = counts[:, :-1].float()
    return (losses * mask).sum() / mask.sum().clamp(min=1)


# %% sft_loss: the prompt counts, too
# caught by: test_the_prompt_has_no_influence, test_the_loss_is_the_mean_over_the_answers_tokens
# says: The prompt's tokens count as well: that is training on the whole text.
def sft_loss(logits, ids, prompt_lengths, lengths):
    position = torch.arange(ids.shape[1])[None]
    counts = position < lengths[:, None]
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    mask = counts[:, 1:].float()
    return (losses * mask).sum() / mask.sum().clamp(min=1)


# %% sft_loss: the padding counts, too
# caught by: test_the_padding_has_no_influence, test_the_loss_is_the_mean_over_the_answers_tokens
# says: What stands after the end of a text counts as well.
def sft_loss(logits, ids, prompt_lengths, lengths):
    position = torch.arange(ids.shape[1])[None]
    counts = position >= prompt_lengths[:, None]
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    mask = counts[:, 1:].float()
    return (losses * mask).sum() / mask.sum().clamp(min=1)


# %% sft_loss: a mean of means
# caught by: test_a_long_answer_weighs_more_than_a_short_one, test_the_loss_is_the_mean_over_the_answers_tokens
# says: Each text's mean is taken first, so a token of a short answer weighs more: the mean is over all tokens of the batch.
def sft_loss(logits, ids, prompt_lengths, lengths):
    position = torch.arange(ids.shape[1])[None]
    counts = (position >= prompt_lengths[:, None]) & (position < lengths[:, None])
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    mask = counts[:, 1:].float()
    rows = (losses * mask).sum(1) / mask.sum(1).clamp(min=1)
    return rows.sum() / (mask.sum(1) > 0).sum().clamp(min=1)


# %% sft_loss: no shift
# caught by: test_the_answers_first_and_last_token_count, test_the_loss_is_the_mean_over_the_answers_tokens
# says: The logits at a position are compared with the token that stands there: they predict the next one.
def sft_loss(logits, ids, prompt_lengths, lengths):
    position = torch.arange(ids.shape[1])[None]
    counts = (position >= prompt_lengths[:, None]) & (position < lengths[:, None])
    losses = F.cross_entropy(logits[:, 1:].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    mask = counts[:, 1:].float()
    return (losses * mask).sum() / mask.sum().clamp(min=1)


# %% sft_loss: NaN where nothing counts
# caught by: test_without_any_answer_the_loss_is_zero
# says: Without any answer in the batch the loss is 0 / 0, which is NaN: it should be 0.
def sft_loss(logits, ids, prompt_lengths, lengths):
    position = torch.arange(ids.shape[1])[None]
    counts = (position >= prompt_lengths[:, None]) & (position < lengths[:, None])
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    mask = counts[:, 1:].float()
    return (losses * mask).sum() / mask.sum()


# %% sft_loss: a sum
# caught by: test_the_loss_is_the_mean_over_the_answers_tokens
# says: The losses are added up: the mean over what counts is wanted.
def sft_loss(logits, ids, prompt_lengths, lengths):
    position = torch.arange(ids.shape[1])[None]
    counts = (position >= prompt_lengths[:, None]) & (position < lengths[:, None])
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    mask = counts[:, 1:].float()
    return (losses * mask).sum()


# %% sft_loss: divided by all positions
# caught by: test_the_loss_is_the_mean_over_the_answers_tokens
# says: The sum is divided by the number of all positions, not of those that count: the more padding, the smaller the loss.
def sft_loss(logits, ids, prompt_lengths, lengths):
    position = torch.arange(ids.shape[1])[None]
    counts = (position >= prompt_lengths[:, None]) & (position < lengths[:, None])
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    mask = counts[:, 1:].float()
    return (losses * mask).sum() / mask.numel()


# %% sft_loss: divided by the number of texts
# caught by: test_the_loss_is_the_mean_over_the_answers_tokens
# says: The sum is divided by the number of texts, not of tokens that count.
def sft_loss(logits, ids, prompt_lengths, lengths):
    position = torch.arange(ids.shape[1])[None]
    counts = (position >= prompt_lengths[:, None]) & (position < lengths[:, None])
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    mask = counts[:, 1:].float()
    return (losses * mask).sum() / len(ids)


# %% sft_loss: the answer's first token left out
# caught by: test_the_answers_first_and_last_token_count, test_the_loss_is_the_mean_over_the_answers_tokens
# says: The first token of the answer does not count: it is predicted at the last position of the prompt.
def sft_loss(logits, ids, prompt_lengths, lengths):
    position = torch.arange(ids.shape[1])[None]
    counts = (position > prompt_lengths[:, None]) & (position < lengths[:, None])
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    mask = counts[:, 1:].float()
    return (losses * mask).sum() / mask.sum().clamp(min=1)


# %% sft_loss: the answer's last token left out
# caught by: test_the_answers_first_and_last_token_count, test_the_loss_is_the_mean_over_the_answers_tokens
# says: The last token of the answer does not count.
def sft_loss(logits, ids, prompt_lengths, lengths):
    position = torch.arange(ids.shape[1])[None]
    counts = (position >= prompt_lengths[:, None]) & (position < lengths[:, None] - 1)
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    mask = counts[:, 1:].float()
    return (losses * mask).sum() / mask.sum().clamp(min=1)


# %% sft_loss: the padding's first token counts
# caught by: test_the_padding_has_no_influence, test_the_answers_first_and_last_token_count
# says: One token after the end counts as well: the token at `lengths` is padding.
def sft_loss(logits, ids, prompt_lengths, lengths):
    position = torch.arange(ids.shape[1])[None]
    counts = (position >= prompt_lengths[:, None]) & (position <= lengths[:, None])
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    mask = counts[:, 1:].float()
    return (losses * mask).sum() / mask.sum().clamp(min=1)


# %% sft_loss: token 0 is taken for padding
# caught by: test_the_loss_is_the_mean_over_the_answers_tokens
# says: Where the id is 0 nothing counts: only `lengths` says what is padding, and 0 may be a token of an answer.
def sft_loss(logits, ids, prompt_lengths, lengths):
    position = torch.arange(ids.shape[1])[None]
    counts = (position >= prompt_lengths[:, None]) & (position < lengths[:, None])
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    mask = (counts & (ids != 0))[:, 1:].float()
    return (losses * mask).sum() / mask.sum().clamp(min=1)


# %% sft_loss: computed in bfloat16
# caught by: test_bfloat16_logits_give_a_float32_loss
# says: bfloat16 logits stay bfloat16: turn them to float32 before the softmax.
def sft_loss(logits, ids, prompt_lengths, lengths):
    position = torch.arange(ids.shape[1])[None]
    counts = (position >= prompt_lengths[:, None]) & (position < lengths[:, None])
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    mask = counts[:, 1:].float()
    return (losses * mask).sum() / mask.sum().clamp(min=1)


# %% sft_loss: the ids are marked in place
# caught by: test_logits_and_ids_are_left_as_they_were
# says: The ids that must not count are overwritten in the caller's tensor: mark a copy.
def sft_loss(logits, ids, prompt_lengths, lengths):
    position = torch.arange(ids.shape[1])[None]
    ids[(position < prompt_lengths[:, None]) | (position >= lengths[:, None])] = -100
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")
    return total / (ids[:, 1:] != -100).sum().clamp(min=1)


# %% sft_loss: detached
# caught by: test_gradients_reach_the_logits_that_count
# says: No gradient reaches the logits: nothing can be learnt from this loss.
def sft_loss(logits, ids, prompt_lengths, lengths):
    position = torch.arange(ids.shape[1])[None]
    counts = (position >= prompt_lengths[:, None]) & (position < lengths[:, None])
    losses = F.cross_entropy(logits.detach()[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    mask = counts[:, 1:].float()
    return (losses * mask).sum() / mask.sum().clamp(min=1)


# %% nf4_quantize: the halves of a byte the other way round
# caught by: test_the_bytes_are_those_of_bitsandbytes, test_the_first_of_two_entries_has_the_high_half, test_the_way_back_is_bitsandbytes_to_the_last_bit
# says: The first of two entries is in the low half of the byte, in both functions: your own bytes come back right, and those of others do not.
def nf4_quantize(x, block=64):
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(quotients, (NF4[1:] + NF4[:-1]) / 2).flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] + codes[1::2] * 16).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]).reshape(tuple(shape))


# %% nf4_quantize: the halves swapped on the way back
# caught by: test_every_byte_means_two_values, test_the_way_back_is_bitsandbytes_to_the_last_bit
# says: On the way back the low half of a byte comes first.
def nf4_quantize(x, block=64):
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(quotients, (NF4[1:] + NF4[:-1]) / 2).flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]).reshape(tuple(shape))


# %% nf4_quantize: the largest instead of the largest magnitude
# caught by: test_absmax_is_each_blocks_largest_magnitude, test_the_bytes_are_those_of_bitsandbytes
# says: absmax is the largest entry, not the largest magnitude: a block may have a large negative entry.
def nf4_quantize(x, block=64):
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.amax(-1)
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(quotients, (NF4[1:] + NF4[:-1]) / 2).flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]).reshape(tuple(shape))


# %% nf4_quantize: one absmax for all
# caught by: test_absmax_is_each_blocks_largest_magnitude, test_the_bytes_are_those_of_bitsandbytes
# says: There is one absmax for the whole tensor, repeated: each block has its own.
def nf4_quantize(x, block=64):
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().max().expand(len(blocks))
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(quotients, (NF4[1:] + NF4[:-1]) / 2).flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]).reshape(tuple(shape))


# %% nf4_quantize: on a border the upper value
# caught by: test_on_a_border_the_lower_value_is_taken
# says: A quotient exactly on a border takes the upper of the two values.
def nf4_quantize(x, block=64):
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(quotients, (NF4[1:] + NF4[:-1]) / 2, right=True).flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]).reshape(tuple(shape))


# %% nf4_quantize: the nearest by distance
# caught by: test_on_a_border_the_lower_value_is_taken
# says: The smallest distance decides, and distances are rounded: on a border either value may win. Compare with the borders themselves.
def nf4_quantize(x, block=64):
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = (quotients[..., None] - NF4).abs().argmin(-1).flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]).reshape(tuple(shape))


# %% nf4_quantize: zeros divided by zero
# caught by: test_a_block_of_zeros_is_all_zeros
# says: A block of zeros is divided by its absmax of 0, which gives NaN and then the code of the largest value.
def nf4_quantize(x, block=64):
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / absmax[:, None]
    codes = torch.bucketize(quotients, (NF4[1:] + NF4[:-1]) / 2).flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]).reshape(tuple(shape))


# %% nf4_quantize: a small number added to absmax
# caught by: test_the_bytes_are_those_of_bitsandbytes
# says: A small number is added to absmax before dividing: it is not small beside a block of very small weights.
def nf4_quantize(x, block=64):
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / (absmax + 1e-8)[:, None]
    codes = torch.bucketize(quotients, (NF4[1:] + NF4[:-1]) / 2).flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]).reshape(tuple(shape))


# %% nf4_quantize: evenly spaced values
# caught by: test_the_bytes_are_those_of_bitsandbytes, test_each_entry_takes_the_nearest_value
# says: The sixteen values are evenly spaced, as whole numbers from −8 to 7 are: NF4's are not.
def nf4_quantize(x, block=64):
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = (quotients * 7 + 8).round().clamp(0, 15).long().flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]).reshape(tuple(shape))


# %% nf4_quantize: the value below
# caught by: test_the_bytes_are_those_of_bitsandbytes, test_each_entry_takes_the_nearest_value
# says: Each entry takes the next value below it, not the nearest one.
def nf4_quantize(x, block=64):
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = (torch.bucketize(quotients, NF4, right=True) - 1).clamp(0, 15).flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]).reshape(tuple(shape))


# %% nf4_quantize: bfloat16 stays bfloat16
# caught by: test_bfloat16_weights_are_turned_to_float32_first
# says: The weights are not turned to float32, so the quotients are rounded to bfloat16 first and absmax is bfloat16.
def nf4_quantize(x, block=64):
    flat = x.detach().flatten()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(quotients, ((NF4[1:] + NF4[:-1]) / 2).to(x.dtype)).flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]).reshape(tuple(shape))


# %% nf4_quantize: the last half-byte is zero
# caught by: test_a_short_last_block_has_its_own_absmax
# says: With an odd number of entries the last half-byte is code 0, which means −1: it should be that of the number 0.
def nf4_quantize(x, block=64):
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(quotients, (NF4[1:] + NF4[:-1]) / 2).flatten()[: len(flat)]
    codes = F.pad(codes, (0, len(flat) % 2))
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]).reshape(tuple(shape))


# %% nf4_quantize: absmax keeps its gradient
# caught by: test_quantising_takes_no_gradient_and_changes_nothing
# says: absmax still has a gradient where x is a parameter: detach x first.
def nf4_quantize(x, block=64):
    flat = x.flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(quotients, (NF4[1:] + NF4[:-1]) / 2).flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]).reshape(tuple(shape))


# %% nf4_quantize: a block is always 64
# caught by: test_other_block_sizes_work
# says: `block` is not used: every block has 64 entries.
def nf4_quantize(x, block=64):
    block = 64
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(quotients, (NF4[1:] + NF4[:-1]) / 2).flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]).reshape(tuple(shape))


# %% nf4_quantize: absmax repeated in turns
# caught by: test_every_byte_means_two_values, test_the_way_back_is_bitsandbytes_to_the_last_bit
# says: On the way back the numbers of absmax are used in turns, entry by entry: all entries of a block share one.
def nf4_quantize(x, block=64):
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(quotients, (NF4[1:] + NF4[:-1]) / 2).flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat(block)[: len(codes)]).reshape(tuple(shape))


# %% nf4_quantize: the way back is a row
# caught by: test_the_shape_that_is_asked_for_comes_back, test_the_way_back_is_bitsandbytes_to_the_last_bit
# says: The result is one long row: it should have the shape that was asked for.
def nf4_quantize(x, block=64):
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(quotients, (NF4[1:] + NF4[:-1]) / 2).flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)].long()
    return NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]


# %% nf4_quantize: a block is always 64 on the way back
# caught by: test_the_way_back_is_bitsandbytes_to_the_last_bit
# says: On the way back `block` is not used.
def nf4_quantize(x, block=64):
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(quotients, (NF4[1:] + NF4[:-1]) / 2).flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(64)[: len(codes)]).reshape(tuple(shape))


# %% nf4_quantize: a buffer changed in place
# caught by: test_bytes_and_absmax_are_left_as_they_were
# says: The bytes are shifted in place: the caller's buffer is changed.
def nf4_quantize(x, block=64):
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(quotients, (NF4[1:] + NF4[:-1]) / 2).flatten()[: len(flat) + len(flat) % 2]
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    low = packed & 15
    packed >>= 4
    codes = torch.stack([packed, low], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]).reshape(tuple(shape))


# %% double_quantize: no mean taken off
# caught by: test_the_mean_of_all_is_taken_off, test_a_scale_is_the_largest_magnitude_of_what_is_left, test_the_codes_are_those_of_bitsandbytes
# says: The mean is not taken off: all these numbers are positive, so half of the values are never used.
def double_quantize(absmax, block=256):
    mean = torch.zeros(())
    rest = absmax - mean
    scales = torch.stack([part.abs().max() for part in rest.split(block)])
    quotients = rest / scales.clamp(min=1e-38).repeat_interleave(block)[: len(rest)]
    codes = torch.bucketize(quotients, (DYNAMIC[1:] + DYNAMIC[:-1]) / 2)
    return codes.to(torch.uint8), scales, mean


def double_dequantize(codes, scales, mean, block=256):
    return DYNAMIC[codes.long()] * scales.repeat_interleave(block)[: len(codes)] + mean


# %% double_quantize: the mean of the first block
# caught by: test_the_mean_of_all_is_taken_off, test_a_scale_is_the_largest_magnitude_of_what_is_left
# says: The mean is that of the first block: it should be the mean of all numbers.
def double_quantize(absmax, block=256):
    mean = absmax[:block].mean()
    rest = absmax - mean
    scales = torch.stack([part.abs().max() for part in rest.split(block)])
    quotients = rest / scales.clamp(min=1e-38).repeat_interleave(block)[: len(rest)]
    codes = torch.bucketize(quotients, (DYNAMIC[1:] + DYNAMIC[:-1]) / 2)
    return codes.to(torch.uint8), scales, mean


def double_dequantize(codes, scales, mean, block=256):
    return DYNAMIC[codes.long()] * scales.repeat_interleave(block)[: len(codes)] + mean


# %% double_quantize: the mean said and not taken off
# caught by: test_a_scale_is_the_largest_magnitude_of_what_is_left, test_the_codes_are_those_of_bitsandbytes
# says: The mean is returned, and what is quantised still has it.
def double_quantize(absmax, block=256):
    mean = absmax.mean()
    rest = absmax
    scales = torch.stack([part.abs().max() for part in rest.split(block)])
    quotients = rest / scales.clamp(min=1e-38).repeat_interleave(block)[: len(rest)]
    codes = torch.bucketize(quotients, (DYNAMIC[1:] + DYNAMIC[:-1]) / 2)
    return codes.to(torch.uint8), scales, mean


def double_dequantize(codes, scales, mean, block=256):
    return DYNAMIC[codes.long()] * scales.repeat_interleave(block)[: len(codes)] + mean


# %% double_quantize: one scale for all
# caught by: test_a_scale_is_the_largest_magnitude_of_what_is_left, test_other_blocks_and_short_ones_work
# says: There is one scale for all numbers, repeated: each block has its own.
def double_quantize(absmax, block=256):
    mean = absmax.mean()
    rest = absmax - mean
    scales = torch.stack([part.abs().max() for part in rest.split(block)])
    scales = scales.max().expand(len(scales))
    quotients = rest / scales.clamp(min=1e-38).repeat_interleave(block)[: len(rest)]
    codes = torch.bucketize(quotients, (DYNAMIC[1:] + DYNAMIC[:-1]) / 2)
    return codes.to(torch.uint8), scales, mean


def double_dequantize(codes, scales, mean, block=256):
    return DYNAMIC[codes.long()] * scales.repeat_interleave(block)[: len(codes)] + mean


# %% double_quantize: evenly spaced codes
# caught by: test_the_codes_are_those_of_bitsandbytes, test_other_blocks_and_short_ones_work
# says: The codes are evenly spaced, as whole numbers from −127 to 127 are: the values of DYNAMIC are not.
def double_quantize(absmax, block=256):
    mean = absmax.mean()
    rest = absmax - mean
    scales = torch.stack([part.abs().max() for part in rest.split(block)])
    quotients = rest / scales.clamp(min=1e-38).repeat_interleave(block)[: len(rest)]
    codes = (quotients * 127 + 128).round()
    return codes.to(torch.uint8), scales, mean


def double_dequantize(codes, scales, mean, block=256):
    return DYNAMIC[codes.long()] * scales.repeat_interleave(block)[: len(codes)] + mean


# %% double_quantize: the value below
# caught by: test_the_codes_are_those_of_bitsandbytes, test_other_blocks_and_short_ones_work
# says: Each number takes the next value below it, not the nearest one.
def double_quantize(absmax, block=256):
    mean = absmax.mean()
    rest = absmax - mean
    scales = torch.stack([part.abs().max() for part in rest.split(block)])
    quotients = rest / scales.clamp(min=1e-38).repeat_interleave(block)[: len(rest)]
    codes = (torch.bucketize(quotients, DYNAMIC, right=True) - 1).clamp(min=0)
    return codes.to(torch.uint8), scales, mean


def double_dequantize(codes, scales, mean, block=256):
    return DYNAMIC[codes.long()] * scales.repeat_interleave(block)[: len(codes)] + mean


# %% double_quantize: a block is always 256
# caught by: test_other_blocks_and_short_ones_work
# says: `block` is not used: every block has 256 numbers.
def double_quantize(absmax, block=256):
    block = 256
    mean = absmax.mean()
    rest = absmax - mean
    scales = torch.stack([part.abs().max() for part in rest.split(block)])
    quotients = rest / scales.clamp(min=1e-38).repeat_interleave(block)[: len(rest)]
    codes = torch.bucketize(quotients, (DYNAMIC[1:] + DYNAMIC[:-1]) / 2)
    return codes.to(torch.uint8), scales, mean


def double_dequantize(codes, scales, mean, block=256):
    return DYNAMIC[codes.long()] * scales.repeat_interleave(block)[: len(codes)] + mean


# %% double_quantize: the mean put back before the scale
# caught by: test_the_way_back_is_value_times_scale_plus_mean
# says: The mean is added before the scale is multiplied, so that it is scaled, too.
def double_quantize(absmax, block=256):
    mean = absmax.mean()
    rest = absmax - mean
    scales = torch.stack([part.abs().max() for part in rest.split(block)])
    quotients = rest / scales.clamp(min=1e-38).repeat_interleave(block)[: len(rest)]
    codes = torch.bucketize(quotients, (DYNAMIC[1:] + DYNAMIC[:-1]) / 2)
    return codes.to(torch.uint8), scales, mean


def double_dequantize(codes, scales, mean, block=256):
    return (DYNAMIC[codes.long()] + mean) * scales.repeat_interleave(block)[: len(codes)]


# %% double_quantize: the mean is not put back
# caught by: test_the_way_back_is_value_times_scale_plus_mean, test_numbers_that_are_all_equal_come_back
# says: The mean is not put back.
def double_quantize(absmax, block=256):
    mean = absmax.mean()
    rest = absmax - mean
    scales = torch.stack([part.abs().max() for part in rest.split(block)])
    quotients = rest / scales.clamp(min=1e-38).repeat_interleave(block)[: len(rest)]
    codes = torch.bucketize(quotients, (DYNAMIC[1:] + DYNAMIC[:-1]) / 2)
    return codes.to(torch.uint8), scales, mean


def double_dequantize(codes, scales, mean, block=256):
    return DYNAMIC[codes.long()] * scales.repeat_interleave(block)[: len(codes)]


# %% double_quantize: scales used in turns
# caught by: test_the_way_back_is_value_times_scale_plus_mean
# says: On the way back the scales are used in turns, number by number: all of a block share one.
def double_quantize(absmax, block=256):
    mean = absmax.mean()
    rest = absmax - mean
    scales = torch.stack([part.abs().max() for part in rest.split(block)])
    quotients = rest / scales.clamp(min=1e-38).repeat_interleave(block)[: len(rest)]
    codes = torch.bucketize(quotients, (DYNAMIC[1:] + DYNAMIC[:-1]) / 2)
    return codes.to(torch.uint8), scales, mean


def double_dequantize(codes, scales, mean, block=256):
    return DYNAMIC[codes.long()] * scales.repeat(block)[: len(codes)] + mean


# %% double_quantize: changed in place
# caught by: test_the_numbers_are_left_as_they_were
# says: The mean is taken off in the caller's own tensor.
def double_quantize(absmax, block=256):
    mean = absmax.mean()
    rest = absmax.sub_(mean)
    scales = torch.stack([part.abs().max() for part in rest.split(block)])
    quotients = rest / scales.clamp(min=1e-38).repeat_interleave(block)[: len(rest)]
    codes = torch.bucketize(quotients, (DYNAMIC[1:] + DYNAMIC[:-1]) / 2)
    return codes.to(torch.uint8), scales, mean


def double_dequantize(codes, scales, mean, block=256):
    return DYNAMIC[codes.long()] * scales.repeat_interleave(block)[: len(codes)] + mean


# %% double_quantize: the way back changes the scales
# caught by: test_the_numbers_are_left_as_they_were
# says: The mean is added in place on the way back: a caller's tensor changes.
def double_quantize(absmax, block=256):
    mean = absmax.mean()
    rest = absmax - mean
    scales = torch.stack([part.abs().max() for part in rest.split(block)])
    quotients = rest / scales.clamp(min=1e-38).repeat_interleave(block)[: len(rest)]
    codes = torch.bucketize(quotients, (DYNAMIC[1:] + DYNAMIC[:-1]) / 2)
    return codes.to(torch.uint8), scales, mean


def double_dequantize(codes, scales, mean, block=256):
    rows = scales.repeat_interleave(block)[: len(codes)]
    back = DYNAMIC[codes.long()] * rows + mean
    scales += mean
    return back


# %% double_quantize: NaN where all are equal
# caught by: test_numbers_that_are_all_equal_come_back
# says: Where all numbers are equal the scale is 0, and dividing by it on the way gives NaN.
def double_quantize(absmax, block=256):
    mean = absmax.mean()
    rest = absmax - mean
    scales = torch.stack([part.abs().max() for part in rest.split(block)])
    quotients = rest / scales.clamp(min=1e-38).repeat_interleave(block)[: len(rest)]
    codes = torch.bucketize(quotients, (DYNAMIC[1:] + DYNAMIC[:-1]) / 2)
    return codes.to(torch.uint8), scales, mean


def double_dequantize(codes, scales, mean, block=256):
    rows = scales.repeat_interleave(block)[: len(codes)]
    return DYNAMIC[codes.long()] / (1 / rows) * (rows / rows) + mean


# %% double_quantize: a small number is added to the scale
# caught by: test_numbers_may_be_small
# says: A small number is added to the scale before dividing: it is not small beside numbers that are small themselves.
def double_quantize(absmax, block=256):
    mean = absmax.mean()
    blocks = F.pad(absmax - mean, (0, -len(absmax) % block)).view(-1, block)
    scales = blocks.abs().amax(-1)
    codes = torch.bucketize(blocks / (scales[:, None] + 1e-6), (DYNAMIC[1:] + DYNAMIC[:-1]) / 2)
    return codes.flatten()[: len(absmax)].to(torch.uint8), scales, mean


def double_dequantize(codes, scales, mean, block=256):
    return DYNAMIC[codes.long()] * scales.repeat_interleave(block)[: len(codes)] + mean


# %% QLoRALinear: the given layer is kept
# caught by: test_the_weight_is_kept_in_four_bits_and_nothing_else, test_only_the_adapter_is_a_parameter
# says: The given layer is kept inside, with its weight in full: what was saved in four bits is stored twice.
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.shape, self.scale = tuple(linear.weight.shape), alpha / rank
        packed, absmax = nf4_quantize(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.linear = linear
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        weight = nf4_dequantize(self.packed, self.absmax, self.shape).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        correction = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return F.linear(x, weight, bias) + self.scale * correction


# %% QLoRALinear: turned back once and kept
# caught by: test_the_buffers_are_what_counts
# says: The weight is turned back once, in __init__, and kept in full: it takes more memory than before, and does not follow the buffers.
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.shape, self.scale = tuple(linear.weight.shape), alpha / rank
        packed, absmax = nf4_quantize(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.weight = nf4_dequantize(packed, absmax, self.shape)
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        weight = self.weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        correction = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return F.linear(x, weight, bias) + self.scale * correction


# %% QLoRALinear: turned back at the first call and kept
# caught by: test_the_buffers_are_what_counts, test_nothing_as_large_as_the_weight_stays_in_memory
# says: The weight is turned back at the first call and kept in full: from then on it takes more memory than before.
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.shape, self.scale = tuple(linear.weight.shape), alpha / rank
        packed, absmax = nf4_quantize(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.weight = None
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        if self.weight is None:
            self.weight = nf4_dequantize(self.packed, self.absmax, self.shape)
        weight = self.weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        correction = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return F.linear(x, weight, bias) + self.scale * correction


# %% QLoRALinear: the unrounded weight
# caught by: test_a_new_four_bit_layer_gives_what_its_rounded_weight_gives, test_the_result_is_the_rounded_layers_plus_the_correction
# says: The layer computes with the given weight, not with what four bits make of it.
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.shape, self.scale = tuple(linear.weight.shape), alpha / rank
        packed, absmax = nf4_quantize(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.given = [linear.weight.detach()]
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        weight = self.given[0].to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        correction = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return F.linear(x, weight, bias) + self.scale * correction


# %% QLoRALinear: bytes as parameters
# caught by: test_only_the_adapter_is_a_parameter
# says: packed and absmax are parameters: they are buffers, since nobody trains them.
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.shape, self.scale = tuple(linear.weight.shape), alpha / rank
        packed, absmax = nf4_quantize(linear.weight)
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.absmax = nn.Parameter(absmax, requires_grad=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        weight = nf4_dequantize(self.packed, self.absmax, self.shape).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        correction = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return F.linear(x, weight, bias) + self.scale * correction


# %% QLoRALinear: bytes as plain attributes
# caught by: test_the_weight_is_kept_in_four_bits_and_nothing_else
# says: packed and absmax are plain attributes: they are missing from the state dict, and stay behind when the model is moved or saved.
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.shape, self.scale = tuple(linear.weight.shape), alpha / rank
        packed, absmax = nf4_quantize(linear.weight)
        self.packed = packed
        self.absmax = absmax
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        weight = nf4_dequantize(self.packed, self.absmax, self.shape).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        correction = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return F.linear(x, weight, bias) + self.scale * correction


# %% QLoRALinear: alpha is not divided by the rank
# caught by: test_the_result_is_the_rounded_layers_plus_the_correction
# says: The correction is multiplied by α, and not by α / r.
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.shape, self.scale = tuple(linear.weight.shape), alpha
        packed, absmax = nf4_quantize(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        weight = nf4_dequantize(self.packed, self.absmax, self.shape).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        correction = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return F.linear(x, weight, bias) + self.scale * correction


# %% QLoRALinear: the bias is lost
# caught by: test_the_weight_is_kept_in_four_bits_and_nothing_else, test_the_result_is_the_rounded_layers_plus_the_correction
# says: The bias of the given layer is lost.
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.shape, self.scale = tuple(linear.weight.shape), alpha / rank
        packed, absmax = nf4_quantize(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", None)
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        weight = nf4_dequantize(self.packed, self.absmax, self.shape).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        correction = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return F.linear(x, weight, bias) + self.scale * correction


# %% QLoRALinear: the bias of the given layer itself
# caught by: test_the_given_layer_is_left_as_it_was_and_let_go
# says: The bias is not a copy: it shares its memory with the given layer's.
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.shape, self.scale = tuple(linear.weight.shape), alpha / rank
        packed, absmax = nf4_quantize(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        weight = nf4_dequantize(self.packed, self.absmax, self.shape).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        correction = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return F.linear(x, weight, bias) + self.scale * correction


# %% QLoRALinear: always float32
# caught by: test_everything_is_computed_in_the_dtype_of_x
# says: Everything is computed in float32, whatever the dtype of x, and float32 comes out.
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.shape, self.scale = tuple(linear.weight.shape), alpha / rank
        packed, absmax = nf4_quantize(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        x = x.float()
        weight = nf4_dequantize(self.packed, self.absmax, self.shape)
        bias = None if self.bias is None else self.bias
        correction = F.linear(F.linear(x, self.lora_A), self.lora_B)
        return F.linear(x, weight, bias) + self.scale * correction


# %% QLoRALinear: no gradient through the weight
# caught by: test_gradients_pass_through_the_four_bit_weight
# says: The four-bit part runs without gradients. Its weight needs none, and x needs the one that passes through it.
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.shape, self.scale = tuple(linear.weight.shape), alpha / rank
        packed, absmax = nf4_quantize(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        weight = nf4_dequantize(self.packed, self.absmax, self.shape).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        correction = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return F.linear(x.detach(), weight, bias) + self.scale * correction


# %% QLoRALinear: the given layer is frozen
# caught by: test_the_given_layer_is_left_as_it_was_and_let_go
# says: The given layer is frozen: it should be left as it was.
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.shape, self.scale = tuple(linear.weight.shape), alpha / rank
        packed, absmax = nf4_quantize(linear.requires_grad_(False).weight)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        weight = nf4_dequantize(self.packed, self.absmax, self.shape).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        correction = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return F.linear(x, weight, bias) + self.scale * correction


# %% QLoRALinear: B is random
# caught by: test_only_the_adapter_is_a_parameter, test_a_new_four_bit_layer_gives_what_its_rounded_weight_gives
# says: B begins with random numbers: the layer is another one before it has learnt anything.
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.shape, self.scale = tuple(linear.weight.shape), alpha / rank
        packed, absmax = nf4_quantize(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.randn(linear.out_features, rank))

    def forward(self, x):
        weight = nf4_dequantize(self.packed, self.absmax, self.shape).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        correction = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return F.linear(x, weight, bias) + self.scale * correction


# %% QLoRALinear: the dtype of the given layer
# caught by: test_a_bfloat16_layer_can_be_given
# says: bias, A and B have the dtype of the given layer: they should be float32.
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.shape, self.scale = tuple(linear.weight.shape), alpha / rank
        packed, absmax = nf4_quantize(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        weight = nf4_dequantize(self.packed, self.absmax, self.shape).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        correction = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return F.linear(x, weight, bias) + self.scale * correction


# %% QLoRALinear: no error for a rank of zero
# caught by: test_a_four_bit_layer_of_rank_zero_is_refused
# says: A rank of 0 or below is not refused with a ValueError of its own that names it.
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        rank = max(rank, 1)
        self.shape, self.scale = tuple(linear.weight.shape), alpha / rank
        packed, absmax = nf4_quantize(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        weight = nf4_dequantize(self.packed, self.absmax, self.shape).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        correction = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return F.linear(x, weight, bias) + self.scale * correction
