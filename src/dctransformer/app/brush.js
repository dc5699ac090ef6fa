// A brush for the inpaint tab: one canvas over the picture, as many dots as the picture has pixels.
(() => {
  let painting = null, last = null;
  const canvas = () => document.querySelector("canvas.dct-brush");
  const place = (c, event) => {
    const box = c.getBoundingClientRect();
    return [(event.clientX - box.left) * c.width / box.width, (event.clientY - box.top) * c.height / box.height];
  };
  const stroke = (c, from, to) => {
    const pen = c.getContext("2d");
    pen.strokeStyle = "#ff2d95";
    pen.lineCap = "round";
    pen.lineWidth = Math.max(4, Math.min(c.width, c.height) / 10);
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(to[0] + 0.01, to[1]);
    pen.stroke();
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
  window.dctBrush = {
    mask: () => canvas()?.toDataURL("image/png") ?? "",
    clear: () => { const c = canvas(); if (c) c.getContext("2d").clearRect(0, 0, c.width, c.height); },
    middle: () => {  // what the examples replace
      const c = canvas();
      if (!c) return;
      const pen = c.getContext("2d");
      pen.fillStyle = "#ff2d95";
      pen.fillRect(c.width / 4, c.height / 4, c.width / 2, c.height / 2);
    },
  };
})();
