"""The forecast viewer: a static page of the newest forecast on a map, for a browser and nothing else."""
