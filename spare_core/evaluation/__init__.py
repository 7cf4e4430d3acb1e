"""Is the concept gone, and did everything else survive: grids of pictures, judges, metrics, damage, report."""
