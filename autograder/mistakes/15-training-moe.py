# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% save_state: no copy
# caught by: test_a_later_step_does_not_change_it
# says: The state shares its tensors with the run: the next step changes them in the state too.
def save_state(model, optimiser, schedule, generators, step):
    return {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "generators": {name: generator.get_state() for name, generator in generators.items()},
        "torch": torch.get_rng_state(),
        "step": step,
    }


# %% save_state: the optimiser's tensors are shared
# caught by: test_a_later_step_does_not_change_it
# says: The weights are copied, but the optimiser's moments in the state are still those of the run.
def save_state(model, optimiser, schedule, generators, step):
    return {
        "model": {name: value.clone() for name, value in model.state_dict().items()},
        "optimiser": optimiser.state_dict(),
        "schedule": copy.deepcopy(schedule.state_dict()),
        "generators": {name: generator.get_state() for name, generator in generators.items()},
        "torch": torch.get_rng_state(),
        "step": step,
    }


# %% save_state: parameters without buffers
# caught by: test_buffers_are_saved_too
# says: The state holds the parameters; buffers, such as a batch norm's mean, belong to the model too.
def save_state(model, optimiser, schedule, generators, step):
    return copy.deepcopy(
        {
            "model": {name: value.detach() for name, value in model.named_parameters()},
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "generators": {name: generator.get_state() for name, generator in generators.items()},
            "torch": torch.get_rng_state(),
            "step": step,
        }
    )


# %% save_state: the optimiser's settings without its memory
# caught by: test_the_optimisers_memory_is_saved, test_a_run_goes_on_from_it_with_the_same_losses
# says: The optimiser's learning rate and settings are saved, and its moments are not.
def save_state(model, optimiser, schedule, generators, step):
    return copy.deepcopy(
        {
            "model": model.state_dict(),
            "optimiser": {"state": {}, "param_groups": optimiser.state_dict()["param_groups"]},
            "schedule": schedule.state_dict(),
            "generators": {name: generator.get_state() for name, generator in generators.items()},
            "torch": torch.get_rng_state(),
            "step": step,
        }
    )


# %% save_state: seeds instead of states
# caught by: test_the_state_of_each_generator_is_saved, test_a_run_goes_on_from_it_with_the_same_losses
# says: The generators' first states are saved, those of their seeds: the run would draw its first batches again.
def save_state(model, optimiser, schedule, generators, step):
    def first(generator):
        return torch.Generator().manual_seed(generator.initial_seed()).get_state()

    return copy.deepcopy(
        {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "generators": {name: first(generator) for name, generator in generators.items()},
            "torch": first(torch.default_generator),
            "step": step,
        }
    )


# %% save_state: PyTorch's own generator in every place
# caught by: test_the_state_of_each_generator_is_saved
# says: Every generator's state is that of PyTorch's own: each of them has a state of its own.
def save_state(model, optimiser, schedule, generators, step):
    return copy.deepcopy(
        {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "generators": dict.fromkeys(generators, torch.get_rng_state()),
            "torch": torch.get_rng_state(),
            "step": step,
        }
    )


# %% save_state: the objects themselves
# caught by: test_everything_in_it_is_plain_data
# says: The state holds generators, which are objects: only their states, as tensors, are plain data.
def save_state(model, optimiser, schedule, generators, step):
    return {
        "model": copy.deepcopy(model.state_dict()),
        "optimiser": copy.deepcopy(optimiser.state_dict()),
        "schedule": copy.deepcopy(schedule.state_dict()),
        "generators": {name: generator.clone_state() for name, generator in generators.items()},
        "torch": torch.get_rng_state(),
        "step": step,
    }


# %% save_state: PyTorch's generator is seeded while saving
# caught by: test_saving_changes_nothing
# says: Saving sets a new seed, so that a run that saves is no longer the run that it was.
def save_state(model, optimiser, schedule, generators, step):
    torch.manual_seed(step)
    return copy.deepcopy(
        {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "generators": {name: generator.get_state() for name, generator in generators.items()},
            "torch": torch.get_rng_state(),
            "step": step,
        }
    )


# %% save_state: the model is put into evaluation
# caught by: test_saving_changes_nothing
# says: Saving puts the model into evaluation and leaves it there: its dropout is off from then on.
def save_state(model, optimiser, schedule, generators, step):
    model.eval()
    return copy.deepcopy(
        {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "generators": {name: generator.get_state() for name, generator in generators.items()},
            "torch": torch.get_rng_state(),
            "step": step,
        }
    )


