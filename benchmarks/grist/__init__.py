"""The 79 defects of the GRIST study, as programs of our own, and a score per operator."""
