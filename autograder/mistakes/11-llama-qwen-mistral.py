# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% read_config: d_head is always the width divided by the heads
# caught by: test_sizes_are_read, test_absent_keys_mean_the_first_llama
# says: head_dim is not looked at, and it need not be the width divided by the heads.
def read_config(config):
    kind = config.get("model_type")
    if kind not in {"llama", "mistral", "qwen2", "qwen3"}:
        raise ValueError(f"unknown model_type {kind}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {config['hidden_act']} is unknown")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling_type = rope.get("rope_type") or rope.get("type") or "default"
    if scaling_type not in ("default", "llama3"):
        raise ValueError(f"unknown RoPE scaling {scaling_type}")
    scaling = None
    if scaling_type == "llama3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000
    n, window = config["num_hidden_layers"], config.get("sliding_window")
    windows = [None] * n
    if kind == "mistral":
        windows = [window] * n
    if kind.startswith("qwen") and config.get("use_sliding_window"):
        first = config["max_window_layers"]
        layer_types = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * n
        windows = [window if layer == "sliding_attention" else None for layer in layer_types[:n]]
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config["hidden_size"] // heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        windows=tuple(windows),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


# %% read_config: groups must be stated
# caught by: test_absent_keys_mean_the_first_llama
# says: Where num_key_value_heads is absent, there is one key head for all: it should be one for each query head.
def read_config(config):
    kind = config.get("model_type")
    if kind not in {"llama", "mistral", "qwen2", "qwen3"}:
        raise ValueError(f"unknown model_type {kind}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {config['hidden_act']} is unknown")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling_type = rope.get("rope_type") or rope.get("type") or "default"
    if scaling_type not in ("default", "llama3"):
        raise ValueError(f"unknown RoPE scaling {scaling_type}")
    scaling = None
    if scaling_type == "llama3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000
    n, window = config["num_hidden_layers"], config.get("sliding_window")
    windows = [None] * n
    if kind == "mistral":
        windows = [window] * n
    if kind.startswith("qwen") and config.get("use_sliding_window"):
        first = config["max_window_layers"]
        layer_types = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * n
        windows = [window if layer == "sliding_attention" else None for layer in layer_types[:n]]
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or 1,
        d_head=config.get("head_dim") or config["hidden_size"] // heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        windows=tuple(windows),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


# %% read_config: Qwen's window is used although it says no
# caught by: test_qwen_has_windows_only_where_it_uses_them
# says: sliding_window is used without asking use_sliding_window: files that use no window have a number there all the same.
def read_config(config):
    kind = config.get("model_type")
    if kind not in {"llama", "mistral", "qwen2", "qwen3"}:
        raise ValueError(f"unknown model_type {kind}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {config['hidden_act']} is unknown")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling_type = rope.get("rope_type") or rope.get("type") or "default"
    if scaling_type not in ("default", "llama3"):
        raise ValueError(f"unknown RoPE scaling {scaling_type}")
    scaling = None
    if scaling_type == "llama3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000
    n, window = config["num_hidden_layers"], config.get("sliding_window")
    windows = [None] * n
    if kind == "mistral":
        windows = [window] * n
    if kind.startswith("qwen") and window:
        first = config["max_window_layers"]
        layer_types = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * n
        windows = [window if layer == "sliding_attention" else None for layer in layer_types[:n]]
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or config["hidden_size"] // heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        windows=tuple(windows),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


# %% read_config: the first layers have the window
# caught by: test_qwen_has_windows_only_where_it_uses_them
# says: max_window_layers is taken as the number of layers with a window: it is the number of the first one that has it.
def read_config(config):
    kind = config.get("model_type")
    if kind not in {"llama", "mistral", "qwen2", "qwen3"}:
        raise ValueError(f"unknown model_type {kind}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {config['hidden_act']} is unknown")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling_type = rope.get("rope_type") or rope.get("type") or "default"
    if scaling_type not in ("default", "llama3"):
        raise ValueError(f"unknown RoPE scaling {scaling_type}")
    scaling = None
    if scaling_type == "llama3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000
    n, window = config["num_hidden_layers"], config.get("sliding_window")
    windows = [None] * n
    if kind == "mistral":
        windows = [window] * n
    if kind.startswith("qwen") and config.get("use_sliding_window"):
        first = config["max_window_layers"]
        layer_types = config.get("layer_types") or ["sliding_attention"] * first + ["full_attention"] * n
        windows = [window if layer == "sliding_attention" else None for layer in layer_types[:n]]
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or config["hidden_size"] // heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        windows=tuple(windows),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


# %% read_config: LLaMA has the window of Mistral
# caught by: test_mistral_has_one_window_for_all
# says: Mistral's window is passed over: every layer sees everything.
def read_config(config):
    kind = config.get("model_type")
    if kind not in {"llama", "mistral", "qwen2", "qwen3"}:
        raise ValueError(f"unknown model_type {kind}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {config['hidden_act']} is unknown")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling_type = rope.get("rope_type") or rope.get("type") or "default"
    if scaling_type not in ("default", "llama3"):
        raise ValueError(f"unknown RoPE scaling {scaling_type}")
    scaling = None
    if scaling_type == "llama3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000
    n, window = config["num_hidden_layers"], config.get("sliding_window")
    windows = [None] * n
    if kind.startswith("qwen") and config.get("use_sliding_window"):
        first = config["max_window_layers"]
        layer_types = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * n
        windows = [window if layer == "sliding_attention" else None for layer in layer_types[:n]]
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or config["hidden_size"] // heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        windows=tuple(windows),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


# %% read_config: rope_parameters is not read
# caught by: test_rope_is_read_from_new_files
# says: Newer files keep everything about RoPE in rope_parameters, and that is not read.
def read_config(config):
    kind = config.get("model_type")
    if kind not in {"llama", "mistral", "qwen2", "qwen3"}:
        raise ValueError(f"unknown model_type {kind}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {config['hidden_act']} is unknown")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]}")
    rope = config.get("rope_scaling") or {}
    scaling_type = rope.get("rope_type") or rope.get("type") or "default"
    if scaling_type not in ("default", "llama3"):
        raise ValueError(f"unknown RoPE scaling {scaling_type}")
    scaling = None
    if scaling_type == "llama3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000
    n, window = config["num_hidden_layers"], config.get("sliding_window")
    windows = [None] * n
    if kind == "mistral":
        windows = [window] * n
    if kind.startswith("qwen") and config.get("use_sliding_window"):
        first = config["max_window_layers"]
        layer_types = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * n
        windows = [window if layer == "sliding_attention" else None for layer in layer_types[:n]]
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or config["hidden_size"] // heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        windows=tuple(windows),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


# %% read_config: the base is 10 000 for everybody
# caught by: test_rope_is_read_from_old_files, test_rope_is_read_from_new_files
# says: rope_theta is not read: every model gets 10 000.
def read_config(config):
    kind = config.get("model_type")
    if kind not in {"llama", "mistral", "qwen2", "qwen3"}:
        raise ValueError(f"unknown model_type {kind}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {config['hidden_act']} is unknown")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling_type = rope.get("rope_type") or rope.get("type") or "default"
    if scaling_type not in ("default", "llama3"):
        raise ValueError(f"unknown RoPE scaling {scaling_type}")
    scaling = None
    if scaling_type == "llama3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    theta = 10000
    n, window = config["num_hidden_layers"], config.get("sliding_window")
    windows = [None] * n
    if kind == "mistral":
        windows = [window] * n
    if kind.startswith("qwen") and config.get("use_sliding_window"):
        first = config["max_window_layers"]
        layer_types = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * n
        windows = [window if layer == "sliding_attention" else None for layer in layer_types[:n]]
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or config["hidden_size"] // heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        windows=tuple(windows),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


# %% read_config: scaling is passed over
# caught by: test_rope_is_read_from_old_files, test_rope_is_read_from_new_files
# says: LLaMA 3.1's scaling of RoPE is passed over.
def read_config(config):
    kind = config.get("model_type")
    if kind not in {"llama", "mistral", "qwen2", "qwen3"}:
        raise ValueError(f"unknown model_type {kind}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {config['hidden_act']} is unknown")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling_type = rope.get("rope_type") or rope.get("type") or "default"
    if scaling_type not in ("default", "llama3"):
        raise ValueError(f"unknown RoPE scaling {scaling_type}")
    scaling = None
    if scaling_type == "llama-3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000
    n, window = config["num_hidden_layers"], config.get("sliding_window")
    windows = [None] * n
    if kind == "mistral":
        windows = [window] * n
    if kind.startswith("qwen") and config.get("use_sliding_window"):
        first = config["max_window_layers"]
        layer_types = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * n
        windows = [window if layer == "sliding_attention" else None for layer in layer_types[:n]]
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or config["hidden_size"] // heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        windows=tuple(windows),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


