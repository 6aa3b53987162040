"""Pages inside Flower: what Redis knows of the deployment, and buttons for what the commands do.

    install ── gives Flower our handlers and templates, once it is started ──► frame: login, JSON, confirmation
    pages/ one module for each; acts: the confirmation, the act, and the list of who did what; jobs: long acts
    reading ── one reading of Redis for all viewers, and what was last known while Redis does not answer

Pages read and act through the modules that the commands use. Imports everything below ``scripts``, and the commands;
``graft.harden`` installs it by name where the command line starts Flower.
"""
