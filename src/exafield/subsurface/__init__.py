"""Subsurface flow: conductivity, heads and their uncertainty between wells."""
