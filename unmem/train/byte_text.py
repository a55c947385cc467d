"""A text encoder that is not trained, and a tokenizer that reads bytes."""

from __future__ import annotations

from typing import Any

import torch

START, END = "<|startoftext|>", "<|endoftext|>"
LAYERS, HEADS = 2, 2
SHARPER = 3.5  # times CLIP's first weights of queries and keys: attention that looks at some words, not at the mean


def tokenizer(tokens: int) -> Any:
    """A CLIPTokenizer without merges: 256 bytes, each also as the last of a word, and the two ends of a text.

    Like CLIP's own, it reads capitals as small letters and any spaces as one.
    """
    from transformers import CLIPTokenizer

    letters = [*_symbols(), *(f"{symbol}</w>" for symbol in _symbols()), START, END]
    return CLIPTokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[], model_max_length=tokens)


def encoder(width: int, tokens: int) -> Any:
    """A small CLIPTextModel with weights drawn from torch's generator.

    As CLIP begins, before its training, attention averages over a text and outweighs the words, so that all texts look
    nearly alike. Here words and positions are drawn as large as what attention adds, and attention is sharper: texts
    that differ in one word are told apart in far fewer steps.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    size = 2 * 256 + 2
    config = CLIPTextConfig(
        vocab_size=size, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=tokens, projection_dim=width, bos_token_id=size - 2,
        eos_token_id=size - 1, pad_token_id=size - 1,
    )  # fmt: skip
    model = CLIPTextModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embedding" in name:
                weight.normal_()
            elif name.endswith(("q_proj.weight", "k_proj.weight")):
                weight.mul_(SHARPER)
    return model


def _symbols() -> list[str]:
    """The letter that byte-level tokenizers write for each byte: itself where it can be seen, else one from 256 on."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    unseen = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + unseen.index(byte)) for byte in range(256)]
