"""The training objective of Section 3: Eq. 4 and 5."""
