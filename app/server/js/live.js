// One hub a page: every chart, panel and watch subscribes to it, and it asks the server once a tick for all of them.

import { CONTROLS, disconnected, drop, know, knownTag, mayMeasure, pressable } from "./controls.js";
import { child, dark, element, styled, theme } from "./dom.js";
import { ask as request, confirm, through } from "./outbox.js";
import { momentOf, onMoment, show } from "./time.js";

await styled;

const CONFIG = {
  responsive: true, displaylogo: false, scrollZoom: "gl3d", showSendToCloud: false, showEditInChartStudio: false, plotlyServerURL: "",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "hoverClosestCartesian", "hoverCompareCartesian", "toggleSpikelines", "hoverClosest3d", "resetCameraLastSave3d", "tableRotation"],
};
const NUDGED = 4000;

const subs = new Map();
const cameras = new Map();
let hand = null;
let timer = 0, busy = false, again = false, hurryUntil = 0, lost = 0, plotly = null;

export function mount({ key, data, parentElement, setTriggerValue }) {
  let sub = subs.get(key);
  if (!sub || sub.host !== parentElement) {
    if (sub) drop(sub);
    sub = { key, host: parentElement, tag: "", fired: "" };
    subs.set(key, sub);
  }
  const asked = JSON.stringify([data.run, data.name, data.args]);
  if (asked !== sub.asked) { sub.asked = asked; sub.tag = ""; }
  if (sub.data && sub.data.run !== data.run) sub.tag = "";
  const redrawn = sub.data && sub.data.drawn !== data.drawn;
  sub.data = data;
  sub.trigger = setTriggerValue;
  sub.fired = "";
  BUILD[data.kind](sub);
  ahead(data);
  if (redrawn) hurryUntil = performance.now() + NUDGED;
  soon(redrawn || !sub.tag ? 0 : 1000);
}

export function unmount(key) {
  for (const [k, sub] of subs) {
    if (k !== key || sub.host.isConnected) continue;
    if (sub.plot && window.Plotly) window.Plotly.purge(sub.plot);
    drop(sub);
    subs.delete(k);
  }
}

// The poller.

function soon(wait) {
  if (busy) { again = again || wait < 300; return; }
  clearTimeout(timer);
  timer = setTimeout(tick, wait);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) soon(0); });
document.addEventListener("click", () => { hurryUntil = performance.now() + NUDGED; }, true);

async function tick() {
  if (document.hidden) return;
  for (const [key, sub] of subs) if (!sub.host.isConnected) unmount(key);
  if (!subs.size) return;
  busy = true; again = false;
  let wait = 1000;
  try {
    const byRun = new Map();
    for (const sub of subs.values()) {
      const run = sub.data.run || "";
      if (!byRun.has(run)) byRun.set(run, []);
      byRun.get(run).push(sub);
    }
    const waits = await Promise.all([...byRun].map(([run, own]) => ask(run, own)));
    wait = Math.min(...waits);
    lost = 0;
  } catch (error) {
    lost += 1;
    if (lost > 1) for (const sub of subs.values()) if (sub.data.kind === "steering") disconnected(sub);
    wait = 2000;
  }
  busy = false;
  if (performance.now() < hurryUntil) wait = Math.min(wait, 250);
  soon(again ? 0 : wait);
}

