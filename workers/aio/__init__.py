"""The parts of the io lane's pool: one event loop that runs tasks, with Celery's own tracer, by the thousand."""
