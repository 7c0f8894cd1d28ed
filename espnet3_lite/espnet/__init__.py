"""ESPnet3's contract on the trainer: ``loss, stats, weight = model(**batch)``, its data, schedules and runs."""
