"""A misspelt hook of a module is told with the nearest name; methods of one's own are not."""

import warnings

import pytest
from weights_parts import Net, loader, trainer_of


def told(module):
    """The warnings of a short fit about hooks that are never called."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_of(max_epochs=1).fit(module, loader())
    return [str(one.message) for one in caught if "not a hook that the trainer calls" in str(one.message)]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("on_train_epoch_ends", "on_train_epoch_end"),
        ("on_validation_epoch_strat", "on_validation_epoch_start"),
        ("on_training_batch_end", "on_train_batch_end"),
        ("test_stp_step", None),
        ("tst_step", "test_step"),
        ("test_dataloaders", "test_dataloader"),
        ("predict_steps", "predict_step"),
        ("shared_step", None),
        ("generator_step", None),
        ("validaton_step", None),  # Net defines validation_step, too
        ("on_my_own_event", None),
    ],
)
def test_a_misspelt_hook_of_a_module_is_told_with_the_nearest_name(name, meant):
    Module = type("Module", (Net,), {name: lambda self, *arguments: None})
    expected = [f"Module.{name} is not a hook that the trainer calls; did you mean {meant!r}?"] if meant else []
    assert told(Module()) == expected


def test_what_is_no_function_is_no_hook():
    Module = type("Module", (Net,), {"on_train_epoch_ends": 3})
    assert told(Module()) == []


def test_a_class_instead_of_a_module_is_told():
    with pytest.raises(TypeError, match="got `type`; pass an instance: add the parentheses"):
        trainer_of().fit(Net, loader())
