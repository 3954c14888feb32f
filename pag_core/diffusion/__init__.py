"""The class-conditional diffusion model with C+1 labels (Section 4.2, Appendix G.2), on guided_diffusion."""
