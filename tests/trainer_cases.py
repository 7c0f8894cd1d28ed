"""All cases of `trainer_lab`: importing this enters them."""

import trainer_cases_log
import trainer_cases_loop

__all__ = ["trainer_cases_log", "trainer_cases_loop"]