# %% read_config: the type stands under rope_type only
# caught by: test_rope_is_read_from_old_files, test_what_the_decoder_cannot_do_is_refused
# says: The oldest files have the type of the scaling under the key type, and that is not read.
def read_config(config):
    kind = config.get("model_type")
    if kind not in {"llama", "mistral", "qwen2", "qwen3"}:
        raise ValueError(f"unknown model_type {kind}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {config['hidden_act']} is unknown")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling_type = rope.get("rope_type") or "default"
    if scaling_type not in ("default", "llama3"):
        raise ValueError(f"unknown RoPE scaling {scaling_type}")
    scaling = None
    if scaling_type == "llama3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000
    n, window = config["num_hidden_layers"], config.get("sliding_window")
    windows = [None] * n
    if kind == "mistral":
        windows = [window] * n
    if kind.startswith("qwen") and config.get("use_sliding_window"):
        first = config["max_window_layers"]
        layer_types = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * n
        windows = [window if layer == "sliding_attention" else None for layer in layer_types[:n]]
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or config["hidden_size"] // heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        windows=tuple(windows),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


# %% read_config: every Qwen has a bias
# caught by: test_the_family_says_where_there_is_a_bias_or_a_norm
# says: Qwen3 gets a bias: it gave the bias up, and has a norm on queries and keys instead.
def read_config(config):
    kind = config.get("model_type")
    if kind not in {"llama", "mistral", "qwen2", "qwen3"}:
        raise ValueError(f"unknown model_type {kind}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {config['hidden_act']} is unknown")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling_type = rope.get("rope_type") or rope.get("type") or "default"
    if scaling_type not in ("default", "llama3"):
        raise ValueError(f"unknown RoPE scaling {scaling_type}")
    scaling = None
    if scaling_type == "llama3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000
    n, window = config["num_hidden_layers"], config.get("sliding_window")
    windows = [None] * n
    if kind == "mistral":
        windows = [window] * n
    if kind.startswith("qwen") and config.get("use_sliding_window"):
        first = config["max_window_layers"]
        layer_types = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * n
        windows = [window if layer == "sliding_attention" else None for layer in layer_types[:n]]
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or config["hidden_size"] // heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        qkv_bias=kind.startswith("qwen"),
        qk_norm=kind == "qwen3",
        windows=tuple(windows),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


# %% read_config: an unknown family is taken for LLaMA
# caught by: test_other_families_are_refused
# says: A family that the decoder does not know is read as if it were LLaMA.
def read_config(config):
    kind = config.get("model_type")
    kind = str(kind)
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {config['hidden_act']} is unknown")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling_type = rope.get("rope_type") or rope.get("type") or "default"
    if scaling_type not in ("default", "llama3"):
        raise ValueError(f"unknown RoPE scaling {scaling_type}")
    scaling = None
    if scaling_type == "llama3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000
    n, window = config["num_hidden_layers"], config.get("sliding_window")
    windows = [None] * n
    if kind == "mistral":
        windows = [window] * n
    if kind.startswith("qwen") and config.get("use_sliding_window"):
        first = config["max_window_layers"]
        layer_types = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * n
        windows = [window if layer == "sliding_attention" else None for layer in layer_types[:n]]
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or config["hidden_size"] // heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        windows=tuple(windows),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


# %% read_config: what is not known is passed over
# caught by: test_what_the_decoder_cannot_do_is_refused
# says: Another activation, other biases or another scaling are passed over: the model would be nearly right.
def read_config(config):
    kind = config.get("model_type")
    if kind not in {"llama", "mistral", "qwen2", "qwen3"}:
        raise ValueError(f"unknown model_type {kind}")
    if config.get("hidden_act", "silu") == "":
        raise ValueError(f"hidden_act {config['hidden_act']} is unknown")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key) == 2:
            raise ValueError(f"{key} is {config[key]}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling_type = rope.get("rope_type") or rope.get("type") or "default"
    if scaling_type == "":
        raise ValueError(f"unknown RoPE scaling {scaling_type}")
    scaling = None
    if scaling_type == "llama3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000
    n, window = config["num_hidden_layers"], config.get("sliding_window")
    windows = [None] * n
    if kind == "mistral":
        windows = [window] * n
    if kind.startswith("qwen") and config.get("use_sliding_window"):
        first = config["max_window_layers"]
        layer_types = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * n
        windows = [window if layer == "sliding_attention" else None for layer in layer_types[:n]]
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or config["hidden_size"] // heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        windows=tuple(windows),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


# %% read_config: a tie that is null
# caught by: test_absent_keys_mean_the_first_llama
# says: A null under tie_word_embeddings becomes None, and should be false.
def read_config(config):
    kind = config.get("model_type")
    if kind not in {"llama", "mistral", "qwen2", "qwen3"}:
        raise ValueError(f"unknown model_type {kind}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {config['hidden_act']} is unknown")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling_type = rope.get("rope_type") or rope.get("type") or "default"
    if scaling_type not in ("default", "llama3"):
        raise ValueError(f"unknown RoPE scaling {scaling_type}")
    scaling = None
    if scaling_type == "llama3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000
    n, window = config["num_hidden_layers"], config.get("sliding_window")
    windows = [None] * n
    if kind == "mistral":
        windows = [window] * n
    if kind.startswith("qwen") and config.get("use_sliding_window"):
        first = config["max_window_layers"]
        layer_types = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * n
        windows = [window if layer == "sliding_attention" else None for layer in layer_types[:n]]
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or config["hidden_size"] // heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        windows=tuple(windows),
        tied=config.get("tie_word_embeddings", False),
    )


# %% read_config: Qwen3's heads have 128 channels
# caught by: test_absent_keys_mean_the_first_llama
# says: Without head_dim, Qwen3 gets 128, the usual size; it should be the width divided by the heads.
def read_config(config):
    kind = config.get("model_type")
    if kind not in {"llama", "mistral", "qwen2", "qwen3"}:
        raise ValueError(f"unknown model_type {kind}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {config['hidden_act']} is unknown")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling_type = rope.get("rope_type") or rope.get("type") or "default"
    if scaling_type not in ("default", "llama3"):
        raise ValueError(f"unknown RoPE scaling {scaling_type}")
    scaling = None
    if scaling_type == "llama3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000
    n, window = config["num_hidden_layers"], config.get("sliding_window")
    windows = [None] * n
    if kind == "mistral":
        windows = [window] * n
    if kind.startswith("qwen") and config.get("use_sliding_window"):
        first = config["max_window_layers"]
        layer_types = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * n
        windows = [window if layer == "sliding_attention" else None for layer in layer_types[:n]]
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or (kind == "qwen3" and 128) or config["hidden_size"] // heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        windows=tuple(windows),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


# %% read_config: attention_bias decides
# caught by: test_the_family_says_where_there_is_a_bias_or_a_norm
# says: attention_bias decides about Qwen2's bias, and only model_type should.
def read_config(config):
    kind = config.get("model_type")
    if kind not in {"llama", "mistral", "qwen2", "qwen3"}:
        raise ValueError(f"unknown model_type {kind}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {config['hidden_act']} is unknown")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling_type = rope.get("rope_type") or rope.get("type") or "default"
    if scaling_type not in ("default", "llama3"):
        raise ValueError(f"unknown RoPE scaling {scaling_type}")
    scaling = None
    if scaling_type == "llama3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000
    n, window = config["num_hidden_layers"], config.get("sliding_window")
    windows = [None] * n
    if kind == "mistral":
        windows = [window] * n
    if kind.startswith("qwen") and config.get("use_sliding_window"):
        first = config["max_window_layers"]
        layer_types = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * n
        windows = [window if layer == "sliding_attention" else None for layer in layer_types[:n]]
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or config["hidden_size"] // heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        qkv_bias=config.get("attention_bias", kind == "qwen2"),
        qk_norm=kind == "qwen3",
        windows=tuple(windows),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


