"""What happens to queries, keys and values. Pure torch; knows no model and no host."""
