"""One file per format behind `CellStore`; `open` chooses."""
