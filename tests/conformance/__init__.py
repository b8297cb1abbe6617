"""transformers' own common tests, run against this package, and what they do not cover."""
