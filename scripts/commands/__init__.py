"""One module (or package) for each sub-command of ``celery -A graft``; ``scripts/command_table.py`` names them."""
