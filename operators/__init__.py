"""COMPUTE: pure state machines over columns; no network, disk, environment or wall clock."""
