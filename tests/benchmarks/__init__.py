"""What the project measures of itself, beside others, on the same bytes."""
