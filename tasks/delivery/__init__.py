"""At least once, and never for ever: counts runs, isolates what kills its worker, cancels, completes chords.

Imports the modules at the root of ``tasks`` alone. ``ReliableTask``, the running room and the workers call it.
"""