# %% save_state: the schedule's step
# caught by: test_the_state_has_six_entries
# says: The step in the state is the schedule's own count; it should be the one that was given.
def save_state(model, optimiser, schedule, generators, step):
    return copy.deepcopy(
        {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "generators": {name: generator.get_state() for name, generator in generators.items()},
            "torch": torch.get_rng_state(),
            "step": schedule.last_epoch,
        }
    )


# %% load_state: the state's tensors are used as they are
# caught by: test_the_same_state_can_be_loaded_twice
# says: The optimiser goes on in the very tensors of the state, so training changes the checkpoint.
def load_state(state, model, optimiser, schedule, generators):
    ours, theirs = model.state_dict(), state["model"]
    for name in {*ours, *theirs}:
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            raise ValueError(f"{name} does not fit")
    for name in {*generators} ^ {*state["generators"]}:
        raise ValueError(f"generator {name}")
    model.load_state_dict(theirs)
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    for name, generator in generators.items():
        generator.set_state(state["generators"][name])
    torch.set_rng_state(state["torch"])
    return state["step"]


# %% load_state: PyTorch's error is passed on
# caught by: test_another_shape_is_refused, test_missing_and_unknown_names_are_refused
# says: load_state_dict's RuntimeError is passed on: the prompt asks for a ValueError.
def load_state(state, model, optimiser, schedule, generators):
    state = copy.deepcopy(state)
    for name in {*generators} ^ {*state["generators"]}:
        raise ValueError(f"generator {name}")
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    for name, generator in generators.items():
        generator.set_state(state["generators"][name])
    torch.set_rng_state(state["torch"])
    return state["step"]


# %% load_state: half of a wrong checkpoint is loaded before it is refused
# caught by: test_a_refused_state_changes_nothing
# says: load_state_dict raises only after it has copied what fits: check before anything is loaded.
def load_state(state, model, optimiser, schedule, generators):
    state = copy.deepcopy(state)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    for name in {*generators} ^ {*state["generators"]}:
        raise ValueError(f"generator {name}")
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    for name, generator in generators.items():
        generator.set_state(state["generators"][name])
    torch.set_rng_state(state["torch"])
    return state["step"]


# %% load_state: what does not fit is skipped
# caught by: test_another_shape_is_refused, test_missing_and_unknown_names_are_refused
# says: What does not fit is left out in silence, and the run goes on with random weights in its place.
def load_state(state, model, optimiser, schedule, generators):
    state, ours = copy.deepcopy(state), model.state_dict()
    for name in {*generators} ^ {*state["generators"]}:
        raise ValueError(f"generator {name}")
    fits = {name: value for name, value in state["model"].items() if name in ours and value.shape == ours[name].shape}
    model.load_state_dict(fits, strict=False)
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    for name, generator in generators.items():
        generator.set_state(state["generators"][name])
    torch.set_rng_state(state["torch"])
    return state["step"]


# %% load_state: only the weights
# caught by: test_the_optimiser_remembers_and_the_schedule_goes_on, test_a_loaded_run_has_the_same_losses
# says: The weights are loaded, but the optimiser begins without memory and the schedule at its start.
def load_state(state, model, optimiser, schedule, generators):
    ours, theirs = model.state_dict(), state["model"]
    for name in {*ours, *theirs}:
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            raise ValueError(f"{name} does not fit")
    for name in {*generators} ^ {*state["generators"]}:
        raise ValueError(f"generator {name}")
    model.load_state_dict(theirs)
    for name, generator in generators.items():
        generator.set_state(state["generators"][name])
    torch.set_rng_state(state["torch"])
    return state["step"]


# %% load_state: the schedule is left where it is
# caught by: test_the_optimiser_remembers_and_the_schedule_goes_on, test_a_loaded_run_has_the_same_losses
# says: The schedule is not loaded: the learning rate follows the new run's steps and not the old one's.
def load_state(state, model, optimiser, schedule, generators):
    state = copy.deepcopy(state)
    ours, theirs = model.state_dict(), state["model"]
    for name in {*ours, *theirs}:
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            raise ValueError(f"{name} does not fit")
    for name in {*generators} ^ {*state["generators"]}:
        raise ValueError(f"generator {name}")
    model.load_state_dict(theirs)
    optimiser.load_state_dict(state["optimiser"])
    for name, generator in generators.items():
        generator.set_state(state["generators"][name])
    torch.set_rng_state(state["torch"])
    return state["step"]


