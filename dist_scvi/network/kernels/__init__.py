"""Loops compiled for the CPU and the GPU: what a training step spends its time in."""
