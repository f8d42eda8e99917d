"""Fine-tuning for real, of a model of a few thousand weights that is made here."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from kit import distill, finetune
from kit.cli import main
from kit.config import KitError, load_profile, replace_text
from kit.finetune import Recipe
from kit.reasoner import ANSWER, VERDICT

TRACE = {
    "question": "What is the rent?",
    "thinking": "The first sentence of the passage states the rent.",
    "answer": "48,000",
    "citations": [{"quote": "The rent is 48,000"}],
    "hits": [{"id": "a", "source": "lease.pdf", "page": 1, "score": 1.0, "text": "The rent is 48,000 euros."}],
}
ROW = distill.training_row(TRACE)
SHORT = Recipe(steps=2, batch=1, device="cpu", block=4096)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A folder with a Qwen2 of random weights and a tokenizer of 300 tokens."""
    return made(tmp_path_factory.mktemp("base"), Qwen2Config)


def made(folder: Path, kind) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [VERDICT], trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    config = kind(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def test_a_model_learns_and_is_merged(tmp_path, base):
    result = finetune.train([ROW] * 4, base, tmp_path, tmp_path / "out", replace(SHORT, steps=12, learning_rate=0.05))
    assert result["rows"] == 4 and result["steps"] == 12 and result["loss"]["last"] < result["loss"]["first"]
    out = tmp_path / "out"
    assert len((out / "loss.jsonl").read_text().splitlines()) == 12
    assert (out / "adapter/adapter_model.safetensors").is_file() and (out / "loss.png").is_file()
    assert json.loads((out / "model/config.json").read_text())["rope_theta"] == 10000.0
    before, after = (AutoModelForCausalLM.from_pretrained(path, dtype="float32") for path in (base, out / "model"))
    changed = [name for name, weight in after.named_parameters() if not torch.equal(weight, before.get_parameter(name))]
    assert any("q_proj" in name for name in changed), "the adapter is in the merged weights"
    finetune.merge(out / "adapter", base, tmp_path, tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again/model", dtype="float32")
    torch.testing.assert_close(dict(again.named_parameters()), dict(after.named_parameters()), rtol=0.05, atol=0.01)


def test_all_weights_are_trained_where_that_is_asked_for(tmp_path, base):
    recipe = replace(SHORT, full=True, learning_rate=0.05, steps=12)
    loss = finetune.train([ROW], base, tmp_path, tmp_path / "out", recipe)["loss"]
    assert loss["last"] < loss["first"] - 0.5
    assert not (tmp_path / "out/adapter").exists() and (tmp_path / "out/model/model.safetensors").is_file()


def test_the_loss_is_on_what_the_model_says_alone(tmp_path, base):
    model, tokenizer = finetune.load(base, tmp_path)
    trainer = finetune._trainer(model, tokenizer, [ROW], tmp_path, SHORT, "cpu")
    row = trainer.train_dataset[0]
    learned = tokenizer.decode([label for label in row["labels"] if label != -100])
    assert (
        TRACE["thinking"] in learned
        and f'{ANSWER}48,000"' in learned
        and '{"words": ["The rent is 48,000"]}' in learned
    )
    assert "Passages:" not in learned and VERDICT not in learned
    assert tokenizer.decode(row["input_ids"]).count(VERDICT) == 1


def test_a_row_that_is_too_long_is_left_out_and_counted(tmp_path, base):
    long = distill.training_row(TRACE | {"thinking": "word " * 3000})
    assert finetune.train([ROW, long], base, tmp_path, tmp_path / "out", SHORT)["too_long"] == 1
    with pytest.raises(KitError, match="None of the 1 rows has at most 10 tokens"):
        finetune.train([ROW], base, tmp_path, tmp_path / "other", replace(SHORT, block=10))
    with pytest.raises(KitError, match="None of the 0 rows"):
        finetune.train([], base, tmp_path, tmp_path / "other", SHORT)


def test_a_stopped_run_goes_on_from_its_last_whole_checkpoint(tmp_path, base, monkeypatch):
    from transformers import Trainer

    out, steps, save = tmp_path / "out", [], Trainer._save_checkpoint
    recipe = replace(SHORT, steps=25)

    def full(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if len(steps) == 2:
            (out / "checkpoints/checkpoint-20").mkdir()
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "_save_checkpoint", full)
    with pytest.raises(KitError, match="disk is full"):
        finetune.train([ROW], base, tmp_path, out, recipe)
    assert finetune._last_checkpoint(out / "checkpoints").endswith("checkpoint-10")
    assert finetune.train([ROW], base, tmp_path, out, recipe)["steps"] == 25
    assert steps == [10, 20, 20, 25], "the second run began after step 10"
    assert len((out / "loss.jsonl").read_text().splitlines()) == 25


def test_another_run_in_the_same_folder_is_refused(tmp_path, base):
    finetune.train([ROW], base, tmp_path, tmp_path / "out", SHORT)
    for rows, recipe in (([ROW, ROW], SHORT), ([ROW], replace(SHORT, learning_rate=1e-3))):
        with pytest.raises(KitError, match="another --out"):
            finetune.train(rows, base, tmp_path, tmp_path / "out", recipe)


@pytest.mark.parametrize(
    "text", ['base = "ci"\nk = 3\nthinking_tokens = 200\n', 'base = "laptop"\n', 'embedding = "/ü/😀"\n']
)
def test_the_profile_of_the_lean_model_keeps_what_its_profile_says(tmp_path, text):
    (tmp_path / "mine.toml").write_text(text)
    profile = load_profile(str(tmp_path / "mine.toml"))
    own = replace(profile, reasoner="/x/lean.Modelfile", stand_in=False)
    replace_text(tmp_path / "lean.toml", finetune._settings(own))
    lean = load_profile(str(tmp_path / "lean.toml"))
    assert replace(lean, name=own.name, why=own.why) == own


def test_what_cannot_be_trained_is_refused_before_it_begins(tmp_path, base, monkeypatch):
    with pytest.raises(KitError, match=r"is a LlamaForCausalLM.*Qwen2ForCausalLM"):
        finetune.train([ROW], made(tmp_path / "llama", LlamaConfig), tmp_path, tmp_path / "out", SHORT)
    with pytest.raises(KitError, match="cannot be loaded"):
        finetune.train([ROW], str(tmp_path / "nowhere"), tmp_path, tmp_path / "out", SHORT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KitError, match="--device cpu"):
        finetune.train([ROW], base, tmp_path, tmp_path / "out", replace(SHORT, device="cuda"))
    assert not (tmp_path / "out").exists()


def test_questions_of_a_test_are_kept_apart():
    from conftest import FakeEmbedder

    rows = [{"question": "What is the rent?"}, {"question": "Who signed the lease?"}]
    assert distill.apart(rows, ["What is the rent?"], FakeEmbedder().encode) == rows[1:]
    assert distill.apart(rows, [], FakeEmbedder().encode) == rows


def test_the_tokenizer_is_saved_with_the_model(tmp_path, base):
    finetune.train([ROW], base, tmp_path, tmp_path / "out", SHORT)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/model")
    text = tokenizer.apply_chat_template(ROW["prompt"], tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_the_command_trains_on_what_was_accepted(tmp_path, base, capsys):
    profile = tmp_path / "other.toml"
    profile.write_text('base = "ci"\nprovider = "openai"\nbase_url = "http://127.0.0.1:9"\n')
    traces = tmp_path / "traces.jsonl"
    rows = [TRACE | {"rejected": ""}, TRACE | {"rejected": "wrong"}]
    traces.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["finetune", str(traces), "--out", str(tmp_path / "out"), "--base", base, "--profile", str(profile)]
    with pytest.raises(SystemExit) as end:
        main([*argv, "--steps", "1", "--block", "4096", "--device", "cpu", "--json"])
    said = capsys.readouterr()
    printed = json.loads(said.out)
    assert "%|" not in said.err, "no bars in a pipe"
    assert end.value.code == 0 and (printed["rows"], printed["steps"], printed["profile"]) == (1, 1, None)
    with pytest.raises(SystemExit) as end:
        main(["finetune", str(tmp_path / "none.jsonl"), "--out", "o", "--profile", str(profile)])
    assert end.value.code == 1 and "There is no file" in capsys.readouterr().err
    traces.write_text('{"id": "1", "question": "Who?", "answer": "Ada"}\n')
    with pytest.raises(SystemExit) as end:
        main(["finetune", str(traces), "--out", str(tmp_path / "out"), "--profile", str(profile)])
    assert end.value.code == 1 and "no traces" in capsys.readouterr().err