# %% load_state: random numbers begin anew
# caught by: test_every_generator_is_set, test_a_loaded_run_has_the_same_losses
# says: The generators are not set: the run draws other batches and other dropout than it would have.
def load_state(state, model, optimiser, schedule, generators):
    state = copy.deepcopy(state)
    ours, theirs = model.state_dict(), state["model"]
    for name in {*ours, *theirs}:
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            raise ValueError(f"{name} does not fit")
    for name in {*generators} ^ {*state["generators"]}:
        raise ValueError(f"generator {name}")
    model.load_state_dict(theirs)
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    return state["step"]


# %% load_state: PyTorch's own generator is forgotten
# caught by: test_every_generator_is_set, test_a_loaded_run_has_the_same_losses
# says: The batches are the same again, but dropout draws from PyTorch's own generator, which is not set.
def load_state(state, model, optimiser, schedule, generators):
    state = copy.deepcopy(state)
    ours, theirs = model.state_dict(), state["model"]
    for name in {*ours, *theirs}:
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            raise ValueError(f"{name} does not fit")
    for name in {*generators} ^ {*state["generators"]}:
        raise ValueError(f"generator {name}")
    model.load_state_dict(theirs)
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    for name, generator in generators.items():
        generator.set_state(state["generators"][name])
    return state["step"]


# %% load_state: the next step is returned
# caught by: test_the_step_comes_back
# says: It returns the step that comes next; it should be the step at which the state was made.
def load_state(state, model, optimiser, schedule, generators):
    state = copy.deepcopy(state)
    ours, theirs = model.state_dict(), state["model"]
    for name in {*ours, *theirs}:
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            raise ValueError(f"{name} does not fit")
    for name in {*generators} ^ {*state["generators"]}:
        raise ValueError(f"generator {name}")
    model.load_state_dict(theirs)
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    for name, generator in generators.items():
        generator.set_state(state["generators"][name])
    torch.set_rng_state(state["torch"])
    return state["step"] + 1


# %% load_state: generators in the order of the state
# caught by: test_every_generator_is_set
# says: The generators are set in the order in which they stand in the state: go by their names.
def load_state(state, model, optimiser, schedule, generators):
    ours = {name: value.shape for name, value in model.state_dict().items()}
    theirs = {name: value.shape for name, value in state["model"].items()}
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            raise ValueError(f"{name} does not fit")
    for name in generators.keys() ^ state["generators"].keys():
        raise ValueError(f"the generator {name} is not on both sides")
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
    schedule.load_state_dict(copy.deepcopy(state["schedule"]))
    for generator, kept in zip(generators.values(), state["generators"].values(), strict=True):
        generator.set_state(kept)
    torch.set_rng_state(state["torch"])
    return state["step"]


# %% load_state: buffers are not compared
# caught by: test_another_shape_is_refused
# says: Only the shapes of parameters are compared: a buffer that does not fit is found too late, and by PyTorch.
def load_state(state, model, optimiser, schedule, generators):
    ours = {name: value.shape for name, value in model.state_dict().items()}
    theirs = {name: value.shape for name, value in state["model"].items()}
    learnt = {name for name, _ in model.named_parameters()}
    for name in ours | theirs:
        if (name in learnt or name not in ours or name not in theirs) and ours.get(name) != theirs.get(name):
            raise ValueError(f"{name} does not fit")
    for name in generators.keys() ^ state["generators"].keys():
        raise ValueError(f"the generator {name} is not on both sides")
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
    schedule.load_state_dict(copy.deepcopy(state["schedule"]))
    for name, generator in generators.items():
        generator.set_state(state["generators"][name])
    torch.set_rng_state(state["torch"])
    return state["step"]


# %% mutual_information: bits
# caught by: test_it_is_the_divergence_from_independence, test_a_row_shares_its_whole_entropy_with_its_own_copy
# says: This is in bits, with a logarithm of base 2: nats are asked for.
def mutual_information(x, y):
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)}")
    _, i, n_x = x.unique(return_inverse=True, return_counts=True)
    _, j, n_y = y.unique(return_inverse=True, return_counts=True)
    pairs, n = torch.stack([i, j]).unique(dim=1, return_counts=True)
    n, n_x, n_y = n.double(), n_x.double(), n_y.double()
    return (n / len(x) * torch.log2(n * len(x) / (n_x[pairs[0]] * n_y[pairs[1]]))).sum().item()


