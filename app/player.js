// The player: one hidden video, a canvas for each method, bars, and the tools that change the attention.
// Gradio calls this once with (element, trigger, props, server, upload, watch). It reads four properties: `value` (what
// is shown, see player.py), `status` (what the server is doing), `answer` (the reply to an edit) and `scores`. Of two
// updates of one property that come at once gradio may show only the last, so that what is awaited has one of its own.
// The state that tests and styles need is mirrored in data-* attributes of the root.

const root = element.querySelector(".player");
const $ = (selector) => root.querySelector(selector);
const all = (selector) => [...root.querySelectorAll(selector)];
const video = $("video"), plot = $(".plot"), strip = $(".strip");
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

const set = {
  view: "heat", mode: "look", reach: "frame", opacity: 85, brush: 14, colours: "turbo", scale: "clip", speed: 1,
  known: true, loop: true, invert_spatial: false, invert_temporal: false,
};
let facts = null, panels = [], clip = null;
let edges = [];          // T + 1 seconds: frame k is on show from edges[k] to edges[k + 1]
let undo = [], seq = 0, drawn = 0, sent = 0;
let goal = null;         // the moment of the newest seek that was not started yet
let moment = hashed("t");  // the link's, for the clip that comes first
const frame = document.createElement("canvas"), heat = document.createElement("canvas");
const picture = new Image();  // the strip's

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const base64 = (array) => {
  let text = "";
  for (let i = 0; i < array.length; i += 8192) text += String.fromCharCode(...array.subarray(i, i + 8192));
  return btoa(text);
};
const tables = Object.fromEntries(Object.entries(props.colours || {}).map(([name, text]) => [name, bytes(text)]));
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const percent = (p) => (p > 0 && p < 0.005 ? "< 1 %" : `${Math.round(100 * p)} %`);
const finely = (p) => (100 * p).toFixed(1);
const number = (x) => (Math.abs(x) < 0.01 && x ? x.toExponential(0) : x.toFixed(2).replace("-", "−"));
const node = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;  // never innerHTML: names come from files
  return made;
};
const mark = (name, value) => { root.dataset[name] = value; };
const editable = () => panels.find((panel) => panel.method === "stabn");

// ------------------------------------------------------------------------------------------------ time and frames

const now = () => video.currentTime || 0;
const count = () => (facts ? facts.times.length : 0);

function measure() {
  const times = facts.times, last = Math.max(facts.duration, times[times.length - 1]);
  edges = [0];
  for (let k = 1; k < times.length; k++) edges.push((times[k - 1] + times[k]) / 2);
  edges.push(last);
}

function frameAt(seconds) {
  let k = 0;
  while (k < count() - 1 && edges[k + 1] <= seconds + 1e-6) k++;
  return k;
}

function shareAt(seconds) {  // 0..1 over the bars, which are equally wide
  const k = frameAt(seconds), width = edges[k + 1] - edges[k];
  return (k + (width > 0 ? clamp((seconds - edges[k]) / width, 0, 1) : 0)) / count();
}

function secondsAt(share) {
  const at = clamp(share, 0, 0.99999) * count(), k = Math.floor(at);
  return edges[k] + (at - k) * (edges[k + 1] - edges[k]);
}

function seek(seconds) {  // one seek at a time: a new one would cancel it, and nothing be drawn while scrubbing
  goal = clamp(seconds, 0, Math.max(0, (video.duration || facts.duration) - 0.001));
  mark("seeking", true);
  if (!video.seeking) { video.currentTime = goal; goal = null; }
}

function step(by) {
  if (!facts) return;
  video.pause();
  seek(facts.times[clamp(frameAt(now()) + by, 0, count() - 1)] + 1e-3);
}

// --------------------------------------------------------------------------------------------------- the attention

// What is drawn of a panel in sampled frame k, cell i: 0..255 on its scale.
const cell = (panel, k, i) => {
  const value = panel.now[k * panel.cells + i];
  return panel.editable && set.invert_spatial ? 255 - value : value;
};
const weight = (panel, k) => {
  const value = panel.weights[k];
  return panel.editable && set.invert_temporal ? 1 - value : value;
};

function mapAt(panel, seconds) {  // h * w values between the two sampled frames, linear
  const times = facts.times;
  let right = 0;
  while (right < times.length - 1 && times[right] < seconds) right++;
  const left = right && times[right] > seconds ? right - 1 : right;
  const gap = times[right] - times[left], share = gap > 0 ? clamp((seconds - times[left]) / gap, 0, 1) : 0;
  const map = new Float32Array(panel.cells);
  for (let i = 0; i < panel.cells; i++) map[i] = (1 - share) * cell(panel, left, i) + share * cell(panel, right, i);
  return map;
}

