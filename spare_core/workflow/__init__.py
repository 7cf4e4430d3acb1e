"""Bodies of the pipelines' tasks, and the order that one task hands to the next."""