# %% mutual_information: pairs that never occur
# caught by: test_it_is_the_divergence_from_independence
# says: Pairs that never occur give 0 · ln 0, which is NaN: they should add nothing.
def mutual_information(x, y):
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)}")
    i, j = x.unique(return_inverse=True)[1], y.unique(return_inverse=True)[1]
    columns = int(j.max()) + 1
    p = torch.bincount(i * columns + j, minlength=(int(i.max()) + 1) * columns).view(-1, columns).double() / len(x)
    return (p * (p / (p.sum(1, keepdim=True) * p.sum(0))).log()).sum().item()


# %% mutual_information: a small number in every cell
# caught by: test_it_is_the_divergence_from_independence
# says: A small number is added to every cell of the table to save the logarithm; the sum is then off by more than 1e-6.
def mutual_information(x, y):
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)}")
    i, j = x.unique(return_inverse=True)[1], y.unique(return_inverse=True)[1]
    columns = int(j.max()) + 1
    p = torch.bincount(i * columns + j, minlength=(int(i.max()) + 1) * columns).view(-1, columns).double() / len(x)
    p = p + 1e-5
    return (p * (p / (p.sum(1, keepdim=True) * p.sum(0))).log()).sum().item()


# %% mutual_information: a table as large as the labels
# caught by: test_labels_are_names
# says: The table is as large as the largest label, and negative labels count from its end: labels are only names.
def mutual_information(x, y):
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)}")
    p = torch.zeros(int(x.max()) + 1, int(y.max()) + 1, dtype=torch.float64)
    p.index_put_((x, y), torch.tensor(1.0 / len(x), dtype=torch.float64), accumulate=True)
    ratio = p / (p.sum(1, keepdim=True) * p.sum(0))
    return torch.where(p > 0, p * ratio.clamp(1e-300).log(), 0).sum().item()


# %% mutual_information: pairs as one number that overflows
# caught by: test_labels_are_names
# says: The pairs are numbered with the labels themselves, which overflows or gives two pairs the same number.
def mutual_information(x, y):
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)}")

    def entropy(labels):
        p = labels.unique(return_counts=True)[1].double() / len(labels)
        return -(p * p.log()).sum()

    return (entropy(x) + entropy(y) - entropy(x * 1000 + y)).item()


# %% mutual_information: divided by the entropy
# caught by: test_it_is_the_divergence_from_independence, test_a_row_shares_its_whole_entropy_with_its_own_copy
# says: This is normalised, divided by an entropy: it is no longer in nats.
def mutual_information(x, y):
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)}")

    def entropy(labels):
        p = labels.unique(dim=0, return_counts=True)[1].double() / len(labels)
        return -(p * p.log()).sum().item()

    shared = entropy(x) + entropy(y) - entropy(torch.stack([x, y], 1))
    return shared / max(entropy(x), 1e-12)


# %% mutual_information: the conditional entropy
# caught by: test_it_is_the_divergence_from_independence, test_independent_labels_share_nothing
# says: This is what is left unknown of y when x is known, not what the two share.
def mutual_information(x, y):
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)}")

    def entropy(labels):
        p = labels.unique(dim=0, return_counts=True)[1].double() / len(labels)
        return -(p * p.log()).sum().item()

    return entropy(torch.stack([x, y], 1)) - entropy(x)


# %% mutual_information: the bias is taken off
# caught by: test_it_is_the_divergence_from_independence
# says: A correction of the bias is subtracted (Miller and Madow's): the plug-in estimate is asked for.
def mutual_information(x, y):
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)}")

    def entropy(labels):
        p = labels.unique(dim=0, return_counts=True)[1].double() / len(labels)
        return -(p * p.log()).sum().item() + (len(p) - 1) / (2 * len(labels))

    return entropy(x) + entropy(y) - entropy(torch.stack([x, y], 1))


# %% mutual_information: the lengths are not compared
# caught by: test_unequal_lengths_are_refused
# says: Where the rows are not equally long, the longer one is cut or an error of PyTorch's is raised.
def mutual_information(x, y):
    n = min(len(x), len(y))
    x, y = x[:n], y[:n]
    _, i, n_x = x.unique(return_inverse=True, return_counts=True)
    _, j, n_y = y.unique(return_inverse=True, return_counts=True)
    pairs, count = torch.stack([i, j]).unique(dim=1, return_counts=True)
    p = count.double() / n
    return (p * (p * n * n / (n_x[pairs[0]] * n_y[pairs[1]])).log()).sum().item()


