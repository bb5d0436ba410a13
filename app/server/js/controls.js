// The controls of a run: drawn from what its engine has acknowledged, and sending only what a person does here.

import { child, element, help, icon, span, theme } from "./dom.js";
import { ask, asked, forget, listen, lost } from "./outbox.js";
import { pace, time } from "./remote.js";
import { STATE } from "./words.js";

const TONES = {
  running: "#2B8A3E", starting: "#2F6FDE", queued: "#2F6FDE", paused: "#C77700", stopping: "#C77700",
  finished: "#5B6B7C", stopped: "#5B6B7C", failed: "#D6336C", crashed: "#D6336C", stalled: "#D6336C",
};

const UNKNOWN = { ready: false, alive: false, over: false, why: "", methods: {}, values: {}, asked: {}, probes: {}, refused: "" };

const shown = new Set();
const acknowledged = new Map();
const standings = new Map();

listen((run) => redraw(run));

// Take in what the server knows of a run, unless it is older than what was known already.
export function know(run, status, controls) {
  if (status) standings.set(run, status);
  const held = acknowledged.get(run);
  if (controls && !(held && controls.revision < held.revision)) acknowledged.set(run, controls);
  redraw(run);
}

export function knownTag(run) { return acknowledged.get(run)?.tag || ""; }

// Whether the run can be measured: it has begun, and its settings are known.
export function mayMeasure(run) { const known = acknowledged.get(run); return Boolean(known && known.measurable); }

export function drop(sub) { shown.delete(sub); }

function redraw(run) {
  for (const sub of shown) if (sub.data.run === run) draw(sub);
}

function draw(sub) {
  sub.draw(acknowledged.get(sub.data.run) || UNKNOWN, standings.get(sub.data.run));
}

// Build a control once in its host; afterwards it is only brought up to date.
function built(sub, make) {
  theme(sub.host);
  const what = JSON.stringify({ ...sub.data, status: 0, controls: 0, drawn: 0, received: 0 });
  if (sub.what !== what) {
    sub.what = what;
    sub.host.replaceChildren();
    sub.draw = make(sub);
    shown.add(sub);
  }
  know(sub.data.run, sub.data.status, sub.data.controls);
}

export const CONTROLS = {
  steering: (sub) => built(sub, steering),
  switch: (sub) => built(sub, (made) => {
    const { run, method, text, help: words } = made.data;
    const drawn = methodSwitch(child(made.host, "ms-switches"), run, method, text, words);
    return (controls) => drawn(controls);
  }),
  knobs: (sub) => built(sub, (made) => {
    const { run, owner, knobs, columns } = made.data;
    const grid = child(made.host, "ms-knobs");
    grid.style.setProperty("--ms-columns", columns);
    const drawn = knobs.map((knob) => knobField(grid, run, owner, knob));
    return (controls) => drawn.forEach((update) => update(controls));
  }),
  interval: (sub) => built(sub, interval),
};

export function disconnected(sub) {
  sub.box?.replaceChildren(element("div", "ms-error", "The server does not answer; trying again. Training goes on without it."));
}

// The sidebar: state, buttons, one switch for each method, the learning rate.

function steering(sub) {
  const { run, methods, rate } = sub.data;
  sub.box = child(sub.host, "ms-panel");
  const buttons = child(sub.host, "ms-buttons"), remote = child(sub.host, "ms-remotes"), refused = child(sub.host, "ms-refused"), unsent = child(sub.host, "ms-error");
  const title = child(sub.host, "ms-head"), why = child(sub.host, "ms-why"), list = child(sub.host, "ms-switches");
  title.textContent = methods.length ? "Methods" : "";
  const sliders = [pace(remote, run), time(remote, run, () => sub.probesHere())];
  const press = buttonsOf(buttons, run), switches = methods.map((m) => methodSwitch(list, run, m.name, m.title, m.help));
  const field = rate ? knobField(child(sub.host, "ms-knobs"), run, "optimizer", rate) : () => {};
  return (controls, status) => {
    if (status) { panel(sub.box, status, asked(run).map((act) => said(act, methods))); press(status, controls); }
    refused.textContent = controls.refused;
    refused.hidden = !controls.refused;
    const gone = lost(run);
    unsent.hidden = !gone.length;
    unsent.replaceChildren(`The server has not confirmed ${gone.map((act) => said(act, methods)).join(", ")}; this is not sent again. `);
    if (gone.length) unsent.append(pressable("OK", () => forget(run)));
    why.textContent = methods.length ? controls.why : "";
    why.hidden = !why.textContent;
    for (const update of [...switches, ...sliders]) update(controls);
    field(controls);
  };
}

