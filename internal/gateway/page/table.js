// Table: rows that can be searched, filtered, sorted and turned page by page, whatever their number.
import { h } from "./format.js";

const pageSize = 12;

export class Table {
  // columns: [{title, cell(row), value(row) for sorting, num, first: "descending"}], text(row): what a search looks through,
  // filters: [{title, keep(row)}], the first of which keeps all.
  constructor(section, { title, id, noun, columns, text, filters, empty }) {
    Object.assign(this, { columns, text, filters, noun, empty });
    this.rows = [];
    this.page = 0;
    this.sort = null;
    this.filter = 0;
    this.search = h("input", { type: "search", placeholder: `Search ${noun}`, "aria-label": `Search ${noun}`, oninput: () => this.turn(0) });
    this.chips = filters.map((f, i) => h("button", { type: "button", "aria-pressed": String(i === 0), onclick: () => {
      this.filter = i;
      this.chips.forEach((c, j) => c.setAttribute("aria-pressed", String(i === j)));
      this.turn(0);
    } }, f.title));
    this.heads = columns.map((c) => {
      const th = h("th", { scope: "col", class: c.num && "num", "aria-sort": "none" });
      if (c.value) th.append(h("button", { type: "button", onclick: () => this.sortBy(c, th) }, c.title));
      else th.append(c.title);
      return th;
    });
    this.body = h("tbody");
    this.summary = h("span");
    this.back = h("button", { type: "button", onclick: () => this.turn(this.page - 1) }, "Previous");
    this.next = h("button", { type: "button", onclick: () => this.turn(this.page + 1) }, "Next");
    this.pager = h("div", { class: "pager", hidden: true }, this.summary, this.back, this.next);
    section.replaceChildren(
      h("div", { class: "card-head" }, h("h2", { id }, title),
        h("div", { class: "tools" }, h("div", { class: "chips", role: "group", "aria-label": "Show" }, this.chips), this.search)),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": id },
        h("table", {}, h("thead", {}, h("tr", {}, this.heads)), this.body)),
      this.pager);
  }

  sortBy(column, th) {
    const first = column.first || "ascending";
    const was = th.getAttribute("aria-sort");
    const now = was === "none" ? first : was === "ascending" ? "descending" : "ascending";
    this.heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    th.setAttribute("aria-sort", now);
    this.sort = { value: column.value, sign: now === "ascending" ? 1 : -1 };
    this.turn(0);
  }

  turn(page) {
    this.page = page;
    this.draw();
  }

  show(rows) {
    this.rows = rows;
    this.draw();
  }

  find(words) {
    this.search.value = words;
    this.turn(0);
  }

  draw() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const keep = this.filters[this.filter].keep;
    let rows = this.rows.filter((r) => keep(r) && words.every((w) => this.text(r).toLowerCase().includes(w)));
    if (this.sort) {
      const { value, sign } = this.sort;
      rows = rows.map((r) => [value(r), r]).sort(([a], [b]) => {
        if (a === b) return 0;
        if (a === null || a === undefined) return 1; // what is not known stands last, whichever way
        if (b === null || b === undefined) return -1;
        return (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b) * sign;
      }).map(([, r]) => r);
    }
    const pages = Math.max(1, Math.ceil(rows.length / pageSize));
    this.page = Math.max(0, Math.min(this.page, pages - 1));
    const from = this.page * pageSize;
    const shown = rows.slice(from, from + pageSize);
    this.body.replaceChildren(...shown.map((r) => h("tr", {}, this.columns.map((c) =>
      h("td", { class: [c.num && "num", c.class].filter(Boolean).join(" ") || undefined }, c.cell(r))))));
    if (shown.length === 0) {
      this.body.replaceChildren(h("tr", {}, h("td", { colspan: this.columns.length, class: "empty" }, this.rows.length ? "Nothing matches." : this.empty)));
    }
    const of = rows.length.toLocaleString("en");
    this.summary.textContent = shown.length ? `${(from + 1).toLocaleString("en")} to ${(from + shown.length).toLocaleString("en")} of ${of} ${this.noun}` : "";
    this.back.disabled = this.page === 0;
    this.next.disabled = this.page >= pages - 1;
    this.pager.hidden = pages === 1 && rows.length === this.rows.length && rows.length < 6;
  }
}
