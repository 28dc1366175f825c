"""Who watches: events that the steps tell, and small hooks that log or count them."""
