// The moment that charts show: the newest, or an earlier step that a slider was moved to.

const moments = new Map();
const listeners = new Set();

// Have `heard(group)` called whenever the moment of a group has changed; null is every group.
export function onMoment(heard) { listeners.add(heard); }

// The step that charts of a group show, or null where they follow the run.
export function momentOf(group) { return moments.get(group) ?? moments.get(null) ?? null; }

// Show a step in the charts of a group, or in all for null; a step of null follows the run.
export function show(group, step) {
  if (group === null) moments.clear();
  if (step === null) moments.delete(group); else moments.set(group, step);
  for (const heard of listeners) heard(group);
}
