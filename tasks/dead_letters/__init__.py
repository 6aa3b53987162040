"""Dead letters: stores what will not run again, finds letters by query, replays or drops them.

Imports delivery and the modules at the root of ``tasks``. ``ReliableTask`` buries here;
``celery -A graft dead-letters`` reads and replays.
"""