function range(panel, map) {  // the values that are drawn as the two ends of the colours
  if (set.scale === "clip") return [0, 255];
  let low = Infinity, high = -Infinity;
  for (const value of map) { low = Math.min(low, value); high = Math.max(high, value); }
  if (panel.signed) { const far = Math.max(high - 127.5, 127.5 - low); return [127.5 - far, 127.5 + far]; }
  return [low, high];
}

function paintHeat(panel, map, up) {  // into the `heat` canvas, `up` pixels for each cell
  const { width: w, height: h } = panel, [low, high] = range(panel, map), span = high - low || 1;
  const table = tables[panel.signed ? "RdBu_r" : set.colours];
  heat.width = w * up; heat.height = h * up;
  const context = heat.getContext("2d"), image = context.createImageData(w * up, h * up), out = image.data;
  const strongest = set.opacity / 100, spot = set.view === "spotlight";
  for (let y = 0, at = 0; y < h * up; y++) {
    const v = clamp((y + 0.5) / up - 0.5, 0, h - 1), y0 = Math.floor(v), y1 = Math.min(y0 + 1, h - 1), fy = v - y0;
    for (let x = 0; x < w * up; x++, at += 4) {
      const u = clamp((x + 0.5) / up - 0.5, 0, w - 1), x0 = Math.floor(u), x1 = Math.min(x0 + 1, w - 1), fx = u - x0;
      const value = (1 - fy) * ((1 - fx) * map[y0 * w + x0] + fx * map[y0 * w + x1])
        + fy * ((1 - fx) * map[y1 * w + x0] + fx * map[y1 * w + x1]);
      const level = clamp((value - low) / span, 0, 1);
      const strength = panel.signed ? Math.abs(2 * level - 1) : level;
      if (spot) {
        out[at] = 4; out[at + 1] = 7; out[at + 2] = 18;
        out[at + 3] = 255 * strongest * (1 - strength) ** 1.2;
      } else {
        const colour = 3 * Math.round(255 * level);
        out[at] = table[colour]; out[at + 1] = table[colour + 1]; out[at + 2] = table[colour + 2];
        out[at + 3] = 255 * strongest * strength ** 1.5;  // the middle of the scale must not bury the picture
      }
    }
  }
  context.putImageData(image, 0, 0);
}

// Over a picture of the whole frame in the rectangle (x, y, width, height) of `context`.
function layOver(context, panel, seconds, x, y, width, height, up) {
  if (!panel.places || set.view === "plain") return;
  const [top, left, tall, wide] = facts.view, [rows, columns] = facts.size;
  const box = [x + (left / columns) * width, y + (top / rows) * height, (wide / columns) * width, (tall / rows) * height];
  paintHeat(panel, mapAt(panel, seconds), up);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.drawImage(heat, ...box);
  if (tall < rows - 1 || wide < columns - 1) {  // the network saw nothing there
    context.fillStyle = "rgba(4, 7, 18, .66)";
    context.beginPath();
    context.rect(x, y, width, height);
    context.rect(...box);
    context.fill("evenodd");
  }
  context.restore();
}

// The outline where shares of a side x side grid cross one half: marching squares, on the cells' centres.
function outline(k) {
  const known = facts.evidence, n = known.side;
  known.paths = known.paths || [];
  if (known.paths[k]) return known.paths[k];
  known.bytes = known.bytes || bytes(known.mask);
  const value = (x, y) => (x < 0 || y < 0 || x >= n || y >= n ? 0 : known.bytes[(k * n + y) * n + x]) - 127.5;
  const path = new Path2D(), point = (a, b, from, to) => {
    const share = a / (a - b);
    return [(from[0] + share * (to[0] - from[0]) + 0.5) / n, (from[1] + share * (to[1] - from[1]) + 0.5) / n];
  };
  for (let y = -1; y < n; y++) for (let x = -1; x < n; x++) {
    const corners = [[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]], at = corners.map((c) => value(...c));
    const crossed = [];
    for (let i = 0; i < 4; i++) {
      const j = (i + 1) % 4;
      if (at[i] > 0 !== at[j] > 0) crossed.push(point(at[i], at[j], corners[i], corners[j]));
    }
    for (let i = 0; i + 1 < crossed.length; i += 2) { path.moveTo(...crossed[i]); path.lineTo(...crossed[i + 1]); }
  }
  return (known.paths[k] = path);
}

function drawOutline(context, seconds, width, height) {
  const times = facts.evidence.seconds;
  let k = 0;
  while (k < times.length - 1 && times[k + 1] <= seconds + 1e-3) k++;
  const scaled = new Path2D();
  scaled.addPath(outline(k), new DOMMatrix([width, 0, 0, height, 0, 0]));
  context.lineJoin = context.lineCap = "round";
  for (const [line, colour] of [[4.5, "rgba(4, 7, 18, .55)"], [2, "#fff"]]) {
    context.lineWidth = line * Math.min(2, devicePixelRatio || 1);
    context.strokeStyle = colour;
    context.stroke(scaled);
  }
}

