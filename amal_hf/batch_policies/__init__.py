"""What changes the batch rather than the weights, one file a batch policy."""
