// Chapter 09: what a cache of keys and values takes, for four ways to share heads.
"use strict";
{
  // The config.json of a model that keeps its keys in one of four ways; `latent` is measured in the width of a head.
  const ways = ({ layers, heads, kvHeads, head, latent }) => {
    const common = { num_hidden_layers: layers, num_attention_heads: heads, hidden_size: heads * head, head_dim: head };
    const shared = (n) => ({ ...common, model_type: "llama", num_key_value_heads: n });
    return [shared(heads), shared(kvHeads), shared(1), {
      ...common, model_type: "deepseek_v3", kv_lora_rank: latent.rank * head, qk_rope_head_dim: latent.rope * head,
    }];
  };
  ichimon.sharing = ways;

  ichimon.figure("kv", (box, { models, latent, memory }, phrases) => {
    const { add, bars, calculators, choice, filled, number, percent, slider } = ichimon;
    const [which, own, nLayers, nHeads, nShared, width, length, texts, numbers, bits, caption, ...rest] = phrases;
    const [mha, gqa, mqa, mla, told, yes, no] = rest;
    const form = add(box, "div", { class: "controls" });
    const names = Object.keys(models), model = choice(form, which, [...names, own]);
    const powers = (low, high) => Array.from({ length: high - low + 1 }, (_, i) => 2 ** (low + i));
    const divisors = (n) => Array.from({ length: n }, (_, i) => i + 1).filter((d) => n % d === 0);
    const counts = [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128]; // of heads
    const sizes = [16, 32, 48, 64, 80, 96, 112, 128, 192, 256];
    const many = (value) => number(value, 9);
    const layers = slider(form, nLayers, Array.from({ length: 128 }, (_, i) => i + 1), 31);
    const heads = slider(form, nHeads, counts, counts.indexOf(32));
    const kvHeads = slider(form, nShared, divisors(32), 3);
    const head = slider(form, width, sizes, 7);
    const context = slider(form, length, powers(10, 20), 5, many);
    const batch = slider(form, texts, powers(0, 8), 0, many);
    const precision = slider(form, numbers, [4, 8, 16, 32], 2, (n) => filled(bits, { n }));
    const table = bars(box, filled(caption, { memory: number(memory / 1e9) })), said = add(box, "p", { role: "status" });
    const show = () => {
      const configs = ways({ layers: layers.value, heads: heads.value, kvHeads: kvHeads.value, head: head.value, latent });
      const bytes = configs.map((config) => calculators.kvBytes(config, context.value, batch.value, precision.value));
      const labels = [mha, gqa, mqa, mla].map((name) => filled(name, { n: kvHeads.value, heads: heads.value }));
      const most = Math.max(...bytes);
      const gib = (n) => `${number(n / 2 ** 30)} GiB`;
      const colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"];
      table(bytes.map((n, i) => [labels[i], n / most, `${gib(n)}, ${n <= memory ? percent(n / memory, 1) : no}`, 0, colours[i]]));
      said.textContent = filled(told, {
        gqa: gib(bytes[1]), mha: gib(bytes[0]), times: number(bytes[0] / bytes[1], 2), latent: number(bytes[0] / bytes[3], 2),
        fits: bytes[1] <= memory ? filled(yes, { n: many(Math.floor((memory * batch.value) / bytes[1])) }) : no,
      });
    };
    model.addEventListener("input", () => {
      const chosen = models[names[model.value]];
      if (!chosen) return;
      layers.to(chosen.layers);
      heads.to(chosen.heads);
      kvHeads.over(divisors(chosen.heads));
      kvHeads.to(chosen.kvHeads);
      head.to(chosen.head);
    });
    for (const part of [layers, heads, kvHeads, head]) {
      part.input.addEventListener("input", () => { model.value = names.length; });
    }
    heads.input.addEventListener("input", () => {
      const [before, possible] = [kvHeads.value, divisors(heads.value)];
      kvHeads.over(possible);
      kvHeads.to(possible.findLast((d) => d <= before));
    });
    model.dispatchEvent(new Event("input"));
    form.addEventListener("input", show);
    show();
  });
}