// ----------------------------------------------------------------------------------------------------- drawing it

function draw(seconds = now()) {
  if (!facts || !panels.length) return;
  const canvas = panels[0].canvas, width = canvas.width, height = canvas.height;
  if (!width || video.readyState < 2) return;
  if (frame.width !== width || frame.height !== height) { frame.width = width; frame.height = height; }
  frame.getContext("2d").drawImage(video, 0, 0, width, height);  // scaled once, for all panels
  for (const panel of panels) {
    const context = panel.canvas.getContext("2d");
    context.drawImage(frame, 0, 0);
    layOver(context, panel, seconds, 0, 0, width, height, 8);
    if (facts.evidence && set.known) drawOutline(context, seconds, width, height);
  }
  head(seconds);
  drawn += 1;
  mark("drawn", drawn);
}

function head(seconds) {
  const k = frameAt(seconds), share = shareAt(seconds);
  $(".head").style.left = `${100 * share}%`;
  $(".clock b").textContent = seconds.toFixed(2);
  if (root.dataset.frame !== String(k)) {
    mark("frame", k);
    all(".bar").forEach((bar, i) => bar.classList.toggle("active", i === k));
    if (set.scale === "frame") legend();
  }
  for (const panel of panels) if (panel.small) panel.small.style.setProperty("--at", share);
  plot.setAttribute("aria-valuenow", seconds.toFixed(2));
  plot.setAttribute("aria-valuetext",
    `${seconds.toFixed(2)} seconds, frame ${k + 1} of ${count()}, weight ${number(weight(panels[0], k))}`);
  mark("time", seconds.toFixed(3));
}

const ticking = "requestVideoFrameCallback" in video;
function tick(time, meta) {
  draw(meta && !video.paused ? meta.mediaTime : now());
  if (ticking) video.requestVideoFrameCallback(tick);
  else if (!video.paused) requestAnimationFrame(() => tick());
}
if (ticking) video.requestVideoFrameCallback(tick);
else video.addEventListener("play", () => tick());
for (const name of ["loadeddata", "timeupdate"]) video.addEventListener(name, () => draw());
video.addEventListener("seeked", () => {
  draw();
  if (goal !== null) seek(goal);
  else mark("seeking", false);
});
for (const name of ["play", "pause"]) video.addEventListener(name, () => {
  mark("playing", !video.paused);
  $('[data-do="play"]').setAttribute("aria-label", video.paused ? "Play" : "Pause");
});
video.addEventListener("error", () => facts && problem("The browser cannot play this clip."));

function layout() {  // sizes the panels so that all fit the stage
  if (!panels.length) return;
  const [tall, wide] = facts.size, room = $(".panels").clientWidth, gap = 10;
  const columns = panels.length === 1 || room < 460 ? 1 : 2;
  const most = room < 460 ? 340 : panels.length === 1 ? clamp(0.38 * innerHeight, 280, 400) : 270;
  const width = Math.floor(Math.min((room - gap * (columns - 1)) / columns, (most * wide) / tall));
  const height = Math.round((width * tall) / wide), ratio = Math.min(2, devicePixelRatio || 1);
  $(".panels").style.gridTemplateColumns = `repeat(${columns}, ${width}px)`;
  for (const panel of panels) {
    panel.canvas.width = Math.round(width * ratio);
    panel.canvas.height = Math.round(height * ratio);
    panel.canvas.style.width = `${width}px`;
    panel.canvas.style.height = `${height}px`;
    if (panel.small) drawSmall(panel);
  }
  drawStrip();
  draw();
}
new ResizeObserver(() => facts && layout()).observe($(".stage"));

function drawStrip() {
  if (!facts || !picture.complete || !picture.naturalWidth) return;
  const ratio = Math.min(2, devicePixelRatio || 1), width = strip.clientWidth, height = strip.clientHeight;
  strip.width = width * ratio; strip.height = height * ratio;
  const context = strip.getContext("2d"), { width: w, height: h } = facts.strip, n = count();
  context.imageSmoothingQuality = "high";
  for (let k = 0; k < n; k++) {
    const x = Math.round((k * strip.width) / n), wide = Math.round(((k + 1) * strip.width) / n) - x - 1 * ratio;
    const scale = Math.max(wide / w, strip.height / h), sw = wide / scale, sh = strip.height / scale;
    const sx = (w - sw) / 2, sy = (h - sh) / 2;
    context.drawImage(picture, k * w + sx, sy, sw, sh, x, 0, wide, strip.height);
    context.save();
    context.beginPath();
    context.rect(x, 0, wide, strip.height);
    context.clip();
    layOver(context, panels[0], facts.times[k], x - sx * scale, -sy * scale, w * scale, h * scale, 3);
    context.restore();
  }
}
picture.addEventListener("load", drawStrip);

