"""One iteration of training, end to end."""
