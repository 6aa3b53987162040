"""``celery -A graft bench`` and ``celery -A graft tune``: the program behind every figure about speed.

    cli ── field ──┬── Redis, private             workloads: what is run, as pure values
                   ├── worker programs            contenders: who runs it, each behind the same few methods
                   └── one runner per contender   runner: the process that a contender's caller lives in, and its clock
                        ▲ commands, answers
    report, page ◄── measuring, targets

Every contender has a client process and workers of its own, a database of its own on one Redis, and takes its turn:
repetition 1 of each, then repetition 2 of each. So a slow minute of the machine meets all of them.
"""
