"""Who the devices are: keys, certificates and evidence, in memory and on disk."""