# %% mutual_information: labels as float64
# caught by: test_labels_are_names
# says: The labels are turned into float64, where neighbours beyond 2⁵³ become one: count whole numbers.
def mutual_information(x, y):
    if len(x) != len(y):
        raise ValueError(f"{len(x)} labels and {len(y)} labels")
    pairs, count = torch.stack([x, y]).double().unique(dim=1, return_counts=True)
    p = count.double() / len(x)
    p_x = torch.stack([p[pairs[0] == a].sum() for a in pairs[0]])
    p_y = torch.stack([p[pairs[1] == b].sum() for b in pairs[1]])
    return (p * (p / (p_x * p_y)).log()).sum().item()


# %% shuffled_null: drawn with replacement
# caught by: test_each_value_is_that_of_a_permutation
# says: Labels are drawn with replacement, so that their frequencies change: a shuffle keeps them.
def shuffled_null(x, y, n_shuffles, seed):
    g = torch.Generator().manual_seed(seed)
    draws = [torch.randint(len(y), (len(y),), generator=g) for _ in range(n_shuffles)]
    return torch.tensor([mutual_information(x, y[draw]) for draw in draws], dtype=torch.float64)


# %% shuffled_null: random labels
# caught by: test_each_value_is_that_of_a_permutation
# says: New labels are drawn, all equally likely; a shuffle keeps those that are there.
def shuffled_null(x, y, n_shuffles, seed):
    g = torch.Generator().manual_seed(seed)
    kinds = y.unique()
    draws = [kinds[torch.randint(len(kinds), (len(y),), generator=g)] for _ in range(n_shuffles)]
    return torch.tensor([mutual_information(x, draw) for draw in draws], dtype=torch.float64)


# %% shuffled_null: the same shuffle each time
# caught by: test_each_shuffle_is_a_new_one, test_all_orders_are_equally_likely
# says: Every shuffle is the same one, because the generator is seeded anew in the loop.
def shuffled_null(x, y, n_shuffles, seed):
    found = []
    for _ in range(n_shuffles):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        found.append(mutual_information(x, y[order]))
    return torch.tensor(found, dtype=torch.float64)


# %% shuffled_null: the global generator is seeded
# caught by: test_pytorchs_own_generator_is_left_alone
# says: PyTorch's own generator is seeded anew: that changes the random numbers of the run that is looked at.
def shuffled_null(x, y, n_shuffles, seed):
    torch.manual_seed(seed)
    found = [mutual_information(x, y[torch.randperm(len(y))]) for _ in range(n_shuffles)]
    return torch.tensor(found, dtype=torch.float64)


# %% shuffled_null: both rows in the same order
# caught by: test_a_strong_bond_is_broken, test_each_shuffle_is_a_new_one
# says: Both rows are put into the same new order, so that every pair stays together: only one may be shuffled.
def shuffled_null(x, y, n_shuffles, seed):
    g = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(y), generator=g) for _ in range(n_shuffles)]
    return torch.tensor([mutual_information(x[o], y[o]) for o in orders], dtype=torch.float64)


# %% shuffled_null: rotated
# caught by: test_all_orders_are_equally_likely
# says: The row is rotated by a random number of places: neighbours stay neighbours, so not every order can come.
def shuffled_null(x, y, n_shuffles, seed):
    g = torch.Generator().manual_seed(seed)
    places = [int(torch.randint(len(y), (1,), generator=g)) for _ in range(n_shuffles)]
    return torch.tensor([mutual_information(x, y.roll(place)) for place in places], dtype=torch.float64)


# %% shuffled_null: the mean alone
# caught by: test_it_is_a_row_of_float64
# says: This is the mean over the shuffles: all the values are asked for.
def shuffled_null(x, y, n_shuffles, seed):
    g = torch.Generator().manual_seed(seed)
    found = [mutual_information(x, y[torch.randperm(len(y), generator=g)]) for _ in range(n_shuffles)]
    return torch.tensor(found, dtype=torch.float64).mean()


# %% shuffled_null: the seed is not used
# caught by: test_the_seed_decides
# says: The shuffles come from PyTorch's own generator, and the seed is not used.
def shuffled_null(x, y, n_shuffles, seed):
    found = [mutual_information(x, y[torch.randperm(len(y))]) for _ in range(n_shuffles)]
    return torch.tensor(found, dtype=torch.float64)