const BUTTONS = [
  ["Resume", "play_arrow", "g"], ["Pause", "pause", "p"], ["Step", "skip_next", "s"], ["Stop", "stop", ""],
];

function buttonsOf(host, run) {
  const made = {};
  for (const [name, symbol, key] of BUTTONS) {
    const button = host.appendChild(element("button", "ms-press", icon(symbol), element("span", "", name)));
    button.type = "button";
    if (key) button.append(element("kbd", "", key));
    button.dataset.key = key;
    made[name] = button;
  }
  const leave = host.appendChild(element("button", "ms-press ms-wide", icon("close"), element("span", "", "Leave the queue")));
  leave.type = "button";
  leave.addEventListener("click", () => ask(run, { do: "leave" }));
  let over = false;
  made.Resume.addEventListener("click", () => ask(run, { do: over ? "go on" : "resume" }));
  made.Pause.addEventListener("click", () => ask(run, { do: "pause" }));
  made.Step.addEventListener("click", () => ask(run, { do: "resume", steps: 1 }));
  made.Stop.addEventListener("click", () => ask(run, { do: "stop" }));
  return (status, controls) => {
    const waits = new Set(asked(run).map((act) => (act.steps ? "step" : act.do))), state = status.state;
    over = controls.over;
    made.Resume.disabled = !(over || state === STATE.PAUSED) || waits.has("resume") || waits.has("go on");
    made.Resume.classList.toggle("ms-primary", over || state === STATE.PAUSED);
    made.Resume.title = state === STATE.FINISHED ? `Train on, to step ${(2 * status.steps).toLocaleString("en")}` : over ? "Go on from the last checkpoint" : "Resume";
    made.Pause.disabled = !controls.alive || [STATE.PAUSED, STATE.STOPPING].includes(state) || waits.has("pause");
    made.Pause.title = "Pause before the next step";
    made.Step.disabled = state !== STATE.PAUSED;
    made.Step.title = "Take one step";
    made.Stop.disabled = !controls.alive || state === STATE.STOPPING || waits.has("stop");
    made.Stop.title = "Stop the run; it can be resumed";
    for (const [name] of BUTTONS) made[name].hidden = state === STATE.QUEUED;
    leave.hidden = state !== STATE.QUEUED;
    leave.disabled = waits.has("leave");
  };
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  if (event.target.closest("input, textarea, select, [contenteditable=true], [role=combobox], [role=dialog]")) return;
  for (const sub of shown) {
    if (!sub.host.isConnected) continue;
    const button = sub.host.querySelector(`.ms-press[data-key="${CSS.escape(event.key.toLowerCase())}"]:not(:disabled):not([hidden])`);
    if (button && event.key) { event.preventDefault(); button.click(); return; }
  }
});

function panel(box, now, unsent) {
  const share = now.steps ? Math.min(1, now.step / now.steps) : 0;
  box.style.setProperty("--ms-tone", TONES[now.state] || TONES.stopped);
  const state = element("span", "ms-state", element("span", "ms-dot"), now.word);
  const step = element("span", "ms-quiet", `step ${now.step.toLocaleString("en")}${now.steps ? ` / ${now.steps.toLocaleString("en")}` : ""}`);
  const bar = element("div", "ms-bar");
  bar.style.width = `${100 * share}%`;
  const facts = [];
  if (now.state === STATE.RUNNING && now.rate) facts.push(`${now.rate >= 10 ? Math.round(now.rate) : now.rate.toFixed(1)} steps/s`);
  if (now.state === STATE.RUNNING && now.eta !== null) facts.push(`${span(now.eta)} left`);
  if (now.activity) facts.push(now.activity);
  const lines = [element("div", "ms-row", state, step), element("div", "ms-track", bar)];
  if (facts.length || now.state === STATE.RUNNING) lines.push(element("div", "ms-quiet", facts.join(" · ") || "\u00a0"));
  const waits = [...now.pending, ...unsent];
  if (waits.length) lines.push(element("div", "ms-quiet ms-asked", `requested: ${waits.join(", ")}`));
  if (now.error) lines.push(element("div", "ms-error", now.error));
  box.replaceChildren(...lines);
}

