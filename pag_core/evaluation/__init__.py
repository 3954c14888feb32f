"""Evaluation: AutoAttack, Foolbox, checks against gradient masking, and how well input-gradients align."""
