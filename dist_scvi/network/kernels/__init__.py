"""Loops compiled for the CPU and the GPU, in which a training step spends most of its time."""
