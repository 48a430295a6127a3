"""The service's directory: its files, who may write there, which process serves it, and the chain of its audit log."""