function drawSmall(panel) {  // the bars under a panel, when several are compared
  const canvas = panel.small.querySelector("canvas"), ratio = Math.min(2, devicePixelRatio || 1);
  canvas.width = canvas.clientWidth * ratio; canvas.height = canvas.clientHeight * ratio;
  const context = canvas.getContext("2d"), [low, high] = panel.temporal_scale, n = count();
  context.fillStyle = getComputedStyle(root).getPropertyValue("--bar");
  const zero = canvas.height * (1 - (0 - low) / (high - low));
  for (let k = 0; k < n; k++) {
    const x = Math.round((k * canvas.width) / n), wide = Math.round(((k + 1) * canvas.width) / n) - x - 1;
    const y = canvas.height * (1 - (clamp(weight(panel, k), low, high) - low) / (high - low));
    context.fillRect(x, Math.min(y, zero), Math.max(wide, 1), Math.max(1, Math.abs(zero - y)));
  }
}

function drawBars() {
  const panel = panels[0], [low, high] = panel.temporal_scale, span = high - low || 1;
  all(".bar").forEach((bar, k) => {
    const value = weight(panel, k), from = clamp((Math.min(value, 0) - low) / span, 0, 1);
    const to = clamp((Math.max(value, 0) - low) / span, 0, 1);
    bar.firstChild.style.cssText = `bottom:${100 * from}%;height:${Math.max(100 * (to - from), 0.8)}%`;
    const was = panel.temporal[k], ghost = bar.lastChild, changed = Math.abs(was - value) > 1e-6;
    ghost.hidden = !changed;
    ghost.style.height = `${100 * clamp((was - low) / span, 0, 1)}%`;
  });
  for (const each of panels) if (each.small) drawSmall(each);
}

function legend() {
  const panel = panels[0], context = $(".legend canvas").getContext("2d"), image = context.createImageData(256, 1);
  $(".legend").hidden = !panel.places || set.view === "plain";
  const table = tables[panel.signed ? "RdBu_r" : set.colours], spot = set.view === "spotlight";
  for (let i = 0; i < 256; i++)
    for (let c = 0; c < 4; c++) image.data[4 * i + c] = c === 3 ? 255 : spot ? i : table[3 * i + c];
  context.putImageData(image, 0, 0);
  const [low, high] = range(panel, mapAt(panel, now())), value = (byte) => panel.low + (byte / 255) * (panel.high - panel.low);
  $(".legend .low").textContent = number(value(low));
  $(".legend .high").textContent = number(value(high));
}

// --------------------------------------------------------------------------------------------- what is shown of it

function show(value) {
  if (!value || !value.clip) return;
  const same = value.clip === clip, old = editable();
  if (same && facts.at === value.facts.at) return;  // it comes again with whatever else is set
  facts = value.facts;
  clip = value.clip;
  panels = value.panels.map((panel) => ({
    ...panel,
    cells: panel.width * panel.height,
    sent: bytes(panel.spatial),
    now: bytes(panel.spatial),
    weights: [...panel.temporal],
    editable: panel.method === "stabn" && facts.editable.length > 0,
  }));
  measure();
  mark("state", "ready");
  mark("takes", Boolean(facts.model));  // a saved result is not saved again
  mark("clip", clip);
  mark("methods", panels.map((panel) => panel.method).join(","));
  mark("target", facts.target);
  mark("many", panels.length > 1);
  $(".unscored").hidden = true;
  const kept = Boolean(same && old && editable());
  if (kept) {  // other methods for the same clip: the edits stay
    Object.assign(editable(), { now: old.now, weights: old.weights });
  } else {
    undo = [];
    choose("invert_spatial", false);
    choose("invert_temporal", false);
    choose("mode", "look");
  }
  build();
  picture.src = facts.strip.src;
  if (facts.burnt) choose("view", "plain");
  else if (set.view === "plain" && !same) choose("view", "heat");
  fill(facts.rows);
  edited(kept && !pristine());  // the rows are those of the network's own attention
  if (!same) {
    heard();  // what was asked about another clip is not awaited
    mark("drawn", (drawn = 0));
    const start = moment;
    moment = null;
    video.src = value.video.url;
    video.loop = set.loop;
    video.playbackRate = +set.speed;
    video.addEventListener("loadeddata", () => {
      video.playbackRate = +set.speed;
      if (start !== null && Number.isFinite(+start)) seek(+start);
      else if (!calm) video.play().catch(() => {});
    }, { once: true });
    if (root.clientWidth < 700) root.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  }
  layout();
}

