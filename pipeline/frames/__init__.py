"""dBZ or rain-rate fields to 0-255 frames on a fixed time axis."""
