"""Training of image classifiers with perceptually aligned input-gradients (PAG), stage by stage."""
