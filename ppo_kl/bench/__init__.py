"""Measuring the speed of training, ours and that of other libraries, with one clock on the same problems."""
