"""Whether the deployment is well: measured by Beat's task, judged by pure functions, kept in Redis, read by everybody.

Beat ─► queue maintenance ─► periodic.check ─┬─ measure: queues, workers, Redis, dead letters …
├─ checks: measured values -> verdicts (ok, degraded, failing)
└─ record: report, history, changes ─► log, outbox ─► webhook
"""
