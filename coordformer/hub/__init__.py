"""A checkpoint on its way to the Hub: folder, card, check, push."""