// One switch; the same method may have several on a page, and all show what the run says.

function methodSwitch(list, run, method, text, words) {
  const row = child(list, "ms-switch-row"), told = child(list, "ms-told");
  const [button, set] = toggle(row, text, words, (on) => ask(run, { do: "toggle", method, on }));
  return (controls) => {
    const stand = controls.methods[method] || { on: false, asked: null, words: "" };
    const mine = asked(run).findLast((act) => act.do === "toggle" && act.method === method);
    const wish = mine ? mine.on : stand.asked;
    set(wish ?? stand.on);
    button.disabled = !controls.ready;
    told.textContent = mine ? `requested: ${mine.on ? "on" : "off"}` : stand.idle || stand.words;
    told.classList.toggle("ms-idle", !mine && Boolean(stand.idle));
    told.hidden = !told.textContent;
  };
}

let ids = 0;

function toggle(row, text, words, flipped) {
  const button = row.appendChild(element("button", "ms-switch", element("span", "ms-thumb")));
  button.type = "button";
  button.id = `ms-switch-${ids++}`;
  button.setAttribute("role", "switch");
  const label = row.appendChild(element("label", "ms-text", text));
  label.htmlFor = button.id;
  row.append(help(words));
  let on = false;
  const set = (value) => { on = value; button.setAttribute("aria-checked", String(on)); };
  set(false);
  button.addEventListener("click", () => flipped(!on));
  return [button, set];
}

// One knob: a number, a choice, a text or a switch.

function knobField(grid, run, owner, knob) {
  const cell = child(grid, "ms-knob"), path = `${owner}.${knob.name}`;
  const send = (value) => ask(run, { do: "tune", method: owner, knob: knob.name, value });
  const make = knob.type === "bool" ? flag : knob.choices ? choice : entry;
  const set = make(cell, knob, send), told = child(cell, "ms-told");
  return (controls) => {
    const mine = asked(run).findLast((act) => act.do === "tune" && act.method === owner && act.knob === knob.name);
    const waits = mine ? mine.value : controls.asked[path];
    const value = waits ?? controls.values[path] ?? knob.default;
    set(value, !controls.ready);
    told.textContent = waits === undefined ? "" : `requested: ${shortened(waits)}`;
    told.hidden = !told.textContent;
  };
}

function labelled(cell, knob, field) {
  field.id = `ms-field-${ids++}`;
  const label = element("label", "ms-text", knob.label);
  label.htmlFor = field.id;
  cell.append(element("div", "ms-row", label, help(knob.help)));
  return field;
}

function flag(cell, knob, send) {
  const [button, set] = toggle(child(cell, "ms-switch-row"), knob.label, knob.help, send);
  return (value, off) => { set(Boolean(value)); button.disabled = off; };
}

function choice(cell, knob, send) {
  const field = labelled(cell, knob, element("select", "ms-field"));
  for (const value of knob.choices) field.append(new Option(String(value).replaceAll("_", " "), value));
  cell.append(field);
  let drawn;
  field.addEventListener("change", () => { const value = knob.choices[field.selectedIndex]; if (value !== drawn) send(value); });
  return (value, off) => { drawn = value; field.selectedIndex = knob.choices.indexOf(value); field.disabled = off; };
}

