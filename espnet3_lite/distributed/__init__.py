"""Which process this is and what the processes agree on. Importing it starts no process group."""
