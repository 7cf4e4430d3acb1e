"""Words only: what to erase, what replaces it, what must survive, and the prompts of all three."""
