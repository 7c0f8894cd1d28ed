"""From a recipe's data set to batches: organizer, collate function, batch samplers, loader builder,
collect_stats.

Stands beside the trainer and knows nothing of it. Which rank takes which batch, and where in an epoch a run
goes on, is the training loop's business; here an epoch is one list of batches that depends on the seed and
the epoch alone.
"""
