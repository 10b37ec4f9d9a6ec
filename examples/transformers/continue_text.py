"""Continues a text with a Mixture-of-Experts model whose experts are in the swarm.

    python continue_text.py MODEL [--url http://127.0.0.1:7575] [--prompt TEXT] [--tokens 64] [--own]

MODEL is a directory or a name at huggingface.co, as for transformers.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import kwaai_client as kwaai


class Bytes:
    """The tokenizer of kwaaid's text model, which has none: a token is a byte."""

    def encode(self, text: str, return_tensors: str) -> torch.Tensor:
        return torch.tensor([list(text.encode())])

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> str:
        return bytes(ids.tolist()).decode("utf-8", "replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--url", action="append", help="a node; may be repeated, the next is taken when one is gone")
    parser.add_argument("--name", help="the model's name in the swarm (default: the last part of MODEL)")
    parser.add_argument("--prompt", default="import os\nimport sys\n\ndef main():\n    ")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="float32", help="the arithmetic here: float32, bfloat16, or auto for the checkpoint's")
    parser.add_argument("--own", action="store_true", help="the model's own experts instead of the swarm's, to compare")
    args = parser.parse_args()

    has_tokenizer = not Path(args.model).is_dir() or any(Path(args.model).glob("tokenizer*"))
    tokenizer = AutoTokenizer.from_pretrained(args.model) if has_tokenizer else Bytes()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).eval()

    patched = None
    if not args.own:
        patched = kwaai.patch(model, args.url or "http://127.0.0.1:7575", name=args.name)  # this is all there is to it

    prompt = tokenizer.encode(args.prompt, return_tensors="pt")
    started = time.perf_counter()
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=args.tokens, do_sample=False)
    took = time.perf_counter() - started
    print(tokenizer.decode(ids[0], skip_special_tokens=True))
    print(f"\n{ids.shape[1] - prompt.shape[1]} tokens in {took:.1f} s")
    if patched:
        print(f"{len(patched.layers)} layers; who answered:")
        for peer, calls in patched.answered_by.most_common():
            print(f"  {peer}  {calls} calls")


if __name__ == "__main__":
    main()
