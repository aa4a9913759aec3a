"""What makes the same ids come sooner. Stays in the package: nothing that travels with a model needs it."""
