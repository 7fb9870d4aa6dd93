"use strict";
// The time series of a point: a drawing with axes and units, and the same values as a table.

const nowcastSeries = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 400, HEIGHT = 200, LEFT = 46, RIGHT = 10, TOP = 20, BOTTOM = 34;
  const MINUTE = 60000;
  // Okabe-Ito: distinct for colour-blind readers; each line also has its own dash
  const STYLES = [
    { stroke: "#16202b", "stroke-dasharray": "none" },
    { stroke: "#0072B2", "stroke-dasharray": "none" },
    { stroke: "#D55E00", "stroke-dasharray": "7 3" },
    { stroke: "#009E73", "stroke-dasharray": "2 3" },
    { stroke: "#CC79A7", "stroke-dasharray": "8 3 2 3" },
  ];

  function svg(tag, attributes, ...children) {
    const made = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  const hours = (time) => time.toISOString().slice(11, 16);

  function rate(value) {
    if (value === 0) return "0";
    return value < 10 ? value.toFixed(1) : value.toFixed(0);
  }

  /** A step of 1, 2 or 5 times a power of ten that makes at most five intervals. */
  function niceStep(highest) {
    const power = 10 ** Math.floor(Math.log10(highest / 5));
    return [1, 2, 5, 10].map((n) => n * power).find((step) => highest / step <= 5);
  }

  /**
   * A drawing of lines against valid time.
   * lines: [{name, points: [{time: Date, value: number or null (no coverage) or undefined (no frame)}]}], the observed
   * one first; shown: the time of the map.
   */
  function chart(lines, now, shown) {
    const points = lines.flatMap((line) => line.points);
    const first = Math.min(...points.map((p) => p.time)), last = Math.max(...points.map((p) => p.time));
    const step = niceStep(Math.max(1, ...points.map((p) => p.value ?? 0)));
    const top = step * Math.ceil(Math.max(1, ...points.map((p) => p.value ?? 0)) / step);
    const x = (time) => LEFT + ((time - first) / (last - first || 1)) * (WIDTH - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - TOP - BOTTOM);
    const drawn = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": summary(lines) });
    for (let value = 0; value <= top + step / 2; value += step) {
      drawn.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
      drawn.append(svg("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, String(+value.toPrecision(3))));
    }
    const spacing = (last - first > 130 * MINUTE ? 60 : 30) * MINUTE;
    for (let time = Math.ceil(first / spacing) * spacing; time <= last; time += spacing) {
      drawn.append(svg("line", { class: "axis", x1: x(time), x2: x(time), y1: y(0), y2: y(0) + 4 }));
      drawn.append(svg("text", { x: x(time), y: y(0) + 17, "text-anchor": "middle" }, hours(new Date(time))));
    }
    drawn.append(svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(0), y2: y(0) }));
    drawn.append(svg("line", { class: "axis", x1: x(now), x2: x(now), y1: TOP, y2: y(0) }));
    drawn.append(svg("text", { x: x(now), y: TOP - 6, "text-anchor": "middle" }, "now"));
    const middle = (TOP + HEIGHT - BOTTOM) / 2;
    drawn.append(svg("text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(12 ${middle}) rotate(-90)` }, "rain rate (mm/h)"));
    drawn.append(svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "valid time (UTC)"));
    // the main forecast last, on top
    [...lines.keys()].reverse().forEach((n) => drawn.append(...drawnLine(lines[n], STYLES[n % STYLES.length], x, y)));
    const cursor = svg("line", { class: "time", y1: TOP, y2: y(0) });
    drawn.append(cursor);
    drawn.moveTo = (time) => { cursor.setAttribute("x1", x(time)); cursor.setAttribute("x2", x(time)); };
    drawn.moveTo(shown);
    return drawn;
  }

  /** A path with gaps where there is no value, and a dot at each. */
  function drawnLine(line, style, x, y) {
    let path = "", pen = "M";
    const dots = [];
    for (const { time, value } of line.points) {
      if (value === null || value === undefined) { pen = "M"; continue; }
      path += `${pen}${x(time).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
      dots.push(svg("circle", { cx: x(time), cy: y(value), r: 2, fill: style.stroke }));
    }
    return [svg("path", { d: path, fill: "none", "stroke-width": 2, ...style }), ...dots];
  }

  function summary(lines) {
    const parts = lines.map((line) => {
      const values = line.points.map((p) => p.value).filter((v) => v !== null && v !== undefined);
      return `${line.name}: ` + (values.length ? `highest ${rate(Math.max(...values))} mm/h` : "no value");
    });
    return `Rain rate against valid time. ${parts.join("; ")}`;
  }

  function keys(lines) {
    const items = lines.map((line, n) => element("li", {},
      svg("svg", { viewBox: "0 0 34 10", "aria-hidden": "true" },
        svg("path", { d: "M0 5H34", "stroke-width": 3, fill: "none", ...STYLES[n % STYLES.length] })),
      line.name));
    return element("ul", { className: "keys" }, ...items);
  }

  /** The same values; probabilities: lines of percent, that are not drawn. */
  function table(times, now, lines, probabilities) {
    const head = element("tr", {}, element("th", { scope: "col" }, "UTC"),
      ...lines.map((line) => element("th", { scope: "col" }, `${line.name}, mm/h`)),
      ...probabilities.map((line) => element("th", { scope: "col" }, `${line.name}, %`)));
    const cell = (line, time, text) => {
      const point = line.points.find((p) => +p.time === +time);
      if (point === undefined) return element("td", { className: "none" }, "");
      if (point.value === undefined) return element("td", { className: "none" }, "no frame");
      return point.value === null
        ? element("td", { className: "none" }, "no coverage")
        : element("td", {}, text(point.value));
    };
    const rows = times.map((time) => element("tr", { className: +time === +now ? "now" : "" },
      element("th", { scope: "row" }, hours(time) + (+time === +now ? " now" : "")),
      ...lines.map((line) => cell(line, time, rate)),
      ...probabilities.map((line) => cell(line, time, String))));
    return element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  }

  return { chart, keys, table, element, rate };
})();
