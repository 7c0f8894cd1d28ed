"""A recognizer of spelt words: CTC over a small recurrent network."""

import torch
from espnet2.train.abs_espnet_model import AbsESPnetModel


class Recognizer(AbsESPnetModel):
    """From ``speech``, ``(batch, time, features)``, to a distribution over letters at each time."""

    def __init__(self, features, letters):
        super().__init__()
        self.recurrent = torch.nn.GRU(features, 16, batch_first=True)
        self.output = torch.nn.Linear(16, letters + 1)

    def collect_feats(self, speech, speech_lengths, **batch):
        """The features are the input."""
        return {"feats": speech, "feats_lengths": speech_lengths}

    def forward(self, speech, speech_lengths, text, text_lengths, **batch):
        """CTC's loss; the last class is the blank."""
        logits = self.output(self.recurrent(speech)[0]).log_softmax(-1).transpose(0, 1)
        loss = torch.nn.functional.ctc_loss(
            logits, text.clamp(min=0), speech_lengths, text_lengths, blank=logits.shape[-1] - 1
        )
        return loss, {"loss": loss.detach()}, torch.tensor(float(len(speech)))