async function ask(run, own) {
  const charts = own.filter((sub) => sub.data.name);
  const wanted = charts.map((sub) => [sub.data.name, timed(sub), sub.tag]);
  const asked = wanted.map((w) => JSON.stringify(w));
  const any = charts[0] || own[0];
  const query = new URLSearchParams({ run, dark: dark(any.host) ? "1" : "0", charts: JSON.stringify(wanted), controls: knownTag(run) });
  const answer = await fetch(`${any.data.base}/pulse?${query}`, { cache: "no-store" });
  if (!answer.ok) {
    if (answer.status >= 500) throw new Error(answer.statusText);
    return 3000;
  }
  const pulse = await answer.json();
  if (pulse.status) know(run, pulse.status, pulse.controls);
  let waits = 0;
  for (const sub of own) {
    if (sub.data.kind === "progress" && pulse.status) progressed(sub, pulse.status);
    if (sub.absent !== undefined && pulse.status) absent(sub, pulse.status);
    if (sub.data.topic && pulse.tags && changed(sub, pulse.tags[sub.data.topic], waits)) waits += 300;
  }
  if (charts.length) await plotlyReady(any.data.plotly);
  for (const [i, sub] of charts.entries()) {
    const drawn = pulse.charts[i];
    if (!drawn || JSON.stringify([sub.data.name, timed(sub), sub.tag]) !== asked[i]) continue;
    const first = !sub.tag;
    sub.tag = drawn.tag;
    try { DRAW[sub.data.kind](sub, drawn); } catch (error) { console.error(error); }
    if (first) await new Promise((go) => setTimeout(go)); // a new page shows its first chart before it draws its last
  }
  return pulse.next;
}

function timed(sub) {
  const step = sub.data.kind === "chart" && sub.data.group ? momentOf(sub.data.group) : null;
  return step === null ? sub.data.args : { ...sub.data.args, step };
}

// Ask for a fragment to be drawn again; several at once are spread out, since the server drops all but the last.
function changed(sub, tag, wait) {
  const now = performance.now();
  if (!tag || tag === sub.data.drawn || (tag === sub.fired && now < sub.patience)) return false;
  sub.fired = tag;
  sub.patience = now + 3000 + wait;
  setTimeout(() => { if (sub.data.drawn !== tag) sub.trigger("changed", tag); }, wait);
  return true;
}

// What is on the page.

const BUILD = {
  chart(sub) {
    if (!sub.plot) {
      sub.title = child(sub.host, "ms-title");
      sub.plot = child(sub.host, "ms-plot");
      sub.caption = child(sub.host, "ms-caption");
      sub.plot.classList.add("ms-empty", "ms-waiting");
      sub.plot.textContent = "Drawing …";
    }
    sub.title.textContent = sub.data.title || "";
    sub.title.hidden = !sub.data.title;
    sub.plot.style.height = `${sub.data.height}px`;
    sub.plot.setAttribute("role", "img");
    theme(sub.host);
  },
  scrub(sub) {
    theme(sub.host);
    if (sub.slider) return;
    const row = child(sub.host, "ms-scrub");
    row.hidden = true;
    sub.row = row;
    const label = document.createElement("label");
    label.textContent = "Time";
    sub.slider = document.createElement("input");
    sub.slider.type = "range";
    sub.slider.setAttribute("aria-label", "step of the measurement");
    sub.words = document.createElement("output");
    sub.latest = document.createElement("button");
    sub.latest.textContent = "Follow latest";
    row.append(label, sub.slider, sub.words, sub.latest);
    sub.slider.addEventListener("input", () => scrubTo(sub, Number(sub.slider.value)));
    sub.latest.addEventListener("click", () => scrubTo(sub, sub.steps.length - 1));
  },
  ...CONTROLS,
  steering(sub) {
    sub.probesHere = () => probesHere(sub.data.run, sub.data.probes);
    CONTROLS.steering(sub);
    confirm(sub.data.received);
    through((entries) => sub.trigger("sent", entries));
  },
  progress(sub) {
    theme(sub.host);
    if (!sub.line) {
      sub.line = child(sub.host, "ms-progress");
      sub.cancel = pressable("Cancel", () => request(sub.data.run, { do: "cancel", probe: sub.data.probe }));
      sub.words = sub.line.appendChild(element("span"));
      sub.line.append(sub.cancel);
    }
    sub.words.textContent = sub.data.words;
    sub.cancel.hidden = !sub.data.busy;
  },
  watch(sub) { sub.host.classList.add("ms-watch"); },
};

