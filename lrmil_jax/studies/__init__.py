"""Studies: one config over several seeds and variants, side by side in one table."""
