"""What is added to exceptions out of steps, data sets, loaders and schedulers, and that others stay as they are."""

import traceback

import numpy as np
import pytest
import torch
import torch.optim.lr_scheduler as schedulers
from quiet import quiet_trainer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset

from espnet3_lite import LiteModule, MisconfigurationException
from espnet3_lite.checks.error_notes import add_note


class Frames(Dataset):
    """Four sequences of four features, of 5 frames or longer, and their class, as a user reads them from files."""

    def __init__(self, change=lambda array, index: array[:5], label=lambda index: index % 3):
        self.change, self.label = change, label

    def __len__(self):
        return 4

    def __getitem__(self, index):
        array = np.ones((5 + index, 4), dtype=np.float32)
        return self.change(array, index), self.label(index)


class Classifier(LiteModule):
    def __init__(self):
        super().__init__()
        self.out = torch.nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        features, labels = batch
        return cross_entropy(self.out(features).mean(dim=1), labels)

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def shown(data, kind, module=None, call="fit", trainer=None, **loader):
    """What a user sees of the exception of this kind that a fit with these data ends by."""
    loader = data if isinstance(data, list) else DataLoader(data, batch_size=4, **loader)
    with pytest.raises(kind) as caught:
        getattr(trainer or quiet_trainer(max_epochs=1), call)(module or Classifier(), loader)
    assert type(caught.value) is kind
    return "".join(traceback.format_exception_only(type(caught.value), caught.value))


# ---- steps --------------------------------------------------------------------------------------------------------


def test_features_in_float64_are_named_with_what_would_do():
    text = shown(Frames(lambda array, index: array[:5].astype(float)), RuntimeError)
    assert "training_step had batch 0 of epoch 0, counted from 0:" in text
    assert "  batch[0]: float64 (4, 5, 4); the weights are float32: `.to(torch.float32)`, or `array.astype(" in text
    assert "  batch[1]: int64 (4,), values 0 to 2\n" in text


def test_an_evaluation_tells_its_batch():
    good, bad = (torch.ones(2, 5, 4), torch.tensor([0, 1])), (torch.ones(2, 5, 4), torch.tensor([0, 3]))
    text = shown([good, bad], IndexError, call="validate")
    assert "validation_step had batch 1, counted from 0:\n  batch[0]: float32 (2, 5, 4)\n" in text
    assert "  batch[1]: int64 (2,), values 0 to 3" in text


def test_parts_of_a_dict_are_named_by_their_keys():
    class Dicts(Frames):
        def __getitem__(self, index):
            features, label = super().__getitem__(index)
            return {"features": features, "label": label, "speaker": f"speaker {index}"}

    text = shown(Dicts(), ValueError)  # too many values to unpack: the step wants a pair
    assert "  batch['features']: float32 (4, 5, 4)\n  batch['label']: int64 (4,), values 0 to 2\n" in text
    assert "  batch['speaker']: 4 texts, the first is 'speaker 0'" in text


def test_the_names_of_espnets_utterances_are_no_part_that_a_layer_gets():
    class Contract(Classifier):
        def training_step(self, batch, batch_idx):
            raise TypeError("of the model's own")

    text = shown([(["one", "two"], {"speech": torch.ones(2, 3)})], TypeError, Contract())
    assert text.endswith("counted from 0:\n  batch[1]['speech']: float32 (2, 3)\n")


def test_labels_in_int32():
    text = shown(Frames(label=np.int32), RuntimeError)
    assert "  batch[1]: int32 (4,), values 0 to 3; where it is an index or a class label, it must be int64" in text


def test_labels_as_text():
    text = shown(Frames(label=str), TypeError)
    assert "  batch[1]: 4 texts, the first is '0'; layers and losses take numbers: map texts to integers" in text


def test_arrays_that_no_collate_function_made_tensors():
    text = shown(Frames(), TypeError, ListOfSamples(), collate_fn=list)
    assert "  batch[0][0]: NumPy array, float32 (5, 4); layers take tensors" in text
    assert text.count("layers take tensors") == 1  # said once, not for each sample


class ListOfSamples(Classifier):
    def training_step(self, batch, batch_idx):
        return sum(self.out(features).sum() for features, label in batch)


def test_a_long_batch_is_cut():
    text = shown(Frames(lambda array, index: list(range(20))), AttributeError, Shapes())
    assert "  batch[0][11]: int64 (4,), values 11 to 11\n  and 9 more" in text and "batch[1]" not in text


class Shapes(Classifier):
    def training_step(self, batch, batch_idx):
        return batch.shape


def test_a_hidden_state_of_the_batch_before():
    class Keeps(Classifier):
        kept = 0.0

        def training_step(self, batch, batch_idx):
            self.kept = super().training_step(batch, batch_idx) + self.kept
            return self.kept

    text = shown(Frames(), RuntimeError, Keeps(), trainer=quiet_trainer(max_epochs=2))
    assert "Detach what is kept from an earlier batch, such as a hidden state: `self.hidden = hidden.detach()`" in text


