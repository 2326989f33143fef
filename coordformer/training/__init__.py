"""Training with `Trainer`, Muon, and checkpoints made of others."""
