"""What travels to the Hub with a checkpoint, flat: config, model, processor, pipelines, structure reader."""
