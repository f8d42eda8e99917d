"""Teach a small model what a teacher's traces show, and hand it to Ollama.

Supervised fine-tuning by TRL's SFTTrainer, of a LoRA (PEFT) or of all weights, after Chan et al.
(arXiv 2508.11386). The loss is on what the model itself says. The trainer writes checkpoints; a run that
was stopped goes on from the last whole one.

Not known here: bases whose chat format is not ChatML. Several GPUs are `accelerate launch`'s business.
"""

import hashlib
import io
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import ollama

from kit.config import PROFILES, KitError, Profile, replace_text
from kit.download import full_disk_said, need_disk
from kit.engine import sources
from kit.models import fetch_weights

BASE = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"  # of modelfiles/sources.toml
ARCHITECTURES = ("Qwen2ForCausalLM",)  # that Ollama imports from safetensors, and that speak ChatML
CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>
{% endgeneration %}{% else %}{{ message.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# The same for Ollama, whose last assistant turn stays open, so that a model can go on with it.
MODELFILE = '''# A lean model that `kit finetune` made.
FROM {weights}
PARAMETER num_ctx {num_ctx}
PARAMETER num_batch 128
PARAMETER temperature 0
PARAMETER seed 42
PARAMETER stop <|im_end|>
PARAMETER stop <|endoftext|>
TEMPLATE """{{{{ range $i, $_ := .Messages }}}}
{{{{- $last := eq (len (slice $.Messages $i)) 1 }}}}<|im_start|>{{{{ .Role }}}}
{{{{ .Content }}}}
{{{{- if or (not $last) (ne .Role "assistant") }}}}<|im_end|>
{{{{ end }}}}
{{{{- if and $last (ne .Role "assistant") }}}}<|im_start|>assistant
{{{{ end }}}}
{{{{- end }}}}"""
'''


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are for a LoRA over some hundred rows; `STUDY` is the study's, for all weights."""

    full: bool = False  # all weights instead of a LoRA
    epochs: float = 2.0
    learning_rate: float = 2e-4
    block: int = 2048  # tokens; a longer row is left out and counted
    batch: int = 4  # rows between two steps of the optimizer
    steps: int = -1  # at most so many steps, -1 for all of the epochs
    device: str = "auto"  # auto, cpu or cuda


STUDY = Recipe(full=True, epochs=5, learning_rate=1e-5, block=32768, batch=16)


def train(rows: Sequence[dict], base: str, home: Path, out: str | Path, recipe: Recipe) -> dict:
    """Train `base` on `{prompt, completion}` rows; the merged model is then in `out`/model.

    `base` is a Hugging Face id or folder, or a GGUF file of sources.toml (kept under `home`). Returns
    `{base, rows, too_long, tokens: {median, longest}, steps, loss: {first, last}, seconds}`. Raises
    `KitError` for no rows that fit the block, a base that Ollama would not import, a device that is not
    there, an `out` that holds another run, and a full disk, which keeps the checkpoints before it.
    """
    device, out = _device(recipe.device), Path(out)
    model, tokenizer = load(base, home)
    fitting, lengths = _fitting(rows, tokenizer, recipe.block)
    out.mkdir(parents=True, exist_ok=True)
    # The model in 16 bits; with all weights, three checkpoints (one being written) of these and two moments each, too.
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    need_disk(out, (10 if recipe.full else 1) * size, "checkpoints and model")
    trainer = _trainer(model, tokenizer, fitting, out, recipe, device)
    _same_run(out, {"base": base, **asdict(recipe), "rows": fitting}, trainer.is_world_process_zero())
    with full_disk_said(out, "a checkpoint"):
        done = trainer.train(resume_from_checkpoint=_last_checkpoint(out / "checkpoints"))
        losses = [{"step": row["step"], "loss": row["loss"]} for row in trainer.state.log_history if "loss" in row]
        if trainer.is_world_process_zero():
            _save(trainer, tokenizer, out, recipe)
            replace_text(out / "loss.jsonl", "".join(json.dumps(row) + "\n" for row in losses))
            _plot(losses, lengths, recipe.block, out)
    return {
        "base": base,
        "rows": len(fitting),
        "too_long": len(rows) - len(fitting),
        "tokens": {"median": sorted(lengths)[len(lengths) // 2], "longest": max(lengths)},
        "steps": trainer.state.global_step,
        "loss": {"first": losses[0]["loss"], "last": losses[-1]["loss"]} if losses else None,
        "seconds": round(done.metrics["train_runtime"], 1),
    }


def merge(adapter: str | Path, base: str, home: Path, out: str | Path) -> None:
    """Write `out`/model: `base` with an adapter that `train` has saved. Raises `KitError` as `load` does."""
    from peft import PeftModel

    model, tokenizer = load(base, home)
    _write(PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(), tokenizer, Path(out) / "model")


def load(base: str, home: Path) -> tuple:
    """Model and tokenizer of `base` (see `train`), in float32, with the chat template that is trained on.

    Raises `KitError` where there is no such base, or Ollama would not import what becomes of it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.set_verbosity_error()
    place, file = base, {}
    if base in sources()["weights"]:
        path, _ = fetch_weights(home, base)
        place, file = str(path.parent), {"gguf_file": path.name}
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(place, **file)
            model = AutoModelForCausalLM.from_pretrained(place, dtype="float32", **file)
    except (OSError, ValueError) as error:
        raise KitError(
            f"The base {base} cannot be loaded ({str(error).splitlines()[0]}); give a Hugging Face id, a folder of "
            f"one, or one of {', '.join(sources()['weights'])}."
        ) from error
    if type(model).__name__ not in ARCHITECTURES:
        raise KitError(
            f"The base {base} is a {type(model).__name__}, which would not come into Ollama from here; "
            f"use a {' or '.join(ARCHITECTURES)}, such as Qwen2.5."
        )
    tokenizer.chat_template = CHATML
    if file:  # transformers 5 does not save a model that it has loaded from a GGUF
        plain = type(model)(type(model.config)(**_plain(model.config)))
        plain.load_state_dict(model.state_dict())
        model = plain
    return model, tokenizer


def into_ollama(out: str | Path, name: str, profile: Profile, url: str) -> Path:
    """Create `name`, quantized to Q4_K_M, in the Ollama at `url` from `out`/model; the path of a profile file.

    With that file as the profile, the lean model is the reasoner, after `kit setup`. Raises `KitError`.
    """
    out = Path(out).absolute()
    client = ollama.Client(url, trust_env=False)
    weights = f"kit-{name}-weights".lower()
    wanted = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    try:
        files = {n: client.create_blob(out / "model" / n) for n in wanted if (out / "model" / n).is_file()}
        client.create(weights, files=files, quantize="q4_K_M")
    except (ollama.ResponseError, ConnectionError) as error:
        raise KitError(f"Ollama at {url} does not import {out / 'model'} ({error}); run `kit doctor`.") from error
    recipe, settings = out / f"{name}.Modelfile", out / f"{name}.toml"
    replace_text(recipe, MODELFILE.format(weights=weights, num_ctx=profile.num_ctx))
    replace_text(settings, _settings(replace(profile, reasoner=str(recipe), stand_in=False)))
    return settings


def _settings(profile: Profile) -> str:
    """A profile file that says all in which `profile` differs from `ci`; a file cannot begin from another file."""
    elsewhere = ("name", "why", "home", "ollama_host")  # these are not a file's to say
    own = {f.name: getattr(profile, f.name) for f in fields(Profile) if f.name not in elsewhere}
    changed = [(name, value) for name, value in own.items() if value != getattr(PROFILES["ci"], name)]
    return 'base = "ci"\n' + "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in changed)


def agreement(out: str | Path, name: str, url: str, prompts: Sequence[str]) -> float:
    """The share of `prompts` after which the model in `out`/model and Ollama's `name` say the same next token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(Path(out) / "model")
        model = AutoModelForCausalLM.from_pretrained(Path(out) / "model", dtype="float32")
    client, same = ollama.Client(url, trust_env=False), 0
    for prompt in prompts:
        with torch.inference_mode():
            token = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].argmax()
        options = {"temperature": 0, "num_predict": 1, "num_ctx": 8192}
        said = client.generate(name, prompt, raw=True, options=options).response
        same += said == tokenizer.decode([token], skip_special_tokens=True)
    return same / len(prompts)


def _device(wanted: str) -> str:
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise KitError("Training on cuda was asked for and PyTorch finds no such GPU; use --device cpu.")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _bf16_is_fast() -> bool:
    """Whether this CPU multiplies in bfloat16, which nearly halves a step; one that does not would emulate it."""
    import torch

    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def _fitting(rows: Sequence[dict], tokenizer, block: int) -> tuple[list[dict], list[int]]:
    """The rows that are no longer than `block` tokens, and the lengths of all."""
    texts = [tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False) for row in rows]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]] if texts else []
    fitting = [row for row, length in zip(rows, lengths, strict=True) if length <= block]
    if not fitting:
        raise KitError(f"None of the {len(rows)} rows has at most {block} tokens; give more rows or a larger --block.")
    return fitting, lengths