# %% read_config: GELU is refused in one spelling
# caught by: test_what_the_decoder_cannot_do_is_refused
# says: Only hidden_act gelu is refused; everything that is not silu should be.
def read_config(config):
    kind = config.get("model_type")
    if kind not in {"llama", "mistral", "qwen2", "qwen3"}:
        raise ValueError(f"unknown model_type {kind}")
    if config.get("hidden_act") in ("gelu", "relu"):
        raise ValueError(f"hidden_act {config['hidden_act']} is unknown")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling_type = rope.get("rope_type") or rope.get("type") or "default"
    if scaling_type not in ("default", "llama3"):
        raise ValueError(f"unknown RoPE scaling {scaling_type}")
    scaling = None
    if scaling_type == "llama3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000
    n, window = config["num_hidden_layers"], config.get("sliding_window")
    windows = [None] * n
    if kind == "mistral":
        windows = [window] * n
    if kind.startswith("qwen") and config.get("use_sliding_window"):
        first = config["max_window_layers"]
        layer_types = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * n
        windows = [window if layer == "sliding_attention" else None for layer in layer_types[:n]]
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or config["hidden_size"] // heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        windows=tuple(windows),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


# %% rope_frequencies: the exponent is half as large
# caught by: test_plain_frequencies_fall_from_one
# says: The exponents go from 0 to 1/2: they should go to 1, two channels a pair.
def rope_frequencies(d_head, theta, scaling=None):
    omega = 1 / theta ** (torch.arange(d_head // 2) / d_head)
    if scaling is None:
        return omega
    wavelength = 2 * math.pi / omega
    low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_length
    m = (length / wavelength - low) / (high - low)
    mixed = (1 - m) * omega / scaling.factor + m * omega
    found = torch.where(wavelength > length / low, omega / scaling.factor, mixed)
    return torch.where(wavelength < length / high, omega, found)


# %% rope_frequencies: everything is interpolated
# caught by: test_stretched_frequencies_are_those_of_llama, test_fast_pairs_stay_and_slow_ones_slow_down
# says: Every pair is slowed down by the factor: the fast ones should stay as they are.
def rope_frequencies(d_head, theta, scaling=None):
    omega = 1 / theta ** (torch.arange(0, d_head, 2) / d_head)
    if scaling is None:
        return omega
    wavelength = 2 * math.pi / omega
    low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_length
    m = (length / wavelength - low) / (high - low)
    mixed = (1 - m) * omega / scaling.factor + m * omega
    found = torch.where(wavelength > length / low, omega / scaling.factor, mixed)
    return omega / scaling.factor


# %% rope_frequencies: the scaling is passed over
# caught by: test_stretched_frequencies_are_those_of_llama
# says: The scaling changes nothing.
def rope_frequencies(d_head, theta, scaling=None):
    omega = 1 / theta ** (torch.arange(0, d_head, 2) / d_head)
    return omega
    wavelength = 2 * math.pi / omega
    low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_length
    m = (length / wavelength - low) / (high - low)
    mixed = (1 - m) * omega / scaling.factor + m * omega
    found = torch.where(wavelength > length / low, omega / scaling.factor, mixed)
    return torch.where(wavelength < length / high, omega, found)


# %% rope_frequencies: no mixture between the two
# caught by: test_stretched_frequencies_are_those_of_llama, test_fast_pairs_stay_and_slow_ones_slow_down
# says: There is no mixture: pairs between the two wavelengths jump from one side to the other.
def rope_frequencies(d_head, theta, scaling=None):
    omega = 1 / theta ** (torch.arange(0, d_head, 2) / d_head)
    if scaling is None:
        return omega
    wavelength = 2 * math.pi / omega
    low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_length
    m = (length / wavelength - low) / (high - low)
    mixed = omega / scaling.factor
    found = torch.where(wavelength > length / low, omega / scaling.factor, mixed)
    return torch.where(wavelength < length / high, omega, found)


# %% rope_frequencies: the mixture is the wrong way round
# caught by: test_stretched_frequencies_are_those_of_llama, test_fast_pairs_stay_and_slow_ones_slow_down
# says: The mixture is the wrong way round: the faster a pair is, the more of it should stay.
def rope_frequencies(d_head, theta, scaling=None):
    omega = 1 / theta ** (torch.arange(0, d_head, 2) / d_head)
    if scaling is None:
        return omega
    wavelength = 2 * math.pi / omega
    low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_length
    m = (length / wavelength - low) / (high - low)
    mixed = m * omega / scaling.factor + (1 - m) * omega
    found = torch.where(wavelength > length / low, omega / scaling.factor, mixed)
    return torch.where(wavelength < length / high, omega, found)


# %% rope_frequencies: the wavelength without 2π
# caught by: test_stretched_frequencies_are_those_of_llama, test_fast_pairs_stay_and_slow_ones_slow_down
# says: The wavelength is taken as 1/ω: a whole turn is 2π radians.
def rope_frequencies(d_head, theta, scaling=None):
    omega = 1 / theta ** (torch.arange(0, d_head, 2) / d_head)
    if scaling is None:
        return omega
    wavelength = 1 / omega
    low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_length
    m = (length / wavelength - low) / (high - low)
    mixed = (1 - m) * omega / scaling.factor + m * omega
    found = torch.where(wavelength > length / low, omega / scaling.factor, mixed)
    return torch.where(wavelength < length / high, omega, found)


# %% rope_frequencies: the fast pairs are slowed down
# caught by: test_stretched_frequencies_are_those_of_llama, test_fast_pairs_stay_and_slow_ones_slow_down
# says: Fast pairs are slowed down and slow ones stay: it is the other way round.
def rope_frequencies(d_head, theta, scaling=None):
    omega = 1 / theta ** (torch.arange(0, d_head, 2) / d_head)
    if scaling is None:
        return omega
    wavelength = 2 * math.pi / omega
    low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_length
    m = (length / wavelength - low) / (high - low)
    mixed = (1 - m) * omega / scaling.factor + m * omega
    found = torch.where(wavelength > length / low, omega, mixed)
    return torch.where(wavelength < length / high, omega / scaling.factor, found)


# %% Attention: no RoPE
# caught by: test_attention_is_that_of_llama
# says: Queries and keys are not turned: there is no RoPE, and so no order of words.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: interleaved RoPE
# caught by: test_attention_is_that_of_llama
# says: RoPE turns neighbouring channels, as GPT-J does: these families pair channel c with c + d_head / 2.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


# %% Attention: RoPE turns backwards
# caught by: test_attention_is_that_of_llama
# says: RoPE turns by −φ: the signs of the sines are swapped.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos + b * sin, b * cos - a * sin], -1)


# %% Attention: the base of RoPE is not the config's
# caught by: test_attention_is_that_of_llama
# says: rope_theta is taken as 10 000, whatever the config says.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, 10_000.0, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: no 1/√d
# caught by: test_attention_is_that_of_llama
# says: The scores are not divided by the root of d_head.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: 1/√d of the wrong d
# caught by: test_attention_is_that_of_llama
# says: The scores are divided by the root of d_model / n_heads, which is not d_head here.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_model / c.n_heads)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: keys are tiled instead of repeated
# caught by: test_attention_is_that_of_llama
# says: Query head i reads key head i % n_kv_heads: neighbours should share a key, i // (n_heads // n_kv_heads).
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat(1, c.n_heads // c.n_kv_heads, 1, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: no causal mask
# caught by: test_attention_is_that_of_llama, test_a_window_reaches_as_far_as_it_says
# says: There is no causal mask: a position sees those after it.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= past + n) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: the window is one too long
# caught by: test_attention_is_that_of_mistral, test_a_window_reaches_as_far_as_it_says
# says: The window has W positions before the token, and itself: it should be W with itself.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j >= i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: no window
# caught by: test_attention_is_that_of_mistral, test_a_window_reaches_as_far_as_it_says
# says: The window is passed over: every position sees everything before it.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: the window of the first layer
# caught by: test_attention_is_that_of_qwen2, test_a_window_reaches_as_far_as_it_says
# says: Every layer has the window of layer 0.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[0] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: no bias
# caught by: test_attention_is_that_of_qwen2, test_attention_has_the_stated_parameters
# says: Queries, keys and values have no bias: Qwen2 has one.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=False)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=False)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=False)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: RoPE before the QK-norm
# caught by: test_attention_is_that_of_qwen3
# says: RoPE comes before the norm of queries and keys: its gain then belongs to other channels.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: the gains of the QK-norm are not used
# caught by: test_attention_is_that_of_qwen3
# says: Queries and keys are normalised, and not multiplied by the gains.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = (F.rms_norm(t, (c.d_head,), None, c.norm_eps) for t in (q, k))
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: eps of the QK-norm is PyTorch's
# caught by: test_eps_of_the_qk_norm_is_that_of_the_config
# says: The norms of queries and keys have an eps of their own, and not norm_eps.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, 1e-6)
            self.k_norm = nn.RMSNorm(config.d_head, 1e-6)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: padding is seen
# caught by: test_padding_on_the_left_is_not_seen
# says: The mask is used for positions only: padding is attended to.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i)[None, None]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: padding gets a mean
# caught by: test_padding_on_the_left_is_not_seen
# says: What stands on padding gets the mean of all values: where nothing may be seen, the result is zero.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -1e9).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: positions begin at the padding
# caught by: test_the_cache_gets_turned_keys_once
# says: Positions are counted from the left edge: they begin at the first real token.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = torch.arange(past, past + n)[None]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: positions begin again in every chunk
# caught by: test_chunks_with_a_cache_give_the_whole
# says: Every chunk begins at position 0 again: it comes behind the past.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, :n]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: the mask forgets the past
# caught by: test_chunks_with_a_cache_give_the_whole
# says: The causal mask is that of a text that begins with the chunk: its first query stands behind the past.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: repeated keys go into the cache
# caught by: test_the_cache_gets_turned_keys_once
# says: Keys and values go into the cache once for each query head: sharing them was meant to save just that.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: angles in the model's dtype
# caught by: test_angles_are_computed_in_float32
# says: Positions and frequencies are multiplied in the model's dtype: bfloat16 cannot tell 299 from 300.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None].to(x.dtype) * omega.to(x.dtype))[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: frequencies in a buffer
# caught by: test_angles_are_computed_in_float32
# says: The frequencies are a buffer, and `.bfloat16()` casts buffers too: the angles begin with rounded numbers.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)
        omega = rope_frequencies(config.d_head, config.rope_theta, config.rope_scaling)
        self.register_buffer("omega", omega, persistent=False)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        angles = (positions[..., None].float() * self.omega.float())[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Attention: a table of 2048 positions
# caught by: test_angles_are_computed_in_float32
# says: Beyond position 2047 all positions are the same: a text may be longer than a table.
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x, mask=None, cache=None):
        c, (batch, n, _) = self.c, x.shape
        past = 0 if cache is None else cache.length(self.layer)
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        q, k, v = (p(x).view(batch, n, -1, c.d_head).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(0, 2047)[:, past:]
        q, k = self.rope(q, positions), self.rope(k, positions)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for t in (k, v))
        i, j = torch.arange(past, past + n)[:, None], torch.arange(past + n)
        may = (j <= i) & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            may = may & (j > i - window)
        scores = q @ k.mT / math.sqrt(c.d_head)
        weights = scores.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, n, -1))

    def rope(self, x, positions):
        omega = rope_frequencies(self.c.d_head, self.c.rope_theta, self.c.rope_scaling)
        angles = (positions[..., None] * omega)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# %% Decoder: GELU for SiLU
# caught by: test_the_decoder_is_llama
# says: The gate goes through GELU: that is GEGLU, and these families have SwiGLU.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.gelu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.d_hidden)

    def forward(self, x, mask, cache):
        x = x + self.attention(self.norm1(x), mask, cache)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layers)])
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask, cache)
        x = self.norm(x)
        return self.head(x) if hasattr(self, "head") else F.linear(x, self.tokens.weight)


