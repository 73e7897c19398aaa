"""A simulated world around the core that ships: network, disks, clients and a hostile cluster manager.

One seed is one world. Everything random is drawn from the seed's generator, so that a seed replays exactly.
"""