function build() {
  $(".panels").replaceChildren(...panels.map((panel, i) => {
    const figure = node("figure", "panel");
    figure.dataset.method = panel.method;
    panel.canvas = node("canvas");
    panel.canvas.setAttribute("role", "img");
    panel.canvas.setAttribute("aria-label", `The clip with the heat of ${panel.title}`);
    const chip = node("figcaption", "chips");
    chip.append(node("span", "chip", panel.title[0].toUpperCase() + panel.title.slice(1)));
    if (panels.length > 1 || panel.about)
      chip.append(node("span", "chip soft", panel.about ? `for ${panel.about}` : "for any class"));
    figure.append(panel.canvas, chip);
    if (panels.length > 1) {
      panel.small = node("div", "small");
      panel.small.append(node("canvas"), node("i"));
      figure.append(panel.small, scores(panel));
    }
    panel.canvas.addEventListener("pointerdown", (event) => paintDown(event, panel));
    return figure;
  }));
  const bars = Array.from({ length: count() }, () => {
    const bar = node("div", "bar");
    bar.append(node("div", "fill"), node("div", "ghost"));
    return bar;
  });
  $(".bars").replaceChildren(...bars);
  root.dataset.frame = "";
  plot.setAttribute("aria-valuemax", facts.duration.toFixed(2));
  const [low, high] = panels[0].temporal_scale;
  plot.style.setProperty("--zero", `${(100 * (0 - low)) / (high - low)}%`);
  plot.dataset.low = number(low);
  plot.dataset.high = number(high);
  axis();
  const known = facts.evidence;
  $(".acts").hidden = !known;
  if (known) $(".acts").replaceChildren(...known.action.map((acts) => node("i", acts ? "on" : "")));
  truth();
  $(".what-if").hidden = !editable() || !facts.editable.length;
  for (const part of ["spatial", "temporal"]) $(`[data-set="invert_${part}"]`).disabled = !facts.editable.includes(part);
  $(".clock span").textContent = facts.duration.toFixed(2);
  $(".notes ul").replaceChildren(...facts.notes.map((note) => {
    const item = node("li", note.kind), svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
    use.setAttribute("href", note.kind === "warn" ? "#i-warn" : "#i-info");
    svg.append(use);
    item.append(svg, node("span", "", note.text));
    return item;
  }));
  $(".notes").hidden = !facts.notes.length;
  const [tall, wide] = facts.size, took = facts.seconds || {};
  $(".facts").textContent = [
    facts.name, `${facts.frames} frames`, `${wide} × ${tall}`, `${facts.duration.toFixed(1)} s`,
    took.looking === undefined ? "" : `read in ${took.reading.toFixed(1)} s, looked in ${took.looking.toFixed(1)} s`,
  ].filter(Boolean).join(" · ");
  $(".ask").hidden = !facts.model;
  $(".ask").textContent = panels.every((panel) => panel.agnostic)
    ? "Click a class to ask about it. This attention is the same for all classes: compare it with Grad-CAM, which is not."
    : "Click a class to ask about it.";
  hint();
  drawBars();
  legend();
}

function axis() {
  const length = facts.duration, room = plot.clientWidth || 600;
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60].find((s) => (length / s) * 46 < room) || 120;
  const ticks = [];
  for (let t = 0; t <= length + 1e-9; t += step) {
    const tick = node("span", "", `${+t.toFixed(1)} s`);
    tick.style.left = `${100 * shareAt(t)}%`;
    if (shareAt(t) < 0.97) ticks.push(tick);
  }
  $(".axis").replaceChildren(...ticks);
}

function scores(panel) {
  const list = node("dl", "scores"), score = panel.score;
  list.dataset.scores = score ? "ready" : "none";
  if (!score) return list;
  for (const [name, value, chance, beats, said] of [
    ["Deletion ↓", score.deletion, score.random_deletion, score.deletion < score.random_deletion,
      `Area under the class's probability while what the map ranks highest is replaced first (${score.baseline}): lower is better`],
    ["Insertion ↑", score.insertion, score.random_insertion, score.insertion > score.random_insertion,
      `The same while what the map ranks highest is put in first (${score.baseline}): higher is better`],
  ]) {
    const item = node("div");
    item.title = `${said}. In random orders it is ${number(chance)}: what a map must beat`;
    item.append(node("dt", "", name), node("dd", beats ? "good" : "bad", number(value)), node("dd", "", `random ${number(chance)}`));
    list.append(item);
  }
  return list;
}