function entry(cell, knob, send) {
  const number = knob.type !== "str", field = labelled(cell, knob, element("input", "ms-input")), row = child(cell, "ms-field");
  row.append(field);
  field.autocomplete = "off";
  field.spellcheck = false;
  if (number) field.inputMode = "decimal";
  const wrong = child(cell, "ms-error");
  wrong.hidden = true;
  let drawn;
  const give = (value) => {
    const fault = number ? faultOf(value, knob) : "";
    wrong.textContent = fault;
    wrong.hidden = !fault;
    if (!fault && value !== drawn) send(value);
  };
  field.addEventListener("change", () => {
    if (field.value.trim() === shortened(drawn)) return;
    give(number ? Number(field.value.trim().replace(",", ".") || NaN) : field.value);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") field.blur();
    if (event.key === "Escape") { field.value = shortened(drawn); wrong.hidden = true; field.blur(); }
  });
  field.addEventListener("blur", () => { if (wrong.hidden) field.value = shortened(drawn); });
  const more = number ? [[-1, "remove", "less"], [1, "add", "more"]].map(([sign, symbol, word]) => {
    const button = row.appendChild(element("button", "ms-nudge", icon(symbol)));
    button.type = "button";
    button.setAttribute("aria-label", `${knob.label}: ${word}`);
    button.addEventListener("click", () => give(nudged(drawn, sign, knob)));
    return [button, sign];
  }) : [];
  return (value, off) => {
    drawn = value;
    if (document.activeElement !== field && wrong.hidden) field.value = shortened(value);
    field.disabled = off;
    for (const [button, sign] of more) button.disabled = off || nudged(drawn, sign, knob) === drawn;
  };
}

function faultOf(value, knob) {
  const { low, high, type } = knob;
  if (!Number.isFinite(value)) return "Give a number.";
  if (type === "int" && !Number.isInteger(value)) return "Give a whole number.";
  if ((low !== null && value < low) || (high !== null && value > high)) {
    return low === null ? `Give at most ${high}.` : high === null ? `Give at least ${low}.` : `Give a number from ${low} to ${high}.`;
  }
  return "";
}

// One click moves a number by a tenth of its decade, a logarithmic whole number by its decade, at least 1 if whole.
function nudged(value, sign, knob) {
  const size = Math.abs(value || knob.default || 1) || 1, decade = 10 ** Math.floor(Math.log10(size));
  let step = decade / 10;
  if (knob.type === "int") step = Math.max(1, Math.round(knob.log ? decade : decade / 10));
  else if (size / decade >= 2) step = knob.log ? decade : decade / 2;
  const moved = Number((value + sign * step).toPrecision(12));
  return Math.min(knob.high ?? Infinity, Math.max(knob.low ?? -Infinity, moved));
}

function shortened(value) { return typeof value === "number" ? String(Number(value.toPrecision(6))) : String(value ?? ""); }

// How often a probe measures.

function interval(sub) {
  const { run, probe, options, help: words } = sub.data;
  const cell = child(sub.host, "ms-knob");
  const field = labelled(cell, { label: "Measure", help: words }, element("select", "ms-field"));
  cell.append(field);
  let drawn = 0;
  field.addEventListener("change", () => {
    const every = Number(field.value);
    if (every !== drawn) ask(run, { do: "watch", probe, on: every > 0, every });
  });
  return (controls) => {
    const mine = asked(run).findLast((act) => act.do === "watch" && act.probe === probe);
    drawn = mine ? mine.every : controls.asked[`probe ${probe}`] ?? controls.probes[probe] ?? 0;
    const all = [...new Set([...options, drawn])].sort((a, b) => a - b);
    if (String(all) !== field.dataset.options) {
      field.replaceChildren(...all.map((n) => new Option(n ? `every ${n.toLocaleString("en")} steps` : "on request only", n)));
      field.dataset.options = String(all);
    }
    field.value = String(drawn);
    field.disabled = !controls.ready;
  };
}

export function pressable(text, pressed) {
  const button = element("button", "ms-button", text);
  button.type = "button";
  button.addEventListener("click", pressed);
  return button;
}

function said(act, methods) {
  const title = (name) => methods.find((m) => m.name === name)?.title || name;
  if (act.do === "toggle") return `${title(act.method)} ${act.on ? "on" : "off"}`;
  if (act.do === "tune") return `${act.knob} = ${shortened(act.value)}`;
  if (act.do === "pace") return act.rate ? `${act.rate} steps/s` : "full speed";
  if (act.do === "measure") return `measure ${act.probe} at step ${act.step}`;
  if (act.do === "cancel") return `cancel ${act.probe}`;
  if (act.do === "fork") return `fork at step ${act.step}`;
  if (act.do === "watch") return act.on ? `${act.probe} every ${act.every}` : `${act.probe} off`;
  return act.steps ? "single step" : act.do;
}
