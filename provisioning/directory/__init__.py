"""The service's directory: where everything is, who may write there, who serves it, and the chain of its audit log."""
