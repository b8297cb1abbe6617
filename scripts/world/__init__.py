"""A small world to train on and be tested in: drawings of everyday things, scenes of them, what can be asked."""
