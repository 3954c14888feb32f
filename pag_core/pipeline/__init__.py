"""What makes a function a stage of the pipeline: whole artifacts, their provenance, checkpoints, the identity of code."""
