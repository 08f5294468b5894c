"use strict";
// What is under the pointer, in numbers. The page is whole without this.
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const number = (value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4))));

  function show(event, lines) {
    tip.textContent = lines.join("\n");
    tip.hidden = !lines.length;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8)) + "px";
    tip.style.top = (event.clientY + height + 24 > innerHeight ? event.clientY - height - 14 : event.clientY + 14) + "px";
  }

  for (const svg of document.querySelectorAll("svg.lines")) {
    const [x0, x1, y0, y1, left, right, bottom, top, unit] = JSON.parse(svg.dataset.axes);
    const lines = [...svg.querySelectorAll("polyline[data-name]")].map((line) => ({
      name: line.dataset.name, points: [...line.points].map((p) => [p.x, p.y]),
    }));
    svg.addEventListener("pointermove", (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
      const near = lines.map(({ name, points }) => {
        const [x, y] = points.reduce((best, p) => (Math.abs(p[0] - at) < Math.abs(best[0] - at) ? p : best));
        return { name, x, y };
      }).filter(({ x }) => Math.abs(x - at) < (right - left) / 8);
      const epoch = x0 + ((Math.max(left, Math.min(right, at)) - left) / (right - left)) * (x1 - x0);
      const values = near.map(({ name, y }) => `${name} ${number(y0 + ((bottom - y) / (bottom - top)) * (y1 - y0))}${unit}`);
      show(event, [`epoch ${number(epoch)}`, ...values]);
    });
    svg.addEventListener("pointerleave", (event) => show(event, []));
  }

  const palette = new Map(PALETTE.map((color, level) => [color, level]));
  function levels(image) {
    const { naturalWidth: width, naturalHeight: height } = image;
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.drawImage(image, 0, 0);
    return (row, column) => {
      const [red, green, blue, alpha] = pen.getImageData(column, row, 1, 1).data;
      return alpha ? palette.get((red << 16) | (green << 8) | blue) : 0;
    };
  }

  for (const place of document.querySelectorAll("image.heat")) {
    const facts = JSON.parse(place.dataset.facts);
    const image = new Image();
    let level = null;
    image.onload = () => { level = levels(image); };
    image.src = place.getAttribute("href");
    place.addEventListener("pointermove", (event) => {
      if (!level) return;
      const box = place.getBoundingClientRect();
      const at = (where, start, size, count) => Math.max(0, Math.min(count - 1, Math.floor(((where - start) / size) * count)));
      const column = at(event.clientX, box.left, box.width, image.naturalWidth);
      const row = at(event.clientY, box.top, box.height, image.naturalHeight);
      const share = image.naturalWidth > 1 ? column / (image.naturalWidth - 1) : 0;
      const [first, last, what] = facts.across;
      const across = typeof first === "number" ? `${what} ${number(first + share * (last - first))}` : `→ ${facts.across[column]}`;
      const found = level(row, column);
      const value = facts.low + ((found - 1) / 254) * (facts.high - facts.low);
      const text = found ? number(facts.power ? 10 ** value : value) + facts.unit : "no value";
      show(event, [facts.names[row] ?? "", across, text]);
    });
    place.addEventListener("pointerleave", (event) => show(event, []));
  }
})();
