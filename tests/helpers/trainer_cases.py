"""All cases of `trainer_lab`: importing this enters them."""

import trainer_cases_calls
import trainer_cases_log
import trainer_cases_loop
import trainer_cases_manual
import trainer_cases_optimization
import trainer_cases_settings
import trainer_cases_steps

__all__ = [
    "trainer_cases_calls",
    "trainer_cases_log",
    "trainer_cases_loop",
    "trainer_cases_manual",
    "trainer_cases_optimization",
    "trainer_cases_settings",
    "trainer_cases_steps",
]
