"""The user's script is read by a type checker, not run."""

collect_ignore = ["users_script.py"]