# %% speedup_factor: b over a
# caught by: test_it_is_the_cost_of_a_over_that_of_b, test_points_that_hit_the_target_need_no_interpolation
# says: This is the cost of b over that of a: it should be the other way round.
def speedup_factor(flops_a, loss_a, flops_b, loss_b, target):
    def cost(flops, loss):
        reached = (loss <= target).nonzero()
        if not len(reached):
            return math.inf
        i = reached[0].item()
        share = 1.0 if i == 0 else (loss[i - 1] - target) / (loss[i - 1] - loss[i])
        return (flops[max(i - 1, 0)] * (flops[i] / flops[max(i - 1, 0)]) ** share).item()

    a, b = cost(flops_a, loss_a), cost(flops_b, loss_b)
    if a == b == math.inf:
        raise ValueError(f"{target} is never reached")
    return b / a


# %% speedup_factor: FLOPs on a straight line
# caught by: test_flops_are_interpolated_on_a_logarithmic_scale
# says: Between two points the FLOPs are interpolated as they are: their logarithm should be.
def speedup_factor(flops_a, loss_a, flops_b, loss_b, target):
    def cost(flops, loss):
        reached = (loss <= target).nonzero()
        if not len(reached):
            return math.inf
        i = reached[0].item()
        if i == 0:
            return flops[0].item()
        share = (loss[i - 1] - target) / (loss[i - 1] - loss[i])
        return (flops[i - 1] + share * (flops[i] - flops[i - 1])).item()

    a, b = cost(flops_a, loss_a), cost(flops_b, loss_b)
    if a == b == math.inf:
        raise ValueError(f"{target} is never reached")
    return a / b


# %% speedup_factor: the loss is logarithmic too
# caught by: test_flops_are_interpolated_on_a_logarithmic_scale
# says: Between two points both FLOPs and loss are taken as logarithms: the loss should not be.
def speedup_factor(flops_a, loss_a, flops_b, loss_b, target):
    def cost(flops, loss):
        reached = (loss <= target).nonzero()
        if not len(reached):
            return math.inf
        i = reached[0].item()
        if i == 0:
            return flops[0].item()
        share = (loss[i - 1] / target).log() / (loss[i - 1] / loss[i].clamp(1e-9)).log()
        return (flops[i - 1] * (flops[i] / flops[i - 1]) ** share).item()

    a, b = cost(flops_a, loss_a), cost(flops_b, loss_b)
    if a == b == math.inf:
        raise ValueError(f"{target} is never reached")
    return a / b


# %% speedup_factor: the point that reached it
# caught by: test_flops_are_interpolated_on_a_logarithmic_scale
# says: This is the cost of the first point at the target; the loss passed it before that point.
def speedup_factor(flops_a, loss_a, flops_b, loss_b, target):
    def cost(flops, loss):
        reached = flops[loss <= target]
        return reached[0].item() if len(reached) else math.inf

    a, b = cost(flops_a, loss_a), cost(flops_b, loss_b)
    if a == b == math.inf:
        raise ValueError(f"{target} is never reached")
    return a / b


# %% speedup_factor: a curve is taken for sorted
# caught by: test_the_first_time_counts
# says: The search takes the losses for sorted: on a noisy curve it finds another point than the first.
def speedup_factor(flops_a, loss_a, flops_b, loss_b, target):
    def cost(flops, loss):
        if loss[-1] > target and loss.min() > target:
            return math.inf
        i = int(torch.searchsorted(loss.flip(0).contiguous(), torch.tensor(target, dtype=loss.dtype), right=True))
        i = min(len(loss) - i, len(loss) - 1)
        if i == 0:
            return flops[0].item()
        share = (loss[i - 1] - target) / (loss[i - 1] - loss[i])
        return (flops[i - 1] * (flops[i] / flops[i - 1]) ** share).item()

    a, b = cost(flops_a, loss_a), cost(flops_b, loss_b)
    if a == b == math.inf:
        raise ValueError(f"{target} is never reached")
    return a / b


# %% speedup_factor: the last time
# caught by: test_the_first_time_counts
# says: This is where the curve stays below the target for good; the first time counts.
def speedup_factor(flops_a, loss_a, flops_b, loss_b, target):
    def cost(flops, loss):
        if loss.min() > target:
            return math.inf
        above = (loss > target).nonzero()
        i = above[-1].item() + 1 if len(above) else 0
        if i == 0 or i == len(loss):
            return flops[min(i, len(loss) - 1)].item()
        share = (loss[i - 1] - target) / (loss[i - 1] - loss[i])
        return (flops[i - 1] * (flops[i] / flops[i - 1]) ** share).item()

    a, b = cost(flops_a, loss_a), cost(flops_b, loss_b)
    if a == b == math.inf:
        raise ValueError(f"{target} is never reached")
    return a / b


