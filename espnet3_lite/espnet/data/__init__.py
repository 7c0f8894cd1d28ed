"""From a recipe's data set to batches: organizer, collate function, batch samplers, loaders, collect_stats.

Stands beside the trainer and knows nothing of it. Which rank takes which batch, and where in an epoch a run goes
on, is the training loop's business; here an epoch is one list of batches, which depends on seed and epoch alone.

In the order in which a sample passes: `contract`, `recipe`, `stand_ins` (a recipe's own data set), `dataset`,
`preprocessor`, `organizer` (the sets of a run); `shape_files`, `batch_sizes`, `samplers` (what makes a batch),
`iterators` (what makes an epoch), `collate`, `loader` (what the training loop gets). Before all that, once:
`collect_stats`, `batch_stats`.
"""