function truth() {
  const known = facts.evidence;
  $(".truth").hidden = !known;
  if (!known) return;
  $(".truth .label").textContent = known.label;
  const line = (tag, cells, name) => {
    const row = node("tr", name);
    row.append(...cells.map((text, i) => node(i && tag === "td" ? "td" : "th", "", text)));
    return row;
  };
  const value = (x, unit) => (x === undefined ? "–" : number(x) + unit);
  $(".truth thead").replaceChildren(line("th", ["", "heat on what acts", "weights (AUC)"]));
  $(".truth tbody").replaceChildren(
    ...panels.map((panel) => line("td", [panel.title, value(panel.evidence.energy, "×"), value(panel.evidence.auc, "")])),
    line("td", ["chance", "1.00×", "0.50"], "chance"));
}

function fill(rows) {
  const changed = rows.some((row) => row.new !== null);
  const key = changed ? "new" : "old", best = rows.reduce((a, b) => (b[key] > a[key] ? b : a));
  const was = rows.reduce((a, b) => (b.old > a.old ? b : a));
  $(".best").textContent = best.name;
  $(".best").classList.toggle("other", best.index !== was.index);
  $(".changed").hidden = !changed;
  if (changed) $(".changed").textContent = best.index === was.index
    ? `What if: still this, ${finely(was.old)} → ${finely(best.new)} %` : `What if: no longer ${was.name}`;
  mark("best", best.index);
  mark("changed", changed);
  $(".classes").replaceChildren(...rows.map((row) => {
    const item = node("li"), button = node("button");
    button.type = "button";
    button.disabled = !facts.model;
    button.dataset.index = row.index;
    button.dataset.old = row.old;
    if (row.new !== null) button.dataset.new = row.new;
    button.setAttribute("aria-pressed", row.index === facts.target);
    const top = node("span", "row");
    top.append(node("span", "name", row.name));
    const value = node("span", "value", percent(changed ? row.new : row.old));
    if (changed && percent(row.old) !== percent(row.new)) value.prepend(node("span", "was", `${percent(row.old)} → `));
    top.append(value);
    const track = node("span", "track"), before = node("i", "before"), after = node("i", "after");
    before.style.width = `${row.old < 0.005 ? 0 : 100 * row.old}%`;
    before.hidden = row.old < 0.005;
    after.style.width = `${100 * (changed ? row.new : row.old)}%`;
    track.append(after, before);
    button.append(top, track);
    button.addEventListener("click", () => trigger("ask", { clip, index: row.index }));
    item.append(button);
    return item;
  }));
}

function hint() {
  $(".chart .hint").textContent = {
    look: "click or drag to go there", bars: "drag the bars", paint: "paint on the picture", erase: "erase on the picture",
  }[set.mode] + (panels.length > 1 ? ` · ${panels[0].title}` : "");
}

// ------------------------------------------------------------------------------------------------------- what if?

const snapshot = () => {
  const panel = editable();
  return { now: panel.now.slice(), weights: [...panel.weights],
    invert_spatial: set.invert_spatial, invert_temporal: set.invert_temporal };
};
const keep = () => { undo.push(snapshot()); if (undo.length > 50) undo.shift(); };

function restore(state) {
  Object.assign(editable(), { now: state.now, weights: state.weights });
  choose("invert_spatial", state.invert_spatial);
  choose("invert_temporal", state.invert_temporal);
}

function pristine() {
  const panel = editable();
  return !panel || (!set.invert_spatial && !set.invert_temporal
    && panel.now.every((value, i) => value === panel.sent[i])
    && panel.weights.every((value, k) => value === panel.temporal[k]));
}

let waiting = null, late = null;  // timers: until the next question, and until the one on its way is asked again
function edited(send = true) {
  const clean = pristine();
  $('[data-do="undo"]').disabled = !undo.length;
  $('[data-do="reset"]').disabled = clean;
  if (!facts || !editable()) return;
  drawBars();
  draw();
  if (!send) return;
  drawStrip();
  legend();
  seq += 1;
  mark("asked", seq);
  soon();
}

function soon() {  // one question at a time, and always the newest
  if (waiting === null && late === null) waiting = setTimeout(() => { waiting = null; ask(); }, 40);
}

function heard() {
  clearTimeout(late);
  late = null;
}

function ask() {
  const panel = editable();
  if (!panel) return;
  late = setTimeout(() => { late = null; soon(); }, 10_000);  // the server was busy, or the connection gone
  trigger("edit", {
    clip, seq, temporal: facts.editable.includes("temporal") ? panel.weights : null,
    spatial: facts.editable.includes("spatial") ? base64(panel.now) : null,
    invert_spatial: set.invert_spatial, invert_temporal: set.invert_temporal,
  });
}

function answered(answer) {
  if (!answer || answer.clip !== clip) return;
  heard();
  if (answer.seq < seq) soon();
  if (answer.rows && answer.seq >= sent) {
    sent = answer.seq;
    fill(answer.rows);
    mark("answered", answer.seq);
  }
}

