// What a person has asked for on this page and the server has not confirmed yet.
//
// Only a person's own click or entry puts something here. It is handed to the server again and again until that says
// that it has it, also after the page was loaded anew; the server obeys each token once. So what is asked for is sent
// exactly once, whatever the page or the network does meanwhile.

const KEPT = "modalscape-outbox";
const AGAIN = 2000, PATIENCE = 45000;

let waiting = restored(), post = null, timer = 0, delivered = 0;
const listeners = new Set();

// Have `heard(run)` called whenever what waits for a run has changed.
export function listen(heard) { listeners.add(heard); }

export function ask(run, act) {
  waiting.push({ token: crypto.getRandomValues(new Uint32Array(4)).join("-"), run, act, at: Date.now() });
  changed([run]);
  deliver();
}

// What waits for a run, oldest first.
export function asked(run) { return waiting.filter((entry) => entry.run === run && !entry.lost).map((entry) => entry.act); }

// What the server has not confirmed in time and is not handed over any more.
export function lost(run) { return waiting.filter((entry) => entry.run === run && entry.lost).map((entry) => entry.act); }

// Deliver through `send(entries)` from now on.
export function through(send) {
  post = send;
  if (Date.now() - delivered > AGAIN) deliver();
}

export function confirm(tokens) {
  const known = new Set(tokens), gone = waiting.filter((entry) => known.has(entry.token));
  if (!gone.length) return;
  waiting = waiting.filter((entry) => !known.has(entry.token));
  changed(gone.map((entry) => entry.run));
}

export function forget(run) {
  waiting = waiting.filter((entry) => entry.run !== run || !entry.lost);
  changed([run]);
}

function deliver() {
  clearTimeout(timer);
  const late = waiting.filter((entry) => !entry.lost && Date.now() - entry.at > PATIENCE);
  for (const entry of late) entry.lost = true;
  if (late.length) changed(late.map((entry) => entry.run));
  const due = waiting.filter((entry) => !entry.lost);
  if (!due.length) return;
  if (post) {
    delivered = Date.now();
    post(due.map(({ token, run, act }) => ({ token, run, act })));
  }
  timer = setTimeout(deliver, AGAIN);
}

function changed(runs) {
  try { sessionStorage.setItem(KEPT, JSON.stringify(waiting)); } catch { /* a browser without storage forgets at a reload */ }
  for (const run of new Set(runs)) for (const heard of listeners) heard(run);
}

function restored() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT) || "[]");
    return kept.filter((entry) => !entry.lost);
  } catch { return []; }
}
