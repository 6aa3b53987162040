"""The standard library's process pools on workers, for unchanged programs: ``--pools``, ``install(pools=True)``.

    install     has every ProcessPoolExecutor and multiprocessing.Pool ask for a context of ours
    joblib_pools    the same for joblib's default backend
    context     that context: its processes are members of a group, and no processes of this machine
    group       one pool's calls: from its own queue to guests on workers, and back
    decision    whether a pool moves, and why not
    machine_bound   what binds a pool to this machine
    program     what this program is: folder, environment, modules, and what it has set in them
    leases      guests live while they are renewed
    output      what calls write, written here

The pools remain the standard library's own: futures, order, errors and shutting down are its code. Imports the
dispatcher and ``tasks.guests``.
"""
