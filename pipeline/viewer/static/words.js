"use strict";
// What the page says: times, places, and the state of a forecast in plain words.

const nowcastWords = (() => {
  const MINUTE = 60000;
  const LATE_CADENCES = 3;

  const readable = (name) => name.replaceAll("_", " ");

  const date = (time) => time.toISOString().slice(0, 10);
  const clock = (time) => time.toISOString().slice(11, 16);

  /** Of a time from now, as "+35 min". */
  function offset(time, now) {
    const minutes = Math.round((time - now) / MINUTE);
    return minutes === 0 ? "now" : `${minutes > 0 ? "+" : "\u2212"}${Math.abs(minutes)} min`;
  }

  function degrees({ lat, lng }) {
    const east = ((lng + 540) % 360) - 180;
    const angle = (value, halves) => `${Math.abs(value).toFixed(3)}\u00b0 ${halves[value < 0 ? 1 : 0]}`;
    return `${angle(lat, "NS")}, ${angle(east, "EW")}`;
  }

  function age(minutes) {
    if (minutes < 120) return `${minutes} minutes`;
    return minutes < 48 * 60 ? `${Math.floor(minutes / 60)} hours` : `${Math.floor(minutes / 1440)} days`;
  }

  /** Times of day, those that follow each other as one: "03:00 to 03:20, 03:40 UTC". */
  function list(times, cadence) {
    const runs = [];
    for (const time of times.map((text) => new Date(text))) {
      const run = runs.at(-1);
      if (run && time - run.at(-1) === cadence * MINUTE) run.push(time);
      else runs.push([time]);
    }
    return runs.map((run) => clock(run[0]) + (run.length > 1 ? ` to ${clock(run.at(-1))}` : "")).join(", ") + " UTC";
  }

  /** What a reader must know of a forecast: [class, sentence]; the class is "plain" where nothing is wrong. */
  function sentences(forecast) {
    const { kind, method, model_name, fallback_reason, filled_times, missing_times, gaps, notes } = forecast;
    const said = [];
    const minutes = Math.floor((Date.now() - forecast.now) / MINUTE);
    const at = (times) => list(times, forecast.cadence_minutes);
    if (kind === "hindcast") said.push(["plain", "Hindcast, made from the archive."]);
    else if (minutes > LATE_CADENCES * forecast.cadence_minutes) said.push(["", `This forecast is ${age(minutes)} old.`]);
    if (fallback_reason) said.push(["", `Made by ${readable(method)} instead of ${model_name}: ${fallback_reason}`]);
    if (filled_times.length)
      said.push(["", `No radar frame at ${at(filled_times)}; for the forecast it was filled from the frames beside it.`]);
    if (missing_times.length)
      said.push(["", `No radar frame at ${at(missing_times)}; the forecast was made without.`]);
    const others = gaps.filter((time) => !filled_times.includes(time) && !missing_times.includes(time));
    if (others.length) said.push(["plain", `The archive has no radar frame at ${at(others)}.`]);
    return [...said, ...notes.map((note) => ["", note])];
  }

  /** What a forecast says of a place: amounts, onset and end; of areas the mean. */
  function ofPlace({ kind, amount_mm, onset, end }) {
    const said = [];
    const of = kind === "point" ? "" : " (mean of the area)";
    const amounts = Object.entries(amount_mm || {}).filter(([, amount]) => amount !== null);
    if (amounts.length) said.push(amounts.map(([minutes, amount]) => `${amount.toFixed(1)} mm in ${minutes} min`).join(", ") + of);
    const at = (text) => `${clock(new Date(text))} UTC`;
    if (onset) said.push(`Rain begins at ${at(onset)}.`);
    if (end) said.push(`Rain ends at ${at(end)}.`);
    return said;
  }

  return { readable, date, clock, offset, degrees, sentences, ofPlace };
})();
