// The status page: asks the node for what /api/v1 says and draws it.
import { bytes, copyable, count, h, meter, millis, pill, shortPeer, span } from "./format.js";
import { balance, kindOf, ModelMap, models, Series, sparkline, strip } from "./charts.js";
import { Table } from "./table.js";

const statusEvery = 2000; // milliseconds; the other lists are longer and change less often
const peersEvery = 4000;
const layersEvery = 4000;
const expertsEvery = 10000;
const rowsFor = 8000; // rates of experts are taken over at least this long

const $ = (id) => document.getElementById(id);
const tokenKey = "kwaai-token";

class Locked extends Error {}

async function get(path) {
  const headers = { Accept: "application/json" };
  const token = sessionStorage.getItem(tokenKey);
  if (token) headers.Authorization = `Bearer ${token}`;
  const reply = await fetch(path, { headers, cache: "no-store", signal: AbortSignal.timeout(15000) });
  if (reply.status === 401) throw new Locked();
  const doc = await reply.json();
  if (!reply.ok) throw new Error(doc?.error?.message || reply.statusText);
  return doc;
}

// --- now ---------------------------------------------------------------------------------------------------------------

const series = { rows: new Series(), queue: new Series(), inflight: new Series(), peers: new Series(), ready: new Series() };
let last = null; // {at, rows} of the status before

function drawTiles(s, rate) {
  const tile = (label, value, unit, values, spoken) => h("div", { class: "tile" },
    h("div", { class: "label" }, label),
    h("div", { class: "value" }, value, unit && h("small", {}, unit)),
    sparkline(values, spoken));
  $("tiles").replaceChildren(
    tile("Rows computed", rate === null ? "–" : count(rate), "a second", series.rows, "rows a second, the last three minutes"),
    tile("Queue", count(s.load.queued_rows), s.load.queued_rows === 1 ? "row" : "rows", series.queue, "rows waiting, the last three minutes"),
    tile("Under way", count(s.load.inflight), s.load.inflight === 1 ? "call" : "calls", series.inflight, "calls under way, the last three minutes"),
    tile("Peers", count(s.peers), "connected", series.peers, "connected peers, the last three minutes"),
    tile("Experts ready", count(s.experts.ready), `of ${count(s.experts.hosted)}`, series.ready, "ready experts, the last three minutes"));
}

let node = "";

