"""Low-rank updates: in memory, their algebra, on disk, merged, exported, verified."""
