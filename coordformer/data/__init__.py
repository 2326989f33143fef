"""From files to batches: reading, preparing, rows, batching, collating."""
