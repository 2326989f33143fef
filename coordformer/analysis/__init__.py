"""What a checkpoint attends to and how robust it is."""
