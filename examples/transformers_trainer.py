"""A small GPT-2 in transformers' Trainer, with the probe as a callback: python examples/transformers_trainer.py."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from gradexp.integrations.transformers import GradientProbeCallback

if __name__ == "__main__":
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=12, n_head=4, n_embd=64, vocab_size=100, n_positions=32))
    data = [{"input_ids": row, "labels": row} for row in torch.randint(100, (160, 32)).tolist()]
    arguments = TrainingArguments("trainer", max_steps=20, per_device_train_batch_size=8, report_to=[], use_cpu=True)
    probe = GradientProbeCallback(every=5)
    Trainer(model, arguments, train_dataset=data, callbacks=[probe]).train()
    print(probe.history)
    probe.history.to_html("trainer.html")
