"""What a data set is: label schemes, names, cases, splits, and synthetic cases."""