def _same_run(out: Path, run: dict, first: bool) -> None:
    """Refuse to go on from the checkpoints of another run; the `first` of several processes notes which one this is."""
    record, checksum = out / "run.sha256", hashlib.sha256(json.dumps(run).encode()).hexdigest()
    if record.is_file() and record.read_text() != checksum:
        raise KitError(f"{out} holds a run with other rows or settings; use another --out folder, or delete this one.")
    if first:
        replace_text(record, checksum)


def _trainer(model, tokenizer, rows: list[dict], out: Path, recipe: Recipe, device: str):
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    settings = SFTConfig(
        output_dir=str(out / "checkpoints"),
        max_length=recipe.block,
        completion_only_loss=True,
        assistant_only_loss=True,  # the request for the verdict is in the completion, and not the model's to say
        num_train_epochs=recipe.epochs,
        max_steps=recipe.steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=recipe.batch,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,  # a share of all steps
        weight_decay=1e-4,
        bf16=device == "cuda" or _bf16_is_fast(),
        use_cpu=device == "cpu",
        activation_checkpointing=device == "cuda",
        logging_steps=1,
        save_steps=10,
        save_total_limit=2,
        disable_tqdm=not _watched(),
        report_to="none",
        seed=0,
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model,
        settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=None if recipe.full else lora,
    )
    trainer.remove_callback(PrinterCallback)  # it writes to standard output
    return trainer


