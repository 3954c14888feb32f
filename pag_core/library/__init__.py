"""The parts for a researcher's own network, loop, teacher and images; what of it is public is listed in `pag_core`."""
