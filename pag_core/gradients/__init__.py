"""Sources of target gradients g(x, c): heuristic (Section 4.1) and score-based (4.2), and the store that holds them."""
