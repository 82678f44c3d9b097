"""Train a small language model on text that is at hand and save nothing but checkpoints.

Writes OUT/run.json (what was trained, on what, how), OUT/held-out.txt (a tenth of the text, never trained on), the files
of a tokenizer trained on the rest, and OUT/checkpoint-N at steps 0 (untrained), 1, 2, 4, ..., 512 and then at every
multiple of --every, as Transformers' Trainer writes them: config.json, model.safetensors, the tokenizer's files and
trainer_state.json. The text is Python's standard library, unless --text names another. Started again on the same OUT it
goes on after the last complete checkpoint and ends in the same bytes, on a CPU whatever the number of cores.
"""

import argparse
import hashlib
import json
import math
import pickle
import platform
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from posthoc.errors import PosthocError, UsageError
from posthoc.files import open_regular, replacing
from posthoc.replay.forward import error_line
from posthoc.replay.plan import find_device
from posthoc.shown import shown
from reproduction.train import RESUME, claim

try:
    import tokenizers
    import transformers
except ImportError as error:
    sys.exit(f"lm.py: {error}; install them: pip install 'posthoc[transformers]'")

# Of one file or folder each, with every Python since 3.11; no tests, no tables.
MODULES = (
    "_collections_abc", "_pydecimal", "_pyio", "_strptime", "argparse", "ast", "asyncio", "base64", "bdb", "calendar",
    "cmd", "code", "codecs", "collections", "compileall", "concurrent", "configparser", "contextlib", "copy", "csv",
    "ctypes", "dataclasses", "datetime", "difflib", "dis", "doctest", "email", "enum", "filecmp", "fileinput",
    "fractions", "ftplib", "functools", "getopt", "gettext", "glob", "graphlib", "gzip", "hashlib", "heapq", "hmac",
    "http", "imaplib", "importlib", "inspect", "ipaddress", "json", "linecache", "logging", "mailbox", "mimetypes",
    "multiprocessing", "netrc", "ntpath", "numbers", "operator", "optparse", "os", "pathlib", "pdb", "pickle",
    "pickletools", "pkgutil", "platform", "plistlib", "poplib", "posixpath", "pprint", "pstats", "py_compile", "pyclbr",
    "pydoc", "queue", "random", "re", "reprlib", "runpy", "sched", "secrets", "selectors", "shelve", "shlex", "shutil",
    "smtplib", "socket", "socketserver", "sqlite3", "ssl", "statistics", "string", "subprocess", "symtable", "sysconfig",
    "tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize", "tomllib", "trace", "traceback",
    "tracemalloc", "turtle", "types", "typing", "unittest", "urllib", "uuid", "warnings", "weakref", "webbrowser",
    "wsgiref", "xml", "xmlrpc", "zipapp", "zipfile", "zipimport", "zoneinfo",
)  # fmt: skip

VOCABULARY = 2048
END_OF_TEXT = "<|endoftext|>"
HELD_OUT = "held-out.txt"
TOKENS_PER_STEP = 4096
LEARNING_RATE = 5e-3
WARM_UP = 50
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.01
MOST_NORM = 1.0
EVALUATED_ROWS = 32
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError)


def gpt_neox(context: int) -> transformers.PreTrainedModel:
    """As Pythia: untied embeddings, rotary positions, attention and MLP side by side."""
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=context, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPTNeoXForCausalLM(config)


def gpt2(context: int) -> transformers.PreTrainedModel:
    """As GPT-2: tied embeddings, learned positions; without dropout."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=80, n_layer=4, n_head=4, n_positions=context, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


ARCHITECTURES = {"gpt-neox": gpt_neox, "gpt2": gpt2}


@dataclass(frozen=True)
class Corpus:
    """Documents to train on, and text that is set aside."""

    name: str
    documents: list[str]
    held_out: str

    def digest(self) -> str:
        return hashlib.sha256("\0".join(self.documents).encode()).hexdigest()


def read_corpus(place: Path | None) -> Corpus:
    """The text of a file, of all files in UTF-8 in a folder, or of the standard library, a tenth of it set aside.

    Every tenth file is set aside whole, in the order of their names; of fewer than ten, the last tenth of each.
    """
    if place is None:
        name, paths = f"the standard library of Python {platform.python_version()}", standard_library()
    else:
        paths = [place] if not place.is_dir() else sorted(path for path in place.rglob("*") if path.is_file())
        name = str(place)
    texts = [text for path in paths if (text := read_text(path, alone=path == place))]
    if not texts:
        raise PosthocError(f"There is no text in {name}; give a file or a folder with --text.")
    if len(texts) >= 10:
        return Corpus(name, [text for i, text in enumerate(texts) if i % 10 != 9], "\n".join(texts[9::10]))
    cuts = [len(text) * 9 // 10 for text in texts]
    return Corpus(
        name,
        [text[:cut] for text, cut in zip(texts, cuts, strict=True)],
        "\n".join(text[cut:] for text, cut in zip(texts, cuts, strict=True)),
    )


def standard_library() -> list[Path]:
    """The sources of MODULES that this Python has, in the order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [root / f"{module}.py" for module in MODULES]
    paths += [path for module in MODULES for path in (root / module).rglob("*.py")]
    tests = {"test", "tests"}  # unittest's own, before Python 3.12
    return sorted(path for path in paths if path.is_file() and not tests & set(path.relative_to(root).parts))


