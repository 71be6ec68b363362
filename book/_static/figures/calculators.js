// The calculators of chapter 22, as in solutions/22-choosing.py.
"use strict";
{
const first = (c, ...names) => c[names.find((name) => c[name] != null)];
const LLAMAS = ["llama", "mistral", "qwen2", "qwen3", "olmo", "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"];

const read = (c) => {
  const kind = c.model_type;
  const old = ["gpt2", "gptj", "bloom"].includes(kind);
  if (!LLAMAS.includes(kind) && !old && kind !== "gpt_neox") throw new Error(`${kind}?`);
  const layers = first(c, "n_layer", "num_hidden_layers");
  const d = first(c, "n_embd", "n_embed", "hidden_size");
  const heads = first(c, "n_head", "num_attention_heads");
  const hidden = old ? c.n_inner || 4 * d : c.intermediate_size;
  const biases = new Set();
  const add = (names, kinds, when = true) => {
    if (when && kinds.includes(kind)) names.forEach((name) => biases.add(name));
  };
  add(["qkv", "o", "mlp"], ["gpt2", "gpt_neox", "bloom", "gpt_oss"]);
  add(["qkv"], ["qwen2"]);
  add(["qkv", "o"], ["llama", "qwen3", "qwen3_moe"], !!c.attention_bias);
  add(["mlp", "head"], ["gptj"]);
  add(["router"], ["gpt_oss"]);
  const window = /^qwen/.test(kind) && !c.use_sliding_window ? null : c.sliding_window ?? null;
  const slides = (i) => {
    if (c.layer_types) return c.layer_types[i] === "sliding_attention";
    return kind === "gpt_oss" ? i % 2 === 0 : !/^qwen[23]$/.test(kind) || i >= (c.max_window_layers ?? 0);
  };
  const index = [...Array(layers).keys()];
  const moe = ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"].includes(kind);
  const expert = moe ? c.moe_intermediate_size ?? hidden : 0;
  const dense = c.mlp_only_layers ?? [];
  let sparse = moe ? layers : 0;
  if (kind === "qwen3_moe") {
    sparse = index.filter((i) => (i + 1) % (c.decoder_sparse_step ?? 1) === 0 && !dense.includes(i)).length;
  }
  if (kind === "deepseek_v3") sparse = Math.max(layers - c.first_k_dense_replace, 0);
  return {
    vocabulary: c.vocab_size, d, layers, heads, kvHeads: c.num_key_value_heads || heads,
    head: c.head_dim || Math.floor(d / heads), hidden, gated: LLAMAS.includes(kind),
    norm: kind === "olmo" ? 0 : LLAMAS.includes(kind) ? 1 : 2, norms: kind === "gptj" ? 1 : 2,
    first: kind === "bloom", positions: kind === "gpt2" ? c.n_positions : 0, biases,
    qkNorm: kind === "qwen3" || kind === "qwen3_moe", sinks: kind === "gpt_oss",
    tied: c.tie_word_embeddings ?? (kind === "gpt2" || kind === "bloom"),
    windows: index.map((i) => (slides(i) ? window : null)),
    latent: kind === "deepseek_v3" && {
      q: c.q_lora_rank, kv: c.kv_lora_rank, nope: c.qk_nope_head_dim, rope: c.qk_rope_head_dim, value: c.v_head_dim,
    },
    experts: moe ? first(c, "num_local_experts", "num_experts", "n_routed_experts") : 0,
    topK: moe ? c.num_experts_per_tok : 0, expert,
    shared: kind === "deepseek_v3" ? c.n_shared_experts * expert : 0, sparse,
  };
};

const parameters = (config) => {
  const s = read(config), has = (name) => (s.biases.has(name) ? 1 : 0);
  const { d, latent: m } = s;
  let attention;
  if (m) {
    const q = s.heads * (m.nope + m.rope);
    attention = m.q == null ? d * q : m.q * (d + 1 + q);
    attention += d * (m.kv + m.rope) + m.kv + s.heads * (m.kv * (m.nope + m.value) + m.value * d);
  } else {
    const q = s.heads * s.head, kv = s.kvHeads * s.head;
    attention = 2 * d * (q + kv) + 2 * s.head * s.qkNorm + s.heads * s.sinks;
    attention += (q + 2 * kv) * has("qkv") + d * has("o");
  }
  const matrices = s.gated ? 3 : 2;
  const mlp = (hidden) => matrices * d * hidden + ((matrices - 1) * hidden + d) * has("mlp");
  let always = s.vocabulary * (d * (2 - s.tied) + has("head")) + s.positions * d;
  always += s.norm * d * (s.norms * s.layers + s.first + 1);
  always += s.layers * attention + (s.layers - s.sparse) * mlp(s.hidden);
  always += s.sparse * s.experts * (d + has("router")) + s.sparse * (s.shared ? mlp(s.shared) : 0);
  const each = s.sparse * mlp(s.expert);
  return [always + s.experts * each, always + s.topK * each];
};

const tables = (s) => s.d * (s.positions + (s.tied ? 0 : s.vocabulary));
const seen = (s, n) => s.windows.reduce((sum, window) => sum + Math.min(n, window || n), 0);

const flopsPerToken = (config, context, training = false) => {
  const s = read(config), m = s.latent;
  const channels = m ? m.nope + m.rope + m.value : 2 * s.head;
  const forward = 2 * (parameters(config)[1] - tables(s)) + 2 * s.heads * channels * seen(s, context);
  return training ? 3 * forward : forward;
};

const kvBytes = (config, length, batch = 1, bits = 16) => {
  const s = read(config), m = s.latent;
  return Math.floor((batch * seen(s, length) * (m ? m.kv + m.rope : 2 * s.kvHeads * s.head) * bits) / 8);
};

const fits = (config, memory, length, batch = 1, weightBits = 16, kvBits = 16) => {
  const s = read(config);
  const weights = Math.ceil((parameters(config)[0] * weightBits) / 8);
  const hidden = Math.max(s.sparse < s.layers ? s.hidden : 0, s.sparse ? s.topK * s.expert + s.shared : 0);
  const busy = Math.min(length, 512) * 2 * (2 * s.d + (s.gated ? 2 : 1) * hidden) + 4 * s.vocabulary;
  const text = kvBytes(config, length, 1, kvBits) + busy;
  const total = weights + batch * text, room = Math.max(Math.floor(memory) - weights, 0);
  return {
    weights, cache: kvBytes(config, length, batch, kvBits), activations: batch * busy, total, fits: total <= memory,
    batch: Math.floor(room / text),
  };
};

const decodeRoofline = (config, batch, context, bandwidth, peak, weightBits = 16, kvBits = 16) => {
  const s = read(config), [total, active] = parameters(config);
  let weights = active - tables(s);
  if (s.experts > s.topK) {
    const touched = s.experts * (1 - (1 - s.topK / s.experts) ** batch);
    weights += ((touched - s.topK) * (total - active)) / (s.experts - s.topK);
  }
  const bytes = (weights * weightBits) / 8 + kvBytes(config, context, batch, kvBits);
  const flops = batch * flopsPerToken(config, context);
  const seconds = Math.max(bytes / bandwidth, flops / peak);
  const bound = bytes / bandwidth >= flops / peak ? "memory" : "compute";
  return { bytes, flops, seconds, tokens_per_second: batch / seconds, bound };
};

const energyAndCost = (config, tokens, { peak, mfu, watts, pue, carbon, price, context = 0 }) => {
  const flops = tokens * flopsPerToken(config, context, true);
  const hours = flops / (peak * mfu) / 3600, kwh = ((hours * watts) / 1000) * pue;
  return { flops, device_hours: hours, kwh, kg_co2: kwh * carbon, cost: hours * price };
};

ichimon.calculators = { parameters, flopsPerToken, kvBytes, fits, decodeRoofline, energyAndCost };
}