# %% speedup_factor: below, not at
# caught by: test_points_that_hit_the_target_need_no_interpolation
# says: A loss that equals the target has reached it; here it must be below.
def speedup_factor(flops_a, loss_a, flops_b, loss_b, target):
    def cost(flops, loss):
        reached = (loss < target).nonzero()
        if not len(reached):
            return math.inf
        i = reached[0].item()
        if i == 0:
            return flops[0].item()
        share = (loss[i - 1] - target) / (loss[i - 1] - loss[i])
        return (flops[i - 1] * (flops[i] / flops[i - 1]) ** share).item()

    a, b = cost(flops_a, loss_a), cost(flops_b, loss_b)
    if a == b == math.inf:
        raise ValueError(f"{target} is never reached")
    return a / b


# %% speedup_factor: a line beyond the last point
# caught by: test_a_target_that_only_one_reaches
# says: Where no point reaches the target, the curve is drawn on; what was not measured is infinite here.
def speedup_factor(flops_a, loss_a, flops_b, loss_b, target):
    def cost(flops, loss):
        reached = (loss <= target).nonzero()
        i = reached[0].item() if len(reached) else len(loss) - 1
        if i == 0:
            return flops[0].item()
        share = (loss[i - 1] - target) / (loss[i - 1] - loss[i])
        return (flops[i - 1] * (flops[i] / flops[i - 1]) ** share).item()

    if (loss_a > target).all() and (loss_b > target).all():
        raise ValueError(f"{target} is never reached")
    return cost(flops_a, loss_a) / cost(flops_b, loss_b)


# %% speedup_factor: NaN where neither reaches it
# caught by: test_a_target_that_nobody_reaches_is_refused
# says: Where neither curve reaches the target the result is NaN: a ValueError that names the target is asked for.
def speedup_factor(flops_a, loss_a, flops_b, loss_b, target):
    def cost(flops, loss):
        reached = (loss <= target).nonzero()
        if not len(reached):
            return math.inf
        i = reached[0].item()
        share = 1.0 if i == 0 else (loss[i - 1] - target) / (loss[i - 1] - loss[i])
        return (flops[max(i - 1, 0)] * (flops[i] / flops[max(i - 1, 0)]) ** share).item()

    return cost(flops_a, loss_a) / cost(flops_b, loss_b)


# %% fit_scaling_law: gradient descent from one start
# caught by: test_a_law_without_noise_is_found, test_noise_is_fitted_by_least_squares
# says: The descent has not arrived: the sum of squares is many times the smallest possible one.
def fit_scaling_law(n, d, loss):
    start = [float(loss.min().log()) - 0.5, 4.0, 4.0, -1.0, -1.0]
    p = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([p], lr=0.05)
    for _ in range(150):
        e, a, b, alpha, beta = p.exp()
        error = ((e + a * n**-alpha + b * d**-beta) / loss - 1).square().sum()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    return tuple(p.exp().tolist())


# %% fit_scaling_law: a coarse grid
# caught by: test_a_law_without_noise_is_found
# says: The exponents are taken from a coarse grid: between its points there are better ones.
def fit_scaling_law(n, d, loss):
    steps = torch.linspace(0.05, 1.5, 16, dtype=torch.float64)
    best = None
    for alpha in steps:
        for beta in steps:
            columns = torch.stack([torch.ones_like(n), n**-alpha, d**-beta], -1) / loss[:, None]
            c = torch.linalg.lstsq(columns, torch.ones(len(n), 1, dtype=torch.float64)).solution
            error = (columns @ c - 1).square().sum().item()
            if best is None or error < best[0]:
                best = (error, *c[:, 0].tolist(), alpha.item(), beta.item())
    return best[1:]


