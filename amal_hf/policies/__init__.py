"""Where the weights come from, one file a policy."""
