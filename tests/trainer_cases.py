"""All cases of `trainer_lab`: importing this enters them."""

import trainer_cases_calls
import trainer_cases_log
import trainer_cases_loop
import trainer_cases_optimization

__all__ = ["trainer_cases_calls", "trainer_cases_log", "trainer_cases_loop", "trainer_cases_optimization"]
