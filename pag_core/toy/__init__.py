"""The toy experiment (Section 5.1, Appendix G.1): points of the plane, whose exact robustness can be computed."""