def read_text(path: Path, alone: bool) -> str:
    """The text of a file; that of one among others that is not in UTF-8 is empty."""
    with open_regular(path) as file:
        content = file.read()
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        if alone:
            raise PosthocError(f"{path} is not text in UTF-8 (byte {error.start}); convert it.") from error
        return ""


def train_tokenizer(corpus: Corpus) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the documents, the same whenever they are."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(corpus.documents, VOCABULARY, special_tokens=[END_OF_TEXT], show_progress=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
    )


class Tokens:
    """Token ids in a row, and windows of `context` of them."""

    def __init__(self, tokenizer: Any, texts: list[str], context: int, device: torch.device) -> None:
        rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        self.ids = torch.tensor([token for row in rows for token in (*row, tokenizer.eos_token_id)], device=device)
        self.offsets = torch.arange(context, device=device)

    def __len__(self) -> int:
        return len(self.ids)

    def starts(self) -> int:
        """At how many places a window can begin."""
        return len(self.ids) - len(self.offsets) + 1

    def windows(self, starts: Tensor) -> Tensor:
        """Those that begin at `starts` [B]: ids [B, T]."""
        return self.ids[starts.to(self.ids.device)[:, None] + self.offsets]

    def drawn(self, step: int, rows: int, seed: int) -> Tensor:
        """The windows of one training step, which depend on nothing but its number and the seed."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        return self.windows(torch.randint(self.starts(), (rows,), generator=generator))

    def spread(self) -> Tensor:
        """Up to EVALUATED_ROWS windows spread evenly."""
        return self.windows(torch.linspace(0, self.starts() - 1, EVALUATED_ROWS).long().unique())


def next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of each token of `ids` [B, T] but the first, given those before it."""
    scores = model(input_ids=ids).logits[:, :-1]
    return F.cross_entropy(scores.reshape(-1, scores.shape[-1]).float(), ids[:, 1:].reshape(-1))