def _quiet():
    """The progress bars of transformers do not look whether anybody watches."""
    return nullcontext() if _watched() else redirect_stderr(io.StringIO())


def _watched() -> bool:
    return sys.stderr.isatty()


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; the trainer writes its state last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def _save(trainer, tokenizer, out: Path, recipe: Recipe) -> None:
    """The adapter in 16 bits, where there is one, and the merged model."""
    from safetensors.torch import load_file, save_file

    model = trainer.accelerator.unwrap_model(trainer.model)
    if not recipe.full:
        model.save_pretrained(out / "adapter")
        weights = out / "adapter" / "adapter_model.safetensors"
        save_file({name: weight.bfloat16() for name, weight in load_file(weights).items()}, weights)
        model = model.merge_and_unload()
    _write(model, tokenizer, out / "model")


def _write(model, tokenizer, folder: Path) -> None:
    """A model as Ollama reads it."""
    shutil.rmtree(folder, ignore_errors=True)
    with _quiet():
        model.bfloat16().save_pretrained(folder, max_shard_size="100GB")
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    # transformers 5 writes it in here, and Ollama reads it there; without it the model prints question marks only.
    config.setdefault("rope_theta", config.get("rope_parameters", {}).get("rope_theta"))
    replace_text(folder / "config.json", json.dumps(config, indent=1))


def _plain(config) -> dict:
    return {k: v for k, v in config.to_dict().items() if k not in ("quantization_config", "dtype", "_name_or_path")}


def _plot(losses: list[dict], lengths: list[int], block: int, out: Path) -> None:
    """`loss.png`, the loss at each step, and `tokens.png`, how long the rows are."""
    from matplotlib.figure import Figure  # and no pyplot, whose state belongs to the notebook that calls

    for name, label, draw in (
        ("loss.png", ("step", "loss"), lambda a: a.plot([r["step"] for r in losses], [r["loss"] for r in losses])),
        ("tokens.png", ("tokens", "rows"), lambda a: (a.hist(lengths, 30), a.axvline(block, color="grey"))),
    ):
        figure = Figure(figsize=(6, 2.8), layout="constrained")
        axis = figure.subplots()
        draw(axis)
        axis.set(xlabel=label[0], ylabel=label[1])
        figure.savefig(out / name, dpi=150)
