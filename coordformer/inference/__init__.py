"""One runner from files to predictions, and the verbs on it."""
