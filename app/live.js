// One hub a page: every chart, panel and watch subscribes to it, and it asks the server once a tick for all of them.

const STYLE = `
.ms-title { font-weight: 600; font-size: 0.93rem; margin: 0 0 0.15rem 0; min-height: 1.3em; }
.ms-plot { width: 100%; position: relative; }
.ms-empty { display: flex; flex-direction: column; gap: 0.35rem; align-items: center; justify-content: center; text-align: center; padding: 0 2rem;
  border: 1px dashed var(--ms-line); border-radius: 6px; color: var(--ms-quiet); font-size: 0.92rem; line-height: 1.5; }
.ms-waiting { animation: ms-come 0.3s 0.7s backwards; }
@keyframes ms-come { from { opacity: 0; } }
.ms-caption { color: var(--ms-quiet); font-size: 0.8rem; line-height: 1.35; margin-top: 0.2rem; min-height: 1.1em;
  font-variant-numeric: tabular-nums; }
.ms-scrub { display: flex; align-items: center; gap: 0.75rem; font-size: 0.85rem; color: var(--ms-quiet);
  font-variant-numeric: tabular-nums; }
.ms-scrub input { flex: 1; min-width: 6rem; accent-color: var(--st-primary-color); }
.ms-scrub output { min-width: 13rem; }
.ms-scrub button, .ms-button { font: inherit; color: inherit; background: none; border: 1px solid var(--ms-line);
  border-radius: 6px; padding: 0.1rem 0.6rem; cursor: pointer; }
.ms-scrub button:disabled { opacity: 0.45; cursor: default; }
.ms-panel { font-size: 0.87rem; line-height: 1.45; font-variant-numeric: tabular-nums; }
.ms-row { display: flex; justify-content: space-between; align-items: baseline; gap: 0.5rem; }
.ms-row span { white-space: nowrap; }
.ms-state { display: inline-flex; align-items: center; gap: 0.45rem; font-weight: 600; }
.ms-dot { width: 0.6rem; height: 0.6rem; border-radius: 50%; background: var(--ms-tone); flex: none; }
.ms-track { height: 5px; border-radius: 3px; background: var(--ms-line); margin: 0.4rem 0 0.35rem; overflow: hidden; }
.ms-bar { height: 100%; background: var(--ms-tone); transition: width 0.3s linear; }
.ms-quiet { color: var(--ms-quiet); }
.ms-error { margin-top: 0.4rem; padding: 0.4rem 0.55rem; border-left: 3px solid var(--ms-bad); overflow-wrap: anywhere;
  background: color-mix(in srgb, var(--ms-bad) 9%, transparent); border-radius: 0 6px 6px 0; }
.ms-outlook { color: var(--ms-quiet); font-size: 0.82rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
.ms-watch { display: none; }
`;

const TONES = {
  running: "#2B8A3E", starting: "#2F6FDE", queued: "#2F6FDE", paused: "#C77700", stopping: "#C77700",
  finished: "#5B6B7C", stopped: "#5B6B7C", failed: "#D6336C", crashed: "#D6336C", stalled: "#D6336C",
};
const CONFIG = {
  responsive: true, displaylogo: false, scrollZoom: "gl3d",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "hoverClosestCartesian", "hoverCompareCartesian", "toggleSpikelines", "hoverClosest3d", "resetCameraLastSave3d", "tableRotation"],
};
const NUDGED = 4000;

const subs = new Map();
const groups = new Map();
const cameras = new Map();
let timer = 0, busy = false, again = false, hurryUntil = 0, lost = 0, plotly = null;

