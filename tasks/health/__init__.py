"""Is the deployment well? Beat's task measures, pure functions judge, Redis keeps the report.

Imports monitoring, queues, leaks and dead_letters. ``celery -A graft health``, the exporter and the webhook read it.

Beat ─► queue maintenance ─► periodic.check ─┬─ measure: queues, workers, Redis, dead letters …
                                             ├─ checks, redis_server: measurements -> verdicts (pure)
                                             └─ report_store: report, changes ─► log, webhook
                             periodic.note ── history: a snapshot of the last day ─► celery -A graft html-report
"""
