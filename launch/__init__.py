"""Ways to start training: the command line, Ray Train, torchrun."""