function scored(told) {
  if (!told || told.clip !== clip) return;
  $(".unscored").hidden = !told.note;
  $(".unscored").textContent = told.note;
  for (const panel of panels) {
    panel.score = told.scores[panel.method] || null;
    const old = panel.small && panel.small.parentElement.querySelector(".scores");
    if (old) old.replaceWith(scores(panel));
  }
}

function paintDown(event, panel) {
  if (!facts || event.button) return;
  if (set.mode !== "paint" && set.mode !== "erase") { toggle(); return; }
  if (!panel.editable || !panel.places) return;
  video.pause();
  keep();
  const k = frameAt(now());
  // What is painted on is what is seen.
  if (set.reach === "frame" && Math.abs(now() - facts.times[k]) > 0.02) seek(facts.times[k] + 1e-3);
  follow(event, panel.canvas, (e) => { paint(panel, k, e); edited(); });
}

function paint(panel, k, event) {
  const box = panel.canvas.getBoundingClientRect(), [top, left, tall, wide] = facts.view, [rows, columns] = facts.size;
  const x = ((event.clientX - box.left) / box.width * columns - left) / wide;  // 0..1 in the view
  const y = ((event.clientY - box.top) / box.height * rows - top) / tall;
  const radius = (set.brush / 100) * Math.min(rows, columns), full = (set.mode === "paint") !== set.invert_spatial;
  const frames = set.reach === "all" ? [...Array(count()).keys()] : facts.times.flatMap((t, i) => (t === facts.times[k] ? [i] : []));
  for (let row = 0; row < panel.height; row++) for (let column = 0; column < panel.width; column++) {
    const far = Math.hypot(((column + 0.5) / panel.width - x) * wide, ((row + 0.5) / panel.height - y) * tall) / radius;
    const soft = clamp(1.5 - far, 0, 1);  // full to half the brush, none beyond one and a half
    if (!soft) continue;
    for (const frame of frames) {
      const at = frame * panel.cells + row * panel.width + column, value = panel.now[at];
      panel.now[at] = full ? Math.max(value, Math.round(255 * soft)) : Math.min(value, Math.round(255 * (1 - soft)));
    }
  }
}

function lift(k, value) {  // the weight that is seen of frame k, and of those that repeat it
  const panel = editable(), [low, high] = panel.temporal_scale;
  const seen = clamp(value, low, high), given = set.invert_temporal ? 1 - seen : seen;
  facts.times.forEach((t, i) => { if (t === facts.times[k]) panel.weights[i] = given; });
}

function barsMove(event) {
  const box = plot.getBoundingClientRect();
  lift(frameUnder(event, plot), 1 - clamp((event.clientY - box.top) / box.height, 0, 1));
  edited();
}

// --------------------------------------------------------------------------------------------------- the controls

function toggle() {
  if (!facts) return;
  if (video.paused) video.play().catch(() => {}); else video.pause();
}

function choose(name, value) {
  set[name] = value;
  for (const each of all(`[data-set="${name}"]`)) {
    if (each.dataset.to) each.setAttribute("aria-pressed", each.dataset.to === value);
    else if (each.type === "checkbox") each.checked = value;
    else each.value = value;
  }
  mark(name.replace(/_(\w)/, (_, c) => c.toUpperCase()), value);
}

function changed(name, value) {
  if (name.startsWith("invert") && editable()) keep();
  choose(name, value);
  if (name === "speed") video.playbackRate = +value;
  if (!facts) return;
  if (name === "mode") { hint(); if (value !== "look") video.pause(); }
  if (name.startsWith("invert")) edited();
  else { legend(); drawStrip(); draw(); }
}

root.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || button.disabled) return;
  if (button.dataset.to) changed(button.dataset.set, button.dataset.to);
  ({
    play: toggle,
    back: () => step(-1),
    next: () => step(1),
    loop: () => { set.loop = video.loop = !set.loop; button.setAttribute("aria-pressed", set.loop); mark("loop", set.loop); },
    link,
    undo: () => { if (undo.length) { restore(undo.pop()); edited(); } },
    reset: () => {
      const panel = editable();
      keep();
      restore({ now: panel.sent.slice(), weights: [...panel.temporal], invert_spatial: false, invert_temporal: false });
      edited();
    },
  })[button.dataset.do]?.();
});
root.addEventListener("input", (event) => {
  const field = event.target, name = field.dataset.set;
  if (name) changed(name, field.type === "checkbox" ? field.checked : field.type === "range" ? +field.value : field.value);
});

function follow(event, area, at, after = () => {}) {  // calls `at` where the pointer goes until it is let go
  event.preventDefault();
  area.setPointerCapture(event.pointerId);
  area.addEventListener("pointermove", at);
  area.addEventListener("lostpointercapture", () => {
    area.removeEventListener("pointermove", at);
    after();
  }, { once: true });
  at(event);
}

