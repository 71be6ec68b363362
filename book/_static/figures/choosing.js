// Chapter 22: what a config.json tells about memory, speed and price.
"use strict";
ichimon.figure("choosing", (box, { models, devices, start }, phrases) => {
  const { add, number, choice, calculators } = ichimon;
  const names = ["model", "own", "config", "device", ...Object.keys(start), "caption", "total", "active", "token", "sum", "fits"];
  names.push("yes", "no", "speed", "memory", "compute", "hours", "energy", "cost", "wrong");
  const words = Object.fromEntries(names.map((name, i) => [name, phrases[i]]));
  const form = add(box, "div", { class: "controls", role: "group", "aria-label": words.caption });
  const model = choice(form, words.model, [...Object.keys(models), words.own]);
  const own = add(add(form, "label", { class: "wide" }, words.config), "textarea", { rows: 6, spellcheck: "false" });
  const device = choice(form, words.device, Object.keys(devices));
  const inputs = {};
  for (const [name, value] of Object.entries(start)) {
    inputs[name] = add(add(form, "label", {}, words[name]), "input", { type: "number", min: 0, step: "any", value });
  }
  const table = add(box, "table");
  add(table, "caption", {}, words.caption);
  const body = add(table, "tbody"), said = add(box, "p", { role: "status" });
  const gib = (bytes) => `${number(bytes / 2 ** 30)} GiB`;
  const show = () => {
    const mine = Number(model.value) === Object.keys(models).length;
    own.parentElement.hidden = !mine;
    body.replaceChildren();
    try {
      const config = mine ? JSON.parse(own.value || "{}") : Object.values(models)[model.value];
      const [{ memory, bandwidth, peak, watts }, v] = [Object.values(devices)[device.value], {}];
      for (const [name, input] of Object.entries(inputs)) v[name] = Number(input.value);
      const [total, active] = calculators.parameters(config);
      const room = calculators.fits(config, memory, v.context, v.batch, v.weight_bits, v.kv_bits);
      const step = calculators.decodeRoofline(config, v.batch, v.context, bandwidth, peak, v.weight_bits, v.kv_bits);
      const bill = calculators.energyAndCost(config, v.tokens * 1e9, {
        peak, mfu: v.mfu / 100, watts, pue: v.pue, carbon: v.carbon / 1000, price: v.price,
      });
      if (![total, active, room.total, step.bytes].every(Number.isFinite)) throw new Error(words.wrong);
      const rows = {
        total: number(total, 15), active: number(active, 15),
        token: `${number(calculators.kvBytes(config, 1, 1, v.kv_bits) / 1024)} KiB`,
        sum: `${gib(room.weights)} + ${gib(room.cache)} + ${gib(room.activations)} = ${gib(room.total)}`,
        fits: `${words[room.fits ? "yes" : "no"]}, ${number(room.batch, 15)}`,
        speed: `${number(step.tokens_per_second)}, ${words[step.bound]}`,
        hours: number(bill.device_hours), energy: `${number(bill.kwh / 1000)} MWh, ${number(bill.kg_co2 / 1000)} t`,
        cost: number(bill.cost),
      };
      for (const [name, text] of Object.entries(rows)) {
        const row = add(body, "tr");
        add(row, "th", { scope: "row" }, words[name]);
        add(row, "td", {}, text);
      }
      said.textContent = `${words.fits}: ${rows.fits}; ${words.speed}: ${rows.speed}`;
      said.className = "heard";
    } catch (error) {
      said.className = "";
      said.textContent = `${words.wrong} (${error.message})`;
    }
  };
  form.addEventListener("input", show);
  show();
});
