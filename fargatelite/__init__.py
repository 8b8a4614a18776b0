"""fargatelite."""
