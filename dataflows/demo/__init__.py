"""The demo's material: real readings, a story told with them, and a picture of what came out."""
