"""The commands of ``celery -A graft``: one module, or one package, for each, under the command's own name.

To add ``celery -A graft my-command``:

1. Copy ``doctor/``, the smallest, to ``my_command/``. Its ``__init__.py`` holds ``command``, the click command: options
   and help, and imports what it calls when it is called. ``report.py`` prints and has the exit code. ``facts.py``
   reads. ``rules.py`` decides and reads nothing, so that its tests need no server. A command that decides little is
   one file, ``my_command.py``.
2. Add one line to the table, ``scripts/command_table.py``, and one to ``celery.commands`` in ``pyproject.toml``. Run
   ``./scripts/setup``, or Celery does not see the new entry point.
3. Put its tests into ``tests/scripts/commands/``. ``tests/scripts/test_command_table.py`` fails until 1 and 2 agree.

Results go to stdout, everything else to stderr. ``options.py`` holds options that several commands share, and
``scripts/console.py`` the printing. A command that is not for every installation is excluded from the wheel in
``pyproject.toml``.
"""