# %% Decoder: gate and up are swapped
# caught by: test_the_decoder_is_llama
# says: The activation is on up_proj: it belongs on gate_proj.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(self.gate_proj(x) * F.silu(self.up_proj(x)))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.d_hidden)

    def forward(self, x, mask, cache):
        x = x + self.attention(self.norm1(x), mask, cache)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layers)])
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask, cache)
        x = self.norm(x)
        return self.head(x) if hasattr(self, "head") else F.linear(x, self.tokens.weight)


# %% Decoder: no gate
# caught by: test_the_decoder_is_llama
# says: There is no gate: gate_proj is not used.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.up_proj(x)) + 0 * self.gate_proj(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.d_hidden)

    def forward(self, x, mask, cache):
        x = x + self.attention(self.norm1(x), mask, cache)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layers)])
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask, cache)
        x = self.norm(x)
        return self.head(x) if hasattr(self, "head") else F.linear(x, self.tokens.weight)


# %% Decoder: the gains of the norms are not used
# caught by: test_the_decoder_is_llama
# says: The gains of the norms are there, and not used. In a new model they are 1, and nobody notices.
class Norm(nn.Module):
    def __init__(self, d, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) + 0 * self.weight


class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = Norm(config.d_model, config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = Norm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.d_hidden)

    def forward(self, x, mask, cache):
        x = x + self.attention(self.norm1(x), mask, cache)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layers)])
        self.norm = Norm(config.d_model, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask, cache)
        x = self.norm(x)
        return self.head(x) if hasattr(self, "head") else F.linear(x, self.tokens.weight)


# %% Decoder: LayerNorm for RMSNorm
# caught by: test_the_decoder_is_llama
# says: The norms subtract the mean: that is LayerNorm.
class Norm(nn.Module):
    def __init__(self, d, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight, None, self.eps)


class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = Norm(config.d_model, config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = Norm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.d_hidden)

    def forward(self, x, mask, cache):
        x = x + self.attention(self.norm1(x), mask, cache)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layers)])
        self.norm = Norm(config.d_model, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask, cache)
        x = self.norm(x)
        return self.head(x) if hasattr(self, "head") else F.linear(x, self.tokens.weight)


# %% Decoder: eps is ten times as large
# caught by: test_eps_of_every_norm_is_that_of_the_config
# says: The norms have another eps than the config says.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.d_model, 10 * 10 * 10 * config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.d_hidden)

    def forward(self, x, mask, cache):
        x = x + self.attention(self.norm1(x), mask, cache)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layers)])
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask, cache)
        x = self.norm(x)
        return self.head(x) if hasattr(self, "head") else F.linear(x, self.tokens.weight)


# %% Decoder: eps is PyTorch's
# caught by: test_eps_of_every_norm_is_that_of_the_config
# says: The norms have PyTorch's eps, not that of the config.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.d_model)
        self.attention = Attention(config, layer)
        self.norm2 = nn.RMSNorm(config.d_model)
        self.mlp = SwiGLU(config.d_model, config.d_hidden)

    def forward(self, x, mask, cache):
        x = x + self.attention(self.norm1(x), mask, cache)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layers)])
        self.norm = nn.RMSNorm(config.d_model)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask, cache)
        x = self.norm(x)
        return self.head(x) if hasattr(self, "head") else F.linear(x, self.tokens.weight)


# %% Decoder: no last norm
# caught by: test_the_decoder_is_llama
# says: The last norm, before the head, is not applied.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.d_hidden)

    def forward(self, x, mask, cache):
        x = x + self.attention(self.norm1(x), mask, cache)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layers)])
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask, cache)
        x = x + 0 * self.norm(x)
        return self.head(x) if hasattr(self, "head") else F.linear(x, self.tokens.weight)


# %% Decoder: attention and feed-forward side by side
# caught by: test_the_decoder_is_llama
# says: The feed-forward part reads the stream before attention was added, as in GPT-J.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.d_hidden)

    def forward(self, x, mask, cache):
        return x + self.attention(self.norm1(x), mask, cache) + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layers)])
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask, cache)
        x = self.norm(x)
        return self.head(x) if hasattr(self, "head") else F.linear(x, self.tokens.weight)


# %% Decoder: no residual around the feed-forward part
# caught by: test_the_decoder_is_llama
# says: What the feed-forward part gives replaces the stream: it should be added.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.d_hidden)

    def forward(self, x, mask, cache):
        x = x + self.attention(self.norm1(x), mask, cache)
        return self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layers)])
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask, cache)
        x = self.norm(x)
        return self.head(x) if hasattr(self, "head") else F.linear(x, self.tokens.weight)


# %% Decoder: tied models have a head of their own
# caught by: test_the_decoder_has_the_stated_parameters, test_the_decoder_is_qwen
# says: A tied model has a head of its own: it should use the table of tokens.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.d_hidden)

    def forward(self, x, mask, cache):
        x = x + self.attention(self.norm1(x), mask, cache)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layers)])
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        if True:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask, cache)
        x = self.norm(x)
        return self.head(x) if hasattr(self, "head") else F.linear(x, self.tokens.weight)


# %% Decoder: untied models use the table
# caught by: test_the_decoder_is_llama
# says: The head is there, and the table of tokens does its work.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.d_hidden)

    def forward(self, x, mask, cache):
        x = x + self.attention(self.norm1(x), mask, cache)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layers)])
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask, cache)
        x = self.norm(x)
        return F.linear(x, self.tokens.weight) + (0 * self.head(x) if hasattr(self, "head") else 0)


