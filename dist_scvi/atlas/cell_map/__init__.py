"""A map of the cells of an atlas: two coordinates for each, to draw, to select by polygon, and to count by tile."""
