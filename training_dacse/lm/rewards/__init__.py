"""Stage 3: a model learns from scores of what it answers. Knows no metric: whoever trains brings them."""
