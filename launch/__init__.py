"""Starting things: the command line, Ray Train, torchrun."""
