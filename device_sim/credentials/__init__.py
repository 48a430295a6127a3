"""The devices' identities: keys, certificates and evidence, in memory and on disk."""
