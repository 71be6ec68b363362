# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% dispatch_plan: the sort is not stable
# caught by: test_within_an_expert_the_lower_number_comes_first
# says: The experts are in order, but within one expert the assignments come the wrong way round: sort stably.
def dispatch_plan(experts, n_experts, world):
    if n_experts % world:
        raise ValueError(f"{n_experts} experts, {world} ranks")
    flat = experts.flatten()
    order = len(flat) - 1 - flat.flip(0).argsort(stable=True)
    return order, flat.bincount(minlength=n_experts).view(world, -1)


# %% dispatch_plan: no minlength
# caught by: test_experts_that_nobody_chose_count_zero, test_a_rank_without_tokens_has_an_empty_plan
# says: bincount stops at the largest number that it meets; experts after that are missing from the counts.
def dispatch_plan(experts, n_experts, world):
    if n_experts % world:
        raise ValueError(f"{n_experts} experts, {world} ranks")
    flat = experts.flatten()
    counts = flat.bincount()
    if len(counts) % world:
        counts = F.pad(counts, (0, world - len(counts) % world))
    return flat.argsort(stable=True), counts.view(world, -1)


# %% dispatch_plan: experts dealt out like cards
# caught by: test_counts_say_how_many_each_expert_gets, test_experts_that_nobody_chose_count_zero
# says: The experts are dealt out in turn (0, 1, 2, 0, 1, …); here each rank has a block of neighbours.
def dispatch_plan(experts, n_experts, world):
    if n_experts % world:
        raise ValueError(f"{n_experts} experts, {world} ranks")
    flat = experts.flatten()
    return flat.argsort(stable=True), flat.bincount(minlength=n_experts).view(-1, world).T


# %% dispatch_plan: tokens instead of assignments
# caught by: test_assignments_come_in_the_order_of_their_experts, test_within_an_expert_the_lower_number_comes_first
# says: order holds the numbers of tokens; it should hold those of assignments, of which a token has top_k.
def dispatch_plan(experts, n_experts, world):
    if n_experts % world:
        raise ValueError(f"{n_experts} experts, {world} ranks")
    flat = experts.flatten()
    return flat.argsort(stable=True) // experts.shape[1], flat.bincount(minlength=n_experts).view(world, -1)


# %% dispatch_plan: column by column
# caught by: test_assignments_come_in_the_order_of_their_experts
# says: The assignments are numbered column by column (all first choices, then all second); number them row by row.
def dispatch_plan(experts, n_experts, world):
    if n_experts % world:
        raise ValueError(f"{n_experts} experts, {world} ranks")
    return experts.T.flatten().argsort(stable=True), experts.flatten().bincount(minlength=n_experts).view(world, -1)


# %% dispatch_plan: only the first choice
# caught by: test_assignments_come_in_the_order_of_their_experts, test_counts_say_how_many_each_expert_gets
# says: Only each token's first expert is planned for; all top_k of them have to be.
def dispatch_plan(experts, n_experts, world):
    if n_experts % world:
        raise ValueError(f"{n_experts} experts, {world} ranks")
    flat = experts[:, 0]
    return flat.argsort(stable=True), flat.bincount(minlength=n_experts).view(world, -1)


