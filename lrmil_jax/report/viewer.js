"use strict";
// A slide's picture as a pyramid of JPEG tiles with attention over it: drag, wheel, pinch, keys.
(() => {
  const slide = JSON.parse(document.getElementById("slide").textContent);
  const canvas = document.querySelector(".viewer canvas"), pen = canvas.getContext("2d");
  const readout = document.querySelector(".viewer output");
  const layer = document.getElementById("layer"), opacity = document.getElementById("opacity");
  const regions = document.getElementById("regions"), lesions = document.getElementById("lesions");
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const xy = new Int32Array(bytes(slide.xy).buffer);
  const attention = new Float32Array(bytes(slide.attention).buffer);
  const rank = bytes(slide.rank), colours = bytes(slide.colours), count = attention.length;
  const [top0] = slide.levels, d = slide.downsample, side = slide.side / d;
  const at = index => [(xy[2 * index] - slide.origin[0]) / d, (xy[2 * index + 1] - slide.origin[1]) / d];
  const share = index => attention[index] * count;

  // Patches on a grid of cells, one cell a patch where they lie on a lattice.
  let left = Infinity, upper = Infinity, right = 0, lower = 0, even = true;
  for (let i = 0; i < count; i++) {
    left = Math.min(left, xy[2 * i]); upper = Math.min(upper, xy[2 * i + 1]);
    right = Math.max(right, xy[2 * i]); lower = Math.max(lower, xy[2 * i + 1]);
  }
  for (let i = 0; i < count && even; i++)
    even = (xy[2 * i] - left) % slide.side === 0 && (xy[2 * i + 1] - upper) % slide.side === 0;
  const unit = even ? 1 : 4, cell = value => Math.round(value / slide.side * unit);
  const columns = count ? cell(right - left) + unit : 1, rows = count ? cell(lower - upper) + unit : 1;
  const patchAt = new Int32Array(columns * rows).fill(-1);
  for (let i = 0; i < count; i++) {
    const column = cell(xy[2 * i] - left), row = cell(xy[2 * i + 1] - upper);
    for (let v = 0; v < unit; v++) patchAt.fill(i, (row + v) * columns + column, (row + v) * columns + column + unit);
  }
  const heat = document.createElement("canvas");
  heat.width = columns; heat.height = rows;
  const paint = () => {
    const image = heat.getContext("2d").createImageData(columns, rows), pixels = image.data;
    for (let place = 0; place < patchAt.length; place++) {
      const index = patchAt[place];
      if (index < 0) continue;
      const level = layer.value === "rank" ? rank[index]
        : Math.round(255 * (Math.max(-1, Math.min(1, Math.log2(share(index) + 1e-12) / slide.octaves)) + 1) / 2);
      for (let c = 0; c < 3; c++) pixels[4 * place + c] = colours[3 * level + c];
      pixels[4 * place + 3] = 255;
    }
    heat.getContext("2d").putImageData(image, 0, 0);
  };

  let scale = 1, x = 0, y = 0, marked = -1, waiting = false;
  const pictures = new Map();
  const picture = (level, key) => {
    const name = level + "/" + key;
    if (!pictures.has(name)) {
      const image = new Image();
      image.onload = draw;
      image.src = "data:image/jpeg;base64," + slide.levels[level].tiles[key];
      pictures.set(name, image);
    }
    return pictures.get(name);
  };
  const drawLevel = number => {
    const level = slide.levels[number], factor = top0.width / level.width * scale, step = slide.tile * factor;
    for (let v = Math.max(0, Math.floor(-y / step)); v * step + y < canvas.clientHeight && v * slide.tile < level.height; v++)
      for (let u = Math.max(0, Math.floor(-x / step)); u * step + x < canvas.clientWidth && u * slide.tile < level.width; u++) {
        if (!(u + "_" + v in level.tiles)) continue;
        const image = picture(number, u + "_" + v);
        if (image.complete && image.naturalWidth)
          pen.drawImage(image, x + u * step, y + v * step, image.naturalWidth * factor + .3, image.naturalHeight * factor + .3);
      }
  };
  const box = (place, length, colour, line) => {
    const [u, v] = place;
    pen.strokeStyle = colour; pen.lineWidth = line;
    pen.strokeRect(x + u * scale, y + v * scale, length * scale, length * scale);
  };
  const outline = () => {
    const path = new Path2D();
    for (const ring of slide.lesions) {
      ring.forEach(([u, v], i) => path[i ? "lineTo" : "moveTo"](
        x + (u - slide.origin[0]) / d * scale, y + (v - slide.origin[1]) / d * scale));
      path.closePath();
    }
    // White below black, to be seen on dark nuclei and on every colour of attention.
    for (const [colour, line] of [["#fff", 4], ["#111", 1.8]]) {
      pen.strokeStyle = colour; pen.lineWidth = line; pen.lineJoin = "round";
      pen.stroke(path);
    }
  };
  const scaleBar = () => {
    const um = d * slide.mpp / scale, most = 110 * um, power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].map(n => n * power).find(n => n <= most), wide = length / um;
    const base = canvas.clientHeight - 14;
    pen.fillStyle = "rgba(255,255,255,.85)"; pen.fillRect(8, base - 20, wide + 12, 28);
    pen.fillStyle = "#1b1f24"; pen.fillRect(14, base, wide, 3);
    pen.font = "12px system-ui,sans-serif";
    pen.fillText(length >= 1000 ? length / 1000 + " mm" : length + " µm", 14, base - 5);
  };
  function show() {
    waiting = false;
    const ratio = window.devicePixelRatio || 1, wide = canvas.clientWidth, high = canvas.clientHeight;
    if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
      canvas.width = Math.round(wide * ratio); canvas.height = Math.round(high * ratio);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = "#fff"; pen.fillRect(0, 0, wide, high);
    const last = slide.levels.length - 1;
    const level = Math.max(0, Math.min(last, Math.floor(-Math.log2(scale * ratio))));
    drawLevel(last);
    if (level < last) drawLevel(level);
    if (layer.value !== "none" && count) {
      pen.globalAlpha = opacity.value / 100; pen.imageSmoothingEnabled = false;
      const u = (left - slide.origin[0]) / d, v = (upper - slide.origin[1]) / d;
      pen.drawImage(heat, x + u * scale, y + v * scale, columns / unit * side * scale, rows / unit * side * scale);
      pen.globalAlpha = 1; pen.imageSmoothingEnabled = true;
    }
    if (regions && regions.checked)
      for (const [u, v] of slide.regions)
        box([(u - slide.origin[0]) / d, (v - slide.origin[1]) / d], slide.region_side / d, "#111", 1.2);
    if (lesions && lesions.checked) outline();
    if (marked >= 0) { box(at(marked), side, "#fff", 5); box(at(marked), side, "#111", 2.5); }
    scaleBar();
    if (!document.documentElement.dataset.opened) document.documentElement.dataset.opened = Math.round(performance.now());
  }
  function draw() { if (!waiting) { waiting = true; requestAnimationFrame(show); } }

  let fitted = "";
  const view = () => [scale, x, y].join();
  const fit = () => {
    scale = Math.min(canvas.clientWidth / top0.width, canvas.clientHeight / top0.height) * .96;
    x = (canvas.clientWidth - top0.width * scale) / 2; y = (canvas.clientHeight - top0.height * scale) / 2;
    fitted = view();
    draw();
  };
  const zoom = (factor, u = canvas.clientWidth / 2, v = canvas.clientHeight / 2) => {
    const least = .3 * Math.min(canvas.clientWidth / top0.width, canvas.clientHeight / top0.height);
    const next = Math.max(Math.min(least, 8), Math.min(8, scale * factor));
    x = u - (u - x) * next / scale; y = v - (v - y) * next / scale; scale = next;
    draw();
  };
  const three = value => value >= 1000 ? Math.round(value) : Number(value.toPrecision(3));
  const tell = (u, v) => {
    const column = Math.floor(((u - x) / scale - (left - slide.origin[0]) / d) / side * unit);
    const row = Math.floor(((v - y) / scale - (upper - slide.origin[1]) / d) / side * unit);
    const inside = column >= 0 && row >= 0 && column < columns && row < rows;
    const index = inside ? patchAt[row * columns + column] : -1;
    readout.textContent = index < 0 ? "" : `${three(share(index))} × the even share · x ${xy[2 * index]}, y ${xy[2 * index + 1]}`;
  };

  const fingers = new Map();
  const place = event => { const b = canvas.getBoundingClientRect(); return [event.clientX - b.left, event.clientY - b.top]; };
  canvas.addEventListener("pointerdown", event => { canvas.setPointerCapture(event.pointerId); fingers.set(event.pointerId, place(event)); });
  canvas.addEventListener("pointermove", event => {
    const now = place(event), before = fingers.get(event.pointerId);
    if (!before) { tell(...now); return; }
    const other = [...fingers].find(([id]) => id !== event.pointerId);
    if (other) {
      const apart = point => Math.hypot(point[0] - other[1][0], point[1] - other[1][1]) || 1;
      zoom(apart(now) / apart(before), ...other[1]);
    } else { x += now[0] - before[0]; y += now[1] - before[1]; draw(); }
    fingers.set(event.pointerId, now);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, event => fingers.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => { readout.textContent = ""; });
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    zoom(2 ** (-event.deltaY * (event.deltaMode ? 30 : 1) / 300), ...place(event));
  }, { passive: false });
  canvas.addEventListener("dblclick", event => zoom(2, ...place(event)));
  const keys = {
    ArrowLeft: () => { x += 60; draw(); }, ArrowRight: () => { x -= 60; draw(); },
    ArrowUp: () => { y += 60; draw(); }, ArrowDown: () => { y -= 60; draw(); },
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: fit,
  };
  canvas.addEventListener("keydown", event => { if (event.key in keys) { event.preventDefault(); keys[event.key](); } });
  for (const [id, act] of [["in", keys["+"]], ["out", keys["-"]], ["fit", fit]]) document.getElementById(id).onclick = act;
  const relayer = () => {
    for (const bar of document.querySelectorAll(".scale")) bar.hidden = bar.dataset.layer !== layer.value;
    if (layer.value !== "none") paint();
    draw();
  };
  layer.onchange = relayer; opacity.oninput = draw;
  for (const control of [regions, lesions]) if (control) control.onchange = draw;
  for (const button of document.querySelectorAll("[data-patch]")) button.onclick = () => {
    marked = Number(button.dataset.patch);
    const [u, v] = at(marked);
    scale = Math.max(scale, Math.min(2, canvas.clientWidth / (8 * side)));
    x = canvas.clientWidth / 2 - (u + side / 2) * scale; y = canvas.clientHeight / 2 - (v + side / 2) * scale;
    canvas.scrollIntoView({ block: "nearest" });
    draw();
  };
  // A telephone that is turned: who has not moved the slide still sees all of it.
  new ResizeObserver(() => view() === fitted ? fit() : draw()).observe(canvas);
  relayer(); fit();
})();