def learning_rate(step: int, steps: int) -> float:
    """That of training step 1..steps: a linear warm-up, then half a cosine down to a tenth."""
    warm_up = min(WARM_UP, max(1, steps // 4))
    if step <= warm_up:
        return LEARNING_RATE * step / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return LEARNING_RATE * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)


def is_saved(step: int, steps: int, every: int) -> bool:
    """Whether a step has a checkpoint: the powers of two up to 512, then the multiples of `every`, and the last.

    >>> [step for step in range(1001) if is_saved(step, 1000, 200)]
    [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 800, 1000]
    """
    return step == steps or (step & (step - 1) == 0 if step <= 512 else step % every == 0)


class Run:
    """A model in training, and the folder of its checkpoints."""

    def __init__(self, args: argparse.Namespace, tokenizer: Any, training: Tokens, held_out: Tokens) -> None:
        self.args, self.tokenizer, self.training, self.held_out = args, tokenizer, training, held_out
        torch.manual_seed(args.seed)
        self.model = ARCHITECTURES[args.arch](args.context).to(training.ids.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), betas=BETAS, weight_decay=WEIGHT_DECAY)
        self.step = 0
        self.log: list[dict[str, float]] = []

    def folder(self) -> Path:
        return Path(self.args.out, f"checkpoint-{self.step}")

    def resume(self) -> None:
        """Go back to the last complete checkpoint, where there is one."""
        path = self.args.out / RESUME
        if not path.exists():
            return self.save(loss=None)
        try:
            state = torch.load(path, map_location=self.training.ids.device, weights_only=True)
            self.step, self.log = state["step"], state["log"]
            self.model.load_state_dict(type(self.model).from_pretrained(self.folder()).state_dict())
            self.optimizer.load_state_dict(state["optimizer"])
        except UNREADABLE as error:
            raise PosthocError(
                f"{path} or the checkpoint before it is damaged ({error_line(error)}); remove {path}."
            ) from error
        print(f"{self.args.out}: going on after step {self.step}", flush=True)

    def go(self) -> None:
        """Train to the last step, from wherever this stands."""
        self.model.train()
        losses = []
        while self.step < self.args.steps:
            self.step += 1
            self.optimizer.param_groups[0]["lr"] = learning_rate(self.step, self.args.steps)
            loss = next_token_loss(self.model, self.training.drawn(self.step, self.args.batch, self.args.seed))
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), MOST_NORM)
            self.optimizer.step()
            losses.append(loss.item())
            if is_saved(self.step, self.args.steps, self.args.every):
                self.save(sum(losses) / len(losses))
                losses = []

    def save(self, loss: float | None) -> None:
        """Write the checkpoint of this step, whole, then the state to resume from.

        loss: the mean over the steps since the last checkpoint.
        """
        row = {
            "step": self.step,
            "epoch": self.step * self.args.batch * self.args.context / len(self.training),
            "eval_loss": self.evaluate(),
        }
        if loss is not None:
            row |= {"loss": loss, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        self.log.append(row)
        self.write()
        # After the checkpoint: killed in between, its steps are taken again from the one before, to the same weights.
        with replacing(self.args.out / RESUME) as path:
            torch.save({"step": self.step, "log": self.log, "optimizer": self.optimizer.state_dict()}, path)
        trained = "" if loss is None else f"  loss {loss:.4f}"
        print(f"step {self.step:5d}  eval_loss {row['eval_loss']:.4f}{trained}", flush=True)

    def write(self) -> None:
        """The checkpoint's folder, which is there whole or not at all."""
        temporary = self.folder().with_name(f".{self.folder().name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        self.model.save_pretrained(temporary)
        shutil.copymode(temporary / "config.json", temporary / "model.safetensors")  # else its owner's alone
        self.tokenizer.save_pretrained(temporary)
        state = {"global_step": self.step, "epoch": self.log[-1]["epoch"], "log_history": self.log}
        (temporary / "trainer_state.json").write_text(json.dumps(state, indent=2) + "\n")
        shutil.rmtree(self.folder(), ignore_errors=True)
        temporary.replace(self.folder())

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss over rows of the text that was set aside."""
        self.model.eval()
        loss = next_token_loss(self.model, self.held_out.spread()).item()
        self.model.train()
        return loss


def prepare(args: argparse.Namespace) -> Run:
    """Read the text, train the tokenizer, and write all that stands beside the checkpoints."""
    device = find_device(args.device)
    corpus = read_corpus(args.text)
    tokenizer = train_tokenizer(corpus)
    training = Tokens(tokenizer, corpus.documents, args.context, device)
    held_out = Tokens(tokenizer, [corpus.held_out], args.context, device)
    if min(training.starts(), held_out.starts()) < 1:
        what = f"{len(training)} tokens to train on and {len(held_out)} set aside"
        raise PosthocError(f"{what} are too few for a --context of {args.context}; give more text with --text.")
    run = Run(args, tokenizer, training, held_out)
    claim(args.out, {
        "arch": args.arch,
        "parameters": run.model.num_parameters(),
        "steps": args.steps,
        "every": args.every,
        "seed": args.seed,
        "context": args.context,
        "batch": args.batch,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "text": corpus.name,
        "train_tokens": len(training),
        "train_sha256": corpus.digest(),
        "held_out_tokens": len(held_out),
        "held_out_sha256": hashlib.sha256(corpus.held_out.encode()).hexdigest(),
        "tokenizer_sha256": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "versions": {name: module.__version__ for name, module in (("torch", torch), ("transformers", transformers))},
    })  # fmt: skip
    with tempfile.TemporaryDirectory(prefix=".tokenizer-", dir=args.out) as temporary:
        tokenizer.save_pretrained(temporary)
        for path in Path(temporary).iterdir():
            path.replace(args.out / path.name)
    with replacing(args.out / HELD_OUT) as path:
        path.write_bytes(corpus.held_out.encode())
    return run


def count(text: str) -> int:
    if (number := int(text)) < 0:
        raise ValueError
    return number


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=ARCHITECTURES, default="gpt-neox", help="default: gpt-neox, as Pythia")
    parser.add_argument("--steps", type=count, default=1600, help="default: 1600")
    parser.add_argument("--every", type=count, default=200, help="checkpoints beyond step 512 (default: 200)")
    parser.add_argument("--context", type=count, default=256, help="tokens in a row (default: 256)")
    parser.add_argument("--batch", type=count, help=f"rows per step (default: of {TOKENS_PER_STEP} tokens in all)")
    parser.add_argument("--text", type=Path, help="a file or folder of text (default: Python's standard library)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--seed", type=count, default=0, help="default: 0")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    args = parser.parse_args(words)
    torch.set_num_threads(1)  # sums depend on how they are shared out
    torch.use_deterministic_algorithms(True, warn_only=True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        if args.context < 2 or args.every < 1 or args.batch == 0:
            raise UsageError("--context takes 2 or more, --every and --batch 1 or more.")
        args.batch = args.batch or max(1, TOKENS_PER_STEP // args.context)
        run = prepare(args)
        run.resume()
        run.go()
    except PosthocError as error:
        print(f"lm.py: {shown(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (OSError, SafetensorError) as error:  # a full disk, most likely
        print(f"lm.py: cannot write to {shown(args.out)}: {shown(error)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
