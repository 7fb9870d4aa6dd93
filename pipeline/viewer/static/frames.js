"use strict";
// Frames as values: out of their PNGs, into colours, onto the map.

const nowcastFrames = (() => {
  const NOTHING_SEEN = 255; // of a frame's values; the others are pixels, or percent

  // an image overlay whose image is a canvas of ours, so that a frame changes at once and exactly
  const CanvasOverlay = L.ImageOverlay.extend({
    _initImage() {
      this._image = this._url;
      L.DomUtil.addClass(this._image, "leaflet-image-layer rain");
      if (this._zoomAnimated) L.DomUtil.addClass(this._image, "leaflet-zoom-animated");
    },
  });

  const decoding = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

  /** The values of a frame (rows * columns), decoded once; frame.altered says that the browser changed them. */
  async function decode(frame, { columns, rows }) {
    if (frame.values) return frame.values;
    const image = new Image();
    image.src = frame.png;
    await image.decode();
    decoding.canvas.width = columns;
    decoding.canvas.height = rows;
    decoding.drawImage(image, 0, 0);
    const pixels = decoding.getImageData(0, 0, columns, rows).data;
    const values = new Uint8Array(columns * rows);
    let sum = 0;
    for (let n = 0; n < values.length; n++) sum += values[n] = pixels[4 * n];
    frame.altered = sum !== frame.sum;
    frame.values = values;
    return values;
  }

  /** Colour of each value: that of the last class that it reaches, below the first white; what nobody saw is clear. */
  function palette(classes) {
    const table = new Uint8ClampedArray(4 * 256).fill(255);
    const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    for (const { value, colour } of classes)
      for (let n = value; n < NOTHING_SEEN; n++) table.set([...channels(colour), 255], 4 * n);
    table.set([0, 0, 0, 0], 4 * NOTHING_SEEN);
    return new Uint32Array(table.buffer);
  }

  /** Draw values; null clears. */
  function paint(canvas, { columns, rows }, values, colours) {
    if (canvas.width !== columns || canvas.height !== rows) {
      canvas.width = columns;
      canvas.height = rows;
    }
    const context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    const cells = new Uint32Array(image.data.buffer);
    if (values) for (let n = 0; n < cells.length; n++) cells[n] = colours[values[n]];
    context.putImageData(image, 0, 0);
  }

  /** Position of a place in a frame's values; -1 outside. */
  function cellOf({ bounds: [[south, west], [north, east]], columns, rows }, { lat, lng }) {
    const stretched = (latitude) => Math.asinh(Math.tan((latitude * Math.PI) / 180));
    const column = Math.floor(((lng - west) / (east - west)) * columns);
    const row = Math.floor(((stretched(north) - stretched(lat)) / (stretched(north) - stretched(south))) * rows);
    return column >= 0 && row >= 0 && column < columns && row < rows ? row * columns + column : -1;
  }

  return { NOTHING_SEEN, CanvasOverlay, decode, palette, paint, cellOf };
})();