const DRAW = {
  chart(sub, drawn) {
    sub.caption.textContent = drawn.caption;
    sub.plot.classList.remove("ms-waiting");
    if (!drawn.figure) {
      if (sub.drawn) window.Plotly.purge(sub.plot);
      sub.drawn = sub.turned = false;
      sub.figure = null;
      sub.plot.classList.add("ms-empty");
      sub.plot.style.height = "auto";
      sub.absent = drawn.empty;
      sub.said = "";
      absent(sub, sub.status);
      return;
    }
    sub.absent = undefined;
    if (!sub.drawn) { sub.plot.classList.remove("ms-empty"); sub.plot.textContent = ""; }
    sub.plot.style.height = `${sub.data.height}px`;
    const layout = drawn.figure.layout;
    layout.uirevision = `${sub.data.run} ${layout.uirevision}`;
    layout.autosize = true;
    sub.drawn = true;
    sub.plot.setAttribute("aria-label", `${sub.data.title || sub.data.name}: ${drawn.caption}`);
    sub.figure = drawn.figure;
    if (sub.data.link) link(sub);
    else window.Plotly.react(sub.plot, drawn.figure.data, layout, CONFIG);
  },
  scrub(sub, drawn) {
    sub.steps = drawn.steps;
    sub.row.hidden = drawn.steps.length < 2;
    sub.slider.max = drawn.steps.length - 1;
    scrubWords(sub);
  },
};

// How far a measurement is; while it is under way it can be cancelled.
function progressed(sub, status) {
  sub.words.textContent = status.progress[sub.data.probe] || sub.data.usual;
  sub.cancel.hidden = !status.busy.includes(sub.data.probe);
}

// What stands in the place of a figure, in one line: what is missing, how far that is, and the button that makes it.
function absent(sub, status) {
  sub.status = status;
  const probe = ((sub.data.args.names || [])[0] || "").split("/")[0], run = sub.data.run;
  const words = status && status.progress[probe], makes = sub.absent.includes("Measure now") && measurable(run, probe);
  const said = JSON.stringify([sub.absent, words, makes]);
  if (sub.said === said) return;
  sub.said = said;
  const line = [element("span", "", sub.absent)];
  if (words) line.push(element("span", "ms-progress", words));
  if (makes) line.push(pressable("Measure now", () => request(run, { do: "measure", probe })));
  sub.plot.replaceChildren(...line);
}

// Whether the page may ask for a measurement with a probe.
function measurable(run, probe) {
  const steering = [...subs.values()].find((sub) => sub.data.kind === "steering" && sub.data.run === run);
  return Boolean(steering && steering.data.probes.includes(probe) && mayMeasure(run));
}

// Surfaces of one link have one scale, and what is done to the view of one is done to all.
function link(sub) {
  const log = sub.figure.layout.meta.log;
  const alike = linked(sub).filter((other) => other.figure.layout.meta.log === log);
  const spans = alike.map((other) => other.figure.layout.meta.span);
  const low = Math.min(...spans.map((s) => s[0])), high = Math.max(...spans.map((s) => s[1]));
  for (const other of alike) {
    if (other === sub || other.low !== low || other.high !== high) scaled(other, low, high);
  }
  if (sub.turned || !sub.figure.layout.scene) return;
  sub.turned = true;
  // A plot that is turned because another was says so as well, late and with a camera of before: only the hand counts.
  for (const event of ["pointerdown", "wheel"]) sub.plot.addEventListener(event, () => { hand = sub; }, { capture: true, passive: true });
  for (const event of ["plotly_relayouting", "plotly_relayout"]) sub.plot.on(event, (change) => turn(sub, change["scene.camera"]));
}

function linked(sub) {
  return [...subs.values()].filter((other) => other.figure && other.data.link === sub.data.link);
}

