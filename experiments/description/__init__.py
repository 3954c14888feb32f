"""The file of a description, and the experiment that it describes."""
