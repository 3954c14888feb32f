"""To and from elsewhere: a trained classifier as one folder for other programs, a diffusion model that others trained."""