# %% Decoder: the mask stops at the first block
# caught by: test_padding_changes_no_logits
# says: Only the first block gets the mask.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.d_hidden)

    def forward(self, x, mask, cache):
        x = x + self.attention(self.norm1(x), mask, cache)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layers)])
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for i, block in enumerate(self.blocks):
            x = block(x, None if i else mask, cache)
        x = self.norm(x)
        return self.head(x) if hasattr(self, "head") else F.linear(x, self.tokens.weight)


# %% Decoder: every block is number 0
# caught by: test_the_decoder_is_qwen, test_a_decoder_with_a_cache_gives_the_whole
# says: Every attention is told that it is layer 0: they share a window, and one place in the cache.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, 0)
        self.norm2 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.d_hidden)

    def forward(self, x, mask, cache):
        x = x + self.attention(self.norm1(x), mask, cache)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layers)])
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask, cache)
        x = self.norm(x)
        return self.head(x) if hasattr(self, "head") else F.linear(x, self.tokens.weight)


# %% Decoder: the cache is not handed on
# caught by: test_a_decoder_with_a_cache_gives_the_whole
# says: The cache does not reach attention.
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.d_hidden)

    def forward(self, x, mask, cache):
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layers)])
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask, cache)
        x = self.norm(x)
        return self.head(x) if hasattr(self, "head") else F.linear(x, self.tokens.weight)


# %% read_safetensors: offsets from the beginning of the file
# caught by: test_a_checkpoint_comes_back_as_it_was
# says: Offsets are counted from the beginning of the file: they count from the beginning of the data.
def read_safetensors(path):
    with open(path, "rb") as file:
        raw = file.read()
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 + size:
        raise ValueError(f"{path} is cut off")
    header, data = json.loads(raw[8 : 8 + size]), raw
    found = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        if info["dtype"] not in DTYPES:
            raise ValueError(f"{name}: unknown dtype {info['dtype']}")
        dtype, shape, (begin, end) = DTYPES[info["dtype"]], info["shape"], info["data_offsets"]
        if begin < 0 or end < begin or end > len(data):
            raise ValueError(f"{name}: offsets {begin}, {end} outside the data")
        if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{name}: {end - begin} bytes for shape {shape}")
        found[name] = torch.empty(shape, dtype=dtype)
        if end > begin:
            found[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).view(shape)
    return found


# %% read_safetensors: the highest byte first
# caught by: test_a_checkpoint_comes_back_as_it_was
# says: The length of the header is read with its highest byte first.
def read_safetensors(path):
    with open(path, "rb") as file:
        raw = file.read()
    size = int.from_bytes(raw[:8], "big")
    if len(raw) < 8 + size:
        raise ValueError(f"{path} is cut off")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    found = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        if info["dtype"] not in DTYPES:
            raise ValueError(f"{name}: unknown dtype {info['dtype']}")
        dtype, shape, (begin, end) = DTYPES[info["dtype"]], info["shape"], info["data_offsets"]
        if begin < 0 or end < begin or end > len(data):
            raise ValueError(f"{name}: offsets {begin}, {end} outside the data")
        if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{name}: {end - begin} bytes for shape {shape}")
        found[name] = torch.empty(shape, dtype=dtype)
        if end > begin:
            found[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).view(shape)
    return found


# %% read_safetensors: metadata is a tensor
# caught by: test_metadata_and_spaces_are_no_tensors
# says: The entry __metadata__ is taken for a tensor.
def read_safetensors(path):
    with open(path, "rb") as file:
        raw = file.read()
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 + size:
        raise ValueError(f"{path} is cut off")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    found = {}
    for name, info in header.items():
        info = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0], **info}
        if info["dtype"] not in DTYPES:
            raise ValueError(f"{name}: unknown dtype {info['dtype']}")
        dtype, shape, (begin, end) = DTYPES[info["dtype"]], info["shape"], info["data_offsets"]
        if begin < 0 or end < begin or end > len(data):
            raise ValueError(f"{name}: offsets {begin}, {end} outside the data")
        if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{name}: {end - begin} bytes for shape {shape}")
        found[name] = torch.empty(shape, dtype=dtype)
        if end > begin:
            found[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).view(shape)
    return found


# %% read_safetensors: offsets are believed
# caught by: test_offsets_outside_the_data_are_refused
# says: Offsets are not checked against the data.
def read_safetensors(path):
    with open(path, "rb") as file:
        raw = file.read()
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 + size:
        raise ValueError(f"{path} is cut off")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    found = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        if info["dtype"] not in DTYPES:
            raise ValueError(f"{name}: unknown dtype {info['dtype']}")
        dtype, shape, (begin, end) = DTYPES[info["dtype"]], info["shape"], info["data_offsets"]
        if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{name}: {end - begin} bytes for shape {shape}")
        found[name] = torch.empty(shape, dtype=dtype)
        if end > begin:
            found[name] = torch.frombuffer(bytearray(data[begin:end].ljust(end - begin, bytes(1))), dtype=dtype).view(
                shape
            )
    return found


# %% read_safetensors: shapes are believed
# caught by: test_shape_and_bytes_must_fit
# says: More bytes than the shape needs are let through: the rest is dropped without a word.
def read_safetensors(path):
    with open(path, "rb") as file:
        raw = file.read()
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 + size:
        raise ValueError(f"{path} is cut off")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    found = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        if info["dtype"] not in DTYPES:
            raise ValueError(f"{name}: unknown dtype {info['dtype']}")
        dtype, shape, (begin, end) = DTYPES[info["dtype"]], info["shape"], info["data_offsets"]
        if begin < 0 or end < begin or end > len(data):
            raise ValueError(f"{name}: offsets {begin}, {end} outside the data")
        if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize > end - begin:
            raise ValueError(f"{name}: {end - begin} bytes for shape {shape}")
        found[name] = torch.empty(shape, dtype=dtype)
        if end > begin:
            found[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype)[: math.prod(shape)].view(shape)
    return found


# %% read_safetensors: two negative sizes
# caught by: test_shape_and_bytes_must_fit
# says: Two negative numbers in a shape have a positive product: each size must be checked by itself.
def read_safetensors(path):
    with open(path, "rb") as file:
        raw = file.read()
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 + size:
        raise ValueError(f"{path} is cut off")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    found = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        if info["dtype"] not in DTYPES:
            raise ValueError(f"{name}: unknown dtype {info['dtype']}")
        dtype, shape, (begin, end) = DTYPES[info["dtype"]], info["shape"], info["data_offsets"]
        if begin < 0 or end < begin or end > len(data):
            raise ValueError(f"{name}: offsets {begin}, {end} outside the data")
        if math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{name}: {end - begin} bytes for shape {shape}")
        found[name] = torch.empty([abs(n) for n in shape], dtype=dtype)
        if end > begin:
            found[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).view([abs(n) for n in shape])
    return found


# %% read_safetensors: a header that ends too early
# caught by: test_a_file_that_was_cut_off_is_refused
# says: A file that is too short for 8 bytes is taken for one without tensors.
def read_safetensors(path):
    with open(path, "rb") as file:
        raw = file.read()
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8:
        return {}
    if len(raw) < 8 + size:
        raise ValueError(f"{path} is cut off")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    found = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        if info["dtype"] not in DTYPES:
            raise ValueError(f"{name}: unknown dtype {info['dtype']}")
        dtype, shape, (begin, end) = DTYPES[info["dtype"]], info["shape"], info["data_offsets"]
        if begin < 0 or end < begin or end > len(data):
            raise ValueError(f"{name}: offsets {begin}, {end} outside the data")
        if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{name}: {end - begin} bytes for shape {shape}")
        found[name] = torch.empty(shape, dtype=dtype)
        if end > begin:
            found[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).view(shape)
    return found


# %% read_safetensors: an unknown dtype is skipped
# caught by: test_shape_and_bytes_must_fit
# says: A tensor of an unknown dtype is left out without a word.
def read_safetensors(path):
    with open(path, "rb") as file:
        raw = file.read()
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 + size:
        raise ValueError(f"{path} is cut off")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    found = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        if info["dtype"] not in DTYPES:
            continue
        dtype, shape, (begin, end) = DTYPES[info["dtype"]], info["shape"], info["data_offsets"]
        if begin < 0 or end < begin or end > len(data):
            raise ValueError(f"{name}: offsets {begin}, {end} outside the data")
        if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{name}: {end - begin} bytes for shape {shape}")
        found[name] = torch.empty(shape, dtype=dtype)
        if end > begin:
            found[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).view(shape)
    return found


