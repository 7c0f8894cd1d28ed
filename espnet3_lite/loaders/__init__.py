"""WHICH batches: whose loader is asked, what each rank gets of it, and where an epoch goes on after a resume."""