const shareUnder = (event, area) => {
  const box = area.getBoundingClientRect();
  return clamp((event.clientX - box.left) / box.width, 0, 0.99999);
};
const frameUnder = (event, area) => Math.floor(shareUnder(event, area) * count());

function scrub(event, area, seconds) {  // the clip is held while the pointer is down, and goes on then
  const resume = !video.paused;
  video.pause();
  follow(event, area, (e) => seek(seconds(e)), () => { if (resume) video.play().catch(() => {}); });
}

plot.addEventListener("pointerdown", (event) => {
  if (!facts || event.button) return;
  plot.focus({ preventScroll: true });
  if (set.mode === "bars" && panels[0].editable && facts.editable.includes("temporal")) {
    video.pause();
    keep();
    follow(event, plot, barsMove);
  } else scrub(event, plot, (e) => secondsAt(shareUnder(e, plot)));
});
strip.addEventListener("pointerdown", (event) => {
  if (facts && !event.button) scrub(event, strip, (e) => facts.times[frameUnder(e, strip)] + 1e-3);
});
plot.addEventListener("pointermove", (event) => {
  if (!facts) return;
  const k = frameUnder(event, plot), tip = $(".tip");
  tip.hidden = false;
  tip.textContent = `${facts.times[k].toFixed(2)} s · weight ${number(weight(panels[0], k))}`;
  tip.style.left = `${clamp((100 * (k + 0.5)) / count(), 8, 92)}%`;
});
plot.addEventListener("pointerleave", () => { $(".tip").hidden = true; });

root.addEventListener("keydown", (event) => {
  const tag = event.target.tagName;
  if (!facts || event.altKey || tag === "SELECT" || tag === "INPUT") return;
  if ((event.ctrlKey || event.metaKey) && event.key === "z") { $('[data-do="undo"]').click(); event.preventDefault(); return; }
  if (event.ctrlKey || event.metaKey || (tag === "BUTTON" && event.key === " ")) return;
  const nudge = (by) => {
    if (set.mode !== "bars" || !panels[0].editable) return false;
    const k = frameAt(now());
    keep();
    lift(k, weight(panels[0], k) + by);
    edited();
    return true;
  };
  const done = {
    " ": toggle,
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
    ArrowUp: () => nudge(0.05),
    ArrowDown: () => nudge(-0.05),
    Home: () => seek(0),
    End: () => seek(facts.duration),
  }[event.key];
  if (done && done() !== false) event.preventDefault();
});

// ------------------------------------------------------------------------------------- links, status, and the end

function hashed(name) {
  return new URLSearchParams(location.hash.slice(1)).get(name);
}

function link() {
  const to = new URLSearchParams({ ...(facts && facts.example ? { example: facts.example } : {}), t: now().toFixed(2) });
  history.replaceState(null, "", `#${to}`);
  const said = (words) => { const b = $('[data-do="link"]'); b.dataset.said = words; setTimeout(() => delete b.dataset.said, 1600); };
  if (navigator.clipboard) navigator.clipboard.writeText(location.href).then(() => said("Copied"), () => said("In the address"));
  else said("In the address");
}
addEventListener("hashchange", () => { const t = hashed("t"); if (facts && t !== null && Number.isFinite(+t)) seek(+t); });

function problem(words) {
  $(".problem").hidden = !words;
  $(".problem").textContent = words || "";
  mark("problem", Boolean(words));
}

function status(told) {
  if (!told) return;
  const busy = Boolean(told.busy);
  mark("busy", busy);
  $(".status").hidden = !busy;
  $(".status .words").textContent = busy ? told.text : "";
  $(".status .track").classList.toggle("unknown", busy && told.share == null);
  $(".status .track i").style.width = `${100 * (told.share || 0)}%`;
  problem(told.error ? told.text : "");
}

// Clips that only the server can play are no error: the page converts them. Gradio's preview would say so.
document.addEventListener("error", (event) => {
  const preview = event.target.closest?.("#clip");
  if (!preview || event.target.tagName !== "VIDEO") return;
  event.stopImmediatePropagation();
  preview.classList.add("unseen");
}, true);
document.addEventListener("loadstart", (event) => event.target.closest?.("#clip")?.classList.remove("unseen"), true);

for (const name of Object.keys(set)) choose(name, set[name]);
mark("busy", false);
mark("playing", false);
mark("seeking", false);
watch("value", () => show(props.value));
watch("status", () => status(props.status));
watch("answer", () => answered(props.answer));
watch("scores", () => scored(props.scores));
show(props.value);
if (hashed("example")) trigger("example", { key: hashed("example") });
