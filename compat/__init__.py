"""The old doors of the new house: facades named after the old modules."""
