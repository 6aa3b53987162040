"""Programs written for the old modules, which the demo and the comparison run unchanged.

They import the old names alone.
"""
