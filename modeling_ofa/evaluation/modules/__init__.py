"""One `evaluate` module a file, thin: `evaluate.load(str(metric_path(name)))` loads it without network."""
