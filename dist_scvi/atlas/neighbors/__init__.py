"""The nearest cells of an atlas: a search of its neighbourhoods, which are ranges of its rows."""
