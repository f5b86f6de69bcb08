"""Results as pictures, tables and files that other programs open."""
