"use strict";
// The page: what is shown (forecast, layer, time, point), how it is drawn, and how a newer forecast comes in.
// Text of the data enters the page as text nodes only.

(() => {
  const FORMAT_VERSION = 1;
  const MS_PER_MINUTE = 50; // of the loop: ten minutes of rain pass in half a second
  const PAUSE_AT_END = 4; // frames
  const POLL_S = Number(new URLSearchParams(location.search).get("poll")) || 60;
  const LATE_CADENCES = 3;
  const NOTHING_SEEN = 255;
  const MINUTE = 60000;

  const { element } = nowcastSeries;
  const by = (id) => document.getElementById(id);
  const moving = matchMedia("(prefers-reduced-motion: reduce)");

  let forecast = null; // the content of a data file, with times and layers
  let layer = null;
  let index = 0;
  let playing = false;
  let timer = 0;
  let point = null; // {latlng, marker, series} of the open time series
  let opener = null;
  let coast = null;
  let loading = "";
  const faults = { poll: "", image: "" };

  // ---- the map ----

  const canvas = document.createElement("canvas");
  // an image overlay whose image is drawn here, so that a frame changes at once and exactly
  const CanvasOverlay = L.ImageOverlay.extend({
    _initImage() {
      this._image = this._url;
      L.DomUtil.addClass(this._image, "leaflet-image-layer rain");
      if (this._zoomAnimated) L.DomUtil.addClass(this._image, "leaflet-zoom-animated");
    },
  });
  let map = null, overlay = null, places = null;

  function makeMap() {
    map = L.map("map", {
      attributionControl: false, keyboard: false, zoomSnap: 0.25, maxBoundsViscosity: 1, preferCanvas: true,
      zoomAnimation: !moving.matches, fadeAnimation: !moving.matches, inertia: !moving.matches,
    });
    map.createPane("rain").style.zIndex = 350; // below the coasts
    overlay = new CanvasOverlay(canvas, forecast.bounds, { pane: "rain" });
    fit();
    overlay.addTo(map);
    L.control.scale({ imperial: false, maxWidth: 120 }).addTo(map);
    places = L.layerGroup().addTo(map);
    map.on("click", (event) => openSeries(event.latlng));
    new ResizeObserver(() => map.invalidateSize({ animate: false })).observe(by("map"));
    drawCoast();
  }

  function fit() {
    const bounds = L.latLngBounds(forecast.bounds);
    overlay.setBounds(bounds);
    map.setMinZoom(0);
    map.setMaxBounds(bounds.pad(0.75));
    map.fitBounds(bounds, { animate: false, padding: [8, 8] });
    map.setMinZoom(map.getZoom() - 1).setMaxZoom(map.getZoom() + 6);
  }

  function drawCoast() {
    if (!map || !coast) return;
    L.polyline(coast.border, { color: "#5d6670", weight: 1, dashArray: "5 3", interactive: false }).addTo(map);
    L.polyline(coast.coast, { color: "#20262c", weight: 1.8, interactive: false }).addTo(map);
    coast = null;
  }

  function drawPlaces() {
    places.clearLayers();
    const areas = forecast.places.filter((place) => place.kind !== "point");
    for (const place of [...areas, ...forecast.places.filter((one) => !areas.includes(one))]) { // points on top
      const style = { color: "#8a0f5c", weight: 2 };
      const drawn = areas.includes(place)
        ? L.polygon(place.rings.map((ring) => ring.map(([lon, lat]) => [lat, lon])), { ...style, fillOpacity: 0 })
        : L.circleMarker([place.latitude, place.longitude], { ...style, radius: 5, fillOpacity: 0.9 });
      // an element: a string would be read as HTML
      drawn.bindTooltip(element("span", {}, place.name), { sticky: true }).addTo(places);
    }
  }

  // ---- frames ----

  const decoding = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

  /** The values of a frame, 0-255; decoded once. */
  async function decode(frame) {
    if (frame.values) return frame.values;
    const image = new Image();
    image.src = frame.png;
    await image.decode();
    const { columns, rows } = forecast;
    decoding.canvas.width = columns;
    decoding.canvas.height = rows;
    decoding.drawImage(image, 0, 0);
    const pixels = decoding.getImageData(0, 0, columns, rows).data;
    const values = new Uint8Array(columns * rows);
    let sum = 0;
    for (let n = 0; n < values.length; n++) sum += values[n] = pixels[4 * n];
    if (sum !== frame.sum) {
      faults.image = "This browser alters what pages read from images (a privacy setting), so colours and values here "
        + "are not exact. Allow it for this page, or use another browser.";
      drawStatus();
    }
    frame.values = values;
    frame.png = "";
    return values;
  }

  /** One after the other, so that the loop runs smoothly and the first picture does not wait. */
  async function decodeAll(mine) {
    for (const frame of [...mine.past.map((p) => p.frame), ...mine.layers.flatMap((l) => l.kind === "rate" ? l.frames : [])]) {
      if (forecast !== mine) return;
      if (frame) await decode(frame);
    }
  }

  const frameAt = (of, n) => n < forecast.past.length ? forecast.past[n].frame : of.frames[n - forecast.past.length];
  const kindAt = (of, n) => n < forecast.past.length ? "rate" : of.kind;

  function palette(classes) {
    const table = new Uint8ClampedArray(4 * 256);
    const paint = (n, colour, alpha) => table.set([1, 3, 5].map((c) => parseInt(colour.slice(c, c + 2), 16)).concat(alpha), 4 * n);
    for (const { value, colour } of classes) for (let n = value; n < NOTHING_SEEN; n++) paint(n, colour, 255);
    paint(NOTHING_SEEN, forecast.no_coverage_colour, 128);
    return new Uint32Array(table.buffer);
  }

  async function draw() {
    const mine = forecast, frame = frameAt(layer, index), colours = mine.palettes[kindAt(layer, index)];
    const asked = index, askedLayer = layer;
    const values = frame && await decode(frame);
    if (forecast !== mine || index !== asked || layer !== askedLayer) return; // something newer is asked for
    if (canvas.width !== mine.columns || canvas.height !== mine.rows) {
      canvas.width = mine.columns;
      canvas.height = mine.rows;
    }
    const context = canvas.getContext("2d");
    if (!values) return void context.clearRect(0, 0, canvas.width, canvas.height);
    const image = context.createImageData(canvas.width, canvas.height);
    const cells = new Uint32Array(image.data.buffer);
    for (let n = 0; n < cells.length; n++) cells[n] = colours[values[n]];
    context.putImageData(image, 0, 0);
    canvas.dataset.shown = `${layer.key} ${forecast.times[index].toISOString()}`;
  }

  // ---- time and layer ----

  const date = (time) => time.toISOString().slice(0, 10);
  const clock = (time) => time.toISOString().slice(11, 16);

  function offset(time) {
    const minutes = Math.round((time - forecast.now) / MINUTE);
    return minutes === 0 ? "now" : `${minutes > 0 ? "+" : "\u2212"}${Math.abs(minutes)} min`;
  }

  function show(n) {
    index = Math.max(0, Math.min(forecast.times.length - 1, n));
    const time = forecast.times[index], past = index < forecast.past.length;
    const what = past ? (frameAt(layer, index) ? "observed" : "no radar frame") : "forecast";
    by("valid").textContent = `${date(time)} ${clock(time)} UTC`;
    by("offset").textContent = `${offset(time)}, ${what}`;
    by("slider").value = index;
    by("slider").setAttribute("aria-valuetext", `${clock(time)} UTC, ${offset(time)}, ${what}`);
    drawLegend();
    if (point && point.chart) point.chart.moveTo(time);
    return draw();
  }

  function setPlaying(on) {
    playing = on;
    clearTimeout(timer);
    document.body.classList.toggle("playing", on);
    by("play").setAttribute("aria-label", on ? "Pause" : "Play");
    if (on) timer = setTimeout(advance, MS_PER_MINUTE * forecast.cadence_minutes);
  }

  async function advance() {
    const last = forecast.times.length - 1;
    await show(index === last ? 0 : index + 1);
    if (!playing) return;
    clearTimeout(timer);
    timer = setTimeout(advance, MS_PER_MINUTE * forecast.cadence_minutes * (index === last ? PAUSE_AT_END : 1));
  }

  function step(to) {
    setPlaying(false);
    show(to);
  }

  function choose(chosen) {
    layer = chosen;
    by("layer").value = layer.key;
    show(index);
  }

  function chooseNext(kind) {
    const offered = forecast.layers.filter((one) => one.kind === kind);
    if (offered.length) choose(offered[(offered.indexOf(layer) + 1) % offered.length]);
  }

  const readable = (name) => name.replaceAll("_", " ");

  function layersOf(content) {
    const rates = content.methods.map((method) => ({
      ...method, kind: "rate", key: `rate ${method.name}`,
      label: readable(method.name),
    }));
    const probabilities = content.probabilities.map((one) => ({
      ...one, kind: "probability", key: `probability ${one.threshold_mm_h}`, label: `P \u2265 ${one.threshold_mm_h} mm/h`,
    }));
    return [...rates, ...probabilities];
  }

  function drawLayerChoice() {
    const groups = [["rate", "Rain rate"], ["probability", "Probability of rain"]].map(([kind, label]) => {
      const options = forecast.layers.filter((one) => one.kind === kind)
        .map((one) => element("option", { value: one.key }, one.label));
      return options.length ? element("optgroup", { label }, ...options) : "";
    });
    by("layer").replaceChildren(...groups);
  }

  function drawLegend() {
    const rate = kindAt(layer, index) === "rate";
    const wanted = rate ? "rate" : layer.key;
    if (by("legend").dataset.of === wanted) return;
    by("legend").dataset.of = wanted;
    const classes = rate ? forecast.rate_classes : forecast.probability_classes;
    const swatch = (colour, text, name) => {
      const box = element("i", {});
      box.style.background = colour;
      return element("span", { className: name }, box, text);
    };
    by("legend").replaceChildren(
      element("span", { className: "name" },
        rate ? "Rain rate, mm/h, from" : `Probability of rain \u2265 ${layer.threshold_mm_h} mm/h, %, from`),
      element("span", { className: "classes" }, ...classes.map(({ from, colour }) => swatch(colour, String(from), "class")),
        swatch(forecast.no_coverage_colour + "80", "no coverage", "none")),
    );
  }

  function drawTicks() {
    const last = forecast.times.length - 1, now = forecast.past.length - 1;
    const at = (n, text) => {
      const tick = element("span", {}, text);
      tick.style.left = `${(100 * n) / last}%`;
      return tick;
    };
    by("slider").style.setProperty("--now", `${(100 * now) / last}%`);
    by("ticks").replaceChildren(at(0, clock(forecast.times[0])), at(now, "now"), at(last, clock(forecast.times[last])));
  }

  // ---- what the forecast says of itself ----

  function age() {
    const minutes = Math.floor((Date.now() - forecast.now) / MINUTE);
    if (minutes < 120) return `${minutes} minutes`;
    return minutes < 48 * 60 ? `${Math.floor(minutes / 60)} hours` : `${Math.floor(minutes / 1440)} days`;
  }

  /** Times of day, those that follow each other as one: "03:00 to 03:20, 03:40 UTC". */
  function list(times) {
    const runs = [];
    for (const time of times.map((text) => new Date(text))) {
      const run = runs.at(-1);
      if (run && time - run.at(-1) === forecast.cadence_minutes * MINUTE) run.push(time);
      else runs.push([time]);
    }
    return runs.map((run) => clock(run[0]) + (run.length > 1 ? ` to ${clock(run.at(-1))}` : "")).join(", ") + " UTC";
  }

  function sentences() {
    const said = [];
    if (forecast) {
      if (forecast.kind === "hindcast") said.push(["plain", "Hindcast, made from the archive."]);
      else if (Date.now() - forecast.now > LATE_CADENCES * forecast.cadence_minutes * MINUTE) said.push(["", `This forecast is ${age()} old.`]);
      if (forecast.fallback_reason) said.push(["", `Made by ${readable(forecast.method)} instead of ${forecast.model_name}: ${forecast.fallback_reason}`]);
      if (forecast.filled_times.length) said.push(["", `No radar frame at ${list(forecast.filled_times)}; for the forecast it was filled from the frames beside it.`]);
      if (forecast.missing_times.length) said.push(["", `No radar frame at ${list(forecast.missing_times)}; the forecast was made without.`]);
      const told = [...forecast.filled_times, ...forecast.missing_times];
      const gaps = forecast.gaps.filter((time) => !told.includes(time));
      if (gaps.length) said.push(["plain", `The archive has no radar frame at ${list(gaps)}.`]);
      said.push(...forecast.notes.map((note) => ["", note]));
    }
    return [...said, ...Object.values(faults).filter(Boolean).map((text) => ["", text])];
  }

  function drawStatus() {
    const said = sentences(), text = JSON.stringify(said);
    if (by("status").dataset.said === text) return; // a screen reader hears a change only
    by("status").dataset.said = text;
    by("status").replaceChildren(...said.map(([className, sentence]) => element("p", { className }, sentence)));
  }

  function drawFacts() {
    const from = `${date(forecast.now)} ${clock(forecast.now)} UTC`;
    document.title = `Rain nowcast, ${forecast.domain}, ${from}`;
    by("title").textContent = `Rain nowcast, ${readable(forecast.domain)}`;
    by("made").textContent = `${from}, ${readable(forecast.method)}`;
    by("credits").replaceChildren(...[
      `Institution: ${forecast.institution}`, `Licence: ${forecast.license}`,
      "Map: Natural Earth (public domain), Leaflet",
    ].map((text) => element("span", {}, text)));
  }

  // ---- the panel: time series, about, help ----

  function openPanel(title, ...body) {
    if (by("panel").hidden) opener = document.activeElement;
    by("panel-title").textContent = title;
    by("panel-body").className = "";
    by("panel-body").replaceChildren(...body);
    by("panel-body").scrollTop = 0;
    by("panel").hidden = false;
    by("panel-title").focus({ preventScroll: true });
  }

  function closePanel() {
    if (by("panel").hidden) return;
    by("panel").hidden = true;
    removePoint();
    if (opener && opener.isConnected) opener.focus({ preventScroll: true });
    opener = null;
  }

  function removePoint() {
    if (point) point.marker.remove();
    point = null;
  }

  function degrees({ lat, lng }) {
    const east = ((lng + 540) % 360) - 180;
    return `${Math.abs(lat).toFixed(3)}\u00b0 ${lat < 0 ? "S" : "N"}, ${Math.abs(east).toFixed(3)}\u00b0 ${east < 0 ? "W" : "E"}`;
  }

  /** Position of a place in a frame's values; -1 outside. */
  function cellOf({ lat, lng }) {
    const [[south, west], [north, east]] = forecast.bounds;
    const stretched = (latitude) => Math.asinh(Math.tan((latitude * Math.PI) / 180));
    const column = Math.floor(((lng - west) / (east - west)) * forecast.columns);
    const row = Math.floor(((stretched(north) - stretched(lat)) / (stretched(north) - stretched(south))) * forecast.rows);
    const inside = column >= 0 && row >= 0 && column < forecast.columns && row < forecast.rows;
    return inside ? row * forecast.columns + column : -1;
  }

  async function openSeries(latlng) {
    removePoint();
    const marker = L.circleMarker(latlng, { radius: 7, color: "#000", weight: 2, fillColor: "#fff", fillOpacity: 0.6, interactive: false });
    const mine = point = { latlng, marker: marker.addTo(map), chart: null };
    openPanel(degrees(latlng), element("p", {}, "reading the frames"));
    const cell = cellOf(latlng), from = forecast;
    const value = async (frame, scale) => {
      if (!frame) return undefined;
      if (cell < 0) return null;
      const found = (await decode(frame))[cell];
      return found === NOTHING_SEEN ? null : scale(found);
    };
    const points = (times, frames, scale) => Promise.all(frames.map(async (frame, n) => ({ time: times[n], value: await value(frame, scale) })));
    const rates = (pixel) => from.rates_mm_h[pixel];
    const ahead = from.times.slice(from.past.length);
    const observed = { name: "observed", points: await points(from.times, from.past.map((p) => p.frame), rates) };
    const lines = [observed], probabilities = [];
    for (const one of from.layers) {
      if (one.kind === "rate") lines.push({ name: readable(one.name), points: await points(ahead, one.frames, rates) });
      else probabilities.push({ name: `P \u2265 ${one.threshold_mm_h} mm/h`, points: await points(ahead, one.frames, Number) });
    }
    if (point !== mine || forecast !== from) return;
    const some = lines.some((line) => line.points.some((p) => p.value !== null && p.value !== undefined));
    mine.chart = nowcastSeries.chart(lines, from.now, from.times[index]);
    const table = nowcastSeries.table(from.times, from.now, lines, probabilities);
    by("panel-body").className = "series";
    by("panel-body").replaceChildren(
      ...(some
        ? [nowcastSeries.keys(lines), mine.chart]
        : [element("p", {}, "No coverage: no radar of this domain sees this place.")]),
      element("details", { open: false }, element("summary", {}, "Values as a table"), element("div", { className: "scroll", tabIndex: 0 }, table)),
    );
    map.panInside(latlng, { padding: [40, 40], animate: false });
  }

  function openAbout() {
    removePoint();
    const facts = {
      "Reference time": `${forecast.reference_time} (newest observed frame)`,
      "Issued": forecast.issue_time, "Kind": `${forecast.kind}, revision ${forecast.revision}`,
      "Method": readable(forecast.method), "Model": forecast.model_name, "Limits of the model": forecast.model_limits,
      "Institution": forecast.institution, "Licence": forecast.license,
      "Shown on": `${forecast.columns} x ${forecast.rows} cells in Web Mercator; each shows the nearest of the product's `
        + `${forecast.product_shape[1]} x ${forecast.product_shape[0]} cells of ${forecast.product_spacing_m} m`,
      "Software": forecast.software_version,
    };
    const entries = (of) => element("dl", {}, ...Object.entries(of).filter(([, text]) => text !== "")
      .flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, String(text))]));
    const verified = Object.entries(forecast.verified).map(([name, text]) => [readable(name.slice("verified_".length)), text]);
    openPanel("About this forecast", entries(facts),
      ...(verified.length ? [element("h3", {}, "Verified quality"), entries(Object.fromEntries(verified))] : []));
  }

  const KEYS = [
    ["space", "play or pause"], ["\u2190 \u2192", "one frame back or on"], ["home, end", "first and last frame"],
    ["n", "now: the newest observed frame"], ["m", "next method"], ["p", "next probability"],
    ["c", "time series at the centre of the map"], ["shift and arrows", "move the map"], ["+ \u2212", "zoom"],
    ["Esc", "close this"], ["?", "this text"],
  ];

  function openHelp() {
    removePoint();
    openPanel("Help",
      element("p", {}, "The loop shows the observed rain of the last hour, then the forecast. Click or tap the map for the time series of a place. Grey is where no radar sees; nothing is drawn where no rain was found."),
      element("h3", {}, "Keys"),
      element("dl", {}, ...KEYS.flatMap(([key, what]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, what)])));
  }

  // ---- a forecast comes in ----

  function load(content) {
    if (content.format_version !== FORMAT_VERSION) {
      faults.poll = "A newer kind of forecast was published; reload this page.";
      return drawStatus();
    }
    const before = forecast && { key: layer.key, time: +forecast.times[index], bounds: JSON.stringify(forecast.bounds) };
    forecast = content;
    forecast.times = [...content.past.map((p) => p.time), ...content.lead_times].map((text) => new Date(text));
    forecast.now = new Date(content.reference_time);
    forecast.layers = layersOf(content);
    forecast.palettes = { rate: palette(content.rate_classes), probability: palette(content.probability_classes) };
    layer = forecast.layers.find((one) => before && one.key === before.key) ?? forecast.layers[0];
    const same = before ? forecast.times.findIndex((time) => +time === before.time) : -1;
    index = same < 0 ? forecast.past.length - 1 : same;
    by("slider").max = forecast.times.length - 1;
    by("slider").disabled = false;
    delete by("legend").dataset.of;
    drawLayerChoice();
    drawTicks();
    drawFacts();
    drawStatus();
    drawLegend();
    if (!map) makeMap(); // after what takes room beside it
    else if (before.bounds !== JSON.stringify(forecast.bounds)) fit();
    drawPlaces();
    choose(layer);
    decodeAll(forecast);
    if (point) openSeries(point.latlng);
    if (!before && !moving.matches) setPlaying(true);
  }

  /** Scripts, since a page from disk may load nothing else. */
  function loadScript(source, failed) {
    const script = element("script", { src: source, onload: () => script.remove() });
    script.onerror = () => {
      script.remove();
      failed();
    };
    document.head.append(script);
  }

  function poll() {
    drawStatus();
    loadScript(`latest.js?${Date.now()}`, () => {
      faults.poll = forecast
        ? "Whether there is a newer forecast cannot be found out at the moment; the page goes on asking."
        : "There is no forecast here yet; the page goes on asking.";
      drawStatus();
    });
  }

  window.nowcastCoast = (lines) => {
    coast = lines;
    drawCoast();
  };
  window.nowcastData = (content) => {
    loading = "";
    faults.poll = "";
    load(content);
  };
  window.nowcastLatest = ({ file }) => {
    if (loading === file || (forecast && forecast.file === file)) {
      faults.poll = "";
      return drawStatus();
    }
    loading = file;
    loadScript(encodeURIComponent(file), () => {
      loading = "";
      faults.poll = "The newest forecast cannot be read at the moment; the page goes on asking.";
      drawStatus();
    });
  };

  // ---- controls ----

  const actions = {
    " ": () => setPlaying(!playing),
    ArrowLeft: () => step(index - 1),
    ArrowRight: () => step(index + 1),
    Home: () => step(0),
    End: () => step(forecast.times.length - 1),
    n: () => step(forecast.past.length - 1),
    m: () => chooseNext("rate"),
    p: () => chooseNext("probability"),
    c: () => openSeries(map.getCenter()),
    "+": () => map.zoomIn(),
    "-": () => map.zoomOut(),
    "?": openHelp,
    Escape: closePanel,
  };
  const PAN = { ArrowLeft: [-80, 0], ArrowRight: [80, 0], ArrowUp: [0, -80], ArrowDown: [0, 80] };

  document.addEventListener("keydown", (event) => {
    if (!forecast || event.ctrlKey || event.altKey || event.metaKey) return;
    const on = event.target.tagName;
    // what these do with their own keys stands
    if (on === "SELECT" && event.key !== "Escape") return;
    if (event.key === " " && (on === "BUTTON" || on === "SUMMARY" || on === "A")) return;
    if (event.shiftKey && PAN[event.key]) map.panBy(PAN[event.key], { animate: !moving.matches });
    else if (actions[event.key]) actions[event.key]();
    else return;
    event.preventDefault();
  });
  const onClick = (id, action) => by(id).addEventListener("click", () => forecast && action());
  onClick("previous", actions.ArrowLeft);
  onClick("next", actions.ArrowRight);
  onClick("play", actions[" "]);
  onClick("now", actions.n);
  onClick("about", openAbout);
  onClick("help", openHelp);
  by("panel-close").addEventListener("click", closePanel);
  by("slider").addEventListener("input", () => step(Number(by("slider").value)));
  // who chose with the pointer goes on with the page's keys; who chose with the keyboard stays in the list
  let pointed = false;
  by("layer").addEventListener("pointerdown", () => { pointed = true; });
  by("layer").addEventListener("keydown", () => { pointed = false; });
  by("layer").addEventListener("change", () => {
    choose(forecast.layers.find((one) => one.key === by("layer").value));
    if (pointed) by("layer").blur();
  });

  poll();
  setInterval(poll, POLL_S * 1000);
})();
