"use strict";
{
  const { charts, ats, chosen: first } = JSON.parse(document.getElementById("data").textContent);
  const unit = document.querySelector("nav label").textContent;
  const slider = document.getElementById("slider");
  const views = new Map();
  let chosen = first;

  // What a figure of one epoch shows: it may keep only some of them.
  const shown = (epochs, at) => (epochs.length ? epochs.filter((own) => own <= at).pop() ?? epochs[0] : at);

  const show = (at) => {
    for (const [id, view] of views) {
      if (!charts[id].hasEpoch) continue;
      view.signal("epoch", shown(charts[id].epochs, at));
      (charts[id].epochs.length ? view.resize() : view).runAsync(); // labels of an axis come and go with what is shown
    }
    for (const output of document.querySelectorAll("output.at")) {
      const own = output.closest("figure")?.querySelector(".chart").id;
      output.textContent = own ? `(${unit} ${shown(charts[own].epochs, at)})` : `${at}`;
    }
  };
  const choose = (at) => {
    chosen = at;
    slider.value = ats.indexOf(at);
    slider.setAttribute("aria-valuetext", `${unit} ${at}`);
    show(at);
  };

  // Panels grow or shrink by what the drawing, with its axes and legends, is off from the room there is.
  const fit = (id) => {
    const view = views.get(id), box = document.getElementById(id), { columns, widest } = charts[id];
    const svg = box.querySelector("svg");
    if (!svg || widest === 0 || !box.clientWidth) return;
    const room = Math.min(box.clientWidth, widest ?? Infinity);
    const excess = (svg.width.baseVal.value - room) / columns;
    if (Math.abs(excess) < 1) return;
    const { signals } = view.getState({ signals: (name) => /^(\w+_)?(width|childWidth)$/.test(name ?? ""), data: () => false });
    for (const [name, value] of Object.entries(signals)) {
      if (typeof value === "number") view.signal(name, Math.max(90, value - excess));
    }
    return view.resize().runAsync();
  };

  // Titles of panels in lines of so many signs: one that is wider than its panel takes the room of all panels.
  const wrapTitles = (spec, signs) => {
    if (typeof spec.title === "string" && "height" in spec) {
      const lines = [""];
      for (const word of spec.title.split(" ")) {
        const line = `${lines.at(-1)} ${word}`.trim();
        if (line.length > signs && lines.at(-1)) lines.push(word);
        else lines[lines.length - 1] = line;
      }
      spec.title = lines;
    }
    for (const inner of [spec.concat, spec.vconcat, spec.hconcat].flat()) if (inner) wrapTitles(inner, signs);
  };

  const draw = async (box) => {
    const own = charts[box.id];
    if (box.clientWidth < 480) {
      if (own.narrow) Object.assign(own, own.narrow);
      else own.spec.config.axis.labelLimit = 0.35 * box.clientWidth;
      own.spec.config.legend.columns = 2; // a legend that is wider than its panel takes the panel's room
      wrapTitles(own.spec, (box.clientWidth - 160) / 7);
    }
    const { view } = await vegaEmbed(box, own.spec, { renderer: "svg", actions: false, mode: "vega-lite", logLevel: 1 });
    own.hasEpoch = (own.spec.params ?? []).some((parameter) => parameter.name === "epoch");
    views.set(box.id, view);
    await fit(box.id);
    await fit(box.id); // labels that came or went with the new width
    for (const { name } of own.spec.params ?? []) {
      if (!name.startsWith("hover_")) continue;
      view.addSignalListener(name, (_, value) => show(value.at?.[0] ?? chosen));
    }
    box.addEventListener("click", () => {
      for (const { name } of own.spec.params ?? []) {
        const at = name.startsWith("hover_") ? view.signal(name).at?.[0] : undefined;
        if (at !== undefined) choose(at);
      }
    });
    let room = box.clientWidth; // a drawing that becomes higher or lower changes nothing
    new ResizeObserver(() => {
      if (matchMedia("print").matches) return; // paper has the drawing of the screen, made smaller
      if (box.clientWidth !== room) fit(box.id);
      room = box.clientWidth;
    }).observe(box);
  };
  const drawn = new Set();
  const drawAll = async (root) => {
    for (const box of root.querySelectorAll(".chart")) {
      if (drawn.has(box.id) || !box.checkVisibility()) continue;
      drawn.add(box.id);
      await draw(box);
    }
    show(chosen);
  };

  slider.addEventListener("input", () => choose(ats[slider.value]));
  for (const run of document.querySelectorAll("details.run")) run.addEventListener("toggle", () => drawAll(run));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  document.getElementById("theme").addEventListener("click", () => {
    const now = document.documentElement.style.colorScheme || (dark.matches ? "dark" : "light");
    document.documentElement.style.colorScheme = now === "dark" ? "light" : "dark";
  });
  // Definitions and sentences: shown while pointed at, in focus, or tapped.
  const tip = document.getElementById("tip");
  const hide = () => tip.matches(":popover-open") && tip.hidePopover();
  const tell = (button) => {
    tip.textContent = button.dataset.tip ?? document.getElementById(button.dataset.term).textContent;
    tip.showPopover();
    const at = button.getBoundingClientRect(), width = tip.offsetWidth, height = tip.offsetHeight;
    tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - width - 8))}px`;
    tip.style.top = `${at.bottom + height + 8 < innerHeight ? at.bottom + 4 : Math.max(4, at.top - height - 4)}px`;
  };
  const telling = (event) => event.target.closest?.("[data-tip], [data-term]");
  for (const type of ["pointerover", "focusin", "click"]) {
    document.addEventListener(type, (event) => {
      const button = telling(event);
      if (button) tell(button);
      else if (type === "click") hide();
    });
  }
  for (const type of ["pointerout", "focusout"]) {
    document.addEventListener(type, (event) => {
      if (telling(event) && event.pointerType !== "touch") hide();
    });
  }
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("scroll", hide, { passive: true });

  // On paper everything lies open.
  const closed = new Set();
  addEventListener("beforeprint", () => {
    hide();
    for (const part of document.querySelectorAll("details:not(.run):not([open])")) {
      closed.add(part);
      part.open = true;
    }
  });
  addEventListener("afterprint", () => {
    for (const part of closed) part.open = false;
    closed.clear();
  });
  drawAll(document).then(() => document.documentElement.setAttribute("data-drawn", ""));
}
