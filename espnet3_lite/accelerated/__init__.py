"""pytorch-accelerated's callbacks and events on the trainer. The mechanism of event names and the run history are the
trainer's own."""
