"""Where and how results are computed: device, precision, random streams, processes that share the work."""
