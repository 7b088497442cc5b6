"""Use Ray: connect, wait for capacity, carry progress, report figures."""
