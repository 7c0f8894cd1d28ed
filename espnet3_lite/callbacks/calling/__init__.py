"""WHO is called at an event: the handler, the callbacks that are there by default, those of other packages."""
