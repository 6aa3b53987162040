"""Guest processes: made on workers for one pool of a program, with that program's folder, environment and modules.

    compat/guests      the pool's side: a multiprocessing context whose processes are guests
    guest_program      what a guest asks of its program: everything that a process of its own would have had
    values             large arguments and results, in Redis
    host               inside a pool process of the worker: makes guests, hands calls to them, ends them
    guest              one of them, as its host has it
    guest_process      the guest itself: a fresh interpreter, which imports nothing of ours
    state_marks        what a module's globals are, compared between program and guest

Imports codec, ids and the rooms below. A call of a pool is an item like any other; ``host.run_call`` is its function.
"""