# %% fit_scaling_law: absolute errors
# caught by: test_errors_are_relative
# says: The errors are not divided by the loss, so that runs with a large loss weigh more.
def fit_scaling_law(n, d, loss):
    low, high = [0.05, 0.05], [1.5, 1.5]
    ones = torch.ones(441, len(n), 1, dtype=torch.float64)
    for _ in range(16):
        grid = torch.cartesian_prod(
            *(torch.linspace(a, b, 21, dtype=torch.float64) for a, b in zip(low, high, strict=True))
        )
        columns = torch.cat([ones, torch.stack([n ** -grid[:, :1], d ** -grid[:, 1:]], -1)], -1)
        best = torch.linalg.lstsq(columns, loss[:, None].expand(441, -1, 1)).solution
        i = (columns @ best - loss[:, None]).square().sum((1, 2)).argmin()
        width = [(b - a) / 5 for a, b in zip(low, high, strict=True)]
        low = [max(g - w, 0.05) for g, w in zip(grid[i].tolist(), width, strict=True)]
        high = [min(g + w, 1.5) for g, w in zip(grid[i].tolist(), width, strict=True)]
    return (*best[i, :, 0].tolist(), *grid[i].tolist())


# %% fit_scaling_law: nothing is left at infinity
# caught by: test_a_law_without_noise_is_found, test_a_larger_run_is_predicted
# says: The law has no E: it says that an infinite model makes no errors.
def fit_scaling_law(n, d, loss):
    low, high = [0.05, 0.05], [1.5, 1.5]
    target = torch.ones(441, len(n), 1, dtype=torch.float64)
    for _ in range(12):
        grid = torch.cartesian_prod(
            *(torch.linspace(a, b, 21, dtype=torch.float64) for a, b in zip(low, high, strict=True))
        )
        columns = torch.stack([n ** -grid[:, :1], d ** -grid[:, 1:]], -1) / loss[:, None]
        best = torch.linalg.lstsq(columns, target).solution
        i = (columns @ best - 1).square().sum((1, 2)).argmin()
        width = [(b - a) / 5 for a, b in zip(low, high, strict=True)]
        low = [max(g - w, 0.05) for g, w in zip(grid[i].tolist(), width, strict=True)]
        high = [min(g + w, 1.5) for g, w in zip(grid[i].tolist(), width, strict=True)]
    return (0.0, *best[i, :, 0].tolist(), *grid[i].tolist())


# %% fit_scaling_law: one exponent for both
# caught by: test_a_law_without_noise_is_found, test_the_two_exponents_are_independent
# says: alpha and beta are the same number here: parameters and tokens have exponents of their own.
def fit_scaling_law(n, d, loss):
    target = torch.ones(2000, len(n), 1, dtype=torch.float64)
    both = torch.linspace(0.05, 1.5, 2000, dtype=torch.float64)[:, None]
    columns = torch.stack([torch.ones_like(n).expand(2000, -1), n**-both, d**-both], -1) / loss[:, None]
    best = torch.linalg.lstsq(columns, target).solution
    i = (columns @ best - 1).square().sum((1, 2)).argmin()
    return (*best[i, :, 0].tolist(), both[i].item(), both[i].item())


# %% fit_scaling_law: parameters and tokens exchanged
# caught by: test_the_law_has_five_numbers_in_order, test_a_law_without_noise_is_found
# says: The numbers come in the wrong order: A and alpha belong to the parameters, B and beta to the tokens.
def fit_scaling_law(n, d, loss):
    low, high = [0.05, 0.05], [1.5, 1.5]
    ones = torch.ones(441, len(n), 1, dtype=torch.float64)
    for _ in range(16):
        grid = torch.cartesian_prod(
            *(torch.linspace(a, b, 21, dtype=torch.float64) for a, b in zip(low, high, strict=True))
        )
        columns = torch.cat([ones, torch.stack([d ** -grid[:, :1], n ** -grid[:, 1:]], -1)], -1) / loss[:, None]
        best = torch.linalg.lstsq(columns, ones).solution
        i = (columns @ best - 1).square().sum((1, 2)).argmin()
        width = [(b - a) / 5 for a, b in zip(low, high, strict=True)]
        low = [max(g - w, 0.05) for g, w in zip(grid[i].tolist(), width, strict=True)]
        high = [min(g + w, 1.5) for g, w in zip(grid[i].tolist(), width, strict=True)]
    return (*best[i, :, 0].tolist(), *grid[i].tolist())


# %% fit_scaling_law: the published numbers
# caught by: test_a_law_without_noise_is_found, test_noise_is_fitted_by_least_squares
# says: These are Chinchilla's numbers: a law belongs to its data, its tokeniser and its models.
def fit_scaling_law(n, d, loss):
    return (1.69, 406.4, 410.7, 0.34, 0.28)