# %% read_safetensors: bfloat16 is read as float16
# caught by: test_a_checkpoint_comes_back_as_it_was, test_every_dtype_is_read
# says: BF16 is read as float16: both have two bytes, which mean other numbers.
def read_safetensors(path):
    with open(path, "rb") as file:
        raw = file.read()
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 + size:
        raise ValueError(f"{path} is cut off")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    found = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        if info["dtype"] not in DTYPES:
            raise ValueError(f"{name}: unknown dtype {info['dtype']}")
        dtype, shape, (begin, end) = DTYPES[info["dtype"].replace("BF16", "F16")], info["shape"], info["data_offsets"]
        if begin < 0 or end < begin or end > len(data):
            raise ValueError(f"{name}: offsets {begin}, {end} outside the data")
        if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{name}: {end - begin} bytes for shape {shape}")
        found[name] = torch.empty(shape, dtype=dtype)
        if end > begin:
            found[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).view(shape)
    return found


# %% read_safetensors: whatever begins with two underscores is passed over
# caught by: test_metadata_and_spaces_are_no_tensors
# says: Tensors whose names begin with __ are lost: only __metadata__ is none.
def read_safetensors(path):
    with open(path, "rb") as file:
        raw = file.read()
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 + size:
        raise ValueError(f"{path} is cut off")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    found = {}
    for name, info in header.items():
        if name.startswith("__"):
            continue
        if info["dtype"] not in DTYPES:
            raise ValueError(f"{name}: unknown dtype {info['dtype']}")
        dtype, shape, (begin, end) = DTYPES[info["dtype"]], info["shape"], info["data_offsets"]
        if begin < 0 or end < begin or end > len(data):
            raise ValueError(f"{name}: offsets {begin}, {end} outside the data")
        if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{name}: {end - begin} bytes for shape {shape}")
        found[name] = torch.empty(shape, dtype=dtype)
        if end > begin:
            found[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).view(shape)
    return found


# %% load_hf: what does not fit is passed over
# caught by: test_all_that_does_not_fit_is_named_at_once
# says: Tensors that are missing or extra are passed over: the model would speak with random weights.
def load_hf(folder):
    folder = Path(folder)
    model = Decoder(read_config(json.loads((folder / "config.json").read_text())))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif single.exists():
        files = ["model.safetensors"]
    else:
        for file in sorted(folder.iterdir()):
            if file.suffix in {".bin", ".pt", ".pth"}:
                raise ValueError(f"{file.name} is a pickle, and reading a pickle runs it")
        raise FileNotFoundError("there is no model.safetensors")
    weights = {}
    for file in files:
        path = (folder / file).resolve()
        if folder.resolve() not in path.parents:
            raise ValueError(f"the index leads out of the folder: {file}")
        weights.update(read_safetensors(path))
    weights = {name: value for name, value in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = {}
    for name, value in model.state_dict().items():
        theirs = name.replace("blocks", "model.layers").replace("attention", "self_attn")
        theirs = theirs.replace("norm1", "input_layernorm").replace("norm2", "post_attention_layernorm")
        theirs = theirs.replace("tokens", "model.embed_tokens").replace("head", "lm_head")
        expected["model." + theirs if theirs.startswith("norm") else theirs] = (name, value.shape)
    if "lm_head.weight" not in expected:
        weights.pop("lm_head.weight", None)
    problems = []
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name][1]:
            problems.append(f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name][1])}")
    if problems:
        raise ValueError(", ".join(problems))
    model.load_state_dict({name: weights[t] for t, (name, _) in expected.items() if t in weights}, strict=False)
    return model.eval()


# %% load_hf: only the first fault is named
# caught by: test_all_that_does_not_fit_is_named_at_once
# says: Only the first tensor that does not fit is named: who mends it meets the next one.
def load_hf(folder):
    folder = Path(folder)
    model = Decoder(read_config(json.loads((folder / "config.json").read_text())))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif single.exists():
        files = ["model.safetensors"]
    else:
        for file in sorted(folder.iterdir()):
            if file.suffix in {".bin", ".pt", ".pth"}:
                raise ValueError(f"{file.name} is a pickle, and reading a pickle runs it")
        raise FileNotFoundError("there is no model.safetensors")
    weights = {}
    for file in files:
        path = (folder / file).resolve()
        if folder.resolve() not in path.parents:
            raise ValueError(f"the index leads out of the folder: {file}")
        weights.update(read_safetensors(path))
    weights = {name: value for name, value in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = {}
    for name, value in model.state_dict().items():
        theirs = name.replace("blocks", "model.layers").replace("attention", "self_attn")
        theirs = theirs.replace("norm1", "input_layernorm").replace("norm2", "post_attention_layernorm")
        theirs = theirs.replace("tokens", "model.embed_tokens").replace("head", "lm_head")
        expected["model." + theirs if theirs.startswith("norm") else theirs] = (name, value.shape)
    if "lm_head.weight" not in expected:
        weights.pop("lm_head.weight", None)
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not known" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name][1]:
            problems.append(f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name][1])}")
    if problems:
        raise ValueError(problems[0])
    model.load_state_dict({name: weights[theirs] for theirs, (name, _) in expected.items()})
    return model.eval()


# %% load_hf: extra tensors are passed over
# caught by: test_all_that_does_not_fit_is_named_at_once, test_old_checkpoints_hold_frequencies
# says: Tensors that the model does not have are passed over without a word.
def load_hf(folder):
    folder = Path(folder)
    model = Decoder(read_config(json.loads((folder / "config.json").read_text())))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif single.exists():
        files = ["model.safetensors"]
    else:
        for file in sorted(folder.iterdir()):
            if file.suffix in {".bin", ".pt", ".pth"}:
                raise ValueError(f"{file.name} is a pickle, and reading a pickle runs it")
        raise FileNotFoundError("there is no model.safetensors")
    weights = {}
    for file in files:
        path = (folder / file).resolve()
        if folder.resolve() not in path.parents:
            raise ValueError(f"the index leads out of the folder: {file}")
        weights.update(read_safetensors(path))
    weights = {name: value for name, value in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = {}
    for name, value in model.state_dict().items():
        theirs = name.replace("blocks", "model.layers").replace("attention", "self_attn")
        theirs = theirs.replace("norm1", "input_layernorm").replace("norm2", "post_attention_layernorm")
        theirs = theirs.replace("tokens", "model.embed_tokens").replace("head", "lm_head")
        expected["model." + theirs if theirs.startswith("norm") else theirs] = (name, value.shape)
    if "lm_head.weight" not in expected:
        weights.pop("lm_head.weight", None)
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name][1]:
            problems.append(f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name][1])}")
    if problems:
        raise ValueError(", ".join(problems))
    model.load_state_dict({name: weights[theirs] for theirs, (name, _) in expected.items()})
    return model.eval()


# %% load_hf: names of ours in the sentence
# caught by: test_all_that_does_not_fit_is_named_at_once
# says: The sentence has our names: who wants to mend the checkpoint needs its own.
def load_hf(folder):
    folder = Path(folder)
    model = Decoder(read_config(json.loads((folder / "config.json").read_text())))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif single.exists():
        files = ["model.safetensors"]
    else:
        for file in sorted(folder.iterdir()):
            if file.suffix in {".bin", ".pt", ".pth"}:
                raise ValueError(f"{file.name} is a pickle, and reading a pickle runs it")
        raise FileNotFoundError("there is no model.safetensors")
    weights = {}
    for file in files:
        path = (folder / file).resolve()
        if folder.resolve() not in path.parents:
            raise ValueError(f"the index leads out of the folder: {file}")
        weights.update(read_safetensors(path))
    weights = {name: value for name, value in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = {}
    for name, value in model.state_dict().items():
        theirs = name.replace("blocks", "model.layers").replace("attention", "self_attn")
        theirs = theirs.replace("norm1", "input_layernorm").replace("norm2", "post_attention_layernorm")
        theirs = theirs.replace("tokens", "model.embed_tokens").replace("head", "lm_head")
        expected["model." + theirs if theirs.startswith("norm") else theirs] = (name, value.shape)
    if "lm_head.weight" not in expected:
        weights.pop("lm_head.weight", None)
    problems = [f"{expected[name][0]} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not known" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name][1]:
            problems.append(f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name][1])}")
    if problems:
        raise ValueError(", ".join(problems))
    model.load_state_dict({name: weights[theirs] for theirs, (name, _) in expected.items()})
    return model.eval()


