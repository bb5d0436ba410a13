// Small things that every part of the page is made of.

export function element(tag, name, ...content) {
  const made = document.createElement(tag);
  made.className = name;
  made.append(...content);
  return made;
}

export function child(host, name) { return host.appendChild(element("div", name)); }

export function icon(name) {
  const made = element("span", "ms-icon", name);
  made.setAttribute("aria-hidden", "true");
  return made;
}

export function dark(host) {
  const colour = getComputedStyle(host).getPropertyValue("--st-background-color").trim();
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = colour || "#fff";
  const hex = probe.fillStyle;
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b < 128;
}

export function theme(host) {
  const night = dark(host);
  host.style.setProperty("--ms-line", night ? "#2C3542" : "#DDE2EA");
  host.style.setProperty("--ms-quiet", night ? "#94A0B0" : "#5F6C7B");
  host.style.setProperty("--ms-bad", night ? "#FF8787" : "#C92A2A");
  host.style.setProperty("--ms-off", night ? "#46505E" : "#C4CAD3");
}

export function span(seconds) {
  const whole = Math.max(1, Math.round(seconds)), minutes = Math.round(seconds / 60);
  if (whole < 60) return `${whole} s`;
  if (minutes < 60) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

// A question mark that says its text in a box beside the pointer; nothing without a text.
export function help(text) {
  if (!text) return "";
  const mark = element("button", "ms-help", icon("help"));
  mark.type = "button";
  mark.setAttribute("aria-label", text);
  mark.addEventListener("mouseenter", () => hint(mark, text));
  mark.addEventListener("focus", () => hint(mark, text));
  for (const leave of ["mouseleave", "blur", "click"]) mark.addEventListener(leave, () => hint(null));
  return mark;
}

let box = null;

function hint(mark, text) {
  box?.remove();
  box = null;
  if (!mark) return;
  box = document.body.appendChild(element("div", "ms-hint", text));
  const at = mark.getBoundingClientRect(), own = box.getBoundingClientRect();
  const above = at.top - own.height - 6;
  box.style.top = `${above > 4 ? above : at.bottom + 6}px`;
  box.style.left = `${Math.max(6, Math.min(at.left + at.width / 2 - own.width / 2, innerWidth - own.width - 6))}px`;
}

// The style sheet is there before anything is drawn with it.
export const styled = new Promise((ready) => {
  if (document.getElementById("ms-style")) return ready();
  const sheet = document.createElement("link");
  sheet.id = "ms-style";
  sheet.rel = "stylesheet";
  sheet.href = new URL("./live.css", import.meta.url).href;
  sheet.onload = sheet.onerror = () => ready();
  document.head.append(sheet);
});
