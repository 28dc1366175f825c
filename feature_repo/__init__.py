"""What Feast knows of Headrace: `feature_sets.toml` declares, `views.py` turns it into Feast's objects."""