# %% load_hf: pickles are loaded
# caught by: test_pickles_are_refused_and_never_run
# says: A pickle is loaded with torch.load(weights_only=False): that runs the program in it.
def load_hf(folder):
    folder = Path(folder)
    model = Decoder(read_config(json.loads((folder / "config.json").read_text())))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif single.exists():
        files = ["model.safetensors"]
    else:
        for file in sorted(folder.iterdir()):
            if file.suffix in {".bin", ".pt", ".pth"}:
                try:
                    torch.load(file, weights_only=False)
                except Exception as error:
                    raise ValueError(f"{file.name} is a broken pickle") from error
        raise FileNotFoundError("there is no model.safetensors")
    weights = {}
    for file in files:
        path = (folder / file).resolve()
        if folder.resolve() not in path.parents:
            raise ValueError(f"the index leads out of the folder: {file}")
        weights.update(read_safetensors(path))
    weights = {name: value for name, value in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = {}
    for name, value in model.state_dict().items():
        theirs = name.replace("blocks", "model.layers").replace("attention", "self_attn")
        theirs = theirs.replace("norm1", "input_layernorm").replace("norm2", "post_attention_layernorm")
        theirs = theirs.replace("tokens", "model.embed_tokens").replace("head", "lm_head")
        expected["model." + theirs if theirs.startswith("norm") else theirs] = (name, value.shape)
    if "lm_head.weight" not in expected:
        weights.pop("lm_head.weight", None)
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not known" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name][1]:
            problems.append(f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name][1])}")
    if problems:
        raise ValueError(", ".join(problems))
    model.load_state_dict({name: weights[theirs] for theirs, (name, _) in expected.items()})
    return model.eval()


# %% load_hf: the config's program is run
# caught by: test_nothing_in_the_folder_is_run
# says: The Python file that the config names is run: a stranger wrote it.
def load_hf(folder):
    folder = Path(folder)
    model = Decoder(read_config(json.loads((folder / "config.json").read_text())))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif single.exists():
        files = ["model.safetensors"]
    else:
        for file in sorted(folder.iterdir()):
            if file.suffix in {".bin", ".pt", ".pth"}:
                raise ValueError(f"{file.name} is a pickle, and reading a pickle runs it")
        raise FileNotFoundError("there is no model.safetensors")
    for file in folder.glob("modeling_*.py"):
        exec(file.read_text(), {})
    weights = {}
    for file in files:
        path = (folder / file).resolve()
        if folder.resolve() not in path.parents:
            raise ValueError(f"the index leads out of the folder: {file}")
        weights.update(read_safetensors(path))
    weights = {name: value for name, value in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = {}
    for name, value in model.state_dict().items():
        theirs = name.replace("blocks", "model.layers").replace("attention", "self_attn")
        theirs = theirs.replace("norm1", "input_layernorm").replace("norm2", "post_attention_layernorm")
        theirs = theirs.replace("tokens", "model.embed_tokens").replace("head", "lm_head")
        expected["model." + theirs if theirs.startswith("norm") else theirs] = (name, value.shape)
    if "lm_head.weight" not in expected:
        weights.pop("lm_head.weight", None)
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not known" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name][1]:
            problems.append(f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name][1])}")
    if problems:
        raise ValueError(", ".join(problems))
    model.load_state_dict({name: weights[theirs] for theirs, (name, _) in expected.items()})
    return model.eval()


# %% load_hf: the index is believed
# caught by: test_an_index_may_not_lead_out_of_the_folder
# says: The index may name any file on the machine, and it is read.
def load_hf(folder):
    folder = Path(folder)
    model = Decoder(read_config(json.loads((folder / "config.json").read_text())))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif single.exists():
        files = ["model.safetensors"]
    else:
        for file in sorted(folder.iterdir()):
            if file.suffix in {".bin", ".pt", ".pth"}:
                raise ValueError(f"{file.name} is a pickle, and reading a pickle runs it")
        raise FileNotFoundError("there is no model.safetensors")
    weights = {}
    for file in files:
        path = (folder / file).resolve()
        weights.update(read_safetensors(path))
    weights = {name: value for name, value in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = {}
    for name, value in model.state_dict().items():
        theirs = name.replace("blocks", "model.layers").replace("attention", "self_attn")
        theirs = theirs.replace("norm1", "input_layernorm").replace("norm2", "post_attention_layernorm")
        theirs = theirs.replace("tokens", "model.embed_tokens").replace("head", "lm_head")
        expected["model." + theirs if theirs.startswith("norm") else theirs] = (name, value.shape)
    if "lm_head.weight" not in expected:
        weights.pop("lm_head.weight", None)
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not known" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name][1]:
            problems.append(f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name][1])}")
    if problems:
        raise ValueError(", ".join(problems))
    model.load_state_dict({name: weights[theirs] for theirs, (name, _) in expected.items()})
    return model.eval()


# %% load_hf: only two dots are looked for
# caught by: test_an_index_may_not_lead_out_of_the_folder
# says: Two dots are refused; an absolute path or a link leads out all the same.
def load_hf(folder):
    folder = Path(folder)
    model = Decoder(read_config(json.loads((folder / "config.json").read_text())))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif single.exists():
        files = ["model.safetensors"]
    else:
        for file in sorted(folder.iterdir()):
            if file.suffix in {".bin", ".pt", ".pth"}:
                raise ValueError(f"{file.name} is a pickle, and reading a pickle runs it")
        raise FileNotFoundError("there is no model.safetensors")
    weights = {}
    for file in files:
        path = (folder / file).resolve()
        if ".." in file:
            raise ValueError(f"the index leads out of the folder: {file}")
        weights.update(read_safetensors(path))
    weights = {name: value for name, value in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = {}
    for name, value in model.state_dict().items():
        theirs = name.replace("blocks", "model.layers").replace("attention", "self_attn")
        theirs = theirs.replace("norm1", "input_layernorm").replace("norm2", "post_attention_layernorm")
        theirs = theirs.replace("tokens", "model.embed_tokens").replace("head", "lm_head")
        expected["model." + theirs if theirs.startswith("norm") else theirs] = (name, value.shape)
    if "lm_head.weight" not in expected:
        weights.pop("lm_head.weight", None)
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not known" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name][1]:
            problems.append(f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name][1])}")
    if problems:
        raise ValueError(", ".join(problems))
    model.load_state_dict({name: weights[theirs] for theirs, (name, _) in expected.items()})
    return model.eval()


# %% load_hf: links are not followed before the check
# caught by: test_an_index_may_not_lead_out_of_the_folder
# says: A link in the folder that leads out of it is read.
def load_hf(folder):
    folder = Path(folder)
    model = Decoder(read_config(json.loads((folder / "config.json").read_text())))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif single.exists():
        files = ["model.safetensors"]
    else:
        for file in sorted(folder.iterdir()):
            if file.suffix in {".bin", ".pt", ".pth"}:
                raise ValueError(f"{file.name} is a pickle, and reading a pickle runs it")
        raise FileNotFoundError("there is no model.safetensors")
    weights = {}
    for file in files:
        path = Path(__import__("os").path.normpath(folder.resolve() / file))
        if folder.resolve() not in path.parents:
            raise ValueError(f"the index leads out of the folder: {file}")
        weights.update(read_safetensors(path))
    weights = {name: value for name, value in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = {}
    for name, value in model.state_dict().items():
        theirs = name.replace("blocks", "model.layers").replace("attention", "self_attn")
        theirs = theirs.replace("norm1", "input_layernorm").replace("norm2", "post_attention_layernorm")
        theirs = theirs.replace("tokens", "model.embed_tokens").replace("head", "lm_head")
        expected["model." + theirs if theirs.startswith("norm") else theirs] = (name, value.shape)
    if "lm_head.weight" not in expected:
        weights.pop("lm_head.weight", None)
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not known" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name][1]:
            problems.append(f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name][1])}")
    if problems:
        raise ValueError(", ".join(problems))
    model.load_state_dict({name: weights[theirs] for theirs, (name, _) in expected.items()})
    return model.eval()


# %% load_hf: only the first file is read
# caught by: test_weights_in_several_files_are_loaded
# says: Only the first file of the index is read.
def load_hf(folder):
    folder = Path(folder)
    model = Decoder(read_config(json.loads((folder / "config.json").read_text())))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif single.exists():
        files = ["model.safetensors"]
    else:
        for file in sorted(folder.iterdir()):
            if file.suffix in {".bin", ".pt", ".pth"}:
                raise ValueError(f"{file.name} is a pickle, and reading a pickle runs it")
        raise FileNotFoundError("there is no model.safetensors")
    weights = {}
    for file in files[:1]:
        path = (folder / file).resolve()
        if folder.resolve() not in path.parents:
            raise ValueError(f"the index leads out of the folder: {file}")
        weights.update(read_safetensors(path))
    weights = {name: value for name, value in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = {}
    for name, value in model.state_dict().items():
        theirs = name.replace("blocks", "model.layers").replace("attention", "self_attn")
        theirs = theirs.replace("norm1", "input_layernorm").replace("norm2", "post_attention_layernorm")
        theirs = theirs.replace("tokens", "model.embed_tokens").replace("head", "lm_head")
        expected["model." + theirs if theirs.startswith("norm") else theirs] = (name, value.shape)
    if "lm_head.weight" not in expected:
        weights.pop("lm_head.weight", None)
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not known" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name][1]:
            problems.append(f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name][1])}")
    if problems:
        raise ValueError(", ".join(problems))
    model.load_state_dict({name: weights[theirs] for theirs, (name, _) in expected.items()})
    return model.eval()


