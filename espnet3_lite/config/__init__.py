"""WHICH settings: YAML files as ESPnet3's users write them, checked as a whole, and the objects that they name.

`container.py`: `Config`, `load_config`, merging. `yaml_text.py`, `interpolation.py`, `overrides.py`, `files.py`: how a
file becomes one. `schema.py` (with `fields.py`, `rules.py`): all mistakes at once. `targets.py`: what ``_target_``
builds.
"""

from espnet3_lite.config.container import Config, ConfigKeyError, ConfigList, load_config, merge, path_of

__all__ = ["Config", "ConfigKeyError", "ConfigList", "load_config", "merge", "path_of"]
