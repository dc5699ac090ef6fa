// What Gradio has no part for: a box for files, and a brush. Nothing is read back from a canvas, which some browsers
// falsify: the brush keeps the squares that it touches as numbers.
(() => {
  const SQUARE = 16;
  const squares = new WeakMap();  // canvas -> Set of the squares that were touched, counted row by row
  const chosen = {};              // task -> file
  let painting = null, last = null;

  const canvas = () => document.querySelector("canvas.dct-brush");
  const touched = (c) => squares.get(c) ?? squares.set(c, new Set()).get(c);
  const place = (c, event) => {
    const box = c.getBoundingClientRect();
    return [(event.clientX - box.left) * c.width / box.width, (event.clientY - box.top) * c.height / box.height];
  };
  const touch = (c, x, y, radius) => {
    const columns = Math.ceil(c.width / SQUARE), rows = Math.ceil(c.height / SQUARE);
    const first = (v) => Math.max(0, Math.floor((v - radius) / SQUARE));
    for (let row = first(y); row < rows && row * SQUARE < y + radius; row++)
      for (let column = first(x); column < columns && column * SQUARE < x + radius; column++) {
        const dx = x - Math.min(Math.max(x, column * SQUARE), (column + 1) * SQUARE);
        const dy = y - Math.min(Math.max(y, row * SQUARE), (row + 1) * SQUARE);
        if (dx * dx + dy * dy < radius * radius) touched(c).add(row * columns + column);
      }
  };
  const stroke = (c, from, to) => {
    const pen = c.getContext("2d");
    const width = Math.max(4, Math.min(c.width, c.height) / 10);
    pen.strokeStyle = "#ff2d95";
    pen.lineCap = "round";
    pen.lineWidth = width;
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(to[0] + 0.01, to[1]);
    pen.stroke();
    const steps = Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1])) + 1;
    for (let i = 0; i <= steps; i++) {
      const part = i / steps;
      touch(c, from[0] + (to[0] - from[0]) * part, from[1] + (to[1] - from[1]) * part, width / 2);
    }
  };
  document.addEventListener("pointerdown", (event) => {
    const c = event.target.closest?.("canvas.dct-brush");
    if (!c) return;
    event.preventDefault();
    c.setPointerCapture(event.pointerId);
    painting = c;
    last = place(c, event);
    stroke(c, last, last);
  });
  document.addEventListener("pointermove", (event) => {
    if (!painting) return;
    const here = place(painting, event);
    stroke(painting, last, here);
    last = here;
  });
  for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, () => { painting = null; });

  const choose = (box, files) => {
    if (!files.length) return;
    chosen[box.dataset.task] = files[0];
    document.querySelector(`#${box.dataset.task}-send`).click();
  };
  document.addEventListener("change", (event) => {
    const box = event.target.closest?.(".dct-file");
    if (!box) return;
    choose(box, event.target.files);
    event.target.value = "";  // so that the same file can be chosen again
  });
  document.addEventListener("dragover", (event) => {
    if (event.target.closest?.(".dct-file")) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    const box = event.target.closest?.(".dct-file");
    if (!box) return;
    event.preventDefault();
    choose(box, event.dataTransfer.files);
  });

  const clear = () => {
    const c = canvas();
    if (!c) return;
    c.getContext("2d").clearRect(0, 0, c.width, c.height);
    touched(c).clear();
  };

  const message = (text) => {
    const div = document.createElement("div");
    div.className = "dct-message dct-error";
    div.setAttribute("role", "alert");
    div.textContent = text[0].toUpperCase() + text.slice(1);
    return div.outerHTML;
  };
  const ask = async (address, options) => {
    try {
      const answer = await (await fetch(window.gradio_config.root + address, options)).json();
      if (address.startsWith("/pictures/inpaint")) clear();  // Gradio may keep the canvas for the next picture
      return answer.shown === undefined ? ["", message(answer.detail)] : [answer.picture, answer.shown];
    } catch {
      return ["", message("the server can't be reached; try again")];
    }
  };
  window.dct = {
    upload: async (task) => {
      const box = document.querySelector(`#${task}-file .dct-file`);
      const file = chosen[task], most = Number(box.dataset.bytes);
      delete chosen[task];
      if (!file) return ["", ""];
      if (file.size > most) {
        const size = (file.size / 1e6).toFixed(1);
        return ["", message(`the file has ${size} MB, and ${most / 1e6} MB is the limit here; shrink the picture first`)];
      }
      box.classList.add("dct-busy");
      try {
        const headers = { "Content-Type": "application/octet-stream" };
        return await ask(`/pictures/${task}`, { method: "POST", headers, body: file });
      } finally {
        box.classList.remove("dct-busy");
      }
    },
    example: (task, number) => ask(`/pictures/${task}/${number}`),
    seed: (seed, fresh) => fresh ? Math.floor(Math.random() * 1000000) : seed,
    squares: () => { const c = canvas(); return c ? [...touched(c)].sort((a, b) => a - b).join(",") : ""; },
    clear,
    middle: () => {  // what the examples replace
      const c = canvas();
      if (!c) return;
      const pen = c.getContext("2d");
      pen.fillStyle = "#ff2d95";
      const columns = Math.ceil(c.width / SQUARE), rows = Math.ceil(c.height / SQUARE);
      for (let row = rows >> 2; row < rows - (rows >> 2); row++)
        for (let column = columns >> 2; column < columns - (columns >> 2); column++) {
          pen.fillRect(column * SQUARE, row * SQUARE, SQUARE, SQUARE);
          touched(c).add(row * columns + column);
        }
    },
  };
})();