def test_layers_that_are_made_in_the_step_leave_nothing_to_optimize():
    class Late(LiteModule):
        def training_step(self, batch, batch_idx):
            self.out = torch.nn.Linear(4, 3)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    assert "Make its layers in __init__ or configure_model, not in a step" in shown(Frames(), ValueError, Late())


def test_prediction_without_forward():
    text = shown(Frames(), NotImplementedError, call="predict")
    assert "unless the module defines `predict_step(self, batch, batch_idx)`" in text


# ---- data sets and collate functions ------------------------------------------------------------------------------


def fails_at_two(array, index):
    if index == 2:
        raise EOFError("No data left in file")
    return array[:5]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])  # torch takes 5 s to end a worker
def test_which_sample_could_not_be_read(workers):
    text = shown(Frames(fails_at_two), EOFError, num_workers=workers)
    assert "It was sample 2 of Frames that could not be had" in text


def test_the_sample_of_a_subset_is_the_data_sets_own():
    text = shown(Subset(Frames(fails_at_two), [3, 2]), EOFError)
    assert "It was sample 2 of Frames" in text


def test_sequences_of_unequal_length():
    text = shown(Frames(lambda array, index: array), RuntimeError)
    assert "No batch could be made of its 4 samples:\n  samples[0][0]: NumPy array, float32 (5, 4)\n" in text
    assert "  samples[1][0]: NumPy array, float32 (6, 4)\n" in text and "samples[2]" not in text
    assert "Samples of different shapes need a collate function that pads them" in text


def test_a_data_set_that_forgets_to_return_one_sample():
    class Forgets(Frames):
        def __getitem__(self, index):
            return None if index == 3 else super().__getitem__(index)

    text = shown(Forgets(), TypeError)
    assert "  samples[0][0]: NumPy array, float32 (5, 4)\n  samples[0][1]: int\n  samples[3]: None" in text


@pytest.mark.parametrize(
    ("change", "kind", "advice"),
    [
        (lambda array, index: np.array([array, None], dtype=object), TypeError, "or NumPy arrays of numbers"),
        (lambda array, index: array[:5].astype(">f4"), ValueError, "array.astype(array.dtype.newbyteorder('='))"),
    ],
)
def test_arrays_that_are_no_tensors(change, kind, advice):
    assert advice in shown(Frames(change), kind)


# ---- schedulers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind", "which"),
    [
        (lambda o: schedulers.CosineAnnealingLR(o, T_max=0), ZeroDivisionError, "CosineAnnealingLR(T_max=0"),
        (lambda o: schedulers.StepLR(o, step_size=0), ZeroDivisionError, "StepLR(step_size=0"),
        (lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=1), ValueError, "OneCycleLR(total_steps=1"),
    ],
)  # fmt: skip
def test_which_scheduler_cannot_step(make, kind, which):
    class Scheduled(Classifier):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [make(optimizer)]

    text = shown(Frames(), kind, Scheduled(), trainer=quiet_trainer(max_epochs=3))
    assert f"It is the scheduler {which}" in text and "they count calls of its step()" in text


# ---- the exceptions themselves ------------------------------------------------------------------------------------


def test_what_this_package_has_worded_gets_no_note():
    class LogsText(Classifier):
        def training_step(self, batch, batch_idx):
            self.log("name", "text")

    assert "batch[0]" not in shown(Frames(), ValueError, LogsText())
    assert "batch[0]" not in shown(Frames(label=float), MisconfigurationException, LiteModuleWithFloatLoss())


class LiteModuleWithFloatLoss(Classifier):
    def training_step(self, batch, batch_idx):
        return 1.0


def test_a_note_before_python_3_11():
    class Old(RuntimeError):
        """An exception without `add_note`."""

        @property
        def add_note(self):
            raise AttributeError

    plain, other = Old("what happened"), Old(3, "more")
    add_note(plain, "what would do")
    add_note(other, "what would do")
    assert str(plain) == "what happened\nwhat would do" and other.args == (3, "more")


def test_a_parameter_group_that_a_hook_adds_later(tmp_path):
    class Unfreezes(Classifier):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.optimizers().add_param_group({"params": [self.out.bias]})

        def configure_optimizers(self):
            return torch.optim.SGD([self.out.weight], lr=0.1)

    data = DataLoader(Frames(), batch_size=4, collate_fn=lambda samples: (torch.ones(4, 5, 4), torch.zeros(4).long()))
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(Unfreezes(), data)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    with pytest.raises(ValueError, match="different number of parameter groups") as failure:
        quiet_trainer(max_epochs=3).fit(Unfreezes(), data, ckpt_path=tmp_path / "two.ckpt")
    assert "Give the optimizer all groups in configure_optimizers" in failure.value.__notes__[-1]
