"""The settings of a trainer that shows, logs and saves nothing, on the CPU: what most tests want."""

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def quiet_trainer(**settings):
    """A `Trainer` with these settings, and quiet in all others."""
    from espnet3_lite import Trainer  # the settings alone serve Lightning too, in an environment of its own

    return Trainer(**{**QUIET, **settings})
