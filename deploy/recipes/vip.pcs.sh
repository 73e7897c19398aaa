# A virtual IP that follows the promoted food, with pcs. Change the address (twice) and its prefix length; paste the
# lines on one node, `sh FILE` does the same. Needs ocf:heartbeat:IPaddr2 (resource-agents, iproute2 on Debian).
#
# Clients use 192.0.2.100:10001, food's `port` + 2, and nothing else. The first line changes nothing for the running
# instances: they listen there, too, on every node, whether the address is there or not. The address is created
# disabled: until the constraints stand it could come up anywhere.

pcs resource update food client_addresses=192.0.2.100
pcs resource create food-vip ocf:heartbeat:IPaddr2 ip=192.0.2.100 cidr_netmask=24 op monitor interval=10s --disabled
pcs constraint colocation add food-vip with Promoted food-clone INFINITY
pcs constraint order promote food-clone then start food-vip
pcs resource enable food-vip
