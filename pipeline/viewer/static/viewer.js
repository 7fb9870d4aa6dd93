"use strict";
// The page: what is shown (forecast, layer, time, point), how it is drawn, and how a newer forecast comes in.
// Text of the data enters the page as text nodes only.

(() => {
  const FORMAT_VERSION = 1;
  const MS_PER_MINUTE = 50; // of the loop: ten minutes of rain pass in half a second
  const PAUSE_AT_END = 4; // frames
  const MOST_LABELS = 12; // places with their names on the map; of more, names come up under the pointer
  const POLL_S = Number(new URLSearchParams(location.search).get("poll")) || 60;

  const { NOTHING_SEEN, CanvasOverlay, palette, paint, cellOf } = nowcastFrames;
  const { readable, date, clock, offset, degrees } = nowcastWords;
  const { element } = nowcastSeries;
  const by = (id) => document.getElementById(id);
  const moving = matchMedia("(prefers-reduced-motion: reduce)");

  let forecast = null; // the content of a data file, with times and layers
  let layer = null;
  let index = 0;
  let playing = false;
  let timer = 0;
  let point = null; // {latlng, marker, chart} of the open time series
  let opener = null;
  let coast = null;
  let loading = "";
  const faults = { poll: "", image: "" };

  // ---- the map ----

  const canvas = document.createElement("canvas");
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
      const labelled = !areas.includes(place) && forecast.places.length <= MOST_LABELS;
      const label = labelled ? { permanent: true, direction: "right", offset: [6, 0], className: "place" } : { sticky: true };
      drawn.bindTooltip(element("span", {}, place.name), label).addTo(places);
      drawn.on("click", (event) => {
        L.DomEvent.stopPropagation(event);
        openSeries(areas.includes(place) ? event.latlng : L.latLng(place.latitude, place.longitude), false, place);
      });
    }
  }

  // ---- frames ----

  async function decode(frame, of = forecast) {
    const values = await nowcastFrames.decode(frame, of);
    if (frame.altered && !faults.image) {
      faults.image = "This browser alters what pages read from images (a privacy setting), so colours and values here "
        + "are not exact. Allow it for this page, or use another browser.";
      drawStatus();
    }
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

  async function draw() {
    const mine = forecast, asked = [layer, index];
    const frame = frameAt(...asked);
    const values = frame && await decode(frame);
    if (forecast !== mine || layer !== asked[0] || index !== asked[1]) return; // something newer is asked for
    paint(canvas, mine, values, mine.palettes[kindAt(...asked)]);
    canvas.dataset.shown = `${layer.key} ${mine.times[index].toISOString()}`;
  }

  // ---- time and layer ----

  function show(n) {
    index = Math.max(0, Math.min(forecast.times.length - 1, n));
    const time = forecast.times[index], past = index < forecast.past.length;
    const what = past ? (frameAt(layer, index) ? "observed" : "no radar frame") : "forecast";
    by("valid").textContent = `${date(time)} ${clock(time)} UTC`;
    by("offset").textContent = `${offset(time, forecast.now)}, ${what}`;
    by("slider").value = index;
    by("slider").setAttribute("aria-valuetext", `${clock(time)} UTC, ${offset(time, forecast.now)}, ${what}`);
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
        swatch("var(--unseen)", "not observed", "none")),
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

  function drawStatus() {
    const said = forecast ? nowcastWords.sentences(forecast) : [];
    said.push(...Object.values(faults).filter(Boolean).map((fault) => ["", fault]));
    const text = JSON.stringify(said);
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
  }

  function focusPanel() {
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

  /** renewed: for a newer forecast, which must not take the focus from where the reader is. */
  async function openSeries(latlng, renewed = false, place = null) {
    const open = renewed && Boolean(by("panel-body").querySelector("details")?.open);
    removePoint();
    const marker = L.circleMarker(latlng, { radius: 7, color: "#000", weight: 2, fillColor: "#fff", fillOpacity: 0.6, interactive: false });
    if (place) place = forecast.places.find(({ name }) => name === place.name) || null;
    const mine = point = { latlng, marker: marker.addTo(map), chart: null, place };
    if (!renewed) {
      openPanel(place ? place.name : degrees(latlng), element("p", {}, "reading the frames"));
      focusPanel();
    }
    const cell = cellOf(forecast, latlng), from = forecast;
    const value = async (frame, scale) => {
      if (!frame) return undefined;
      if (cell < 0) return null;
      const found = (await decode(frame, from))[cell];
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
      ...(place ? nowcastWords.ofPlace(place).map((text) => element("p", {}, text)) : []),
      ...(some
        ? [nowcastSeries.keys(lines), mine.chart]
        : [element("p", {}, "No coverage: no radar of this domain sees this place.")]),
      element("details", { open }, element("summary", {}, "Values as a table"),
        element("div", { className: "scroll", tabIndex: 0 }, table)),
    );
    if (!renewed) map.panInside(latlng, { padding: [40, 40], animate: false });
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
    focusPanel();
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
    focusPanel();
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
    if (point) openSeries(point.latlng, true, point.place);
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
