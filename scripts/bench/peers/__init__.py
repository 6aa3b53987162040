"""The apps of other task queues: imported by their own workers and by the contender's client."""
