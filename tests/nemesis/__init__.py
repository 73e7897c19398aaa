"""The nemesis: does to a real cluster what may happen to it, in random order, under a load that is judged afterwards.

plan.py (pure) says what is done when, faults.py how, soak.py does it and reports. `tests/soak` is the command.
"""
