"""Tensors streamed through a method: threads that load, compute and store tiles; what a method must know first."""