function drawNode(s) {
  const now = JSON.stringify([s.peer, s.swarm, s.dht, s.reachability, s.addrs, s.experts, s.memory]);
  if (now === node) return; // else nobody could select a line that is drawn anew all the time
  node = now;
  const fact = (name, ...values) => [h("dt", {}, name), h("dd", {}, ...values)];
  const full = s.addrs.map((a) => `${a}/p2p/${s.peer}`);
  const outside = full.filter((a) => !/^\/ip4\/127\.|^\/ip6\/::1\//.test(a));
  const join = (outside.length ? outside : full)[0];
  const kind = { public: "good", private: "warn" }[s.reachability] || "idle";
  const meaning = { public: "others can dial it", private: "others cannot dial it from outside" }[s.reachability] || "nobody has tried yet";
  $("node").replaceChildren(...[
    fact("Peer", copyable(s.peer)),
    fact("Swarm", `${s.swarm} `, h("span", { class: "hint" }, `DHT ${s.dht}`)),
    fact("Reachable", pill(s.reachability, kind), " ", h("span", { class: "hint" }, meaning)),
    fact("Addresses", ...(s.addrs.length ? s.addrs.map((a, i) => copyable(full[i], a)) : ["none"])),
    join ? fact("Join it", copyable(`kwaaid run --bootstrap ${join}`)) : [],
    fact("Announced", `${count(s.experts.announced)} of ${count(s.experts.ready)} ready experts`),
    fact("Weights", s.memory.budget > 0
      ? [`${bytes(s.memory.weights)} of ${bytes(s.memory.budget)}`, meter(s.memory.weights / s.memory.budget)] : [bytes(s.memory.weights)]).flat(2),
  ].flat());
}

function drawState(s) {
  const [word, kind] = s.draining ? ["draining", "warn"] : !s.ready ? ["not ready", "bad"] : s.degraded.length ? ["degraded", "warn"] : ["ready", "good"];
  if ($("state").textContent !== word) { // a live region speaks whenever it is written to
    $("state").textContent = word;
    $("state").className = `pill pill-${kind}`;
  }
  $("subtitle").textContent = `swarm ${s.swarm} · ${s.version} · up ${span(s.uptime_s)}`;
  document.title = `${word} · ${s.swarm} · kwaaid`;
  drawAlerts([
    s.draining && ["warn", "Draining", "this node takes no new calls and stops soon"],
    ...s.degraded.map((why) => [s.ready ? "warn" : "bad", s.ready ? "Degraded" : "Not ready", why]),
  ].filter(Boolean));
}

let alerts = "";

function drawAlerts(list) {
  const now = JSON.stringify(list);
  if (now === alerts) return;
  alerts = now;
  $("alerts").hidden = list.length === 0;
  $("alerts").replaceChildren(...list.map(([kind, title, text]) => h("div", { class: `alert alert-${kind}` }, h("strong", {}, title), h("span", {}, text))));
}

let called = "";

function drawCalls(s) {
  const now = JSON.stringify([s.calls, s.resting]);
  if (now === called) return;
  called = now;
  const c = s.calls;
  const fact = (name, ...values) => [h("dt", {}, name), h("dd", {}, ...values)];
  const hint = (text) => h("span", { class: "hint" }, ` ${text}`);
  const share = (n, of) => (n > 0 && of > 0 ? (n / of < 0.001 ? "under 0.1 %" : `${((100 * n) / of).toFixed(1)} %`) : "");
  const shown = s.resting.slice(0, 7);
  $("calls").replaceChildren(...[
    fact("Calls", count(c.calls), hint("one for each expert asked")),
    fact("Failed", count(c.failed), hint(share(c.failed, c.calls))),
    fact("By fallbacks", count(c.fallbacks), hint(share(c.fallbacks, c.calls))),
    fact("Attempts", count(c.attempts), hint(c.calls > 0 ? `${(c.attempts / c.calls).toFixed(2)} a call` : "")),
    fact("Hedges", count(c.hedges), hint([share(c.hedges, c.calls), c.hedges_refused > 0 && `${count(c.hedges_refused)} refused`].filter(Boolean).join(", "))),
    fact("Pings missed", count(c.pings_missed)),
    fact("Left out", ...(shown.length ? shown.map((r) => h("div", {}, h("span", { class: "mono", title: r.peer }, shortPeer(r.peer)), " ",
      pill(r.why, r.why === "full" || r.why === "draining" ? "warn" : "bad"), r.seconds ? hint(`asked again in ${span(Math.ceil(r.seconds))}`) : "")) : ["nobody"])),
    s.resting.length > shown.length ? fact("", `and ${s.resting.length - shown.length} others`) : [],
  ].flat());
}

let counted = "";

async function showStatus() {
  const s = await get("/api/v1/status");
  const at = performance.now();
  s.degraded ||= [];
  s.addrs ||= [];
  const rows = s.load.rows;
  const rate = last && rows >= last.rows ? ((rows - last.rows) * 1000) / (at - last.at) : null;
  last = { at, rows };
  if (rate !== null) series.rows.push(rate);
  series.queue.push(s.load.queued_rows);
  series.inflight.push(s.load.inflight);
  series.peers.push(s.peers);
  series.ready.push(s.experts.ready);
  drawState(s);
  drawTiles(s, rate);
  drawNode(s);
  drawCalls(s);
  const now = JSON.stringify([s.experts, s.peers]);
  if (counted && now !== counted) loops.experts.soon();
  counted = now;
  $("footer").textContent = `peer ${shortPeer(s.peer)}`;
}

// --- peers -------------------------------------------------------------------------------------------------------------

function trouble(p) {
  if (p.resting) return p.resting_s ? `${p.resting}, asked again in ${span(Math.ceil(p.resting_s))}` : p.resting;
  return "";
}

const breakerKind = { closed: "good", "half-open": "warn", open: "bad" };

const peersTable = new Table($("peers"), {
  title: "Who is there",
  id: "peers-title",
  noun: "peers",
  empty: "No peer is connected. Others join with the line above.",
  text: (p) => `${p.peer} ${p.addrs.join(" ")} ${p.agent || ""} ${p.breaker} ${trouble(p)}`,
  filters: [
    { title: "all", keep: () => true },
    { title: "with experts", keep: (p) => p.experts > 0 },
    { title: "in trouble", keep: (p) => p.breaker !== "closed" || p.resting },
  ],
  columns: [
    { title: "Peer", class: "name", value: (p) => p.peer, cell: (p) => [h("div", { class: "mono", title: p.peer }, shortPeer(p.peer)), h("div", { class: "sub" }, p.addrs[0] || "")] },
    { title: "Round trip", num: true, value: (p) => p.rtt_ms, cell: (p) => millis(p.rtt_ms) },
    { title: "Answers in", num: true, first: "descending", value: (p) => p.latency_ms, cell: (p) => millis(p.latency_ms) },
    { title: "Went well", first: "ascending", value: (p) => p.success, cell: (p) => [meter(p.success, p.success < 0.9 ? "out" : ""), `${Math.round(p.success * 100)} %`] },
    { title: "Experts", num: true, first: "descending", value: (p) => p.experts, cell: (p) => count(p.experts) },
    { title: "Queue", num: true, first: "descending", value: (p) => p.queued_rows || 0, cell: (p) => count(p.queued_rows || 0) },
    { title: "Breaker", value: (p) => p.breaker, cell: (p) => [pill(p.breaker, breakerKind[p.breaker] || "idle"), trouble(p) && h("div", { class: "sub" }, trouble(p))] },
  ],
});

function drawSlow(peers) {
  const time = (p) => p.latency_ms ?? p.rtt_ms;
  const known = peers.filter((p) => time(p) !== null && time(p) !== undefined).sort((a, b) => time(b) - time(a));
  const out = peers.filter((p) => p.breaker === "open" && !known.includes(p));
  const list = [...out, ...known].slice(0, 7);
  if (list.length === 0) {
    $("slow").replaceChildren(h("li", { class: "empty" }, peers.length ? "Nobody was asked yet." : "No peer is connected."));
    return;
  }
  const most = Math.max(...known.map(time), 1e-6);
  const middle = known.length ? time(known[Math.floor(known.length / 2)]) : 0;
  $("slow").replaceChildren(...list.map((p) => {
    const t = time(p);
    const kind = p.breaker === "open" ? "out" : t > 3 * middle ? "slow" : "";
    const note = p.breaker === "open" ? "left out" : p.latency_ms === undefined || p.latency_ms === null ? "ping" : "";
    return h("li", {},
      h("span", { class: "mono", title: p.peer }, shortPeer(p.peer)),
      h("span", { class: "num" }, note && h("span", { class: "hint" }, `${note}  `), millis(t)),
      meter(p.breaker === "open" ? 1 : t / most, kind));
  }));
}

async function showPeers() {
  const peers = await get("/api/v1/peers");
  peers.forEach((p) => { p.addrs ||= []; });
  peersTable.show(peers);
  drawSlow(peers);
}

// --- experts -----------------------------------------------------------------------------------------------------------

let before = null; // {at, rows: Map of expert to rows, rates: Map}

function rates(experts) {
  const at = performance.now();
  if (before && at - before.at < rowsFor) return before.rates;
  const now = new Map(experts.filter((e) => e.where === "local").map((e) => [e.expert, e.rows || 0]));
  const found = new Map();
  if (before) {
    for (const [id, n] of now) {
      const was = before.rows.get(id);
      if (was !== undefined && n >= was) found.set(id, ((n - was) * 1000) / (at - before.at));
    }
  }
  before = { at, rows: now, rates: found };
  return found;
}

let rate = new Map();
const stateKind = { ready: "good", loading: "warn", draining: "warn", failed: "bad" };

const expertsTable = new Table($("experts"), {
  title: "Experts",
  id: "experts-title",
  noun: "experts",
  empty: "No expert is known here yet.",
  text: (e) => `${e.name || ""} ${e.expert} ${e.kind} ${e.dtype} ${e.state} ${e.where} ${e.error || ""}`,
  filters: [
    { title: "all", keep: () => true },
    { title: "here", keep: (e) => e.where === "local" },
    { title: "elsewhere", keep: (e) => e.where !== "local" },
    { title: "not ready", keep: (e) => e.state !== "ready" },
  ],
  columns: [
    { title: "Expert", class: "name", value: (e) => e.name || e.expert, cell: (e) => e.name
      ? [h("div", {}, e.name), h("div", { class: "sub mono" }, e.expert)] : h("div", { class: "mono" }, e.expert) },
    { title: "Kind", value: (e) => e.kind, cell: (e) => [e.kind || "–", " ", h("span", { class: "sub" }, e.dtype || "")] },
    { title: "Size", num: true, first: "descending", value: (e) => e.hidden * (e.inner || 1), cell: (e) => e.hidden ? (e.inner ? `${e.hidden} × ${e.inner}` : String(e.hidden)) : "–" },
    { title: "Where", value: (e) => e.where, cell: (e) => (e.where === "local" ? pill("here", "here") : pill("elsewhere", "idle")) },
    { title: "State", value: (e) => e.state, cell: (e) => [pill(e.state || "not known", stateKind[e.state] || "idle"), e.error && h("div", { class: "sub" }, e.error)] },
    { title: "Hosts", num: true, first: "descending", value: (e) => e.providers, cell: (e) => count(e.providers) },
    { title: "Rows a second", num: true, first: "descending", value: (e) => rate.get(e.expert) ?? null, cell: (e) => (rate.has(e.expert) ? count(rate.get(e.expert)) : "–") },
  ],
});

const maps = new Map();

function drawMaps(experts) {
  const groups = models(experts);
  $("maps-card").hidden = groups.length === 0;
  for (const [model, map] of maps) {
    if (!groups.some((g) => g.model === model)) {
      map.element.remove();
      maps.delete(model);
    }
  }
  for (const g of groups) {
    if (!maps.has(g.model)) {
      const map = new ModelMap((name) => {
        expertsTable.find(name);
        $("experts").scrollIntoView({ block: "start" });
      });
      maps.set(g.model, map);
      $("maps").append(map.element);
    }
    maps.get(g.model).draw(g);
  }
}

let known = [];
const byName = new Intl.Collator("en", { numeric: true });

async function showExperts() {
  known = await get("/api/v1/experts");
  rate = rates(known);
  // What needs a look comes first, then what is here.
  const order = { bad: 0, busy: 1, here: 2, there: 3 };
  known = known.map((e) => [order[kindOf(e)], e.name || e.expert, e]).sort((a, b) => a[0] - b[0] || byName.compare(a[1], b[1])).map(([, , e]) => e);
  expertsTable.show(known);
  drawMaps(known);
}

// --- layers ------------------------------------------------------------------------------------------------------------

const layersTable = new Table($("layers"), {
  title: "Layers routed here",
  id: "layers-title",
  noun: "layers",
  empty: "This node routes no layers.",
  text: (l) => `${l.layer} ${l.error || ""}`,
  filters: [
    { title: "all", keep: () => true },
    { title: "in use", keep: (l) => l.routed > 0 },
    { title: "uneven", keep: (l) => l.balance > 2 },
    { title: "in trouble", keep: (l) => l.error },
  ],
  columns: [
    { title: "Layer", class: "name", value: (l) => l.layer, cell: (l) => [h("div", {}, l.layer), (l.error || l.shared) && h("div", { class: "sub" }, l.error || "with a shared expert")] },
    { title: "Takes", num: true, value: (l) => l.top_k, cell: (l) => (l.error ? "–" : `${l.top_k} of ${l.experts}`) },
    { title: "Rows routed", num: true, first: "descending", value: (l) => l.routed, cell: (l) => count(l.routed) },
    { title: "Rows per expert", cell: (l) => strip(l.rows_per_expert, `${l.layer}: rows per expert${l.balance ? `, the busiest ${l.balance.toFixed(1)} times the mean` : ""}`) },
    { title: "Busiest / mean", num: true, first: "descending", value: (l) => l.balance, cell: (l) => (l.balance ? `${l.balance.toFixed(1)} ×` : "–") },
  ],
});

async function showLayers() {
  const layers = await get("/api/v1/layers");
  for (const l of layers) {
    l.rows_per_expert ||= [];
    l.balance = balance(l.rows_per_expert);
    l.routed = l.rows_per_expert.reduce((a, b) => a + b, 0) / (l.top_k || 1);
  }
  $("layers").hidden = layers.length === 0;
  layersTable.show(layers);
}

// --- loops -------------------------------------------------------------------------------------------------------------

let seen = 0; // when the node last answered

// Loop runs work again and again, never twice at once, and rests while nobody looks.
class Loop {
  constructor(work, every) {
    this.work = work;
    this.every = every;
    this.running = false;
    this.run();
  }

  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.run(), 300);
  }

  async run() {
    clearTimeout(this.timer);
    if (this.running || document.hidden) return;
    this.running = true;
    try {
      await this.work();
      seen = Date.now();
      document.body.classList.remove("stale");
      $("token").hidden = true;
    } catch (err) {
      report(err);
    }
    this.running = false;
    this.timer = setTimeout(() => this.run(), this.every);
  }
}

function report(err) {
  if (err instanceof Locked) {
    $("token").hidden = false;
    $("state").textContent = "locked";
    $("state").className = "pill pill-warn";
    return;
  }
  document.body.classList.add("stale");
  $("state").textContent = "no answer";
  $("state").className = "pill pill-bad";
  drawAlerts([["bad", "No answer", `${err.message}${seen ? `; last heard ${span((Date.now() - seen) / 1000)} ago` : ""}`]]);
}

const loops = {
  status: new Loop(showStatus, statusEvery),
  peers: new Loop(showPeers, peersEvery),
  layers: new Loop(showLayers, layersEvery),
  experts: new Loop(showExperts, expertsEvery),
};
const all = () => Object.values(loops).forEach((l) => l.run());

document.addEventListener("visibilitychange", all);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawMaps(known));
let resized;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => drawMaps(known), 150);
});
$("token").addEventListener("submit", (ev) => {
  ev.preventDefault();
  sessionStorage.setItem(tokenKey, $("token-input").value);
  $("token-input").value = "";
  all();
});
