"""Where the weights come from, one file a policy; fixed ones and rules of thumb share two."""
