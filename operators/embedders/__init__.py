"""Texts to vectors. What needs the network or files is opened by dataflows.embedders."""
