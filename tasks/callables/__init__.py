"""How a function reaches a worker: by import name, as a copy, or not at all.

Imports envelope, codec and errors. ``submit`` and the facades ask here before anything is sent; a worker resolves the
function here before it runs an item.
"""
