"""Labels of new cells from an atlas, with calibrated probabilities and sets that cover the true label."""
