// What people read: numbers with units, and elements made from text alone (whatever a peer calls itself stays text).

// h makes an element: h("p", {class: "hint", onclick: f}, "text", child, ...).
export function h(tag, props = {}, ...children) {
  const e = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) e.addEventListener(key.slice(2), value);
    else e.setAttribute(key, value === true ? "" : value);
  }
  e.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return e;
}

const units = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];

// count writes 12,345 as "12.3 k".
export function count(n) {
  for (const [size, unit] of units) {
    if (n >= size * 9.995) return `${(n / size).toFixed(n < size * 100 ? 1 : 0)} ${unit}`;
  }
  return n < 10 && !Number.isInteger(n) ? n.toFixed(1) : Math.round(n).toLocaleString("en");
}

// bytes writes powers of 1,024.
export function bytes(n) {
  const names = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  while (n >= 1024 && i < names.length - 1) {
    n /= 1024;
    i++;
  }
  return `${n < 10 && i > 0 ? n.toFixed(1) : Math.round(n)} ${names[i]}`;
}

// millis writes a duration given in milliseconds.
export function millis(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1) return `${Math.round(ms * 1000)} µs`;
  if (ms < 1000) return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
  return `${(ms / 1000).toFixed(1)} s`;
}

// span writes seconds as days, hours, minutes: the two largest that say something.
export function span(s) {
  const parts = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const out = [];
  for (const [unit, size] of parts) {
    const n = Math.floor(s / size);
    if (n > 0 || (unit === "s" && out.length === 0)) {
      out.push(`${n} ${unit}`);
      s -= n * size;
    } else if (out.length) break;
    if (out.length === 2) break;
  }
  return out.join(" ");
}

// shortPeer keeps the ends of a peer ID, the part in which they differ.
export function shortPeer(id) {
  return id.length > 18 ? `${id.slice(0, 8)}…${id.slice(-6)}` : id;
}

// pill is a state as a coloured word.
export function pill(word, kind) {
  return h("span", { class: `pill pill-${kind}` }, word);
}

// meter is a bar of a share between 0 and 1.
export function meter(share, kind = "") {
  const fill = h("i");
  fill.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return h("div", { class: `meter ${kind}`, "aria-hidden": "true" }, fill);
}

// copyable is a text with a button that copies it.
export function copyable(text, shown = text) {
  const button = h("button", { type: "button", class: "copy", "aria-label": `copy ${text}` }, "copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {
      button.textContent = "not allowed";
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  return h("div", { class: "line" }, h("span", { class: "mono" }, shown), button);
}