function scaled(sub, low, high) {
  Object.assign(sub, { low, high });
  const data = sub.figure.data.map((trace) => {
    if (trace.type === "contour") return { ...trace, zmin: low, zmax: high, contours: { ...trace.contours, ...levels(low, high) } };
    if (trace.type === "surface") return { ...trace, cmin: low, cmax: high };
    return trace.marker && "cmin" in trace.marker ? { ...trace, marker: { ...trace.marker, cmin: low, cmax: high } } : trace;
  });
  const { scene, ...layout } = sub.figure.layout, room = 0.04 * (high - low), camera = cameras.get(sub.data.link);
  if (scene) layout.scene = { ...scene, zaxis: { ...scene.zaxis, range: [low - room, high + room] }, camera: camera || scene.camera };
  window.Plotly.react(sub.plot, data, layout, CONFIG);
}

// The same round levels as `levels` in app/figures/surface.py.
function levels(low, high) {
  const rough = (high - low) / 20;
  if (!(rough > 0)) return { start: high, end: high, size: 1 };
  const decade = 10 ** Math.floor(Math.log10(rough));
  const size = decade * [1, 2, 2.5, 5, 10].find((step) => step * decade >= rough * 0.999);
  return { start: Math.ceil(low / size + 0.5) * size, end: high, size };
}

function turn(sub, camera) {
  if (!camera || hand !== sub || JSON.stringify(camera) === JSON.stringify(cameras.get(sub.data.link))) return;
  cameras.set(sub.data.link, JSON.parse(JSON.stringify(camera)));
  if (sub.turning) return;
  sub.turning = true;
  requestAnimationFrame(() => {
    sub.turning = false;
    const now = cameras.get(sub.data.link);
    for (const other of linked(sub)) {
      if (other !== sub && other.figure.layout.scene) window.Plotly.relayout(other.plot, { "scene.camera": now });
    }
  });
}

function scrubTo(sub, place) {
  show(sub.data.group, place >= sub.steps.length - 1 ? null : sub.steps[place]);
}

onMoment((group) => {
  for (const sub of subs.values()) {
    if (!sub.data.group || (group !== null && sub.data.group !== group)) continue;
    if (sub.data.kind === "chart") sub.tag = "";
    if (sub.data.kind === "scrub" && sub.steps) scrubWords(sub);
  }
  soon(0);
});

// The slider stands at the newest measurement that is not after the moment shown.
function scrubWords(sub) {
  const moment = momentOf(sub.data.group);
  const place = moment === null ? sub.steps.length - 1 : Math.max(sub.steps.findLastIndex((step) => step <= moment), 0);
  const step = sub.steps[place];
  sub.slider.value = place;
  sub.words.textContent = step === undefined ? "" : `step ${step.toLocaleString("en")} (${place + 1} of ${sub.steps.length})`;
  sub.latest.disabled = moment === null;
}

// The probes whose measurements are on the page.
function probesHere(run, known) {
  const names = [...subs.values()].filter((sub) => sub.data.run === run && sub.data.group && sub.data.kind === "chart").flatMap((sub) => sub.data.args.names || []);
  const found = new Set(names.map((name) => name.split("/")[0]));
  return known.filter((probe) => found.has(probe));
}

// The library is there before the first chart: fetched at once where one is waiting, when the page is idle elsewhere.
function ahead(data) {
  if (plotly) return;
  const fetched = () => plotlyReady(data.plotly).catch(() => {});
  if (data.name && data.kind === "chart") fetched();
  else (window.requestIdleCallback || setTimeout)(fetched);
}

function plotlyReady(url) {
  plotly ??= new Promise((resolve, reject) => {
    if (window.Plotly) return resolve();
    const script = document.createElement("script");
    script.src = url;
    script.onload = resolve;
    script.onerror = () => { plotly = null; reject(new Error("plotly.js could not be loaded")); };
    document.head.append(script);
  });
  return plotly;
}
