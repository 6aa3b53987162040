"""Pages inside Flower: what Redis knows of the deployment, and buttons for what the commands do.

    install ── gives Flower our handlers and templates, once it is started ──► frame: login, JSON, confirmation
    overview, queues, dead_letters, batches, health, workers, calls, schedule, acts: one module for each page
    reading ── one reading of Redis for all viewers, and what was last known while Redis does not answer

Pages read and act through the modules that the commands use. Imports everything below ``scripts``, and the commands;
``graft.harden`` installs it by name where the command line starts Flower.
"""
