# food with pcs. Paste the lines on one node; `sh FILE` does the same.
#
# Operations, their timeouts and the two monitors' intervals come from the agent. notify=true stands behind
# `promotable` without the word `meta`: with it, it would become the primitive's, and have no effect.
# The very first start needs every node of Corosync's list once.

pcs resource create food ocf:food:food promotable notify=true
