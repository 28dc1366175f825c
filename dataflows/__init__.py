"""MOVE: what is run, where data comes from, and who watches."""
