"""Training: degradations, data, the two stages, adapters, the small codec. Each noun has its own module."""
