"""Is the deployment well? Beat's task measures, pure functions judge, Redis keeps the report.

Imports monitoring, queues, leaks and dead_letters. ``celery -A graft health``, the exporter and the webhook read it.

Beat ─► queue maintenance ─► periodic.check ─┬─ measure: queues, workers, Redis, dead letters …
├─ checks: measured values -> verdicts (ok, degraded, failing)
└─ record: report, history, changes ─► log, outbox ─► webhook
"""
