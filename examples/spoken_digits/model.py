"""A small recogniser that spells: log-mel features, two convolutions, a recurrent network, CTC on letters."""

import torch
import torch.nn.functional as F
from torch import nn

from examples.spoken_digits.augment import HideBands, VaryTempoAndLoudness
from examples.spoken_digits.features import GlobalMVN, LogMel, padding_mask
from examples.spoken_digits.text import NUMBER_OF_SYMBOLS, decode, edit_distance, greedy_decode

# CTC emits at most one letter a frame and needs a blank between two equal ones: `three` takes six frames, of
# 40 ms each. The recordings are cut close to the word; silence at the end leaves room for the last letters.
SILENCE = 1600  # samples, 0.2 s


class SpellingRecognizer(nn.Module):
    """Waveform in, letters out, trained with connectionist temporal classification (Graves et al., 2006).

    Args:
        stats_file: ``feats_stats.npz`` of collect-stats for `GlobalMVN`; may be missing.
        filters: Number of mel filters.
        size: Channels of the convolutions, and width of the recurrent network in each direction.
        dropout: Probability of dropping a feature between layers.

    >>> model = SpellingRecognizer().eval()
    >>> [frames.shape for frames in model.encode(torch.randn(2, 8000), torch.tensor([8000, 4000]))]
    [torch.Size([2, 31, 16]), torch.Size([2])]
    """

    def __init__(self, stats_file: str | None = None, size: int = 96, filters: int = 40, dropout: float = 0.2):
        super().__init__()
        self.log_mel = LogMel(filters=filters)
        self.vary = VaryTempoAndLoudness()
        self.normalize = GlobalMVN(stats_file, filters)
        self.hide = HideBands()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(channels, size, kernel_size=5, stride=2, padding=2) for channels in (filters, size)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in self.convolutions)
        self.recurrent = nn.GRU(size, size, num_layers=2, dropout=dropout, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(2 * size, NUMBER_OF_SYMBOLS)

    def collect_feats(self, speech, speech_lengths, **_) -> dict[str, torch.Tensor]:
        """What collect-stats measures: features before normalisation, ``(batch, frames, filters)``."""
        features, lengths = self.log_mel(speech, speech_lengths)
        return {"feats": features, "feats_lengths": lengths}

    def encode(self, speech: torch.Tensor, speech_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of the symbols for each 40 ms.

        Args:
            speech: ``(batch, samples)`` float32.
            speech_lengths: ``(batch,)`` int64.

        Returns:
            Logits ``(batch, frames, symbols)`` and the number of frames ``(batch,)``.
        """
        features, lengths = self.log_mel(F.pad(speech, (0, SILENCE)), speech_lengths + SILENCE)
        features, lengths = self.vary(features, lengths)
        x = self.hide(self.normalize(features), lengths)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            # Padding is zeroed before each convolution: a recording scores the same whatever batch it is in.
            x = x * padding_mask(lengths, x.size(1)).unsqueeze(2)
            x = self.dropout(F.gelu(norm(convolution(x.transpose(1, 2)).transpose(1, 2))))
            lengths = (lengths + 1) // 2
        # Packed, so that the backward direction begins at each recording's own end. The lengths must be
        # on the CPU: with a GPU, this line waits for it.
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        x, _ = nn.utils.rnn.pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)
        return self.output(self.dropout(x)), lengths

    def forward(self, speech, speech_lengths, text, text_lengths):
        """One batch of recordings and their spelling, ``text`` ``(batch, letters)`` padded with -1.

        Returns:
            Loss (CTC, per letter), stats, and weight (number of recordings). In training only the loss is
            logged: decoding reads the scores on the CPU, which would hold up a GPU at each step.
        """
        logits, lengths = self.encode(speech, speech_lengths)
        log_probabilities = logits.log_softmax(dim=2).transpose(0, 1)  # (frames, batch, symbols), for CTC
        loss = F.ctc_loss(log_probabilities, text.clamp(min=0), lengths, text_lengths, zero_infinity=True)
        stats = {"loss": loss.detach()}
        if not self.training:
            stats.update(self.score(logits, lengths, text))
        return loss, stats, torch.tensor(len(speech), device=loss.device)

    @staticmethod
    def score(logits: torch.Tensor, lengths: torch.Tensor, text: torch.Tensor) -> dict[str, float]:
        """Share of words without an error (``acc``), and wrong letters by letters spoken (``cer``)."""
        words = [decode(row) for row in text.tolist()]
        guesses = greedy_decode(logits, lengths)
        errors = sum(edit_distance(word, guess) for word, guess in zip(words, guesses, strict=True))
        right = sum(word == guess for word, guess in zip(words, guesses, strict=True))
        return {"acc": right / len(words), "cer": errors / sum(map(len, words))}

    @torch.no_grad()
    def recognize(self, speech: torch.Tensor, speech_lengths: torch.Tensor) -> list[str]:
        """Spell each recording; call it in evaluation mode."""
        return greedy_decode(*self.encode(speech, speech_lengths))