# %% load_hf: the file's dtype stays
# caught by: test_a_loaded_model_is_in_float32_and_in_evaluation
# says: The parameters keep the dtype of the file: they should be float32.
def load_hf(folder):
    folder = Path(folder)
    model = Decoder(read_config(json.loads((folder / "config.json").read_text())))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif single.exists():
        files = ["model.safetensors"]
    else:
        for file in sorted(folder.iterdir()):
            if file.suffix in {".bin", ".pt", ".pth"}:
                raise ValueError(f"{file.name} is a pickle, and reading a pickle runs it")
        raise FileNotFoundError("there is no model.safetensors")
    weights = {}
    for file in files:
        path = (folder / file).resolve()
        if folder.resolve() not in path.parents:
            raise ValueError(f"the index leads out of the folder: {file}")
        weights.update(read_safetensors(path))
    weights = {name: value for name, value in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = {}
    for name, value in model.state_dict().items():
        theirs = name.replace("blocks", "model.layers").replace("attention", "self_attn")
        theirs = theirs.replace("norm1", "input_layernorm").replace("norm2", "post_attention_layernorm")
        theirs = theirs.replace("tokens", "model.embed_tokens").replace("head", "lm_head")
        expected["model." + theirs if theirs.startswith("norm") else theirs] = (name, value.shape)
    if "lm_head.weight" not in expected:
        weights.pop("lm_head.weight", None)
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not known" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name][1]:
            problems.append(f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name][1])}")
    if problems:
        raise ValueError(", ".join(problems))
    model.load_state_dict({name: weights[theirs] for theirs, (name, _) in expected.items()}, assign=True)
    return model.eval()


# %% load_hf: the model is in training
# caught by: test_a_loaded_model_is_in_float32_and_in_evaluation
# says: The model is not put into evaluation.
def load_hf(folder):
    folder = Path(folder)
    model = Decoder(read_config(json.loads((folder / "config.json").read_text())))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif single.exists():
        files = ["model.safetensors"]
    else:
        for file in sorted(folder.iterdir()):
            if file.suffix in {".bin", ".pt", ".pth"}:
                raise ValueError(f"{file.name} is a pickle, and reading a pickle runs it")
        raise FileNotFoundError("there is no model.safetensors")
    weights = {}
    for file in files:
        path = (folder / file).resolve()
        if folder.resolve() not in path.parents:
            raise ValueError(f"the index leads out of the folder: {file}")
        weights.update(read_safetensors(path))
    weights = {name: value for name, value in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = {}
    for name, value in model.state_dict().items():
        theirs = name.replace("blocks", "model.layers").replace("attention", "self_attn")
        theirs = theirs.replace("norm1", "input_layernorm").replace("norm2", "post_attention_layernorm")
        theirs = theirs.replace("tokens", "model.embed_tokens").replace("head", "lm_head")
        expected["model." + theirs if theirs.startswith("norm") else theirs] = (name, value.shape)
    if "lm_head.weight" not in expected:
        weights.pop("lm_head.weight", None)
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not known" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name][1]:
            problems.append(f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name][1])}")
    if problems:
        raise ValueError(", ".join(problems))
    model.load_state_dict({name: weights[theirs] for theirs, (name, _) in expected.items()})
    return model


# %% load_hf: the two norms are swapped
# caught by: test_all_four_families_are_loaded
# says: The norm before attention and the one after it are swapped: both fit, and the model talks nonsense.
def load_hf(folder):
    folder = Path(folder)
    model = Decoder(read_config(json.loads((folder / "config.json").read_text())))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif single.exists():
        files = ["model.safetensors"]
    else:
        for file in sorted(folder.iterdir()):
            if file.suffix in {".bin", ".pt", ".pth"}:
                raise ValueError(f"{file.name} is a pickle, and reading a pickle runs it")
        raise FileNotFoundError("there is no model.safetensors")
    weights = {}
    for file in files:
        path = (folder / file).resolve()
        if folder.resolve() not in path.parents:
            raise ValueError(f"the index leads out of the folder: {file}")
        weights.update(read_safetensors(path))
    weights = {name: value for name, value in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = {}
    for name, value in model.state_dict().items():
        theirs = name.replace("blocks", "model.layers").replace("attention", "self_attn")
        theirs = theirs.replace("norm1", "post_attention_layernorm").replace("norm2", "input_layernorm")
        theirs = theirs.replace("tokens", "model.embed_tokens").replace("head", "lm_head")
        expected["model." + theirs if theirs.startswith("norm") else theirs] = (name, value.shape)
    if "lm_head.weight" not in expected:
        weights.pop("lm_head.weight", None)
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not known" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name][1]:
            problems.append(f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name][1])}")
    if problems:
        raise ValueError(", ".join(problems))
    model.load_state_dict({name: weights[theirs] for theirs, (name, _) in expected.items()})
    return model.eval()


# %% load_hf: a tied model must have a head
# caught by: test_a_tied_model_needs_no_head
# says: A tied model is refused for the lm_head.weight that it brings, or for lacking it.
def load_hf(folder):
    folder = Path(folder)
    model = Decoder(read_config(json.loads((folder / "config.json").read_text())))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif single.exists():
        files = ["model.safetensors"]
    else:
        for file in sorted(folder.iterdir()):
            if file.suffix in {".bin", ".pt", ".pth"}:
                raise ValueError(f"{file.name} is a pickle, and reading a pickle runs it")
        raise FileNotFoundError("there is no model.safetensors")
    weights = {}
    for file in files:
        path = (folder / file).resolve()
        if folder.resolve() not in path.parents:
            raise ValueError(f"the index leads out of the folder: {file}")
        weights.update(read_safetensors(path))
    weights = {name: value for name, value in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = {}
    for name, value in model.state_dict().items():
        theirs = name.replace("blocks", "model.layers").replace("attention", "self_attn")
        theirs = theirs.replace("norm1", "input_layernorm").replace("norm2", "post_attention_layernorm")
        theirs = theirs.replace("tokens", "model.embed_tokens").replace("head", "lm_head")
        expected["model." + theirs if theirs.startswith("norm") else theirs] = (name, value.shape)
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not known" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name][1]:
            problems.append(f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name][1])}")
    if problems:
        raise ValueError(", ".join(problems))
    model.load_state_dict({name: weights[theirs] for theirs, (name, _) in expected.items()})
    return model.eval()


# %% load_hf: frequencies are extra
# caught by: test_old_checkpoints_hold_frequencies
# says: The frequencies of old LLaMA checkpoints are refused as extra tensors.
def load_hf(folder):
    folder = Path(folder)
    model = Decoder(read_config(json.loads((folder / "config.json").read_text())))
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif single.exists():
        files = ["model.safetensors"]
    else:
        for file in sorted(folder.iterdir()):
            if file.suffix in {".bin", ".pt", ".pth"}:
                raise ValueError(f"{file.name} is a pickle, and reading a pickle runs it")
        raise FileNotFoundError("there is no model.safetensors")
    weights = {}
    for file in files:
        path = (folder / file).resolve()
        if folder.resolve() not in path.parents:
            raise ValueError(f"the index leads out of the folder: {file}")
        weights.update(read_safetensors(path))
    expected = {}
    for name, value in model.state_dict().items():
        theirs = name.replace("blocks", "model.layers").replace("attention", "self_attn")
        theirs = theirs.replace("norm1", "input_layernorm").replace("norm2", "post_attention_layernorm")
        theirs = theirs.replace("tokens", "model.embed_tokens").replace("head", "lm_head")
        expected["model." + theirs if theirs.startswith("norm") else theirs] = (name, value.shape)
    if "lm_head.weight" not in expected:
        weights.pop("lm_head.weight", None)
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not known" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name][1]:
            problems.append(f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name][1])}")
    if problems:
        raise ValueError(", ".join(problems))
    model.load_state_dict({name: weights[theirs] for theirs, (name, _) in expected.items()})
    return model.eval()
