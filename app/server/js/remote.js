// The remote control of a run: how fast it goes, and which moment of it the charts show.

import { child, element, icon } from "./dom.js";
import { ask, asked } from "./outbox.js";
import { momentOf, onMoment, show } from "./time.js";

const RATES = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 0];

const worded = (rate) => (rate ? `${rate} step${rate === 1 ? "" : "s"}/s` : "full speed");

// A row with a slider, what it stands at in words, and a button that takes it to its end.
function sliderRow(host, name, about, words, end, symbol) {
  const row = child(host, "ms-remote"), field = element("input", "ms-range"), value = element("output", "ms-value");
  const button = element("button", "ms-button", icon(symbol));
  Object.assign(field, { type: "range", title: about });
  field.setAttribute("aria-label", words);
  Object.assign(button, { type: "button", title: end });
  button.setAttribute("aria-label", end);
  row.append(element("span", "ms-name", name), field, value, button);
  return [row, field, value, button];
}

// A slider from a step a second to full speed; it sends where it is let go.
export function pace(host, run) {
  const [row, field, words, full] = sliderRow(host, "Pace", "Steps a second, at most", "pace in steps a second", "Full speed", "fast_forward");
  Object.assign(field, { min: 0, max: RATES.length - 1, step: 1 });
  let drawn = 0, held = false;
  const send = (rate) => { if (rate !== drawn) ask(run, { do: "pace", rate }); };
  field.addEventListener("input", () => { held = true; words.textContent = worded(RATES[Number(field.value)]); });
  field.addEventListener("change", () => { held = false; send(RATES[Number(field.value)]); });
  full.addEventListener("click", () => send(0));
  return (controls) => {
    const mine = asked(run).findLast((act) => act.do === "pace");
    drawn = mine ? mine.rate : controls.asked.pace ?? controls.pace ?? 0;
    row.hidden = controls.over || !controls.ready;
    full.disabled = drawn === 0;
    if (held) return;
    field.value = drawn ? nearest(drawn) : RATES.length - 1;
    words.textContent = worded(drawn);
  };
}

function nearest(rate) {
  const far = RATES.slice(0, -1).map((known) => Math.abs(Math.log(known / rate)));
  return far.indexOf(Math.min(...far));
}

// A slider over the steps of which the state was kept; what can be done with such a step stands below it.
export function time(host, run, probesHere) {
  const [row, field, words, newest] = sliderRow(host, "Time", "Step that the charts show", "step that the charts show", "Follow the newest step", "last_page");
  const below = child(host, "ms-then"), here = below.appendChild(element("button", "ms-button", icon("straighten"), " Measure here"));
  here.type = "button";
  const apart = below.appendChild(element("button", "ms-button", icon("fork_right"), " Fork here"));
  apart.type = "button";
  apart.title = "A new run that has this one's first steps and then goes its own way";
  let kept = [];
  const at = () => momentOf(null);
  const redraw = () => {
    const step = at(), place = step === null ? kept.length : kept.findIndex((known) => known >= step);
    Object.assign(field, { min: 0, max: kept.length, step: 1 });
    field.value = place < 0 ? kept.length : place;
    words.textContent = step === null ? "newest" : `step ${step.toLocaleString("en")}`;
    newest.disabled = step === null;
    row.hidden = kept.length < 2;
    below.hidden = step === null;
    const probes = probesHere();
    here.disabled = !probes.length;
    here.title = probes.length ? `Measure ${probes.join(", ")} at this step` : "No measurement is shown on this page";
  };
  field.addEventListener("input", () => { const step = kept[Number(field.value)]; show(null, step ?? null); });
  newest.addEventListener("click", () => show(null, null));
  here.addEventListener("click", () => { for (const probe of probesHere()) ask(run, { do: "measure", probe, step: at() }); });
  apart.addEventListener("click", () => { ask(run, { do: "fork", step: at() }); show(null, null); });
  onMoment(redraw);
  return (controls) => { kept = controls.kept || []; apart.hidden = !controls.forks; redraw(); };
}