export function mount({ key, data, parentElement, setTriggerValue }) {
  style();
  let sub = subs.get(key);
  if (!sub || sub.host !== parentElement) {
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
  if (redrawn) hurryUntil = performance.now() + NUDGED;
  soon(redrawn || !sub.tag ? 0 : 1000);
}

export function unmount(key) {
  for (const [k, sub] of subs) {
    if (k !== key || sub.host.isConnected) continue;
    if (sub.plot && window.Plotly) window.Plotly.purge(sub.plot);
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
    if (lost > 1) for (const sub of subs.values()) if (sub.data.kind === "panel") disconnected(sub);
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
  const query = new URLSearchParams({ run, dark: dark(any.host) ? "1" : "0", charts: JSON.stringify(wanted) });
  const answer = await fetch(`${any.data.base}/pulse?${query}`, { cache: "no-store" });
  if (!answer.ok) {
    if (answer.status >= 500) throw new Error(answer.statusText);
    return 3000;
  }
  const pulse = await answer.json();
  let waits = 0;
  for (const sub of own) {
    if (sub.data.kind === "panel" && pulse.status) panel(sub, pulse.status);
    if (sub.data.kind === "outlook" && pulse.status) sub.line.textContent = pulse.status.outlook[sub.data.probe] || sub.data.usual;
    if (sub.absent !== undefined && pulse.status) absent(sub, pulse.status);
    if (sub.data.topic && pulse.tags && changed(sub, pulse.tags[sub.data.topic], waits)) waits += 300;
  }
  if (charts.length) await plotlyReady(any.data.plotly);
  charts.forEach((sub, i) => {
    const drawn = pulse.charts[i];
    if (!drawn || JSON.stringify([sub.data.name, timed(sub), sub.tag]) !== asked[i]) return;
    sub.tag = drawn.tag;
    try { DRAW[sub.data.kind](sub, drawn); } catch (error) { console.error(error); }
  });
  return pulse.next;
}

function timed(sub) {
  const step = sub.data.kind === "chart" && sub.data.group ? groups.get(sub.data.group) : undefined;
  return step === undefined || step === null ? sub.data.args : { ...sub.data.args, step };
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
  panel(sub) {
    if (!sub.box) sub.box = child(sub.host, "ms-panel");
    theme(sub.host);
    panel(sub, sub.data.status);
  },
  outlook(sub) {
    if (!sub.line) sub.line = child(sub.host, "ms-outlook");
    theme(sub.host);
    sub.line.textContent = sub.data.words;
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
      sub.plot.style.height = `${Math.min(sub.data.height, 150)}px`;
      sub.absent = drawn.empty;
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
    const following = groups.get(sub.data.group) == null;
    sub.steps = drawn.steps;
    sub.row.hidden = drawn.steps.length < 2;
    sub.slider.max = drawn.steps.length - 1;
    if (following) sub.slider.value = drawn.steps.length - 1;
    scrubWords(sub);
  },
};

// What stands in the place of a figure: why there is none, and when the probe it waits for may be done.
function absent(sub, status) {
  sub.status = status;
  const probe = ((sub.data.args.names || [])[0] || "").split("/")[0];
  const waits = status && (!status.measured.includes(probe) || sub.absent.includes("Measure now"));
  const words = waits && status.outlook[probe];
  const lines = [element("div", "", sub.absent)];
  if (words) lines.push(element("div", "ms-outlook", words));
  sub.plot.replaceChildren(...lines);
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
  if (!camera || JSON.stringify(camera) === JSON.stringify(cameras.get(sub.data.link))) return;
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
  const last = place >= sub.steps.length - 1;
  groups.set(sub.data.group, last ? null : sub.steps[place]);
  sub.slider.value = place;
  scrubWords(sub);
  for (const other of subs.values()) if (other.data.group === sub.data.group && other.data.kind === "chart") other.tag = "";
  soon(0);
}

function scrubWords(sub) {
  const place = Number(sub.slider.value), following = groups.get(sub.data.group) == null;
  const step = sub.steps[place];
  sub.words.textContent = step === undefined ? "" : `step ${step.toLocaleString("en")} (${place + 1} of ${sub.steps.length})`;
  sub.latest.disabled = following;
}

function panel(sub, now) {
  const box = sub.box, share = now.steps ? Math.min(1, now.step / now.steps) : 0;
  box.style.setProperty("--ms-tone", TONES[now.state] || TONES.stopped);
  const state = element("span", "ms-state", element("span", "ms-dot"), now.word);
  const step = element("span", "ms-quiet", `step ${now.step.toLocaleString("en")}${now.steps ? ` / ${now.steps.toLocaleString("en")}` : ""}`);
  const bar = element("div", "ms-bar");
  bar.style.width = `${100 * share}%`;
  const facts = [];
  if (now.state === "running" && now.rate) facts.push(`${now.rate >= 10 ? Math.round(now.rate) : now.rate.toFixed(1)} steps/s`);
  if (now.state === "running" && now.eta !== null) facts.push(`${span(now.eta)} left`);
  if (now.activity) facts.push(now.activity);
  const lines = [element("div", "ms-row", state, step), element("div", "ms-track", bar)];
  if (facts.length || now.state === "running") lines.push(element("div", "ms-quiet", facts.join(" · ") || "\u00a0"));
  if (now.pending.length) lines.push(element("div", "ms-quiet", `requested: ${now.pending.join(", ")}`));
  if (now.error) lines.push(element("div", "ms-error", now.error));
  box.replaceChildren(...lines);
}

function disconnected(sub) {
  sub.box.replaceChildren(element("div", "ms-error", "The server does not answer; trying again. Training goes on without it."));
}

function span(seconds) {
  const whole = Math.max(1, Math.round(seconds)), minutes = Math.round(seconds / 60);
  if (whole < 60) return `${whole} s`;
  if (minutes < 60) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

// Small things.

function element(tag, name, ...content) {
  const made = document.createElement(tag);
  made.className = name;
  made.append(...content);
  return made;
}

function child(host, name) { return host.appendChild(element("div", name)); }

function style() {
  if (document.getElementById("ms-style")) return;
  const sheet = document.createElement("style");
  sheet.id = "ms-style";
  sheet.textContent = STYLE;
  document.head.append(sheet);
}

function dark(host) {
  const colour = getComputedStyle(host).getPropertyValue("--st-background-color").trim();
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = colour || "#fff";
  const hex = probe.fillStyle;
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b < 128;
}

function theme(host) {
  const night = dark(host);
  host.style.setProperty("--ms-line", night ? "#2C3542" : "#DDE2EA");
  host.style.setProperty("--ms-quiet", night ? "#94A0B0" : "#5F6C7B");
  host.style.setProperty("--ms-bad", night ? "#FF8787" : "#C92A2A");
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
