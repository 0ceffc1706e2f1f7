"""The 22 cases that were written in PyTorch."""
