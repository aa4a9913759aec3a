"""The paper's open questions as experiments: variants trained side by side, scored, drawn. Knows no metric."""
