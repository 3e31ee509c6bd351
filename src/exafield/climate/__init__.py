"""Climate: pixel masks of tropical cyclones and atmospheric rivers (Kurth et al., arXiv:1810.01993)."""
