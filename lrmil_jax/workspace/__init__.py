"""A working directory: paths, lock, whose it is, its cohort and features."""