# %% dispatch_plan: counts of ranks
# caught by: test_counts_say_how_many_each_expert_gets
# says: The counts are one number a rank; the other side also has to know for which of its experts the rows are.
def dispatch_plan(experts, n_experts, world):
    if n_experts % world:
        raise ValueError(f"{n_experts} experts, {world} ranks")
    flat = experts.flatten()
    return flat.argsort(stable=True), (flat // (n_experts // world)).bincount(minlength=world)


# %% dispatch_plan: the rank of each assignment
# caught by: test_assignments_come_in_the_order_of_their_experts, test_within_an_expert_the_lower_number_comes_first
# says: The assignments are sorted by rank only; within a rank they should be sorted by expert too.
def dispatch_plan(experts, n_experts, world):
    if n_experts % world:
        raise ValueError(f"{n_experts} experts, {world} ranks")
    flat = experts.flatten()
    order = (flat // (n_experts // world)).argsort(stable=True)
    return order, flat.bincount(minlength=n_experts).view(world, -1)


# %% dispatch_plan: no look at the division
# caught by: test_experts_must_be_shared_equally
# says: Where the ranks cannot share the experts equally, no ValueError names the two numbers.
def dispatch_plan(experts, n_experts, world):
    flat = experts.flatten()
    counts = flat.bincount(minlength=n_experts)
    return flat.argsort(stable=True), counts[: n_experts // world * world].view(world, -1)


# %% expert_parallel_forward: what came is read as if sorted by expert
# caught by: test_each_row_that_came_is_answered_by_its_expert
# says: The rows that came are split as if all of expert 0 came first; they are sorted by sender, then by expert.
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    order, counts = dispatch_plan(experts, len(gate_up) * world, world)
    coming = all_to_all(counts, [1] * world, [1] * world)
    send, receive = counts.sum(1).tolist(), coming.sum(1).tolist()
    rows = all_to_all(x[order // experts.shape[1]], send, receive)
    parts = rows.split(coming.sum(0).tolist())
    results = torch.cat([one_expert(part, gate_up[i], down[i]) for i, part in enumerate(parts)])
    back = all_to_all(results, receive, send) * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, order // experts.shape[1], back)


# %% expert_parallel_forward: results in the order of the experts
# caught by: test_each_row_that_came_is_answered_by_its_expert
# says: The results go back in the order in which the experts computed them, not in the places of their rows.
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    order, counts = dispatch_plan(experts, len(gate_up) * world, world)
    coming = all_to_all(counts, [1] * world, [1] * world)
    send, receive = counts.sum(1).tolist(), coming.sum(1).tolist()
    rows = all_to_all(x[order // experts.shape[1]], send, receive)
    owner = torch.arange(len(gate_up)).repeat(world).repeat_interleave(coming.flatten())
    results = torch.cat([one_expert(rows[owner == i], gate_up[i], down[i]) for i in range(len(gate_up))])
    back = all_to_all(results, receive, send) * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, order // experts.shape[1], back)


# %% expert_parallel_forward: the weights stay in the order of the tokens
# caught by: test_the_output_is_the_weighted_sum_of_what_came_back
# says: The results come back in the order of the plan, and are multiplied by the weights in the order of the tokens.
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    order, counts = dispatch_plan(experts, len(gate_up) * world, world)
    coming = all_to_all(counts, [1] * world, [1] * world)
    send, receive = counts.sum(1).tolist(), coming.sum(1).tolist()
    rows = all_to_all(x[order // experts.shape[1]], send, receive)
    owner = torch.arange(len(gate_up)).repeat(world).repeat_interleave(coming.flatten())
    results = torch.empty_like(rows)
    for i in range(len(gate_up)):
        results[owner == i] = one_expert(rows[owner == i], gate_up[i], down[i])
    back = all_to_all(results, receive, send) * weights.flatten()[:, None]
    return torch.zeros_like(x).index_add(0, order // experts.shape[1], back)


# %% expert_parallel_forward: without the weights
# caught by: test_the_output_is_the_weighted_sum_of_what_came_back, test_gradients_reach_the_tokens_and_their_weights
# says: The experts' results are added up without their weights.
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    order, counts = dispatch_plan(experts, len(gate_up) * world, world)
    coming = all_to_all(counts, [1] * world, [1] * world)
    send, receive = counts.sum(1).tolist(), coming.sum(1).tolist()
    rows = all_to_all(x[order // experts.shape[1]], send, receive)
    owner = torch.arange(len(gate_up)).repeat(world).repeat_interleave(coming.flatten())
    results = torch.empty_like(rows)
    for i in range(len(gate_up)):
        results[owner == i] = one_expert(rows[owner == i], gate_up[i], down[i])
    return torch.zeros_like(x).index_add(0, order // experts.shape[1], all_to_all(results, receive, send))


# %% expert_parallel_forward: weighted tokens travel
# caught by: test_the_tokens_travel_in_the_order_of_the_plan
# says: The tokens are multiplied by their weights before they travel, and an expert is not linear.
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    order, counts = dispatch_plan(experts, len(gate_up) * world, world)
    coming = all_to_all(counts, [1] * world, [1] * world)
    send, receive = counts.sum(1).tolist(), coming.sum(1).tolist()
    rows = all_to_all(x[order // experts.shape[1]] * weights.flatten()[order, None], send, receive)
    owner = torch.arange(len(gate_up)).repeat(world).repeat_interleave(coming.flatten())
    results = torch.empty_like(rows)
    for i in range(len(gate_up)):
        results[owner == i] = one_expert(rows[owner == i], gate_up[i], down[i])
    return torch.zeros_like(x).index_add(0, order // experts.shape[1], all_to_all(results, receive, send))


# %% expert_parallel_forward: overwritten instead of added
# caught by: test_the_output_is_the_weighted_sum_of_what_came_back
# says: Of a token's results only the last one stays: an index assignment overwrites, it does not add.
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    order, counts = dispatch_plan(experts, len(gate_up) * world, world)
    coming = all_to_all(counts, [1] * world, [1] * world)
    send, receive = counts.sum(1).tolist(), coming.sum(1).tolist()
    rows = all_to_all(x[order // experts.shape[1]], send, receive)
    owner = torch.arange(len(gate_up)).repeat(world).repeat_interleave(coming.flatten())
    results = torch.empty_like(rows)
    for i in range(len(gate_up)):
        results[owner == i] = one_expert(rows[owner == i], gate_up[i], down[i])
    out = torch.zeros_like(x)
    out[order // experts.shape[1]] += all_to_all(results, receive, send) * weights.flatten()[order, None]
    return out


# %% expert_parallel_forward: nothing to do without tokens
# caught by: test_a_rank_without_tokens_still_works_for_the_others, test_there_are_three_exchanges
# says: A rank without tokens leaves at once, and all the others wait for it for ever.
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    if not len(x):
        return x.clone()
    order, counts = dispatch_plan(experts, len(gate_up) * world, world)
    coming = all_to_all(counts, [1] * world, [1] * world)
    send, receive = counts.sum(1).tolist(), coming.sum(1).tolist()
    rows = all_to_all(x[order // experts.shape[1]], send, receive)
    owner = torch.arange(len(gate_up)).repeat(world).repeat_interleave(coming.flatten())
    results = torch.empty_like(rows)
    for i in range(len(gate_up)):
        results[owner == i] = one_expert(rows[owner == i], gate_up[i], down[i])
    back = all_to_all(results, receive, send) * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, order // experts.shape[1], back)


# %% expert_parallel_forward: no exchange of nothing
# caught by: test_there_are_three_exchanges, test_a_rank_that_gets_nothing_still_gets_its_answers
# says: A rank to which nothing came leaves out the last exchange, with which its own tokens' results come.
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    order, counts = dispatch_plan(experts, len(gate_up) * world, world)
    coming = all_to_all(counts, [1] * world, [1] * world)
    send, receive = counts.sum(1).tolist(), coming.sum(1).tolist()
    rows = all_to_all(x[order // experts.shape[1]], send, receive)
    if not len(rows):
        return torch.zeros_like(x)
    owner = torch.arange(len(gate_up)).repeat(world).repeat_interleave(coming.flatten())
    results = torch.empty_like(rows)
    for i in range(len(gate_up)):
        results[owner == i] = one_expert(rows[owner == i], gate_up[i], down[i])
    back = all_to_all(results, receive, send) * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, order // experts.shape[1], back)


# %% expert_parallel_forward: the way back with the sizes of the way there
# caught by: test_the_sizes_of_the_parcels_are_said
# says: On the way back send and receive change places: as much goes to a rank as came from it.
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    order, counts = dispatch_plan(experts, len(gate_up) * world, world)
    coming = all_to_all(counts, [1] * world, [1] * world)
    send, receive = counts.sum(1).tolist(), coming.sum(1).tolist()
    rows = all_to_all(x[order // experts.shape[1]], send, receive)
    owner = torch.arange(len(gate_up)).repeat(world).repeat_interleave(coming.flatten())
    results = torch.empty_like(rows)
    for i in range(len(gate_up)):
        results[owner == i] = one_expert(rows[owner == i], gate_up[i], down[i])
    back = all_to_all(results, send, receive) * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, order // experts.shape[1], back)


# %% expert_parallel_forward: the gradient ends at the network
# caught by: test_experts_learn_from_the_tokens_of_all_ranks
# says: The results are detached before they travel, so the experts learn nothing.
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    order, counts = dispatch_plan(experts, len(gate_up) * world, world)
    coming = all_to_all(counts, [1] * world, [1] * world)
    send, receive = counts.sum(1).tolist(), coming.sum(1).tolist()
    rows = all_to_all(x[order // experts.shape[1]], send, receive)
    owner = torch.arange(len(gate_up)).repeat(world).repeat_interleave(coming.flatten())
    results = torch.empty_like(rows)
    for i in range(len(gate_up)):
        results[owner == i] = one_expert(rows[owner == i], gate_up[i], down[i])
    back = all_to_all(results.detach(), receive, send) * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, order // experts.shape[1], back)


# %% expert_parallel_forward: without tokens a result made anew
# caught by: test_experts_learn_from_the_tokens_of_all_ranks
# says: Without tokens the result is made anew, not from what came back: no gradient sets out from this rank, and the others wait.
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    top_k = experts.shape[1]
    order, counts = dispatch_plan(experts, len(gate_up) * world, world)
    coming = all_to_all(counts, [1] * world, [1] * world)
    send, receive = counts.sum(1).tolist(), coming.sum(1).tolist()
    rows = all_to_all(x[order // top_k], send, receive)
    parts = enumerate(rows.split(coming.flatten().tolist()))
    results = [one_expert(part, gate_up[i % len(gate_up)], down[i % len(gate_up)]) for i, part in parts]
    back = all_to_all(torch.cat(results), receive, send)
    out = torch.zeros_like(x)
    for row, assignment in zip(back, order.tolist()):
        token, place = divmod(assignment, top_k)
        out[token] += weights[token, place] * row
    return out


# %% expert_parallel_forward: nothing to do, nothing to say
# caught by: test_there_are_three_exchanges
# says: A rank that neither sends nor gets a row leaves out the last two exchanges, and the others wait for it.
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    order, counts = dispatch_plan(experts, len(gate_up) * world, world)
    coming = all_to_all(counts, [1] * world, [1] * world)
    send, receive = counts.sum(1).tolist(), coming.sum(1).tolist()
    if sum(send) + sum(receive) == 0:
        return torch.zeros_like(x)
    rows = all_to_all(x[order // experts.shape[1]], send, receive)
    owner = torch.arange(len(gate_up)).repeat(world).repeat_interleave(coming.flatten())
    results = torch.empty_like(rows)
    for i in range(len(gate_up)):
        results[owner == i] = one_expert(rows[owner == i], gate_up[i], down[i])
    back = all_to_all(results, receive, send) * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, order // experts.shape[1], back)


# %% expert_parallel_forward: float64 goes through float32
# caught by: test_the_dtype_is_kept_on_every_way
# says: The results are kept in float32 on the way, so float64 comes out with half of its digits.
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    order, counts = dispatch_plan(experts, len(gate_up) * world, world)
    coming = all_to_all(counts, [1] * world, [1] * world)
    send, receive = counts.sum(1).tolist(), coming.sum(1).tolist()
    rows = all_to_all(x[order // experts.shape[1]], send, receive)
    owner = torch.arange(len(gate_up)).repeat(world).repeat_interleave(coming.flatten())
    results = torch.empty(rows.shape)
    for i in range(len(gate_up)):
        results[owner == i] = one_expert(rows[owner == i], gate_up[i], down[i]).float()
    back = all_to_all(results.to(x.dtype), receive, send) * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, order // experts.shape[1], back)


# %% ExpertCache: first in, first out
# caught by: test_asking_is_using, test_the_least_recently_used_makes_room, test_only_what_is_missing_is_loaded
# says: The expert that was loaded first makes room, even if it was used a moment ago: asking is using.
class ExpertCache:
    def __init__(self, load, capacity):
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}")
        self.load, self.capacity, self.hits, self.misses, self.experts = load, capacity, 0, 0, {}

    def fetch(self, expert):
        if expert in self.experts:
            self.hits += 1
        else:
            self.misses += 1
            if len(self.experts) == self.capacity:
                del self.experts[next(iter(self.experts))]
            self.experts[expert] = self.load(expert)
        return self.experts[expert]

    def held(self):
        return list(self.experts)


# %% ExpertCache: the most recently used makes room
# caught by: test_the_least_recently_used_makes_room, test_asking_is_using
# says: The expert that was used last makes room; it should be the one whose use is longest ago.
class ExpertCache:
    def __init__(self, load, capacity):
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}")
        self.load, self.capacity, self.hits, self.misses, self.experts = load, capacity, 0, 0, OrderedDict()

    def fetch(self, expert):
        if expert in self.experts:
            self.hits += 1
            self.experts.move_to_end(expert)
        else:
            self.misses += 1
            if len(self.experts) == self.capacity:
                self.experts.popitem()
            self.experts[expert] = self.load(expert)
        return self.experts[expert]

    def held(self):
        return list(self.experts)


# %% ExpertCache: the least frequently used makes room
# caught by: test_the_least_recently_used_makes_room
# says: The expert with the fewest requests makes room (LFU); it should be the one whose use is longest ago (LRU).
class ExpertCache:
    def __init__(self, load, capacity):
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}")
        self.load, self.capacity, self.hits, self.misses, self.experts = load, capacity, 0, 0, OrderedDict()
        self.asked = {}

    def fetch(self, expert):
        self.asked[expert] = self.asked.get(expert, 0) + 1
        if expert in self.experts:
            self.hits += 1
            self.experts.move_to_end(expert)
        else:
            self.misses += 1
            if len(self.experts) == self.capacity:
                del self.experts[min(self.experts, key=lambda held: self.asked[held])]
            self.experts[expert] = self.load(expert)
        return self.experts[expert]

    def held(self):
        return list(self.experts)


# %% ExpertCache: it keeps everything
# caught by: test_there_is_room_for_as_many_as_said, test_the_least_recently_used_makes_room
# says: Nobody ever makes room: the cache grows beyond its capacity.
class ExpertCache:
    def __init__(self, load, capacity):
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}")
        self.load, self.capacity, self.hits, self.misses, self.experts = load, capacity, 0, 0, OrderedDict()

    def fetch(self, expert):
        if expert in self.experts:
            self.hits += 1
            self.experts.move_to_end(expert)
        else:
            self.misses += 1
            self.experts[expert] = self.load(expert)
        return self.experts[expert]

    def held(self):
        return list(self.experts)


# %% ExpertCache: loaded before room is made
# caught by: test_room_is_made_before_the_expert_is_loaded
# says: Room is made after loading, so that for a moment one expert too many is held: that is when memory runs out.
class ExpertCache:
    def __init__(self, load, capacity):
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}")
        self.load, self.capacity, self.hits, self.misses, self.experts = load, capacity, 0, 0, OrderedDict()

    def fetch(self, expert):
        if expert in self.experts:
            self.hits += 1
            self.experts.move_to_end(expert)
        else:
            self.misses += 1
            self.experts[expert] = self.load(expert)
            if len(self.experts) > self.capacity:
                self.experts.popitem(last=False)
        return self.experts[expert]

    def held(self):
        return list(self.experts)


# %% ExpertCache: a name for who makes room
# caught by: test_room_is_made_before_the_expert_is_loaded
# says: The old weights are out of the cache and have a name in fetch: they stay in memory until fetch is done.
class ExpertCache:
    def __init__(self, load, capacity):
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}")
        self.load, self.capacity, self.hits, self.misses, self.experts = load, capacity, 0, 0, OrderedDict()

    def fetch(self, expert):
        if expert in self.experts:
            self.hits += 1
            self.experts.move_to_end(expert)
        else:
            self.misses += 1
            if len(self.experts) == self.capacity:
                _, old = self.experts.popitem(last=False)
            self.experts[expert] = self.load(expert)
        return self.experts[expert]

    def held(self):
        return list(self.experts)


# %% ExpertCache: Python's own cache
# caught by: test_room_is_made_before_the_expert_is_loaded
# says: functools.lru_cache loads before it makes room, so that for a moment one expert too many is in memory.
import functools


class ExpertCache:
    def __init__(self, load, capacity):
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}")
        self.cached, self.capacity, self.order = functools.lru_cache(capacity)(load), capacity, []

    def fetch(self, expert):
        self.order = [*(other for other in self.order if other != expert), expert][-self.capacity :]
        return self.cached(expert)

    def held(self):
        return list(self.order)

    @property
    def hits(self):
        return self.cached.cache_info().hits

    @property
    def misses(self):
        return self.cached.cache_info().misses


# %% ExpertCache: a copy each time
# caught by: test_fetch_gives_what_load_gave
# says: fetch gives a copy of the weights, so that an expert that is used takes its place twice.
import copy


class ExpertCache:
    def __init__(self, load, capacity):
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}")
        self.load, self.capacity, self.hits, self.misses, self.experts = load, capacity, 0, 0, OrderedDict()

    def fetch(self, expert):
        if expert in self.experts:
            self.hits += 1
            self.experts.move_to_end(expert)
        else:
            self.misses += 1
            if len(self.experts) == self.capacity:
                self.experts.popitem(last=False)
            self.experts[expert] = self.load(expert)
        return copy.deepcopy(self.experts[expert])

    def held(self):
        return list(self.experts)


# %% ExpertCache: room is made when there is still room
# caught by: test_there_is_room_for_as_many_as_said, test_room_is_made_before_the_expert_is_loaded
# says: An expert makes room although there is a free place: the cache never gets full.
class ExpertCache:
    def __init__(self, load, capacity):
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}")
        self.load, self.capacity, self.hits, self.misses, self.experts = load, capacity, 0, 0, OrderedDict()

    def fetch(self, expert):
        if expert in self.experts:
            self.hits += 1
            self.experts.move_to_end(expert)
        else:
            self.misses += 1
            if len(self.experts) >= max(self.capacity - 1, 1):
                self.experts.popitem(last=False)
            self.experts[expert] = self.load(expert)
        return self.experts[expert]

    def held(self):
        return list(self.experts)


# %% ExpertCache: what is falsy is not there
# caught by: test_weights_may_be_anything
# says: Whether an expert is held is asked of its weights; weights may be None or 0. Ask whether the number is there.
class ExpertCache:
    def __init__(self, load, capacity):
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}")
        self.load, self.capacity, self.hits, self.misses, self.experts = load, capacity, 0, 0, OrderedDict()

    def fetch(self, expert):
        value = self.experts.pop(expert, None)
        if value is not None and not (isinstance(value, int) and value == 0):
            self.hits += 1
        else:
            self.misses += 1
            if len(self.experts) == self.capacity:
                self.experts.popitem(last=False)
            value = self.load(expert)
        self.experts[expert] = value
        return value

    def held(self):
        return list(self.experts)


# %% ExpertCache: one dict for all caches
# caught by: test_two_caches_share_nothing
# says: All caches share one dict, so that one layer gets the experts of another.
class ExpertCache:
    experts = OrderedDict()

    def __init__(self, load, capacity):
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}")
        self.load, self.capacity, self.hits, self.misses = load, capacity, 0, 0

    def fetch(self, expert):
        if expert in self.experts:
            self.hits += 1
            self.experts.move_to_end(expert)
        else:
            self.misses += 1
            if len(self.experts) == self.capacity:
                self.experts.popitem(last=False)
            self.experts[expert] = self.load(expert)
        return self.experts[expert]

    def held(self):
        return list(self.experts)


# %% ExpertCache: every request counts as a miss
# caught by: test_hits_and_misses_are_counted
# says: misses counts every request, also those that found their expert.
class ExpertCache:
    def __init__(self, load, capacity):
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}")
        self.load, self.capacity, self.hits, self.misses, self.experts = load, capacity, 0, 0, OrderedDict()

    def fetch(self, expert):
        self.misses += 1
        if expert in self.experts:
            self.hits += 1
            self.experts.move_to_end(expert)
        else:
            if len(self.experts) == self.capacity:
                self.experts.popitem(last=False)
            self.experts[expert] = self.load(expert)
        return self.experts[expert]

    def held(self):
        return list(self.experts)


# %% hierarchical_route: the best experts of all
# caught by: test_groups_are_chosen_by_their_own_logits, test_in_each_group_its_best_experts_are_chosen
# says: This takes the experts with the largest products of all groups; the groups have to be chosen first.
def hierarchical_route(group_logits, expert_logits, top_groups, top_k):
    p = group_logits.float().softmax(-1)[..., None] * expert_logits.float().softmax(-1)
    weights, experts = p.flatten(1).topk(top_groups * top_k)
    return (weights / weights.sum(-1, keepdim=True)).to(group_logits.dtype), experts


# %% hierarchical_route: one division at the end
# caught by: test_a_weight_is_the_groups_share_times_the_experts
# says: The products are divided by their sum at the end; each of the two steps should divide by its own sum.
def hierarchical_route(group_logits, expert_logits, top_groups, top_k):
    p, group = group_logits.float().softmax(-1).topk(top_groups)
    inside = expert_logits.float().softmax(-1)[torch.arange(len(group))[:, None], group]
    q, expert = inside.topk(top_k)
    weights = (p[..., None] * q).flatten(1)
    experts = (group[..., None] * expert_logits.shape[-1] + expert).flatten(1)
    weights, order = (weights / weights.sum(-1, keepdim=True)).sort(descending=True)
    return weights.to(group_logits.dtype), experts.gather(1, order)


# %% hierarchical_route: probabilities are not divided
# caught by: test_the_weights_of_a_token_sum_to_one, test_a_weight_is_the_groups_share_times_the_experts
# says: The probabilities are multiplied as they are; what was kept should be divided by its sum in each step.
def hierarchical_route(group_logits, expert_logits, top_groups, top_k):
    p, group = group_logits.float().softmax(-1).topk(top_groups)
    inside = expert_logits.float().softmax(-1)[torch.arange(len(group))[:, None], group]
    q, expert = inside.topk(top_k)
    experts = (group[..., None] * expert_logits.shape[-1] + expert).flatten(1)
    weights, order = (p[..., None] * q).flatten(1).sort(descending=True)
    return weights.to(group_logits.dtype), experts.gather(1, order)


# %% hierarchical_route: the experts' weights alone
# caught by: test_a_weight_is_the_groups_share_times_the_experts, test_gradients_reach_both_kinds_of_logits
# says: The group's share is missing: every chosen group gets the same.
def hierarchical_route(group_logits, expert_logits, top_groups, top_k):
    group = group_logits.topk(top_groups).indices
    inside = expert_logits.float().softmax(-1)[torch.arange(len(group))[:, None], group]
    q, expert = inside.topk(top_k)
    q = q / q.sum(-1, keepdim=True) / top_groups + 0 * group_logits.float().sum()
    experts = (group[..., None] * expert_logits.shape[-1] + expert).flatten(1)
    weights, order = q.flatten(1).sort(descending=True)
    return weights.to(group_logits.dtype), experts.gather(1, order)


# %% hierarchical_route: numbers within the group
# caught by: test_in_each_group_its_best_experts_are_chosen
# says: The experts have their numbers within the group; add group · group_size.
def hierarchical_route(group_logits, expert_logits, top_groups, top_k):
    p, group = group_logits.float().softmax(-1).topk(top_groups)
    inside = expert_logits.float().softmax(-1)[torch.arange(len(group))[:, None], group]
    q, expert = inside.topk(top_k)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    weights, order = (p[..., None] * q).flatten(1).sort(descending=True)
    return weights.to(group_logits.dtype), expert.flatten(1).gather(1, order)


# %% hierarchical_route: the group's number times the number of groups
# caught by: test_in_each_group_its_best_experts_are_chosen
# says: The group's number is multiplied by the number of groups; it should be the number of experts in a group.
def hierarchical_route(group_logits, expert_logits, top_groups, top_k):
    p, group = group_logits.float().softmax(-1).topk(top_groups)
    inside = expert_logits.float().softmax(-1)[torch.arange(len(group))[:, None], group]
    q, expert = inside.topk(top_k)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    experts = (group[..., None] * group_logits.shape[-1] + expert).flatten(1)
    weights, order = (p[..., None] * q).flatten(1).sort(descending=True)
    return weights.to(group_logits.dtype), experts.gather(1, order)


# %% hierarchical_route: group after group
# caught by: test_the_largest_weight_comes_first
# says: The experts come group after group; they should be sorted by their weights, over all groups.
def hierarchical_route(group_logits, expert_logits, top_groups, top_k):
    p, group = group_logits.float().softmax(-1).topk(top_groups)
    inside = expert_logits.float().softmax(-1)[torch.arange(len(group))[:, None], group]
    q, expert = inside.topk(top_k)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    experts = (group[..., None] * expert_logits.shape[-1] + expert).flatten(1)
    return (p[..., None] * q).flatten(1).to(group_logits.dtype), experts


# %% hierarchical_route: weights sorted, experts not
# caught by: test_the_largest_weight_comes_first
# says: The weights were sorted and the experts stayed where they were, so each stands beside another's weight.
def hierarchical_route(group_logits, expert_logits, top_groups, top_k):
    p, group = group_logits.float().softmax(-1).topk(top_groups)
    inside = expert_logits.float().softmax(-1)[torch.arange(len(group))[:, None], group]
    q, expert = inside.topk(top_k)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    experts = (group[..., None] * expert_logits.shape[-1] + expert).flatten(1)
    return (p[..., None] * q).flatten(1).sort(descending=True)[0].to(group_logits.dtype), experts


# %% hierarchical_route: softmax in bfloat16
# caught by: test_bfloat16_logits_are_routed_in_float32
# says: The softmax is computed in bfloat16: turn the logits into float32 first.
def hierarchical_route(group_logits, expert_logits, top_groups, top_k):
    p, group = group_logits.softmax(-1).topk(top_groups)
    q, expert = expert_logits.softmax(-1)[torch.arange(len(group))[:, None], group].topk(top_k)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    experts = (group[..., None] * expert_logits.shape[-1] + expert).flatten(1)
    weights, order = (p[..., None] * q).flatten(1).sort(descending=True)
    return weights, experts.gather(1, order)


# %% top_p_route: the crossing expert is left out
# caught by: test_the_smallest_set_that_reaches_p_is_chosen, test_a_token_in_doubt_gets_more_experts
# says: The expert whose probability crosses p is left out, so the chosen ones do not reach p.
def top_p_route(logits, p):
    if not 0 < p <= 1:
        raise ValueError(f"p is {p}")
    s, i = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    keep = s.cumsum(-1) <= p
    keep[..., 0] = True
    s = s * keep
    return torch.zeros_like(s).scatter(-1, i, s / s.sum(-1, keepdim=True)).to(logits.dtype)


# %% top_p_route: one more than it takes
# caught by: test_to_reach_p_exactly_is_enough
# says: The sum is taken to have to pass p; to reach it is enough.
def top_p_route(logits, p):
    if not 0 < p <= 1:
        raise ValueError(f"p is {p}")
    s, i = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    s = s * (s.cumsum(-1) - s <= p)
    return torch.zeros_like(s).scatter(-1, i, s / s.sum(-1, keepdim=True)).to(logits.dtype)


# %% top_p_route: every expert above p
# caught by: test_the_smallest_set_that_reaches_p_is_chosen
# says: p is compared with each probability; it should be compared with their sum, the largest first.
def top_p_route(logits, p):
    if not 0 < p <= 1:
        raise ValueError(f"p is {p}")
    s = logits.float().softmax(-1)
    keep = (s >= p) | (s == s.amax(-1, keepdim=True))
    s = s * keep
    return (s / s.sum(-1, keepdim=True)).to(logits.dtype)


# %% top_p_route: summed without sorting
# caught by: test_the_smallest_set_that_reaches_p_is_chosen
# says: The probabilities are summed in the order of the experts; the largest have to come first.
def top_p_route(logits, p):
    if not 0 < p <= 1:
        raise ValueError(f"p is {p}")
    s = logits.float().softmax(-1)
    s = s * (s.cumsum(-1) - s < p)
    return (s / s.sum(-1, keepdim=True)).to(logits.dtype)


# %% top_p_route: the least likely first
# caught by: test_the_smallest_set_that_reaches_p_is_chosen, test_there_is_always_one_and_with_p_of_one_there_are_all
# says: The sort is ascending, so the least likely experts are taken first.
def top_p_route(logits, p):
    if not 0 < p <= 1:
        raise ValueError(f"p is {p}")
    s, i = logits.float().softmax(-1).sort(dim=-1, stable=True)
    s = s * (s.cumsum(-1) - s < p)
    return torch.zeros_like(s).scatter(-1, i, s / s.sum(-1, keepdim=True)).to(logits.dtype)


# %% top_p_route: the weights are not divided
# caught by: test_the_chosen_weights_sum_to_one, test_the_weights_are_probabilities_over_the_chosen
# says: The probabilities of the chosen experts are left as they are; divide them by their sum.
def top_p_route(logits, p):
    if not 0 < p <= 1:
        raise ValueError(f"p is {p}")
    s, i = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    s = s * (s.cumsum(-1) - s < p)
    return torch.zeros_like(s).scatter(-1, i, s).to(logits.dtype)


# %% top_p_route: the weights in sorted order
# caught by: test_the_smallest_set_that_reaches_p_is_chosen, test_the_weights_are_probabilities_over_the_chosen
# says: The weights are in the order of their size; put each back to the place of its expert.
def top_p_route(logits, p):
    if not 0 < p <= 1:
        raise ValueError(f"p is {p}")
    s, _ = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    s = s * (s.cumsum(-1) - s < p)
    return (s / s.sum(-1, keepdim=True)).to(logits.dtype)


# %% top_p_route: one number of experts for all tokens
# caught by: test_a_token_in_doubt_gets_more_experts, test_the_smallest_set_that_reaches_p_is_chosen
# says: All tokens get as many experts as the one most in doubt; each row has a set of its own.
def top_p_route(logits, p):
    if not 0 < p <= 1:
        raise ValueError(f"p is {p}")
    s, i = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    k = (s.cumsum(-1) - s < p).sum(-1).amax() if len(s) else 1
    s = s * (torch.arange(s.shape[-1]) < k)
    return torch.zeros_like(s).scatter(-1, i, s / s.sum(-1, keepdim=True)).to(logits.dtype)


# %% top_p_route: added up in bfloat16
# caught by: test_bfloat16_probabilities_are_added_up_in_float32
# says: The probabilities are added up in bfloat16, where a sum of many small ones goes wrong.
def top_p_route(logits, p):
    if not 0 < p <= 1:
        raise ValueError(f"p is {p}")
    s, i = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    s = s * (s.cumsum(-1) - s < p)
    return torch.zeros_like(s).scatter(-1, i, s / s.sum(-1, keepdim=True))


# %% top_p_route: equals go together
# caught by: test_to_reach_p_exactly_is_enough
# says: All experts as likely as the last one are chosen with it; of equals only as many as are needed belong to the set.
def top_p_route(logits, p):
    if not 0 < p <= 1:
        raise ValueError(f"p is {p}")
    probabilities = logits.float().softmax(-1)
    ordered = probabilities.sort(-1, descending=True).values
    last = ordered.masked_fill(ordered.cumsum(-1) - ordered >= p, 2).amin(-1, keepdim=True)
    chosen = probabilities.masked_fill(probabilities < last, 0)
    return (chosen / chosen.sum(-1, keepdim=True)).to(logits.dtype)


# %% add_expert: the newcomer is open to all
# caught by: test_nobody_is_sent_to_the_newcomer, test_the_layer_computes_what_it_did_before
# says: The newcomer's bias is its parent's, so tokens go there at once and the layer's output changes.
def add_expert(router, bias, gate_up, down, parent):
    return tuple(torch.cat([t, t[parent : parent + 1]]).detach() for t in (router, bias, gate_up, down))


# %% add_expert: a bias of zero
# caught by: test_nobody_is_sent_to_the_newcomer
# says: The newcomer's bias is 0, which keeps nobody out.
def add_expert(router, bias, gate_up, down, parent):
    grown = [torch.cat([t, t[parent : parent + 1]]).detach() for t in (router, bias, gate_up, down)]
    grown[1][-1] = 0
    return tuple(grown)


# %% add_expert: a newcomer of random numbers
# caught by: test_the_newcomer_is_a_copy_of_its_parent
# says: The newcomer consists of random numbers; it should be a copy of its parent.
def add_expert(router, bias, gate_up, down, parent):
    def grow(t):
        return torch.cat([t, torch.randn_like(t[:1])]).detach()

    return grow(router), torch.cat([bias, bias.new_full((1,), -torch.inf)]).detach(), grow(gate_up), grow(down)


# %% add_expert: a newcomer of zeros
# caught by: test_the_newcomer_is_a_copy_of_its_parent
# says: The newcomer consists of zeros; it should be a copy of its parent.
def add_expert(router, bias, gate_up, down, parent):
    grown = [torch.cat([t, torch.zeros_like(t[:1])]).detach() for t in (router, bias, gate_up, down)]
    grown[1][-1] = -torch.inf
    return tuple(grown)


# %% add_expert: the newcomer comes first
# caught by: test_those_who_were_there_stay_as_they_were, test_the_newcomer_is_a_copy_of_its_parent
# says: The newcomer stands at the front, so every other expert has another number now.
def add_expert(router, bias, gate_up, down, parent):
    grown = [torch.cat([t[parent : parent + 1], t]).detach() for t in (router, bias, gate_up, down)]
    grown[1][0] = -torch.inf
    return tuple(grown)


# %% add_expert: always the last one's child
# caught by: test_the_newcomer_is_a_copy_of_its_parent
# says: The newcomer is a copy of the last expert, whoever its parent is.
def add_expert(router, bias, gate_up, down, parent):
    grown = [torch.cat([t, t[-1:]]).detach() for t in (router, bias, gate_up, down)]
    grown[1][-1] = -torch.inf
    return tuple(grown)


# %% add_expert: it hangs on the old parameters
# caught by: test_the_new_tensors_have_no_history
# says: The new tensors hang on the old ones: an optimiser cannot take them, and gradients flow into what is gone.
def add_expert(router, bias, gate_up, down, parent):
    bias = torch.cat([bias, bias.new_full((1,), -torch.inf)])
    router, gate_up, down = (torch.cat([t, t[parent : parent + 1]]) for t in (router, gate_up, down))
    return router, bias, gate_up, down


# %% add_expert: everybody is locked out
# caught by: test_nobody_is_sent_to_the_newcomer, test_those_who_were_there_stay_as_they_were
# says: The parent's bias was changed as well; only the newcomer is to be locked out.
def add_expert(router, bias, gate_up, down, parent):
    grown = [torch.cat([t, t[parent : parent + 1]]).detach() for t in (router, bias, gate_up, down)]
    grown[1][[parent, -1]] = -torch.inf
    return tuple(grown)
