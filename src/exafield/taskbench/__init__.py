"""Task Bench: one parameterised benchmark for every parallel programming system.

Slaughter et al., *Task Bench: A Parameterized Benchmark for Evaluating Parallel Runtime Performance*, SC 2020,
arXiv:1908.05790.
"""
